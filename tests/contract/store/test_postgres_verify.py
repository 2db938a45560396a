"""`verify` on PostgreSQL names whatever somebody has changed behind our back."""

from __future__ import annotations

import psycopg
import pytest

from farebox.errors import StoreError
from farebox.ledger.invariants import verify
from farebox.ledger.model import ABSENT, Event, Hold, Post, Put, Transfer, Unit
from farebox.ledger.replay import Broken, Invariant
from farebox.stores.postgres.audit import PostgresAuditReader
from tests.contract.store.books import JOB, RECORDS, Job, PostgresBook, State, fund
from tests.peers.postgres import Postgres

TAMPERED = [
    ("UPDATE accounts SET credits_posted = credits_posted + 1 WHERE id = 'b'", Invariant.ACCOUNTS),
    ("INSERT INTO accounts VALUES (1, 'mine', 'BTC', 'customer', 0, 0, 0, 9)", Invariant.ACCOUNTS),
    ("UPDATE units SET body = set_byte(body, 40, 1) WHERE seq = 2", Invariant.CHAIN),
    ("UPDATE units SET digest = '' WHERE seq = 2", Invariant.CHAIN),
    ("UPDATE events SET data = '{}'", Invariant.CHAIN),
    ("DELETE FROM events", Invariant.CHAIN),
    ("UPDATE units SET id = 'other' WHERE seq = 2", Invariant.CHAIN),
    ("DELETE FROM units WHERE seq = 3", Invariant.ORDER),
    ("UPDATE holds SET state = 'open'", Invariant.HOLDS),
    ("DELETE FROM holds", Invariant.HOLDS),
    ("UPDATE record_test_job SET value = '{\"count\":7}'", Invariant.ROWS),
    ("UPDATE record_test_job SET f_state = 'done'", Invariant.ROWS),
    ("DELETE FROM record_test_job", Invariant.ROWS),
    ("INSERT INTO record_test_job VALUES (1, 'mine', 1, -5, '{}')", Invariant.ROWS),
]


@pytest.fixture
async def book(postgres: Postgres) -> PostgresBook:
    """A book in which there is one of everything."""
    book = PostgresBook(postgres)
    async with book.open() as store:
        await fund(store)
        event = Event("paid", "a", {}, {"amount": 0})
        put = Put(JOB, "j", Job(State.OPEN), ABSENT)
        steps = (Transfer("a", "b", 7, "x"), Hold("a", "b", 2, "x"))
        await store.commit(Unit("u", steps, (put,), events=(event,)))
        await store.commit(Unit("v", (Post("u/1"),)))
        await store.commit(Unit("w"))
    book.verify()
    return book


@pytest.mark.parametrize(("sql", "invariant"), TAMPERED, ids=[sql for sql, _ in TAMPERED])
async def test_what_was_changed_behind_our_back_is_named(
    book: PostgresBook, sql: str, invariant: Invariant
) -> None:
    with psycopg.connect(book.dsn, autocommit=True) as db:
        db.execute(sql.encode())
    with book.reader() as reader:
        found = verify(reader)
    assert isinstance(found, Broken)
    assert found.invariant is invariant
    book.remove()


async def test_a_snapshot_does_not_see_what_is_committed_after_it(book: PostgresBook) -> None:
    with book.reader() as reader:
        before = reader.last_seq()
        async with book.open() as store:
            await store.commit(Unit("later", (Transfer("a", "b", 1, "x"),)))
        result = verify(reader)
        assert not isinstance(result, Broken), str(result)
        assert result[0].seq == before
    assert book.verify().seq == before + 1
    book.remove()


def test_a_database_without_a_book_says_so(postgres: Postgres) -> None:
    with pytest.raises(StoreError, match=r"there is no book in postgres at 127\.0\.0\.1"):
        PostgresAuditReader(postgres.dsn, RECORDS)
