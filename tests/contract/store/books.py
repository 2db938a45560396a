"""What the store's contract tests share: a backend to open books in, and small books."""

from __future__ import annotations

import enum
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    nullcontext,
)
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import psycopg

from farebox.clock import ManualClock
from farebox.ledger.invariants import AuditReader, Verified, verify
from farebox.ledger.model import Applied, Kind, Open, Step, Transfer, Unit
from farebox.ledger.records import RecordType
from farebox.ledger.replay import Broken
from farebox.ledger.store import Store
from farebox.stores.audit import BookReader
from farebox.stores.postgres import PostgresStore
from farebox.stores.postgres.audit import PostgresAuditReader
from farebox.stores.sqlite import SqliteStore
from farebox.stores.sqlite.audit import SqliteAuditReader
from tests.peers.postgres import Postgres
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
#: One whose rows are found only as long as they are open.
TASK = RecordType(
    "test.task", Job, indexes=(("state",), ("owner",)), resting=frozenset({State.DONE.value})
)
RECORDS = (JOB, COUNTER, TASK)


class Backend(ABC):
    """One book that may be opened again and again; each store implementation has one."""

    def clock(self) -> ManualClock:
        """The clock that the book's stores go by."""
        return ManualClock()

    @abstractmethod
    def open(self, clock: ManualClock | None = None) -> AbstractAsyncContextManager[Store]:
        """The same book, each time; `clock` is one of `clock`'s."""

    @abstractmethod
    def reader(self) -> AbstractContextManager[AuditReader]:
        """A snapshot for the audit; may be taken while the book is open."""

    @abstractmethod
    def crash(self) -> None:
        """Go on from what is left when every process is killed at this moment."""

    def remove(self) -> None:
        """Forget the book."""
        return

    def verify(self) -> Verified:
        """The book must be whole."""
        with self.reader() as reader:
            result = verify(reader)
        assert not isinstance(result, Broken), str(result)
        return result[0]


class SqliteBook(Backend):
    """A book in a file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lives = 0

    @property
    def path(self) -> Path:
        return self._directory / f"book{self._lives or ''}.db"

    @asynccontextmanager
    async def open(self, clock: ManualClock | None = None) -> AsyncIterator[Store]:
        store = SqliteStore(self.path, RECORDS, clock=clock or ManualClock())
        try:
            yield store
        finally:
            await store.close()

    def crash(self) -> None:
        """What the disk holds at this moment is all that a killed process leaves behind."""
        old = self.path
        self._lives += 1
        for suffix in ("", "-wal"):
            shutil.copy(f"{old}{suffix}", f"{self.path}{suffix}")

    def reader(self) -> BookReader:
        return SqliteAuditReader(self.path, RECORDS)


class DatabaseClock(ManualClock):
    """The time of a database, which asks `clock_timestamp()` of the test's own schema."""

    def __init__(self, dsn: str) -> None:
        super().__init__()
        self._dsn = dsn
        self.tell()

    def jump(self, seconds: float) -> None:
        super().jump(seconds)
        self.tell()

    def tell(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as db:
            db.execute("UPDATE machine SET now_ns = %s", (self.now_ns(),))


class PostgresBook(Backend):
    """A book in a schema of its own, in which the time is the test's."""

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self.schema = f"test_{secrets.token_hex(6)}"
        self.dsn = self.dsn_at(server.port)
        with psycopg.connect(self.dsn, autocommit=True) as db:
            db.execute(f"CREATE SCHEMA {self.schema}")
            db.execute("CREATE TABLE machine (now_ns bigint NOT NULL)")
            db.execute("INSERT INTO machine VALUES (%s)", (ManualClock().now_ns(),))
            db.execute(
                "CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
                "'SELECT to_timestamp(0) + now_ns / 1000 * interval ''1 microsecond'' FROM machine'"
            )

    def dsn_at(self, port: int) -> str:
        """The book through another port."""
        return self._server.dsn_at(port, options=f"-csearch_path%3D{self.schema},pg_catalog")

    def clock(self) -> ManualClock:
        return DatabaseClock(self.dsn)

    @asynccontextmanager
    async def open(self, clock: ManualClock | None = None) -> AsyncIterator[Store]:
        """The time is the database's, whichever clock is given."""
        store = await PostgresStore.open(self.dsn, RECORDS)
        try:
            yield store
        finally:
            await store.close()

    def crash(self) -> None:
        """The server loses its processes, and every connection with them."""
        self._server.restart("immediate")

    def reader(self) -> BookReader:
        return PostgresAuditReader(self.dsn, RECORDS)

    def remove(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as db:
            db.execute("SET client_min_messages = warning")
            db.execute(f"DROP SCHEMA {self.schema} CASCADE")


class SimulatedBook(Backend):
    """A book in the memory of a simulation, which stands for all others there."""

    def __init__(self) -> None:
        self._disk = Disk(RECORDS, Random(0))

    @asynccontextmanager
    async def open(self, clock: ManualClock | None = None) -> AsyncIterator[Store]:
        calm = DiskWeather(commit_s=1e-6)
        store = SimulatedStore(self._disk, clock or ManualClock(), lambda: calm, Random(0))
        try:
            yield store
        finally:
            await store.close()

    def crash(self) -> None:
        self._disk.stop(loses_power=False)

    def reader(self) -> AbstractContextManager[AuditReader]:
        return nullcontext(DiskReader(self._disk))


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
