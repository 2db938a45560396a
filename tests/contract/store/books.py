"""What the store's contract tests share: a backend to open books in, and small books."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Protocol

import msgspec

from farebox.clock import Clock, ManualClock
from farebox.ledger.invariants import Verified, verify
from farebox.ledger.model import Applied, Kind, Open, Step, Transfer, Unit
from farebox.ledger.records import RecordType
from farebox.ledger.replay import Broken
from farebox.ledger.store import Store
from farebox.stores.sqlite import SqliteStore
from farebox.stores.sqlite.audit import SqliteAuditReader
from tests.simulation.disk import Disk, DiskReader
from tests.simulation.store import SimulatedStore
from tests.simulation.weather import DiskWeather


class State(enum.StrEnum):
    OPEN = "open"
    DONE = "done"


class Job(msgspec.Struct, frozen=True):
    """A row with every kind of field that can be indexed."""

    state: State = State.OPEN
    due_at: int = 0
    owner: str | None = None
    count: int = 0


JOB = RecordType("test.job", Job, indexes=(("state", "due_at"), ("owner",)))
COUNTER = RecordType("test.counter", Job)
RECORDS = (JOB, COUNTER)


class Backend(Protocol):
    """One database that may be opened again and again; each store implementation has one."""

    def open(self, clock: Clock | None = None) -> AbstractAsyncContextManager[Store]:
        """The same book, each time."""
        ...

    def verify(self) -> Verified:
        """Verify the book; may be called while it is open."""
        ...


class Sqlite:
    """A book in a file."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "book.db"

    @asynccontextmanager
    async def open(self, clock: Clock | None = None) -> AsyncIterator[Store]:
        store = SqliteStore(self.path, RECORDS, clock=clock or ManualClock())
        try:
            yield store
        finally:
            await store.close()

    def verify(self) -> Verified:
        with SqliteAuditReader(self.path, RECORDS) as reader:
            result = verify(reader)
        assert not isinstance(result, Broken), str(result)
        return result[0]


class Simulated:
    """A book in the memory of a simulation, which stands for all others there."""

    def __init__(self, _: Path) -> None:
        self._disk = Disk(RECORDS, Random(0))

    @asynccontextmanager
    async def open(self, clock: Clock | None = None) -> AsyncIterator[Store]:
        calm = DiskWeather(commit_s=1e-6)
        store = SimulatedStore(self._disk, clock or ManualClock(), lambda: calm, Random(0))
        try:
            yield store
        finally:
            await store.close()

    def verify(self) -> Verified:
        result = verify(DiskReader(self._disk))
        assert not isinstance(result, Broken), str(result)
        return result[0]


BACKENDS: dict[str, Callable[[Path], Backend]] = {"sqlite": Sqlite, "simulated": Simulated}


def opens(asset: str = "BTC") -> tuple[Step, ...]:
    """One account of each kind that the tests use."""
    return (
        Open("custody", asset, Kind.CUSTODY),
        Open("a", asset, Kind.CUSTOMER),
        Open("b", asset, Kind.CUSTOMER),
        Open("revenue", asset, Kind.REVENUE),
    )


async def fund(store: Store, amount: int = 1_000, account: str = "a") -> None:
    """Accounts, and money for one of them."""
    steps = (*opens(), Transfer("custody", account, amount, "deposit"))
    assert isinstance(await store.commit(Unit(f"fund:{account}", steps)), Applied)


async def do(store: Store, unit_id: str, *steps: Step, **more: Any) -> Any:
    """Commit a unit of these steps."""
    return await store.commit(Unit(unit_id, steps, **more))


async def balances(store: Store, account: str) -> Sequence[int]:
    """debits_pending, debits_posted, credits_pending, credits_posted."""
    found = await store.account(account)
    assert found is not None
    return (
        found.debits_pending,
        found.debits_posted,
        found.credits_pending,
        found.credits_posted,
    )


async def available(store: Store, account: str) -> int:
    found = await store.account(account)
    assert found is not None
    return found.available
