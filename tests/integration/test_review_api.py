"""What callers who pay nothing may not cost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.clock import ManualClock
from farebox.identity import IDEMPOTENT
from tests.integration.api_world import PlayMoney, World, methods_of, world_of


@pytest.fixture
def play() -> PlayMoney:
    return PlayMoney()


@pytest.fixture
async def world(tmp_path: Path, play: PlayMoney) -> AsyncIterator[World]:
    async with world_of(tmp_path / "book.db", methods_of(play), ManualClock()) as made:
        yield made


async def test_worthless_tokens_leave_few_rows_behind(world: World, play: PlayMoney) -> None:
    answers = []
    for number in range(30):
        token = f"play:worthless{number}:1000"
        play.spent.add(token)
        body = {"initial_balance_token": token}
        answers.append((await world.post("/create", body, name=f"n{number}")).status_code)
    assert answers[-1] == 429
    rows = await world.store.find(IDEMPOTENT, {})
    assert len(rows) <= 2 * 5, "the limit of failures bounds what is written"


async def test_who_failed_often_still_gets_the_answer_that_was_lost(
    world: World, play: PlayMoney
) -> None:
    first = await world.post("/create", {"initial_balance_token": "play:good:1000"})
    for number in range(6):
        play.spent.add(f"play:bad{number}:1000")
        await world.post("/create", {"initial_balance_token": f"play:bad{number}:1000"})
    again = await world.post("/create", {"initial_balance_token": "play:good:1000"})
    assert again.json()["api_key"] == first.json()["api_key"]
