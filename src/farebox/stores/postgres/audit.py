"""The audit's view of a book in a PostgreSQL database."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Self

import psycopg

from farebox.errors import StoreError
from farebox.ledger.records import RecordType
from farebox.stores.audit import BookReader
from farebox.stores.postgres.batch import ACCOUNT, HOLD
from farebox.stores.postgres.connection import BACKEND, conninfo, is_direct, place

_TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"
_FETCH_ROWS = 2_000


class PostgresAuditReader(BookReader):
    """One read-only transaction of its own; a standby will do as well."""

    account_columns = ACCOUNT
    hold_columns = HOLD

    def __init__(self, dsn: str, records: Sequence[RecordType[Any]], *, book: int = 1) -> None:
        """Raises StoreError when there is no book or it cannot be read."""
        try:
            self._db = psycopg.connect(conninfo(dsn, reads_only=True), prepare_threshold=None)
            self._db.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            self._db.read_only = True
            if is_direct(self._db, self._db.execute(BACKEND).fetchone()):
                self._db.prepare_threshold = 0
        except psycopg.Error as error:
            raise StoreError(f"cannot read {place(dsn)}: {error}") from error
        tables = self._look()
        if "units" not in tables:
            self._db.close()
            raise StoreError(f"there is no book in {place(dsn)}")
        super().__init__(records, book, tables)

    @classmethod
    def within(
        cls, db: psycopg.Connection[Any], records: Sequence[RecordType[Any]], *, book: int = 1
    ) -> Self:
        """A reader of what a transaction has written itself; not to be closed."""
        self = cls.__new__(cls)
        self._db = db
        BookReader.__init__(self, records, book, self._look())
        return self

    def _look(self) -> set[str]:
        self._cursors = itertools.count()
        return {name for (name,) in self._many(_TABLES, ())}

    def damage(self) -> str:
        """Nothing that we could see: the server looks after its pages (`amcheck`, checksums)."""
        return ""

    def close(self) -> None:
        """Let go of the snapshot."""
        self._db.close()

    def _one(self, sql: str, values: Sequence[object]) -> Sequence[Any] | None:
        try:
            return self._db.execute(_dialect(sql), values, binary=True).fetchone()
        except psycopg.Error as error:
            raise StoreError(f"the book could not be read: {error}") from error

    def _many(self, sql: str, values: Sequence[object]) -> Iterator[Sequence[Any]]:
        try:
            with self._db.cursor(f"audit_{next(self._cursors)}") as cursor:
                cursor.itersize = _FETCH_ROWS
                yield from cursor.execute(_dialect(sql), values, binary=True)
        except psycopg.Error as error:
            raise StoreError(f"the book could not be read: {error}") from error


def _dialect(sql: str) -> bytes:
    return sql.replace("?", "%s").encode()
