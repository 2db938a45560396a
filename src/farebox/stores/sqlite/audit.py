"""Reads one snapshot of a book for `farebox.ledger.invariants`, while the book is being written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import apsw
import msgspec

from farebox.errors import StoreCorrupt, StoreError
from farebox.ledger.audit import EventRow, value_digest
from farebox.ledger.evaluator import Movement
from farebox.ledger.invariants import StoredRow
from farebox.ledger.model import Account, HoldRow
from farebox.ledger.records import RecordType, column_value
from farebox.ledger.replay import StoredUnit
from farebox.stores.sqlite.batch import ACCOUNT, HOLD, account_from, hold_from
from farebox.stores.sqlite.schema import table_of
from farebox.stores.sqlite.store import open_connection

R = TypeVar("R")

_UNIT = "SELECT seq, id, at, body, digest FROM units WHERE book = ?"


class SqliteAuditReader:
    """A read-only connection in one read transaction; needs no ownership of the book."""

    def __init__(self, path: Path, records: Sequence[RecordType[Any]], *, book: int = 1) -> None:
        """Raises StoreError when the file is no book or cannot be read."""
        self._book = book
        self._records = {record.kind: record for record in records}
        if not path.exists():
            raise StoreError(f"there is no book at {path}")
        try:
            self._db = open_connection(path, readonly=True)
            # The snapshot is taken by the first read, and kept until `close`.
            self._db.execute("BEGIN")
            self._tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
        except apsw.Error as error:
            raise StoreError(f"cannot read {path.name}: {error}") from error
        if "units" not in self._tables:
            self._db.close()
            raise StoreError(f"{path.name} is no book")

    def close(self) -> None:
        """Let go of the snapshot."""
        self._db.close()

    def __enter__(self) -> SqliteAuditReader:
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
        return next(self._stream(f"{_UNIT} AND {column} = ?", seq_or_id, read=_unit_from), None)

    def movements(self, after: int) -> Iterator[tuple[int, Movement]]:
        """Movements of units above number `after`, in order."""
        return self._stream(
            "SELECT seq, step, kind, debit, credit, amount, code, hold, expires_at "
            "FROM movements WHERE book = ? AND seq > ? ORDER BY seq, step",
            after,
            read=lambda row: (row[0], Movement(*row[1:])),
        )

    def events(self, after: int) -> Iterator[tuple[int, int, EventRow]]:
        """(unit number, time, event) of units above number `after`, in order."""
        return self._stream(
            "SELECT seq, at, number, name, subject, data FROM events "
            "WHERE book = ? AND seq > ? ORDER BY seq, number",
            after,
            read=lambda row: (row[0], row[1], EventRow(*row[2:])),
        )

    def accounts(self) -> Iterator[Account]:
        """Every account, once."""
        return self._stream(f"SELECT {ACCOUNT} FROM accounts WHERE book = ?", read=account_from)

    def hold(self, hold_id: str) -> HoldRow | None:
        """One hold."""
        sql = f"SELECT {HOLD} FROM holds WHERE book = ? AND id = ?"
        return next(self._stream(sql, hold_id, read=hold_from), None)

    def holds(self) -> Iterator[HoldRow]:
        """Every hold."""
        return self._stream(f"SELECT {HOLD} FROM holds WHERE book = ?", read=hold_from)

    def holds_count(self) -> int:
        """How many holds there are, resolved ones too."""
        return self._count("SELECT count(*) FROM holds WHERE book = ?")

    def kinds(self) -> frozenset[str]:
        """The record types that this program declares."""
        return frozenset(self._records)

    def row(self, kind: str, key: str) -> StoredRow | None:
        """One domain row; None also when there is no such kind."""
        return next(self._rows(kind, "key = ?", key), None)

    def rows(self, kind: str, after: int | None) -> Iterator[StoredRow]:
        """Rows of a kind last written by units above number `after`; None: all of them."""
        return self._rows(kind, *_newer(after))

    def rows_count(self, kind: str, after: int | None) -> int:
        """How many rows `rows` would give."""
        name = table_of(kind)
        if name not in self._tables:
            return 0
        term, value = _newer(after)
        return self._count(f"SELECT count(*) FROM {name} WHERE book = ? AND {term}", value)

    def _rows(self, kind: str, term: str, value: object) -> Iterator[StoredRow]:
        name = table_of(kind)
        if name not in self._tables:
            return iter(())
        record = self._records.get(kind)
        columns = "".join(f", f_{column}" for column in record.columns) if record else ""
        sql = f"SELECT key, version, seq, value{columns} FROM {name} WHERE book = ? AND {term}"

        def read(row: Sequence[Any]) -> StoredRow:
            key, version, seq, raw, *fields = row
            indexed = record is None or _fields_of(record, raw) == fields
            return StoredRow(kind, key, version, seq, value_digest(raw), indexed)

        return self._stream(sql, value, read=read)

    def _count(self, sql: str, *values: object) -> int:
        return next(self._stream(sql, *values, read=lambda row: int(row[0] or 0)))

    def _stream(self, sql: str, *values: object, read: Callable[..., R]) -> Iterator[R]:
        try:
            for row in self._db.execute(sql, (self._book, *values)):
                try:
                    found = read(row)
                except (ValueError, TypeError, KeyError) as error:
                    table = sql.partition(" FROM ")[2].partition(" ")[0]
                    raise StoreCorrupt(f"{table} {row[0]}") from error
                yield found
        except apsw.Error as error:
            raise StoreCorrupt(f"the database file ({error})") from error


def _newer(seq: int | None) -> tuple[str, int | None]:
    return ("seq IS NOT ?", None) if seq is None else ("seq > ?", seq)


def _unit_from(row: Sequence[Any]) -> StoredUnit:
    return StoredUnit(*row)


def _fields_of(record: RecordType[Any], raw: bytes) -> list[str | int | None] | None:
    """The index fields as they should be; None when the value cannot be read."""
    with contextlib.suppress(msgspec.DecodeError):
        value = record.decode(raw)
        return [column_value(getattr(value, name)) for name in record.columns]
    return None
