"""Tables of the books, and how a record type becomes one.

Amounts are NUMERIC(39,0), exact for 127 bits; times are nanoseconds; every row names its book.
Text compares by its bytes, whatever the database's locale, so that pages have one order.
"""

from __future__ import annotations

from typing import Any

import msgspec

from farebox.ledger.records import RecordType
from farebox.stores.rows import table

SCHEMA_VERSION = 1

_TEXT = 'TEXT COLLATE "C"'
_AMOUNT = "NUMERIC(39, 0) NOT NULL"

#: A statement each.
TABLES = (
    "CREATE TABLE IF NOT EXISTS farebox_schema (version INTEGER NOT NULL)",
    # Room in each page: the account that everybody pays is updated where it stands.
    f"""
    CREATE TABLE IF NOT EXISTS accounts (
        book INTEGER NOT NULL, id {_TEXT} NOT NULL, asset {_TEXT} NOT NULL, kind {_TEXT} NOT NULL,
        debits_pending {_AMOUNT}, debits_posted {_AMOUNT},
        credits_pending {_AMOUNT}, credits_posted {_AMOUNT}, ceiling NUMERIC(39, 0),
        PRIMARY KEY (book, id)
    ) WITH (fillfactor = 70)
    """,
    f"""
    CREATE TABLE IF NOT EXISTS units (
        book INTEGER NOT NULL, seq BIGINT NOT NULL, id {_TEXT} NOT NULL, at BIGINT NOT NULL,
        body BYTEA NOT NULL, digest BYTEA NOT NULL,
        PRIMARY KEY (book, seq)
    )
    """,
    "CREATE UNIQUE INDEX IF NOT EXISTS units_id ON units (book, id)",
    f"""
    CREATE TABLE IF NOT EXISTS movements (
        book INTEGER NOT NULL, seq BIGINT NOT NULL, step INTEGER NOT NULL, kind {_TEXT} NOT NULL,
        debit {_TEXT} NOT NULL, credit {_TEXT} NOT NULL, amount {_AMOUNT}, code {_TEXT} NOT NULL,
        hold {_TEXT} NOT NULL, expires_at BIGINT NOT NULL,
        PRIMARY KEY (book, seq, step)
    )
    """,
    f"""
    CREATE TABLE IF NOT EXISTS holds (
        book INTEGER NOT NULL, id {_TEXT} NOT NULL, debit {_TEXT} NOT NULL, credit {_TEXT} NOT NULL,
        amount {_AMOUNT}, code {_TEXT} NOT NULL, expires_at BIGINT NOT NULL, state {_TEXT} NOT NULL,
        PRIMARY KEY (book, id)
    )
    """,
    "CREATE INDEX IF NOT EXISTS holds_due ON holds (book, expires_at) "
    "WHERE state = 'open' AND expires_at > 0",
    "CREATE INDEX IF NOT EXISTS holds_debit ON holds (book, debit, expires_at) "
    "WHERE state = 'open' AND expires_at > 0",
    "CREATE INDEX IF NOT EXISTS holds_credit ON holds (book, credit, expires_at) "
    "WHERE state = 'open' AND expires_at > 0",
    f"""
    CREATE TABLE IF NOT EXISTS events (
        book INTEGER NOT NULL, number BIGINT NOT NULL, seq BIGINT NOT NULL, at BIGINT NOT NULL,
        name {_TEXT} NOT NULL, subject {_TEXT} NOT NULL, data BYTEA NOT NULL,
        PRIMARY KEY (book, number)
    )
    """,
    "CREATE INDEX IF NOT EXISTS events_subject ON events (book, subject, number)",
)


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
