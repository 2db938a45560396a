"""Tables of a book: made by migrations, or by the record types that they hold.

Amounts are decimal TEXT, exact for 128-bit money where SQLite's integers are not; times are
nanoseconds; every row names its book.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import apsw
import msgspec

from farebox.errors import StoreError
from farebox.ledger.records import RecordType
from farebox.stores.migrations import (
    APPLIED,
    Migrated,
    Migration,
    pending,
    require_current,
    shipped,
)
from farebox.stores.rows import table

#: How long `migrate` waits for another one, or for a server's batches.
_WAIT_MS = 60_000

MIGRATIONS = shipped("farebox.stores.sqlite")

_LOG = """
CREATE TABLE IF NOT EXISTS migrations (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at TEXT NOT NULL DEFAULT (datetime())
) STRICT
"""


def prepare(db: apsw.Connection, records: Sequence[RecordType[Any]]) -> None:
    """Make a new book whole, and the tables of record types that are new in an old one.

    Raises StoreOutdated when the book needs `migrate`, or a newer program.
    """
    db.execute("BEGIN IMMEDIATE")
    with _whole(db):
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        if "units" in tables:
            require_current(MIGRATIONS, _applied(db))
        else:
            for migration in MIGRATIONS:
                _apply(db, migration)
        for record in records:
            if table(record) not in tables:
                db.execute(record_tables(record))


def migrate(path: Path, *, look: bool = False) -> Migrated:
    """Apply what is missing, beside a running server of the previous version; blocking.

    A file's changes and its number are one transaction, so a killed one leaves old or new. Who
    comes second waits, and finds nothing to do. With `look` nothing is changed. Raises StoreError.
    """
    if not path.exists():
        raise StoreError(f"there is no book at {path}; `farebox serve` makes one")
    try:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        with contextlib.closing(db):
            db.set_busy_timeout(_WAIT_MS)
            db.execute("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0")
            if look:
                missing = pending(MIGRATIONS, _applied(db))
                return Migrated(missing, len(MIGRATIONS))
            return Migrated(tuple(_migrate(db)), len(MIGRATIONS))
    except apsw.BusyError:
        raise StoreError("the book is being written by somebody else; try again") from None
    except apsw.Error as error:
        raise StoreError(f"{path.name} could not be migrated: {error}") from error


def _migrate(db: apsw.Connection) -> Iterator[Migration]:
    while True:
        db.execute("BEGIN IMMEDIATE")
        with _whole(db):
            missing = pending(MIGRATIONS, _applied(db))
            if missing:
                _apply(db, missing[0])
        if not missing:
            return
        yield missing[0]


def _apply(db: apsw.Connection, migration: Migration) -> None:
    db.execute(_LOG)
    db.execute(migration.sql)
    db.execute(
        "INSERT INTO migrations (number, name) VALUES (?, ?)", (migration.number, migration.name)
    )


def _applied(db: apsw.Connection) -> int:
    made = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'migrations'").fetchone()
    return len(db.execute(APPLIED).fetchall()) if made else 0


@contextlib.contextmanager
def _whole(db: apsw.Connection) -> Iterator[None]:
    """End the transaction that is open: all of it, or nothing."""
    try:
        yield
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


@cache  # to resolve the types of all records' fields takes as long as the rest of opening a book
def record_tables(record: RecordType[Any]) -> str:
    """The statements that make a record type's table and indexes."""
    name = table(record)
    types = {field.name: field.type for field in msgspec.structs.fields(record.type)}
    columns = "".join(f", f_{column} {_affinity(types[column])}" for column in record.columns)
    made = [
        f"CREATE TABLE IF NOT EXISTS {name} (book INTEGER NOT NULL, key TEXT NOT NULL, "
        f"version INTEGER NOT NULL, seq INTEGER NOT NULL, value BLOB NOT NULL{columns}, "
        "PRIMARY KEY (book, key)) STRICT, WITHOUT ROWID;"
    ]
    for number, index in enumerate(record.indexes):
        fields = ", ".join(f"f_{column}" for column in index)
        made.append(
            f"CREATE INDEX IF NOT EXISTS {name}_{number} ON {name} (book, {fields}, key) "
            f"WHERE f_{index[0]} IS NOT NULL;"
        )
    return "\n".join(made)


def _affinity(field_type: Any) -> str:
    options = getattr(field_type, "__args__", (field_type,))
    return "INTEGER" if int in options else "TEXT"
