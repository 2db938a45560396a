"""A book from a file, into an empty database: one transaction, committed once it is proven."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from farebox.errors import InvalidInput, StoreError
from farebox.ledger.records import RecordType
from farebox.stores.audit import BookReader
from farebox.stores.postgres.audit import PostgresAuditReader
from farebox.stores.postgres.batch import LOCK
from farebox.stores.postgres.connection import conninfo, place

_BOOK = 1


class PostgresLoader:
    """Fills an empty book, of a database whose tables are there."""

    def __init__(self, db: psycopg.Connection[Any], records: Sequence[RecordType[Any]]) -> None:
        self._db = db
        self._records = records

    def load(self, name: str, columns: str, rows: Iterable[Sequence[object]]) -> None:
        """Insert rows. Raises InvalidInput for what does not fit."""
        statement = f"COPY {name} ({columns}) FROM STDIN".encode()
        try:
            with self._db.cursor() as cursor, cursor.copy(statement) as copy:
                for row in rows:
                    copy.write_row(row)
        except (psycopg.errors.IntegrityError, psycopg.errors.DataError) as error:
            raise InvalidInput(f"the file does not fit into {name}: {error}") from error

    @contextmanager
    def reader(self) -> Iterator[BookReader]:
        """The book within the transaction, which nobody else sees yet."""
        yield PostgresAuditReader.within(self._db, self._records)


@contextmanager
def empty_book(dsn: str, records: Sequence[RecordType[Any]]) -> Iterator[PostgresLoader]:
    """A loader whose transaction is committed if the block ends well; its tables must be there.

    The lock keeps every writer out meanwhile. Raises InvalidInput when the book has units.
    """
    try:
        with psycopg.connect(conninfo(dsn), prepare_threshold=0) as db:
            db.execute(LOCK.encode(), (_BOOK,))
            if db.execute("SELECT 1 FROM units WHERE book = %s LIMIT 1", (_BOOK,)).fetchone():
                raise InvalidInput(
                    f"there is a book in {place(dsn)} already: name an empty database, or drop it"
                )
            yield PostgresLoader(db, records)
    except psycopg.Error as error:
        raise StoreError(f"cannot write {place(dsn)}: {error}") from error
