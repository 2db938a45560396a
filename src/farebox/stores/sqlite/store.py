"""The SQLite store: one writer thread in front of one file, readers beside it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import apsw
import msgspec

from farebox.clock import Clock, SystemClock
from farebox.errors import StoreBusy, StoreCorrupt, StoreError, StoreLocked
from farebox.ledger.audit import GENESIS
from farebox.ledger.model import Account, Applied, Outcome, Refused, StoredEvent, Unit
from farebox.ledger.records import RecordType, Row
from farebox.ledger.store import PAGE_MAX
from farebox.stores.sqlite.batch import (
    ACCOUNT,
    Batch,
    Head,
    account_from,
    event_from,
    known_outcome,
)
from farebox.stores.sqlite.schema import (
    SCHEMA_VERSION,
    TABLES,
    column_value,
    record_tables,
    table,
)

T = TypeVar("T", bound=msgspec.Struct)

_QUEUE_MAX = 20_000
_BATCH_MAX = 1_000
_EXPIRE_MAX = 1_000


class _Work(NamedTuple):
    unit: Unit
    answer: asyncio.Future[Outcome]


class _Job(NamedTuple):
    run: Callable[[Batch], int]
    answer: asyncio.Future[int]


class SqliteStore:
    """One book of one file, owned by this process. Open it inside a running event loop."""

    def __init__(
        self,
        path: Path,
        records: Sequence[RecordType[Any]],
        *,
        clock: Clock | None = None,
        book: int = 1,
    ) -> None:
        """Open or create the file and take ownership of it.

        Raises StoreLocked when another process owns it, StoreCorrupt when it is not a book of
        this version, StoreError when it cannot be opened.
        """
        self._path = path
        self._book = book
        self._clock = clock or SystemClock()
        self._lock_file = _take_ownership(path)
        try:
            self._db = open_connection(path)
            _prepare(self._db, records)
            self._reader = open_connection(path, readonly=True)
            self._head = _head(self._db, book)
        except apsw.Error as error:
            os.close(self._lock_file)
            raise StoreError(f"cannot open {path.name}: {error}") from error
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[_Work | _Job | None] = queue.SimpleQueue()
        self._closed = False
        self._writer = threading.Thread(target=self._write_loop, name="farebox-writer", daemon=True)
        self._writer.start()

    async def commit(self, unit: Unit) -> Outcome:
        """Decide and durably store one unit; see `farebox.ledger.store.Store`."""
        if self._closed:
            raise StoreError("the store is closed; nothing was done")
        if self._work.qsize() >= _QUEUE_MAX:
            raise StoreBusy(f"{_QUEUE_MAX} units are waiting to be written; try again")
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._work.put(_Work(unit, future))
        return await future

    async def expire_due(self) -> int:
        """Release every hold that is due; returns how many."""
        total = 0
        while True:
            future: asyncio.Future[int] = self._loop.create_future()
            self._work.put(_Job(lambda batch: batch.run_expiry(_EXPIRE_MAX), future))
            expired = await future
            total += expired
            if expired < _EXPIRE_MAX:
                return total

    async def outcome(self, unit_id: str) -> Applied | Refused | None:
        """What became of a unit, or None when no such unit was committed."""
        return known_outcome(self._reader, self._book, unit_id)

    async def get(self, record: RecordType[T], key: str) -> Row[T] | None:
        """One domain row."""
        row = self._reader.execute(
            f"SELECT value, version FROM {table(record)} WHERE book = ? AND key = ?",
            (self._book, key),
        ).fetchone()
        return None if row is None else Row(record.decode(row[0]), row[1])

    async def find(
        self,
        record: RecordType[T],
        where: Mapping[str, str | int],
        *,
        at_most: tuple[str, int] | None = None,
        after: str = "",
        limit: int = PAGE_MAX,
    ) -> list[tuple[str, Row[T]]]:
        """Rows by their indexed fields, in key order."""
        terms = ["book = ?", *(f"f_{name} = ?" for name in where), "key > ?"]
        values: list[str | int | None] = [self._book, *map(column_value, where.values()), after]
        if at_most is not None:
            terms.append(f"f_{at_most[0]} <= ?")
            values.append(at_most[1])
        found = self._reader.execute(
            f"SELECT key, value, version FROM {table(record)} WHERE {' AND '.join(terms)} "
            "ORDER BY key LIMIT ?",
            (*values, min(limit, PAGE_MAX)),
        )
        return [(key, Row(record.decode(value), version)) for key, value, version in found]

    async def account(self, account_id: str) -> Account | None:
        """One account with its balances."""
        row = self._reader.execute(
            f"SELECT {ACCOUNT} FROM accounts WHERE book = ? AND id = ?", (self._book, account_id)
        ).fetchone()
        return None if row is None else account_from(row)

    async def accounts(self, after: str = "", limit: int = PAGE_MAX) -> list[Account]:
        """Accounts in id order."""
        found = self._reader.execute(
            f"SELECT {ACCOUNT} FROM accounts WHERE book = ? AND id > ? ORDER BY id LIMIT ?",
            (self._book, after, min(limit, PAGE_MAX)),
        )
        return [account_from(row) for row in found]

    async def events(
        self, after: int = 0, *, subject: str | None = None, limit: int = PAGE_MAX
    ) -> list[StoredEvent]:
        """Events in order."""
        term, values = ("", ()) if subject is None else ("AND subject = ? ", (subject,))
        found = self._reader.execute(
            "SELECT number, seq, at, name, subject, data FROM events "
            f"WHERE book = ? AND number > ? {term}ORDER BY number LIMIT ?",
            (self._book, after, *values, min(limit, PAGE_MAX)),
        )
        return [event_from(row) for row in found]

    async def close(self) -> None:
        """Finish what is queued, then let go of the book."""
        if self._closed:
            return
        self._closed = True
        self._work.put(None)
        await asyncio.to_thread(self._writer.join)
        self._reader.close()
        self._db.close()
        os.close(self._lock_file)

    # ── the writer thread ────────────────────────────────────────────────────────────────────────

    def _write_loop(self) -> None:
        while True:
            work: list[_Work] = []
            jobs: list[_Job] = []
            item = self._work.get()
            while item is not None:
                if isinstance(item, _Work):
                    work.append(item)
                else:
                    jobs.append(item)
                if len(work) == _BATCH_MAX:
                    break
                try:
                    item = self._work.get_nowait()
                except queue.Empty:
                    break
            if work:
                self._write(work)
            for job in jobs:
                result = self._transaction(job.run)
                self._loop.call_soon_threadsafe(_resolve, [(job.answer, result)])
            if item is None:
                return

    def _write(self, work: Sequence[_Work]) -> None:
        units = [item.unit for item in work]
        result = self._transaction(lambda batch: batch.run(units))
        if isinstance(result, StoreError) and len(work) > 1:
            # One unit that cannot be stored must not fail its neighbours: each alone.
            for item in work:
                self._write([item])
            return
        results = [result] if isinstance(result, StoreError) else result
        answers = [(item.answer, told) for item, told in zip(work, results, strict=True)]
        self._loop.call_soon_threadsafe(_resolve, answers)

    def _transaction(self, run: Callable[[Batch], Any]) -> Any:
        """Run one batch in one transaction. Returns its result, or the StoreError to raise.

        A failed statement or COMMIT rolls back, so an error means that nothing was done.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            batch = Batch(self._db, self._book, self._head, self._clock.now_ns())
            result = run(batch)
            self._db.execute("COMMIT")
        except Exception as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            failure = StoreError(f"the book could not be written: {error}")
            failure.__cause__ = error
            return failure
        self._head = batch.head
        return result


def _resolve(answers: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in answers:
        if future.done():
            continue  # the caller gave up waiting; what was committed stands
        if isinstance(result, StoreError):
            future.set_exception(result)
        else:
            future.set_result(result)


def open_connection(path: Path, *, readonly: bool = False) -> apsw.Connection:
    """A connection set up as this store needs it."""
    flags = (
        apsw.SQLITE_OPEN_READONLY
        if readonly
        else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    )
    db = apsw.Connection(str(path), flags=flags, statementcachesize=200)
    db.set_busy_timeout(5_000)
    if not readonly:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 4000")
    db.execute("PRAGMA cache_size = -65536")
    return db


def _prepare(db: apsw.Connection, records: Sequence[RecordType[Any]]) -> None:
    version = db.pragma("user_version")
    if version > SCHEMA_VERSION:
        raise StoreCorrupt(
            f"the database has schema version {version}, this program knows {SCHEMA_VERSION}: "
            "run a newer farebox"
        )
    with db:
        db.execute(TABLES)
        for record in records:
            db.execute(record_tables(record))
        db.pragma("user_version", SCHEMA_VERSION)


def _head(db: apsw.Connection, book: int) -> Head:
    row = db.execute(
        "SELECT seq, at, digest FROM units WHERE book = ? ORDER BY seq DESC LIMIT 1", (book,)
    ).fetchone()
    event = db.execute("SELECT max(number) FROM events WHERE book = ?", (book,)).fetchone()
    seq, at, digest = row or (0, 0, GENESIS)
    return Head(seq, at, digest, (event and event[0]) or 0)


def _take_ownership(path: Path) -> int:
    """Hold the lock file for as long as this process lives; the kernel drops it with us."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(lock, 20).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise StoreLocked(
            f"{path.name} is in use by process {owner}; stop it or use its command line"
        ) from error
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock
