"""The SQLite store: one file, written in turns of the event loop, synced and paged beside it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import apsw
import msgspec

from farebox.clock import Clock, SystemClock
from farebox.errors import StoreCorrupt, StoreError, StoreLocked
from farebox.ledger.model import (
    Account,
    Applied,
    Outcome,
    Refused,
    StoredEvent,
    Unit,
    check_unit,
)
from farebox.ledger.records import RecordType, Row, column_value
from farebox.ledger.store import PAGE_MAX, check_units
from farebox.stores.rows import account_from, event_from, table
from farebox.stores.sqlite.batch import ACCOUNT, known_outcome
from farebox.stores.sqlite.disk import Disk
from farebox.stores.sqlite.schema import prepare
from farebox.stores.sqlite.writer import Writer
from farebox.tally import Commits

T = TypeVar("T", bound=msgspec.Struct)
R = TypeVar("R")

_EXPIRE_MAX = 1_000


class SqliteStore:
    """One book of one file, owned by this process. Open it inside a running event loop.

    Single rows are read in the caller's thread, pages in one of their own, so that a long page
    delays no request. What was read is told once the disk has it. A caller that is cancelled while
    it waits for `commit` does not undo it.
    """

    def __init__(
        self,
        path: Path,
        records: Sequence[RecordType[Any]],
        *,
        clock: Clock | None = None,
        book: int = 1,
        commits: Commits | None = None,
    ) -> None:
        """Open or create the file and take ownership of it. `commits` counts what is committed.

        Raises StoreLocked when another process owns it, StoreOutdated when it is a book of another
        version, StoreCorrupt when it is no book, StoreError when it cannot be opened.
        """
        self._book = book
        with contextlib.ExitStack() as opened:
            lock = _take_ownership(path)
            opened.callback(os.close, lock)
            try:
                db = open_connection(path)
                opened.callback(db.close)
                names = [table(record) for record in records]
                if len(set(names)) < len(names):
                    raise ValueError(f"two record types share a table: {sorted(names)}")
                prepare(db, records)
                self._reader = open_connection(path, readonly=True)
                opened.callback(self._reader.close)
                self._pages = open_connection(path, readonly=True)
                opened.callback(self._pages.close)
                emptier = open_connection(path)
                opened.callback(emptier.close)
                self._writer = Writer(
                    db, book, clock or SystemClock(), Disk(path, emptier), commits or Commits()
                )
            except apsw.NotADBError as error:
                raise StoreCorrupt(f"{path.name} is no database") from error
            except apsw.Error as error:
                raise StoreError(f"cannot open {path.name}: {error}") from error
            self._opened = opened.pop_all()
        self._pager = ThreadPoolExecutor(1, "farebox-pages")
        self._closed = False

    async def commit(self, unit: Unit, *, synced: bool = True) -> Outcome:
        """Decide and durably store one unit; see `farebox.ledger.store.Store`."""
        check_unit(unit)
        (outcome,) = await self._writer.write((unit,), synced=synced)
        return outcome

    async def commit_many(self, units: Sequence[Unit], *, synced: bool = True) -> Sequence[Outcome]:
        """Decide and durably store many units; see `farebox.ledger.store.Store`."""
        check_units(units)
        return await self._writer.write(tuple(units), synced=synced)

    async def expire_due(self) -> int:
        """Release every hold that is due; returns how many."""
        total = 0
        while True:
            expired = await self._writer.expire(_EXPIRE_MAX)
            total += expired
            if expired < _EXPIRE_MAX:
                return total

    async def outcome(self, unit_id: str) -> Applied | Refused | None:
        """What became of a unit, or None when no such unit was committed.

        Raises StoreError while a failed COMMIT leaves it open which of both it is.
        """
        await self._writer.settled()
        with _reading():
            known = known_outcome(self._reader, self._book, unit_id)
        await self._writer.synced()
        return known

    async def get(self, record: RecordType[T], key: str) -> Row[T] | None:
        """One domain row."""
        row = await self._one(
            f"SELECT value, version FROM {table(record)} WHERE book = ? AND key = ?",
            self._book,
            key,
        )
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
        record.check_query(where, at_most and at_most[0])
        terms = ["book = ?", *(f"f_{name} = ?" for name in where), "key > ?"]
        values: list[object] = [self._book, *map(column_value, where.values()), after]
        if at_most is not None:
            terms.append(f"f_{at_most[0]} <= ?")
            values.append(at_most[1])
        return await self._page(
            f"SELECT key, value, version FROM {table(record)} WHERE {' AND '.join(terms)} "
            "ORDER BY key LIMIT ?",
            *values,
            min(limit, PAGE_MAX),
            read=lambda row: (row[0], Row(record.decode(row[1]), row[2])),
        )

    async def account(self, account_id: str) -> Account | None:
        """One account with its balances."""
        row = await self._one(
            f"SELECT {ACCOUNT} FROM accounts WHERE book = ? AND id = ?", self._book, account_id
        )
        return None if row is None else account_from(row)

    async def accounts(self, after: str = "", limit: int = PAGE_MAX) -> list[Account]:
        """Accounts in id order."""
        return await self._page(
            f"SELECT {ACCOUNT} FROM accounts WHERE book = ? AND id > ? ORDER BY id LIMIT ?",
            self._book,
            after,
            min(limit, PAGE_MAX),
            read=account_from,
        )

    async def events(
        self, after: int = 0, *, subject: str | None = None, limit: int = PAGE_MAX
    ) -> list[StoredEvent]:
        """Events in order."""
        term, values = ("", ()) if subject is None else ("AND subject = ? ", (subject,))
        return await self._page(
            "SELECT number, seq, at, name, subject, data FROM events "
            f"WHERE book = ? AND number > ? {term}ORDER BY number LIMIT ?",
            self._book,
            after,
            *values,
            min(limit, PAGE_MAX),
            read=event_from,
        )

    async def close(self) -> None:
        """Finish what is queued, then let go of the book."""
        await self._writer.close()
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._pager.shutdown)
        self._opened.close()

    async def _one(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        with _reading():
            row: tuple[Any, ...] | None = self._reader.execute(sql, values).fetchone()
        await self._writer.synced()
        return row

    async def _page(self, sql: str, *values: object, read: Callable[..., R]) -> list[R]:
        def fetch() -> list[R]:
            with _reading():
                return [read(row) for row in self._pages.execute(sql, values)]

        if self._closed:
            raise StoreError("the store is closed")
        rows = await asyncio.get_running_loop().run_in_executor(self._pager, fetch)
        await self._writer.synced()
        return rows


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        raise StoreError(f"the book could not be read: {error}") from error


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
        db.execute("PRAGMA synchronous = NORMAL")  # commits are synced by `Disk`, many at once
    # Not more: a commit that had to balance a tree walks through all places of the cache.
    db.execute("PRAGMA cache_size = -16384")
    return db


def _take_ownership(path: Path) -> int:
    """Hold the lock file for as long as this process lives; the kernel drops it with us."""
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # SQLite gives its files the permissions that it finds here: the owner's alone.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(f"cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(lock, 20).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise StoreLocked(
            f"{path.name} is in use by process {owner}, and a book in a file has one: stop it, or "
            "move the book to PostgreSQL, which any number of processes serve"
        ) from error
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock
