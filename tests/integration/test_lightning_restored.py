"""A book with a Lightning node that was put back, and what a node has beside what its books say."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from random import Random

import pytest

from farebox.books import backup
from farebox.cli.desk import carry_out
from farebox.cli.reconcile import _text
from farebox.cli.requests import Reconcile
from farebox.clock import SystemClock
from farebox.errors import InvalidInput
from farebox.testing.asgi import serving
from tests.integration.lightning_house import ROOT_KEY, house_on
from tests.simulation.lightning import CAPACITY_MSAT, ModelLnd, Moods

MACAROON = "0123456789abcdef" * 8


async def test_a_restored_book_stays_closed_until_its_node_has_told_what_came_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = ModelLnd(SystemClock(), Moods(Random(1)), macaroon=MACAROON)
    async with serving(node) as url:
        lightning = {"url": url, "key": MACAROON, "network": "bcrt", "timeout_s": 60}
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
        async with house_on(tmp_path / "first", lightning, (MACAROON,), monkeypatch) as house:
            before, after = await house.asked(21_000), await house.asked(34_000)
            assert node.pay_in(before["pay"])
            await house.until_credited(before)
            copy = tmp_path / "copy.db"
            settings = house.farebox.settings
            await asyncio.to_thread(backup, settings, ROOT_KEY, copy, lambda _: None)
            assert node.pay_in(after["pay"])
            await house.until_credited(after)
        shutil.copy(copy, tmp_path / "second" / "farebox.db")
        async with house_on(tmp_path / "second", lightning, (MACAROON,), monkeypatch) as house:
            assert house.farebox.doors.is_closed
            assert await house.held_msat() == 21_000
            node.moods.is_down = True
            told = await carry_out(house.farebox, Reconcile())
            assert (told["open"], told["away"]) == (False, ["lightning"])
            assert "lightning does not answer: run this again" in _text(told)
            node.moods.is_down = False
            for _ in range(20):  # the breaker leaves it alone for a while
                house.clock.ahead_s += 11
                told = await carry_out(house.farebox, Reconcile())
                if told["open"]:
                    break
            assert told["open"], told
            [place] = told["rails"]
            assert place["booked"] == 21_000 + 34_000
            request = await house.farebox.deposits.by_id(after["deposit"])
            assert request is not None
            assert request.credited_msat == 34_000


async def test_a_node_is_said_to_have_more_or_to_lack_what_the_books_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = ModelLnd(SystemClock(), Moods(Random(1)), macaroon=MACAROON)
    async with serving(node) as url:
        lightning = {"url": url, "key": MACAROON, "network": "bcrt", "timeout_s": 60}
        async with house_on(tmp_path, lightning, (MACAROON,), monkeypatch) as house:
            asked = await house.asked(21_000)
            assert node.pay_in(asked["pay"])
            await house.until_credited(asked)
            told = await carry_out(house.farebox, Reconcile())
            [place] = told["rails"]
            assert (place["booked"], place["held"]) == (21_000, CAPACITY_MSAT + 21_000)
            assert place["lacks"] == 0
            assert "1,000,000,000 sat more: your own" in _text(told)
            node.sent_msat += CAPACITY_MSAT + 6_000  # by somebody who has the node's key too
            told = await carry_out(house.farebox, Reconcile())
            assert told["rails"][0]["lacks"] == 6_000
            assert "IT LACKS 6 sat" in _text(told)


async def test_without_a_rail_that_tells_there_is_nothing_to_compare_in_an_open_book(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house_on(tmp_path, {}, (MACAROON,), monkeypatch) as house:
        with pytest.raises(InvalidInput, match="nothing to reconcile"):
            await carry_out(house.farebox, Reconcile())
