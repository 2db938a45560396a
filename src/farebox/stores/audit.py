"""Reads one snapshot of a book for `farebox.ledger.invariants`, while the book is being written."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Self, TypeVar

import msgspec

from farebox.errors import StoreCorrupt
from farebox.ledger.audit import EventRow, value_digest
from farebox.ledger.invariants import StoredRow
from farebox.ledger.model import Account, HoldRow
from farebox.ledger.records import RecordType
from farebox.ledger.replay import StoredUnit
from farebox.stores.rows import account_from, hold_from, table_of

R = TypeVar("R")
T = TypeVar("T", bound=msgspec.Struct)

_UNIT = "SELECT seq, id, at, body, digest FROM units WHERE book = ?"
#: Below every number that a row may claim.
_ALL = -(2**63)


class BookReader(ABC):
    """The audit's view of a book in a database: the same questions to each, in its own dialect.

    A subclass opens the snapshot and names its columns as decimal text. Values stand for `?`.
    """

    account_columns: ClassVar[str]
    hold_columns: ClassVar[str]

    def __init__(self, records: Sequence[RecordType[Any]], book: int, tables: set[str]) -> None:
        self._book = book
        self._records = {record.kind: record for record in records}
        self._tables = tables

    @abstractmethod
    def close(self) -> None:
        """Let go of the snapshot."""

    @abstractmethod
    def _one(self, sql: str, values: Sequence[object]) -> Sequence[Any] | None:
        """The first row of a query, or None."""

    @abstractmethod
    def _many(self, sql: str, values: Sequence[object]) -> Iterator[Sequence[Any]]:
        """The rows of a query, of which there may be more than memory holds."""

    @abstractmethod
    def damage(self) -> str:
        """The first thing wrong with what the book is kept in, below its rows; "" for nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def last_seq(self) -> int:
        """The number of the last unit, 0 when there is none."""
        return self._count("SELECT max(seq) FROM units WHERE book = ?")

    def units(self, after: int) -> Iterator[StoredUnit]:
        """Units above number `after`, in order."""
        return self._stream(_UNIT + " AND seq > ? ORDER BY seq", after, read=_unit_from)

    def unit(self, seq_or_id: int | str) -> StoredUnit | None:
        """One unit, by its number or its id."""
        column = "id" if isinstance(seq_or_id, str) else "seq"
        return self._find(f"{_UNIT} AND {column} = ?", seq_or_id, read=_unit_from)

    def events(self, after: int) -> Iterator[tuple[int, int, EventRow]]:
        """(unit number, time, event) of events above number `after`, in order."""
        return self._stream(
            "SELECT seq, at, number, name, subject, data FROM events "
            "WHERE book = ? AND number > ? ORDER BY number",
            after,
            read=lambda row: (row[0], row[1], EventRow(*row[2:])),
        )

    def accounts(self) -> Iterator[Account]:
        """Every account, once, in the order of ids."""
        sql = f"SELECT {self.account_columns} FROM accounts WHERE book = ? ORDER BY id"
        return self._stream(sql, read=account_from)

    def hold(self, hold_id: str) -> HoldRow | None:
        """One hold."""
        sql = f"SELECT {self.hold_columns} FROM holds WHERE book = ? AND id = ?"
        return self._find(sql, hold_id, read=hold_from)

    def holds(self) -> Iterator[HoldRow]:
        """Every hold."""
        return self._stream(f"SELECT {self.hold_columns} FROM holds WHERE book = ?", read=hold_from)

    def holds_count(self) -> int:
        """How many holds there are, resolved ones too."""
        return self._count("SELECT count(*) FROM holds WHERE book = ?")

    def kinds(self) -> frozenset[str]:
        """The record types that this program declares."""
        return frozenset(self._records)

    def row(self, kind: str, key: str) -> StoredRow | None:
        """One domain row; None also when there is no such kind."""
        if table_of(kind) not in self._tables:
            return None
        return self._find(f"{self._select(kind)} AND key = ?", key, read=self._row_reader(kind))

    def rows(self, kind: str, after: int | None) -> Iterator[StoredRow]:
        """Rows of a kind last written by units above number `after`; None: all of them."""
        if table_of(kind) not in self._tables:
            return iter(())
        newer = _ALL if after is None else after
        return self._stream(f"{self._select(kind)} AND seq > ?", newer, read=self._row_reader(kind))

    def rows_count(self, kind: str, after: int | None) -> int:
        """How many rows `rows` would give."""
        name = table_of(kind)
        if name not in self._tables:
            return 0
        sql = f"SELECT count(*) FROM {name} WHERE book = ? AND seq > ?"
        return self._count(sql, _ALL if after is None else after)

    # ── as it is stored, for a copy ──────────────────────────────────────────────────────────────

    def last_event(self) -> int:
        """The number of the last event, 0 when there is none."""
        return self._count("SELECT max(number) FROM events WHERE book = ?")

    def table(self, name: str) -> Iterator[Sequence[Any]]:
        """Every row of a table of the ledger's, without the book, in the order of its key."""
        columns, order = {
            "accounts": (self.account_columns, "id"),
            "units": ("seq, id, at, body, digest", "seq"),
            "holds": (self.hold_columns, "id"),
            "events": ("number, seq, at, name, subject, data", "number"),
        }[name]
        sql = f"SELECT {columns} FROM {name} WHERE book = ? ORDER BY {order}"
        return self._many(sql, (self._book,))

    def records(self) -> Iterator[tuple[RecordType[Any], Iterator[Sequence[Any]]]]:
        """For each record type its rows: key, version, seq, value."""
        for kind, record in sorted(self._records.items()):
            name = table_of(kind)
            if name in self._tables:
                sql = f"SELECT key, version, seq, value FROM {name} WHERE book = ? ORDER BY key"
                yield record, self._many(sql, (self._book,))

    def value(self, record: RecordType[T], key: str) -> tuple[T, int] | None:
        """A domain row's value and version."""
        name = table_of(record.kind)
        if name not in self._tables:
            return None
        row = self._one(
            f"SELECT value, version FROM {name} WHERE book = ? AND key = ?", (self._book, key)
        )
        return None if row is None else (record.decode(row[0]), row[1])

    def _select(self, kind: str) -> str:
        record = self._records.get(kind)
        columns = "".join(f", f_{column}" for column in record.columns) if record else ""
        return f"SELECT key, version, seq, value{columns} FROM {table_of(kind)} WHERE book = ?"

    def _row_reader(self, kind: str) -> Callable[[Sequence[Any]], StoredRow]:
        record = self._records.get(kind)

        def read(row: Sequence[Any]) -> StoredRow:
            key, version, seq, raw, *fields = row
            indexed = record is None or _is_indexed(record, raw, fields)
            return StoredRow(kind, key, version, seq, value_digest(raw), indexed)

        return read

    def _count(self, sql: str, *values: object) -> int:
        row = self._one(sql, (self._book, *values))
        return int((row and row[0]) or 0)

    def _find(self, sql: str, *values: object, read: Callable[..., R]) -> R | None:
        row = self._one(sql, (self._book, *values))
        return None if row is None else _read(sql, row, read)

    def _stream(self, sql: str, *values: object, read: Callable[..., R]) -> Iterator[R]:
        return (_read(sql, row, read) for row in self._many(sql, (self._book, *values)))


def _read(sql: str, row: Sequence[Any], read: Callable[..., R]) -> R:
    try:
        return read(row)
    except (ValueError, TypeError, KeyError) as error:
        table = sql.partition(" FROM ")[2].partition(" ")[0]
        raise StoreCorrupt(f"{table} {row[0]}") from error


def _unit_from(row: Sequence[Any]) -> StoredUnit:
    return StoredUnit(*row)


def _is_indexed(record: RecordType[Any], raw: bytes, fields: list[str | int | None]) -> bool:
    """Whether the index fields say what the value says; not when it cannot be read."""
    with contextlib.suppress(msgspec.DecodeError):
        value = record.decode(raw)
        return fields in (record.columns_of(value), record.fields_of(value))
    return False
