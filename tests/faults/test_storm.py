"""Everything goes wrong at once, at random: every way breaks, and the house is killed meanwhile.

What goes wrong follows from a seed, which a failure names; how it falls in time does not. Longer:
`FAULT_SECONDS=600 pytest tests/faults/test_storm.py`.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.crash.scenarios import drain
from tests.crash.world import Nursery, Run
from tests.faults.acts import ACTS, Act, Facts
from tests.faults.proxy import Side, Strike, What, seeded
from tests.faults.town import Town, town

#: Set to the number that a failure names, to have the same faults again.
SEED = "FAULT_SEED"
SECONDS = "FAULT_SECONDS"
_SECONDS = 4
_CLIENTS = 6
_SHARE = 0.12
_JUMP_S = 60
#: An operation waits no longer than this until it is asked about again.
_BACKOFF_S = 400
_STRIKES = tuple(
    Strike(what, side, at, seconds=0.1)
    for what in What
    for side in Side
    for at in (0, 30, 150, 1_000)
)

Done = list[tuple[Run, Act, Facts]]


@pytest.mark.slow
@pytest.mark.timeout(int(os.environ.get(SECONDS, _SECONDS)) + 600)
async def test_no_unit_is_lost_or_made_in_a_storm(nursery: Nursery, tmp_path: Path) -> None:
    seed = os.environ.get(SEED) or str(random.SystemRandom().randrange(1_000_000))
    chance = random.Random(seed)
    done: Done = []
    try:
        async with town(nursery, tmp_path) as here:
            storm = _Storm(here, done)
            for way, proxy in here.ways.items():
                proxy.plan = seeded(f"{seed}:{way.value}", _STRIKES, _SHARE)
            clients = [asyncio.create_task(storm.client(chance)) for _ in range(_CLIENTS)]
            await storm.rage(chance)
            here.be_well()
            await storm.calm(clients)
            await _check(here, done)
    except BaseException as error:
        error.add_note(f"{SEED}={seed}")
        raise


class _Storm:
    """Callers who each do one thing after the other, each to its end, whatever happens."""

    def __init__(self, here: Town, done: Done) -> None:
        self._here = here
        self._done = done
        self._is_over = False

    async def rage(self, chance: random.Random) -> None:
        """Kill the house now and then, and let its time pass, so that mints are asked again.

        A house that starts anew has the machine's time again: its clock has stepped back.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + int(os.environ.get(SECONDS, _SECONDS))
        ways = self._here.ways.values()
        while loop.time() < until_s or sum(len(way.struck) for way in ways) <= _CLIENTS:
            await asyncio.sleep(chance.uniform(0.1, 0.8))
            if chance.random() < 0.5:
                await self._here.restart()
            await self._here.house.jump(_JUMP_S)
        self._is_over = True

    async def calm(self, clients: Sequence[asyncio.Task[None]]) -> None:
        """Let time pass until everybody has what he wanted."""
        everybody = asyncio.gather(*clients)
        while not everybody.done():
            await self._here.house.jump(_BACKOFF_S)
            await asyncio.wait((everybody,), timeout=0.2)
        await everybody

    async def client(self, chance: random.Random) -> None:
        """One thing after the other."""
        while not self._is_over:
            client, act = self._here.house.another(), chance.choice(ACTS)
            await act.prepare(self._here, client)
            facts = await act.act(self._here, client)
            self._done.append((client, act, facts))


async def _check(here: Town, done: Done) -> None:
    await here.house.settle()
    assert len(done) >= _CLIENTS
    for client, act, facts in done:
        if act.is_named:
            assert await act.act(here, client) == facts, f"{act} was told otherwise before"
        here.house.takes_over(client)
    await here.look()
    for client, _, _ in done:
        await drain(client)
        for token in client.tokens:
            here.house.holds(token)
    await here.look()
