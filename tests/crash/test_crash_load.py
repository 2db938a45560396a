"""SIGKILL at random moments, under clients that all do something else."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.crash.scenarios import SCENARIOS, Facts, Scenario, drain
from tests.crash.world import LIGHTNING_FEE, Lost, Nursery, Outside, Run, new_run

_T = TypeVar("_T")
_CLIENTS = 6
_KILLS = 20
_TRIES_MAX = 6_000
_PAUSE_S = 0.02
#: Set to the number that a failure names, to have the same choices again.
_SEED = "FAREBOX_CRASH_SEED"

Told = list[tuple[Run, Scenario, Facts]]


@pytest.mark.slow
async def test_no_unit_is_lost_or_counted_twice_in_a_busy_house_that_is_killed_again_and_again(
    nursery: Nursery, around: Outside, tmp_path: Path
) -> None:
    seed = int(os.environ.get(_SEED) or random.SystemRandom().randrange(1_000_000))
    chance = random.Random(seed)
    house = new_run(nursery, around, tmp_path)
    told: Told = []
    try:
        assert await house.start()
        await house.arm(None)
        crowd = _Crowd(house, told)
        clients = [asyncio.create_task(crowd.client(chance)) for _ in range(_CLIENTS)]
        for _ in range(_KILLS):
            await asyncio.sleep(chance.uniform(0.02, 0.3))
            await house.kill()
            assert await house.start()
        crowd.is_over = True
        await asyncio.gather(*clients)
        await house.settle()
        await _check(house, told)
    except AssertionError as error:
        error.add_note(f"{_SEED}={seed}")
        raise
    finally:
        await house.kill()


class _Crowd:
    """Clients that each do one thing after the other, and each to its end."""

    def __init__(self, house: Run, told: Told) -> None:
        self._house = house
        self._told = told
        self.is_over = False

    async def client(self, chance: random.Random) -> None:
        """Start things until it is over; finish each."""
        scenarios = [one for one in SCENARIOS if not one.fee_ppk and not one.settings]
        while not self.is_over:
            client, scenario = self._house.another(), chance.choice(scenarios)
            await self._surely(client, lambda c=client, s=scenario: s.prepare(c))  # type: ignore[misc]
            facts = await self._surely(client, lambda c=client, s=scenario: s.act(c))  # type: ignore[misc]
            self._told.append((client, scenario, facts))

    async def _surely(self, client: Run, step: Callable[[], Awaitable[_T]]) -> _T:
        for _ in range(_TRIES_MAX):
            client.url = self._house.url
            try:
                return await step()
            except Lost:
                await asyncio.sleep(_PAUSE_S)
        raise AssertionError("the house never came back")


async def _check(house: Run, told: Told) -> None:
    assert len(told) >= _CLIENTS
    for client, scenario, facts in told:
        client.url = house.url
        if scenario.is_named:
            again = await scenario.act(client)
            assert again == facts, f"{scenario}: told {facts}, then {again}"
        house.takes_over(client)
    seen = await house.look()
    assert not seen.faults, seen.faults
    payments = sum(scenario.name == "refund-lightning" for _, scenario, _ in told)
    assert seen.fees == payments * LIGHTNING_FEE
    for client, _, _ in told:
        await drain(client)
        for token in client.tokens:
            house.holds(token)
    seen = await house.look()
    assert not seen.faults, seen.faults
