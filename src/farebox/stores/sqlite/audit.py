"""The audit's view of a book in an SQLite file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw

from farebox.errors import StoreCorrupt, StoreError
from farebox.ledger.records import RecordType
from farebox.stores.audit import BookReader
from farebox.stores.sqlite.batch import ACCOUNT, HOLD
from farebox.stores.sqlite.disk import sync_log
from farebox.stores.sqlite.store import open_connection


class SqliteAuditReader(BookReader):
    """A read-only connection in one read transaction; needs no ownership of the book."""

    account_columns = ACCOUNT
    hold_columns = HOLD

    def __init__(self, path: Path, records: Sequence[RecordType[Any]], *, book: int = 1) -> None:
        """Raises StoreError when the file is no book or cannot be read."""
        if not path.exists():
            raise StoreError(f"there is no book at {path}")
        try:
            self._db = open_connection(path, readonly=True)
            # The snapshot is taken by the first read, and kept until `close`.
            self._db.execute("BEGIN")
            tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
            # What is verified, and vouched for from then on, must not be lost with the power.
            sync_log(path)
        except (apsw.Error, OSError) as error:
            raise StoreError(f"cannot read {path.name}: {error}") from error
        if "units" not in tables:
            self._db.close()
            raise StoreError(f"{path.name} is no book")
        super().__init__(records, book, tables)

    def close(self) -> None:
        """Let go of the snapshot."""
        self._db.close()

    def damage(self) -> str:
        """The first thing wrong with the file: a page, a tree, a row that its index lacks.

        The whole `integrity_check` and not the quick one, which leaves indexes out: it takes 7% of
        the time that the rest of a verification does.
        """
        try:
            found = str(self._db.execute("PRAGMA integrity_check(1)").get)
        except apsw.Error as error:
            return str(error)
        return "" if found == "ok" else " ".join(found.replace("***", "").split())

    def _one(self, sql: str, values: Sequence[object]) -> Sequence[Any] | None:
        return next(self._many(sql, values), None)

    def _many(self, sql: str, values: Sequence[object]) -> Iterator[Sequence[Any]]:
        try:
            yield from self._db.execute(sql, values)
        except apsw.Error as error:
            raise StoreCorrupt(f"the database file cannot be read ({error})") from error
