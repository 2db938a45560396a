"""Rows as every database here gives and takes them, and the tables that records stand in.

Columns are in the order of the table; amounts are decimal text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from farebox.ledger.model import Account, HoldRow, HoldState, Kind, StoredEvent
from farebox.ledger.records import RecordType

_KINDS = {kind.value: kind for kind in Kind}

#: The columns of each table as this version writes them: a later one may have added more.
COLUMNS = {
    "accounts": "book, id, asset, kind, debits_pending, debits_posted, credits_pending, "
    "credits_posted, ceiling",
    "units": "book, seq, id, at, body, digest",
    "holds": "book, id, debit, credit, amount, code, expires_at, state",
    "events": "book, number, seq, at, name, subject, data",
}

#: book, id, asset, kind, the four balances, ceiling
AccountColumns = tuple[int, str, str, str, str, str, str, str, str | None]
#: book, id, debit, credit, amount, code, expires_at, state
HoldColumns = tuple[int, str, str, str, str, str, int, str]


def account_columns(book: int, account: Account) -> AccountColumns:
    """An account as it is stored."""
    return (
        book,
        account.id,
        account.asset,
        account.kind._value_,  # a fifth of what `value` takes, and this is asked most often
        str(account.debits_pending),
        str(account.debits_posted),
        str(account.credits_pending),
        str(account.credits_posted),
        None if account.ceiling is None else str(account.ceiling),
    )


def account_from(row: Sequence[Any]) -> Account:
    """An account from its columns after the book."""
    ceiling = None if row[7] is None else int(row[7])
    return Account(
        row[0], row[1], _KINDS[row[2]], int(row[3]), int(row[4]), int(row[5]), int(row[6]), ceiling
    )


def hold_columns(book: int, hold: HoldRow) -> HoldColumns:
    """A hold as it is stored."""
    return (
        book,
        hold.id,
        hold.debit,
        hold.credit,
        str(hold.amount),
        hold.code,
        hold.expires_at,
        hold.state.value,
    )


def hold_from(row: Sequence[Any]) -> HoldRow:
    """A hold from its columns after the book."""
    return HoldRow(row[0], row[1], row[2], int(row[3]), row[4], row[5], HoldState(row[6]))


def event_from(row: Sequence[Any]) -> StoredEvent:
    """An event from number, seq, at, name, subject, data."""
    return StoredEvent(row[0], row[1], row[2], row[3], row[4], msgspec.json.decode(row[5]))


def table(record: RecordType[Any]) -> str:
    """The name of a record type's table."""
    return table_of(record.kind)


def table_of(kind: str) -> str:
    """The name of the table of a record type's kind."""
    return f"record_{kind.replace('.', '_')}"


def record_columns(record: RecordType[Any]) -> str:
    """The columns of a record type's table, as in `COLUMNS`."""
    return ", ".join(
        ("book", "key", "version", "seq", "value", *(f"f_{name}" for name in record.columns))
    )
