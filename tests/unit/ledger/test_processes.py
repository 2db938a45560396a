"""Who still runs, as each process of a book sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.clock import ManualClock
from farebox.errors import StoreError
from farebox.ledger.model import Outcome, Unit
from farebox.ledger.processes import LAPSE_BEATS, PROCESS, Processes
from farebox.ledger.service import Ledger
from farebox.stores.sqlite import SqliteStore


class FailingStore(SqliteStore):
    """A store that can be away."""

    is_away = False

    async def commit(self, unit: Unit, *, synced: bool = True) -> Outcome:
        if self.is_away:
            raise StoreError("away")
        return await super().commit(unit, synced=synced)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FailingStore]:
    made = FailingStore(tmp_path / "book.db", [PROCESS])
    yield made
    await made.close()


async def started(store: FailingStore) -> Processes:
    processes = Processes(Ledger(store, ManualClock()))
    await processes.start()
    return processes


async def beats(*alive: Processes, times: int = LAPSE_BEATS + 1) -> None:
    for _ in range(times):
        for one in alive:
            await one.beat()


async def test_a_process_that_beats_is_never_taken_for_dead(store: FailingStore) -> None:
    a, b = await started(store), await started(store)
    await beats(a, b, times=5 * LAPSE_BEATS)
    assert await b.others() == {a.name}
    assert await a.others() == {b.name}


async def test_a_process_without_beats_has_ended_for_all(store: FailingStore) -> None:
    a, b, c = [await started(store) for _ in range(3)]
    await beats(b, c, times=LAPSE_BEATS)
    assert a.name in await b.others(), "not yet"
    await beats(b, c, times=1)
    assert await b.others() == {c.name}
    assert await c.others() == {b.name}


async def test_a_process_that_stops_has_ended_at_once(store: FailingStore) -> None:
    a, b = await started(store), await started(store)
    await a.stop()
    assert await b.others() == frozenset()


async def test_a_process_that_was_taken_for_dead_goes_on_under_a_new_name(
    store: FailingStore,
) -> None:
    a, b = await started(store), await started(store)
    old = a.name
    await beats(b)
    await a.beat()
    assert a.name != old
    assert await b.others() == {a.name}, "an ended name never runs again"
    await beats(a, b)
    assert await b.others() == {a.name}


async def test_a_store_that_is_away_kills_nobody(store: FailingStore) -> None:
    a, b = await started(store), await started(store)
    store.is_away = True
    for _ in range(3 * LAPSE_BEATS):
        with pytest.raises(StoreError):
            await b.beat()
    store.is_away = False
    await b.beat()
    assert await b.others() == {a.name}


async def test_two_that_see_the_end_at_once_agree(store: FailingStore) -> None:
    _dead, b, c = [await started(store) for _ in range(3)]
    for _ in range(LAPSE_BEATS + 1):
        await asyncio.gather(b.beat(), c.beat())
    assert await b.others() == {c.name}
    assert await c.others() == {b.name}


async def test_who_is_alone_waits_for_no_lapse_and_does_not_beat(store: FailingStore) -> None:
    before = await started(store)
    alone = Processes(Ledger(store, ManualClock()), alone=True)
    await alone.start()
    assert await alone.others() == frozenset()
    row = await store.get(PROCESS, alone.name)
    await alone.beat()
    assert await store.get(PROCESS, alone.name) == row
    await before.beat()
    assert before.name in await alone.others(), "under a new name"
