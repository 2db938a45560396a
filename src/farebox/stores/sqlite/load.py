"""Books that come as a whole: a copy of one that is being served, or one from a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw

from farebox.errors import InvalidInput, StoreError
from farebox.ledger.records import RecordType
from farebox.stores.audit import BookReader
from farebox.stores.sqlite.audit import SqliteAuditReader
from farebox.stores.sqlite.batch import insert_statement
from farebox.stores.sqlite.disk import sync_log
from farebox.stores.sqlite.schema import prepare
from farebox.stores.sqlite.store import open_connection

_SUFFIXES = ("", "-wal", "-shm", ".lock")


@contextmanager
def new_book(path: Path) -> Iterator[Path]:
    """A draft beside `path`, which takes that name once the block has ended well.

    So under its name there is a whole book or none. Raises InvalidInput when there is one.
    """
    draft = path.with_name(f".{path.name}.draft")
    if path.exists():
        raise InvalidInput(f"{path} is there already: nothing is written over it")
    _remove(draft)
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        yield draft
        sync_path(draft)
        os.link(draft, path)  # not replace: somebody may have been quicker
        sync_path(path.parent)
    except FileExistsError:
        raise InvalidInput(f"{path} is there already: nothing is written over it") from None
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
    finally:
        _remove(draft)


def _remove(draft: Path) -> None:
    for suffix in _SUFFIXES:
        with suppress(OSError):
            os.unlink(f"{draft}{suffix}")


def sync_path(path: Path) -> None:
    """Have the disk hold a file, or what is in a directory. Raises OSError."""
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def copy_book(path: Path, target: Path) -> None:
    """One snapshot of a book, also of one that is being served; blocking. Raises StoreError."""
    if not path.exists():
        raise StoreError(f"there is no book at {path}")
    try:
        sync_log(path)  # what is copied shall not be lost at its origin
        with (
            closing(open_connection(path, readonly=True)) as source,
            closing(apsw.Connection(str(target))) as db,
            db.backup("main", source, "main") as copying,
        ):
            copying.step(-1)
    except (apsw.Error, OSError) as error:
        raise StoreError(f"cannot copy {path.name}: {error}") from error


class SqliteLoader:
    """Fills a new file. Its transaction is committed by `reader`, which is what counts then."""

    def __init__(self, path: Path, records: Sequence[RecordType[Any]]) -> None:
        self._path = path
        self._records = records
        self._db = open_connection(path)
        prepare(self._db, records)
        self._db.execute("BEGIN IMMEDIATE")

    def load(self, name: str, columns: str, rows: Iterable[Sequence[object]]) -> None:
        """Insert rows. Raises InvalidInput for what does not fit."""
        try:
            self._db.executemany(insert_statement(name, columns), rows)
        except apsw.ConstraintError as error:
            raise InvalidInput(f"the file does not fit into {name}: {error}") from error

    @contextmanager
    def reader(self) -> Iterator[BookReader]:
        """The draft as it stands: it has no name yet that anybody serves."""
        self._db.execute("COMMIT")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with SqliteAuditReader(self._path, self._records) as reader:
            yield reader

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()
