"""Tables of a book, and how a record type becomes one.

Amounts are decimal TEXT, exact for 128-bit money where SQLite's integers are not; times are
nanoseconds; every row names its book.
"""

from __future__ import annotations

from typing import Any

import msgspec

from farebox.ledger.records import RecordType
from farebox.stores.rows import table

SCHEMA_VERSION = 1

TABLES = """
CREATE TABLE IF NOT EXISTS accounts (
    book INTEGER NOT NULL, id TEXT NOT NULL, asset TEXT NOT NULL, kind TEXT NOT NULL,
    debits_pending TEXT NOT NULL, debits_posted TEXT NOT NULL,
    credits_pending TEXT NOT NULL, credits_posted TEXT NOT NULL, ceiling TEXT,
    PRIMARY KEY (book, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS units (
    book INTEGER NOT NULL, seq INTEGER NOT NULL, id TEXT NOT NULL, at INTEGER NOT NULL,
    body BLOB NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (book, seq)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS units_id ON units (book, id);

CREATE TABLE IF NOT EXISTS movements (
    book INTEGER NOT NULL, seq INTEGER NOT NULL, step INTEGER NOT NULL, kind TEXT NOT NULL,
    debit TEXT NOT NULL, credit TEXT NOT NULL, amount TEXT NOT NULL, code TEXT NOT NULL,
    hold TEXT NOT NULL, expires_at INTEGER NOT NULL,
    PRIMARY KEY (book, seq, step)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS holds (
    book INTEGER NOT NULL, id TEXT NOT NULL, debit TEXT NOT NULL, credit TEXT NOT NULL,
    amount TEXT NOT NULL, code TEXT NOT NULL, expires_at INTEGER NOT NULL, state TEXT NOT NULL,
    PRIMARY KEY (book, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS holds_due ON holds (book, expires_at)
    WHERE state = 'open' AND expires_at > 0;
CREATE INDEX IF NOT EXISTS holds_debit ON holds (book, debit, expires_at)
    WHERE state = 'open' AND expires_at > 0;
CREATE INDEX IF NOT EXISTS holds_credit ON holds (book, credit, expires_at)
    WHERE state = 'open' AND expires_at > 0;

CREATE TABLE IF NOT EXISTS events (
    book INTEGER NOT NULL, number INTEGER NOT NULL, seq INTEGER NOT NULL, at INTEGER NOT NULL,
    name TEXT NOT NULL, subject TEXT NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (book, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS events_subject ON events (book, subject, number);
"""


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
