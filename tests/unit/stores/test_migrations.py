"""Migrations as files: in order, the same numbers in each store, refused with a way out."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from farebox.errors import StoreError, StoreOutdated
from farebox.stores.migrations import Migration, pending, require_current
from farebox.stores.postgres import schema as postgres
from farebox.stores.sqlite import SqliteStore
from farebox.stores.sqlite import schema as sqlite

KNOWN = (Migration(1, "book", ""), Migration(2, "notes", ""))


def test_both_stores_ship_the_same_steps() -> None:
    names = [[str(one) for one in store.MIGRATIONS] for store in (sqlite, postgres)]
    assert names[0] == names[1]
    assert names[0][0] == "0001 book"


def test_what_is_pending_is_told_in_order() -> None:
    assert pending(KNOWN, 0) == KNOWN
    assert pending(KNOWN, 1) == KNOWN[1:]
    assert pending(KNOWN, 2) == ()
    with pytest.raises(StoreOutdated, match="has schema 3, this program knows 2: run a newer"):
        pending(KNOWN, 3)


def test_an_older_database_names_the_command() -> None:
    require_current(KNOWN, 2)
    with pytest.raises(StoreOutdated, match="has schema 1, this program needs 2: run `farebox mig"):
        require_current(KNOWN, 1)


async def test_a_book_from_before_migrations_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "book.db"
    await SqliteStore(path, ()).close()
    db = apsw.Connection(str(path))
    db.execute("DROP TABLE migrations")
    db.close()
    with pytest.raises(StoreOutdated, match="run `farebox migrate`"):
        SqliteStore(path, ())
    assert [one.number for one in sqlite.migrate(path, look=True).applied] == [1]
    assert [one.number for one in sqlite.migrate(path).applied] == [1]
    assert sqlite.migrate(path).applied == ()
    await SqliteStore(path, ()).close()


def test_what_is_no_book_is_not_migrated(tmp_path: Path) -> None:
    letter = tmp_path / "letter"
    letter.write_bytes(b"hello, I am a letter" * 500)
    with pytest.raises(StoreError, match="could not be migrated"):
        sqlite.migrate(letter)
    with pytest.raises(StoreError, match="there is no book"):
        sqlite.migrate(tmp_path / "nothing")
