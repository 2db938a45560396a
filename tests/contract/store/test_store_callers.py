"""Many callers at once: batches, races, callers that leave, a store that closes."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from farebox.clock import ManualClock
from farebox.errors import StoreBusy
from farebox.ledger.model import Applied, Outcome, Put, Refused, Transfer, Unit
from farebox.ledger.service import Ledger, State
from farebox.ledger.store import Store
from tests.contract.store.books import COUNTER, JOB, Backend, Job, available, do, fund
from tests.waiting import WAIT_S


async def test_many_callers_share_few_transactions(store: Store) -> None:
    """Units of one transaction have one time: so the times count the transactions."""
    await fund(store, 10_000)
    told = await asyncio.gather(
        *(do(store, f"p:{n}", Transfer("a", "b", 1, "x")) for n in range(1_000))
    )
    assert all(isinstance(outcome, Applied) for outcome in told)
    assert len({outcome.at for outcome in told}) < 50
    assert sorted(outcome.seq for outcome in told) == list(range(2, 1_002))


async def test_thirty_two_tasks_increment_one_row_once_each(store: Store) -> None:
    ledger = Ledger(store, ManualClock())

    async def increment(task: int) -> Outcome | None:
        def decide(state: State, _: int) -> Unit:
            count = getattr(state.value(COUNTER, "c"), "count", 0)
            version = state.version(COUNTER, "c")
            put = Put(COUNTER, "c", Job(count=count + 1), version)
            return Unit(f"inc:{task}", puts=(put,))

        return await ledger.transact([(COUNTER, "c")], decide)

    told = await asyncio.gather(*(increment(task) for task in range(32)))
    assert all(isinstance(outcome, Applied) for outcome in told)
    row = await store.get(COUNTER, "c")
    assert row is not None
    assert (row.value.count, row.version) == (32, 32)


async def test_a_lost_race_is_decided_again_on_what_is_there_now(store: Store) -> None:
    """Another process, which knows nothing of this one's locks, is faster twice."""
    mine, other = Ledger(store, ManualClock()), Ledger(store, ManualClock())
    seen: list[int] = []

    class Rival:
        """A store in front of which somebody else pushes in."""

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        async def commit(self, unit: Unit, *, synced: bool = True) -> Outcome:
            if len(seen) < 3:
                await other.transact([(COUNTER, "c")], plus(f"rival:{len(seen)}", 100))
            return await store.commit(unit, synced=synced)

    def plus(unit_id: str, more: int, told: list[int] | None = None) -> Any:
        def decide(state: State, _: int) -> Unit:
            count = getattr(state.value(COUNTER, "c"), "count", 0)
            if told is not None:
                told.append(count)
            version = state.version(COUNTER, "c")
            return Unit(unit_id, puts=(Put(COUNTER, "c", Job(count=count + more), version),))

        return decide

    mine.store = Rival()
    assert isinstance(await mine.transact([(COUNTER, "c")], plus("mine", 1, seen)), Applied)
    assert seen == [0, 100, 200]
    row = await store.get(COUNTER, "c")
    assert row is not None
    assert row.value.count == 201


async def test_one_who_always_loses_is_told(store: Store) -> None:
    ledger = Ledger(store, ManualClock())
    stale = Unit("u", puts=(Put(COUNTER, "c", Job(), 7),))
    with pytest.raises(StoreBusy):
        await ledger.transact([(COUNTER, "c")], lambda state, now: stale)


async def test_rows_that_were_read_and_not_written_are_guarded(store: Store) -> None:
    ledger = Ledger(store, ManualClock())
    told = await ledger.transact(
        [(JOB, "limit"), (COUNTER, "c")],
        lambda state, _: Unit("u", puts=(Put(COUNTER, "c", Job(), state.version(COUNTER, "c")),)),
    )
    assert isinstance(told, Applied)


async def test_a_decision_may_be_that_nothing_happens(store: Store) -> None:
    ledger = Ledger(store, ManualClock())
    assert await ledger.transact([(JOB, "j")], lambda state, now: ("no", now)) == (
        "no",
        ledger.clock.now_ns(),
    )
    assert await store.outcome("u") is None


async def test_calls_that_want_the_same_rows_in_another_order_do_not_lock_up(store: Store) -> None:
    ledger = Ledger(store, ManualClock())

    async def move(task: int) -> Outcome:
        rows = [(COUNTER, "x"), (COUNTER, "y"), (JOB, "z")]
        random.Random(task).shuffle(rows)

        def decide(state: State, _: int) -> Unit:
            return Unit(
                f"m:{task}",
                puts=tuple(Put(r, key, Job(count=task), state.version(r, key)) for r, key in rows),
            )

        return await ledger.transact(rows, decide)

    told = await asyncio.wait_for(asyncio.gather(*(move(task) for task in range(40))), WAIT_S)
    assert all(isinstance(outcome, Applied) for outcome in told)


async def test_a_caller_that_leaves_harms_nobody_and_its_unit_stays_whole(store: Store) -> None:
    await fund(store)
    tasks = [
        asyncio.create_task(do(store, f"p:{n}", Transfer("a", "b", 1, "x"))) for n in range(200)
    ]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    told = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, Applied) for outcome in told[1::2])
    known = [await store.outcome(f"p:{n}") for n in range(200)]
    assert await available(store, "b") == sum(outcome is not None for outcome in known)


async def test_the_locks_of_a_caller_that_left_are_free(store: Store) -> None:
    ledger = Ledger(store, ManualClock())

    def decide(state: State, _: int) -> Unit:
        version = state.version(COUNTER, "c")
        return Unit(f"u:{version}", puts=(Put(COUNTER, "c", Job(), version),))

    tasks = [asyncio.create_task(ledger.transact([(COUNTER, "c")], decide)) for _ in range(20)]
    await asyncio.sleep(0)
    for task in tasks[:19]:
        task.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), WAIT_S)
    told = await asyncio.wait_for(ledger.transact([(COUNTER, "c")], decide), WAIT_S)
    assert isinstance(told, Applied)


async def test_closing_answers_everybody_who_waits(backend: Backend) -> None:
    async with backend.open() as store:
        await fund(store, 500)
        waiting = [
            asyncio.create_task(do(store, f"p:{n}", Transfer("a", "b", 1, "x")))
            for n in range(1_000)
        ]
        sweep = asyncio.create_task(store.expire_due())
        await asyncio.sleep(0)
        await store.close()
        told = await asyncio.wait_for(asyncio.gather(*waiting), WAIT_S)
        assert [type(outcome) for outcome in told] == [Applied] * 500 + [Refused] * 500
        assert await sweep == 0
    async with backend.open() as store:
        assert await available(store, "b") == 500
    backend.verify()


@pytest.mark.parametrize("times", [2, 3])
async def test_closing_again_is_no_error(backend: Backend, times: int) -> None:
    async with backend.open() as store:
        await asyncio.gather(*(store.close() for _ in range(times)))
