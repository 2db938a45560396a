"""The ground that the simulation stands on: time, processes, the disk's memory."""

from __future__ import annotations

import asyncio
import threading
from random import Random

import pytest

from farebox.books import RECORDS
from farebox.clock import ManualClock
from farebox.ledger.model import Kind, Open, Unit
from tests.simulation.disk import Disk
from tests.simulation.loop import NothingLeft, RealWorld, SimulatedLoop
from tests.simulation.nature import WorldClock, nature
from tests.simulation.store import SimulatedStore
from tests.simulation.weather import DiskWeather


def _loop() -> SimulatedLoop:
    return SimulatedLoop(Random(0), is_shuffled=False)


def test_time_passes_only_where_nothing_is_left_to_do() -> None:
    loop = _loop()

    async def sleep() -> list[float]:
        begun = loop.time()
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(86_400))
        return [begun, loop.time()]

    assert loop.run_until_complete(sleep()) == [0, 86_400]
    loop.close()


def test_waiting_for_nobody_is_told_instead_of_hanging() -> None:
    loop = _loop()
    with pytest.raises(NothingLeft):
        loop.run_until_complete(loop.create_future())
    loop.close()


def test_a_killed_process_does_nothing_more_not_even_clean_up() -> None:
    loop, done = _loop(), []

    async def work() -> None:
        try:
            await asyncio.sleep(1)
            done.append("worked")
        finally:
            done.append("cleaned up")

    async def world() -> None:
        process = loop.new_process("victim")
        process.spawn(work())
        await asyncio.sleep(0.5)
        process.kill()
        await asyncio.sleep(10)

    loop.run_until_complete(world())
    assert done == []
    loop.bury()
    loop.close()


def test_there_is_one_thread() -> None:
    loop = _loop()
    with nature(1, WorldClock(loop)):
        with pytest.raises(RealWorld):
            threading.Thread(target=print).start()
        here = loop.run_until_complete(asyncio.to_thread(threading.get_ident))
        assert here == threading.get_ident()
    loop.close()


async def test_losing_power_loses_a_tail_of_what_was_not_synced_and_nothing_else() -> None:
    seen = set()
    for seed in range(20):
        disk = Disk(RECORDS, Random(seed))
        store = SimulatedStore(disk, ManualClock(), lambda: DiskWeather(commit_s=1e-6), Random(0))
        for number, synced in enumerate((True, False, True, False, False)):
            account = Open(f"customer:{number}", "BTC", Kind.CUSTOMER)
            await store.commit(Unit(f"u{number}", (account,)), synced=synced)
        disk.stop(loses_power=True)
        assert list(disk.accounts) == [f"customer:{n}" for n in range(len(disk.units))]
        seen.add(len(disk.units))
        await store.close()
    assert seen == {3, 4, 5}


async def test_a_kill_loses_nothing_that_was_written() -> None:
    disk = Disk(RECORDS, Random(0))
    store = SimulatedStore(disk, ManualClock(), lambda: DiskWeather(commit_s=1e-6), Random(0))
    await store.commit(Unit("u", (Open("customer:a", "BTC", Kind.CUSTOMER),)), synced=False)
    disk.stop(loses_power=False)
    assert "customer:a" in disk.accounts
    await store.close()
