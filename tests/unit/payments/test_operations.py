"""The journal's promises, on a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.clock import ManualClock
from farebox.errors import OutcomeUnknown, RailRejected, RailUnavailable
from farebox.ledger.model import (
    ABSENT,
    Applied,
    Hold,
    Kind,
    Open,
    Outcome,
    Put,
    Transfer,
    Unit,
    hold_id,
)
from farebox.ledger.processes import PROCESS, Processes
from farebox.ledger.service import Ledger
from farebox.payments.model import (
    OPERATION,
    Changes,
    Operation,
    OperationState,
    Rejected,
    Succeeded,
    Unresolved,
    Verdict,
)
from farebox.payments.operations import Operations
from farebox.stores.sqlite import SqliteStore


class Rail:
    """A handler that answers as told and remembers how it was asked."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict | Exception] = []
        self.asked: list[bool] = []

    async def attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        del operation
        self.asked.append(asked_before)
        await asyncio.sleep(0)
        verdict = self.verdicts.pop(0)
        if isinstance(verdict, Exception):
            raise verdict
        return verdict


class Journal:
    """A book with a funded customer, and one operation kind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = ManualClock()
        self.rail = Rail()

    async def start(self) -> None:
        self.store = SqliteStore(self.path, [OPERATION, PROCESS], clock=self.clock)
        ledger = Ledger(self.store, self.clock)
        self.processes = Processes(ledger, alone=True)
        await self.processes.start()
        self.operations = Operations(ledger, self.processes)
        self.operations.register("pay", self.rail)

    async def open(self, operation_id: str = "op") -> None:
        operation = Operation(
            id=operation_id, kind="pay", account="a", hold=hold_id(operation_id, 0), plan=b"plan"
        )
        changes = Changes((Hold("a", "c", 100, "pay"),))
        assert isinstance(await self.operations.open(operation, changes), Applied)

    async def balance(self) -> tuple[int, int]:
        account = await self.store.account("a")
        assert account is not None
        return account.available, account.debits_pending


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    made = Journal(tmp_path / "book.db")
    await made.start()
    fund = Unit(
        "fund",
        (
            Open("c", "BTC", Kind.CUSTODY),
            Open("a", "BTC", Kind.CUSTOMER),
            Transfer("c", "a", 1_000, "fund"),
        ),
    )
    assert isinstance(await made.store.commit(fund), Applied)
    yield made
    await made.store.close()


async def test_success_posts_what_really_moved(journal: Journal) -> None:
    journal.rail.verdicts = [Succeeded(60, b"done")]
    await journal.open()
    done = await journal.operations.advance("op", fresh=True)
    assert (done.state, done.amount, done.result) == (OperationState.SUCCEEDED, 60, b"done")
    assert await journal.balance() == (940, 0)
    assert journal.rail.asked == [False]


async def test_only_a_definite_rejection_releases_the_hold(journal: Journal) -> None:
    journal.rail.verdicts = [Rejected("no", "never")]
    await journal.open()
    done = await journal.operations.advance("op", fresh=True)
    assert done.state is OperationState.REJECTED
    assert await journal.balance() == (1_000, 0)


@pytest.mark.parametrize(
    "verdict",
    [
        Unresolved("time-out"),
        RailUnavailable("reset"),
        RailRejected("no such block"),  # to a question about what has left already
        ValueError("a bug"),
    ],
)
async def test_a_lost_answer_keeps_the_hold_and_is_asked_for_later(
    journal: Journal, verdict: Verdict | Exception
) -> None:
    journal.rail.verdicts = [verdict, Succeeded(100)]
    await journal.open()
    waiting = await journal.operations.advance("op", fresh=True)
    assert waiting.state is OperationState.OPEN
    assert await journal.balance() == (900, 100)
    assert await journal.operations.recover() == 0  # not due yet
    journal.clock.advance(2)
    assert await journal.operations.recover() == 1
    assert await journal.balance() == (900, 0)
    assert journal.rail.asked == [False, True]


async def test_what_moves_beside_an_attempt_has_it_asked_again_and_nobody_called(
    journal: Journal,
) -> None:
    other = Operation(id="other", kind="pay", account="a", hold="", plan=b"")
    await journal.store.commit(Unit("other", puts=(Put(OPERATION, "other", other, ABSENT),)))
    moved = [Changes(puts=(Put(OPERATION, "other", other, version),)) for version in (7, 1)]
    journal.rail.verdicts = [Succeeded(60, changes=changes) for changes in moved]
    await journal.open()
    waiting = await journal.operations.advance("op", fresh=True)
    assert waiting.state is OperationState.OPEN
    assert await journal.balance() == (900, 100)
    done = await journal.operations.advance("op")
    assert done.state is OperationState.SUCCEEDED
    assert journal.rail.asked == [False, True]
    assert await journal.balance() == (940, 0)


async def test_an_operation_that_was_open_at_a_stop_is_asked_about(journal: Journal) -> None:
    await journal.open()
    await journal.store.close()
    await journal.start()
    journal.rail.verdicts = [Succeeded(100)]
    assert await journal.operations.recover() == 1
    assert journal.rail.asked == [True]
    assert await journal.balance() == (900, 0)


async def test_many_who_advance_one_operation_attempt_it_once(journal: Journal) -> None:
    journal.rail.verdicts = [Succeeded(100)]
    await journal.open()
    done = await asyncio.gather(*(journal.operations.advance("op") for _ in range(20)))
    assert {operation.state for operation in done} == {OperationState.SUCCEEDED}
    assert await journal.balance() == (900, 0)


async def test_nothing_is_repeated_while_a_no_may_yet_be_stored(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, written = journal.store.commit, list[Unit]()

    async def in_doubt(unit: Unit, *, synced: bool = True) -> Outcome:
        """The answer to the first close is lost; the next commit finds it stored."""
        while written:
            await commit(written.pop())
        if unit.id == "op:close":
            written.append(unit)
            raise OutcomeUnknown(unit.id)
        return await commit(unit, synced=synced)

    journal.rail.verdicts = [Rejected("no", "never"), Succeeded(100)]
    await journal.open()
    monkeypatch.setattr(journal.store, "commit", in_doubt)
    with pytest.raises(OutcomeUnknown):
        await journal.operations.advance("op", fresh=True)
    assert (await journal.operations.advance("op")).state is OperationState.REJECTED
    assert journal.rail.asked == [False]
    assert await journal.balance() == (1_000, 0)


async def test_what_joins_the_close_never_stops_the_fact(journal: Journal) -> None:
    journal.rail.verdicts = [Succeeded(100)]
    await journal.open()
    too_much = Changes((Hold("a", "c", 10_000, "request"),))
    done = await journal.operations.advance("op", fresh=True, also=too_much)
    assert done.state is OperationState.SUCCEEDED
    assert await journal.balance() == (900, 0)


async def test_after_its_deadline_a_person_is_called(journal: Journal) -> None:
    journal.rail.verdicts = [Unresolved("silence"), Unresolved("silence")]
    await journal.open()
    await journal.operations.advance("op", fresh=True)
    journal.clock.advance(8 * 24 * 3600)
    await journal.operations.recover()
    found = await journal.operations.get("op")
    assert found is not None
    assert found.state is OperationState.MANUAL
    assert await journal.balance() == (900, 100)
    names = [event.name for event in await journal.store.events()]
    assert names[-1] == "operation.manual"


async def test_a_plan_is_wiped_once_it_is_closed(journal: Journal) -> None:
    journal.rail.verdicts = [Succeeded(1)]
    await journal.open()
    assert (await journal.operations.advance("op", fresh=True)).plan == b""
