"""A payment that its provider does not tell of keeps no other's events from being heard."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from farebox.errors import RailUnavailable
from farebox.payments.cards.method import CardMethod
from farebox.payments.cards.model import Notice
from farebox.payments.deposits import DepositState
from farebox.payments.rail import Sighting


async def test_what_cannot_be_told_now_is_read_again_and_in_nobodys_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def notices(cursor: str) -> tuple[list[Notice], str]:
        names = ("before", "silent", "after")
        return [Notice(f"evt_{name}", (name,)) for name in names], "beyond"

    async def about(reference: str) -> AsyncGenerator[Sighting, None]:
        if reference == "silent":
            raise RailUnavailable("there is no rate for its fee")
        yield Sighting(reference, reference, 1, DepositState.CONFIRMED)

    nothing = cast("Any", None)
    connector = cast("Any", SimpleNamespace(provider="stripe", notices=notices))
    rail = CardMethod(nothing, connector, nothing)
    monkeypatch.setattr(rail, "about", about)
    watching = rail.watch("cursor")
    told = [await anext(watching) for _ in range(2)]
    assert [(one.sighting.reference, one.cursor) for one in told] == [("before", ""), ("after", "")]
    with pytest.raises(RailUnavailable):  # and the cursor stays before all of them
        await anext(watching)
