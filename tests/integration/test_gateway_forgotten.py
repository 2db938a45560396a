"""A database that crashes forgets what was not synced; the gateway in front of it lives on."""

from __future__ import annotations

from pathlib import Path

import pytest

from farebox.ledger.model import Applied, Outcome, Transfer, Unit
from tests.integration.gateway_house import Door, open_door
from tests.integration.test_gateway_requests import receipt_of

FUNDED_MSAT, PRICE_MSAT = 1_000_000, 10_000


def forget_admissions(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the database had taken them, crashed, and come back before the answer did."""
    commit = door.house.store.commit

    async def forgetful(unit: Unit, *, synced: bool = True) -> Outcome:
        return await commit(unit) if synced else Applied(1, 1, (PRICE_MSAT,))

    monkeypatch.setattr(door.house.store, "commit", forgetful)


async def test_a_request_whose_hold_was_forgotten_is_answered_and_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_door(tmp_path) as (door, caller):
        forget_admissions(door, monkeypatch)
        async with caller.post(door.url, data=b"{}", headers=door.auth) as answer:
            assert (answer.status, await answer.json()) == (200, {"hello": "world"})
        assert receipt_of(answer)["charged_msat"] == PRICE_MSAT
        assert await door.left() == FUNDED_MSAT - PRICE_MSAT
        assert door.house.paywall.unsettled == 0


async def test_what_can_be_held_no_more_is_answered_and_charged_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_door(tmp_path) as (door, caller):
        spent = Transfer(door.account, "custody:test", FUNDED_MSAT, "spent")
        assert isinstance(await door.house.store.commit(Unit("spent", (spent,))), Applied)
        forget_admissions(door, monkeypatch)
        async with caller.post(door.url, data=b"{}", headers=door.auth) as answer:
            assert (answer.status, await answer.json()) == (200, {"hello": "world"})
        assert receipt_of(answer)["charged_msat"] == 0
        assert await door.left() == 0
        assert door.house.paywall.unsettled == 0
