"""Tables of the books: made by migrations, or by the record types that they hold.

Amounts are NUMERIC(39,0), exact for 127 bits; times are nanoseconds; every row names its book.
Text compares by its bytes, whatever the database's locale, so that pages have one order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import psycopg

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
from farebox.stores.postgres.connection import Connection, conninfo, place
from farebox.stores.rows import table

MIGRATIONS = shipped("farebox.stores.postgres")

_TEXT = 'TEXT COLLATE "C"'
_LOG = """
CREATE TABLE IF NOT EXISTS migrations (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
)
"""
_ADD = "INSERT INTO migrations (number, name) VALUES (%s, %s)"
#: Taken while tables are made, so that processes that start together do not trip over each other.
_LOCK = "SELECT pg_advisory_xact_lock(%s::int8)"
_LOCK_KEY = 0x46415245_424F58
#: A change that waits for a table makes all others wait behind it: it gives up soon, and again.
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '1s'"
_TRIES_MAX = 60
_TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"


async def prepare(connection: Connection, records: Sequence[RecordType[Any]]) -> None:
    """Make a new book whole, and the tables of record types that are new in an old one.

    Raises StoreOutdated when the database needs `migrate`, or a newer program.
    """
    async with connection.transaction():
        await connection.execute(_LOCK, (_LOCK_KEY,))
        found = await connection.execute(_TABLES)
        tables = {name for (name,) in await found.fetchall()}
        if "units" in tables:
            numbers = await connection.execute(APPLIED) if "migrations" in tables else None
            require_current(MIGRATIONS, len(await numbers.fetchall()) if numbers else 0)
        else:
            await connection.execute(_LOG)
            for migration in MIGRATIONS:
                await connection.execute(migration.sql.encode(), prepare=False)
                await connection.execute(_ADD, (migration.number, migration.name))
        for record in records:
            if table(record) not in tables:
                for statement in record_tables(record):
                    await connection.execute(statement.encode())


def migrate(dsn: str, *, look: bool = False) -> Migrated:
    """Apply what is missing, beside running servers of the previous version; blocking.

    A file's changes and its number are one transaction, so a killed one leaves old or new. Who
    comes second waits, and finds nothing to do. With `look` nothing is changed. Raises StoreError.
    """
    try:
        with psycopg.connect(conninfo(dsn), autocommit=True, prepare_threshold=None) as db:
            tables = {name for (name,) in db.execute(_TABLES)}
            if "units" not in tables:
                raise StoreError(f"there is no book in {place(dsn)}; `farebox serve` makes one")
            if look:
                return Migrated(pending(MIGRATIONS, _applied(db)), len(MIGRATIONS))
            return Migrated(tuple(_migrate(db)), len(MIGRATIONS))
    except psycopg.errors.LockNotAvailable:
        raise StoreError("others hold the tables for too long; try again") from None
    except psycopg.Error as error:
        raise StoreError(f"{place(dsn)} could not be migrated: {error}") from error


def _migrate(db: psycopg.Connection) -> Iterator[Migration]:
    tries = 0
    while True:
        try:
            with db.transaction():
                db.execute(_LOCK, (_LOCK_KEY,))
                missing = pending(MIGRATIONS, _applied(db))
                if missing:
                    db.execute(_LOCK_TIMEOUT)
                    db.execute(_LOG)
                    db.execute(missing[0].sql.encode())
                    db.execute(_ADD, (missing[0].number, missing[0].name))
        except psycopg.errors.LockNotAvailable:
            tries += 1
            if tries >= _TRIES_MAX:
                raise
            continue
        if not missing:
            return
        yield missing[0]


def _applied(db: psycopg.Connection) -> int:
    made = db.execute("SELECT to_regclass('migrations') IS NOT NULL").fetchone()
    return len(db.execute(APPLIED).fetchall()) if made and made[0] else 0


def record_tables(record: RecordType[Any]) -> list[str]:
    """The statements that make a record type's table and indexes."""
    name = table(record)
    columns = "".join(
        f", f_{column} {'BIGINT' if kind == 'int8' else _TEXT}"
        for column, kind in zip(record.columns, column_types(record), strict=True)
    )
    made = [
        f"CREATE TABLE IF NOT EXISTS {name} (book INTEGER NOT NULL, key {_TEXT} NOT NULL, "
        f"version BIGINT NOT NULL, seq BIGINT NOT NULL, value BYTEA NOT NULL{columns}, "
        "PRIMARY KEY (book, key))"
    ]
    for number, index in enumerate(record.indexes):
        fields = ", ".join(f"f_{column}" for column in index)
        made.append(
            f"CREATE INDEX IF NOT EXISTS {name}_{number} ON {name} (book, {fields}, key) "
            f"WHERE f_{index[0]} IS NOT NULL"
        )
    return made


def column_types(record: RecordType[Any]) -> list[str]:
    """The type of each indexed field, in the order of `record.columns`."""
    types = {field.name: field.type for field in msgspec.structs.fields(record.type)}
    return [
        "int8" if int in getattr(types[name], "__args__", (types[name],)) else "text"
        for name in record.columns
    ]
