"""A book behind a real pooler: by session and by transaction it is right, by statement refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
import pytest

from farebox.errors import StoreError
from farebox.ledger.invariants import verify
from farebox.ledger.model import ABSENT, Applied, Event, Put, Replayed, Transfer
from farebox.ledger.replay import Broken
from farebox.stores.postgres import PostgresStore, connection
from farebox.stores.postgres.audit import PostgresAuditReader
from tests.contract.store.books import COUNTER, JOB, RECORDS, Job, available, do, fund
from tests.contract.store.test_postgres_faults import pay_until
from tests.peers.pgbouncer import PgBouncer, running
from tests.peers.postgres import Postgres
from tests.waiting import eventually

PAY = Transfer("a", "b", 1, "x")
#: Of a session each store has its own connections; of transactions they all share these.
POOL_SIZES = {"session": 30, "transaction": 3}


class Pooled:
    """A database of its own, and how it is reached through a pooler and past it."""

    def __init__(self, server: Postgres, pooler: PgBouncer, name: str) -> None:
        self._server = server
        self._name = name
        self.pooler = pooler
        self.dsn = server.dsn_at(pooler.port, dbname=name)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[PostgresStore]:
        """One more process's store."""
        store = await PostgresStore.open(self.dsn, RECORDS)
        try:
            yield store
        finally:
            await store.close()

    def cut_all(self) -> None:
        """End every backend of the database, beneath the pooler."""
        with psycopg.connect(self._server.dsn, autocommit=True) as db:
            db.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
                (self._name,),
            )

    def verify(self) -> None:
        """The book is whole, as is seen through the pooler."""
        with PostgresAuditReader(self.dsn, RECORDS) as reader:
            result = verify(reader)
        assert not isinstance(result, Broken), str(result)


def pooled(postgres: Postgres, mode: str, pool_size: int) -> Iterator[Pooled]:
    with postgres.database() as name, running(postgres, mode, pool_size) as pooler:
        yield Pooled(postgres, pooler, name)


@pytest.fixture(params=POOL_SIZES)
def book(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[Pooled]:
    yield from pooled(postgres, request.param, POOL_SIZES[request.param])


@pytest.fixture
def by_transaction(postgres: Postgres) -> Iterator[Pooled]:
    yield from pooled(postgres, "transaction", POOL_SIZES["transaction"])


@pytest.mark.peer
async def test_processes_behind_a_pooler_write_one_book(book: Pooled) -> None:
    """Each begins with other rows, so that what it would prepare first is not what others would."""
    async with AsyncExitStack() as opened:
        stores = [await opened.enter_async_context(book.open()) for _ in range(3)]
        await fund(stores[0])
        kinds = (JOB, COUNTER)
        for number, store in enumerate(stores):
            await do(
                store, f"own:{number}", puts=(Put(kinds[number % 2], f"{number}", Job(), ABSENT),)
            )

        async def one(store: PostgresStore, number: int) -> str:
            put = Put(kinds[number % 2], f"claim:{number}", Job(count=number), ABSENT)
            told = await do(store, f"p:{number}", PAY, puts=(put,), events=(Event("paid", "a"),))
            assert isinstance(told, Applied | Replayed)
            row = await store.get(put.record, put.key)
            assert row is not None
            assert row.value.count == number
            return type(told).__name__

        told = await asyncio.gather(*(one(store, n) for n in range(40) for store in stores))
        assert Counter(told) == {"Applied": 40, "Replayed": 80}
        for store in stores:
            assert await available(store, "b") == 40
            assert [event.number for event in await store.events()] == list(range(1, 41))
            assert await store.outcome("nobody's") is None
            assert await store.expire_due() == 0
        book.verify()


@pytest.mark.peer
@pytest.mark.usefixtures("patient")
async def test_a_pooler_that_is_killed_and_backends_that_are_cut_lose_nothing(book: Pooled) -> None:
    async with book.open() as store:
        await fund(store)
        await do(store, "more", Transfer("custody", "a", 10**9, "deposit"))
        enough = asyncio.Event()
        payers = [asyncio.create_task(pay_until(store, enough, task)) for task in range(20)]
        for _ in range(3):
            await asyncio.sleep(0.1)
            await asyncio.to_thread(book.cut_all)
        await asyncio.to_thread(book.pooler.kill)
        await asyncio.to_thread(book.pooler.start)
        await eventually(lambda: available(store, "b"), lambda paid: paid > 20)
        enough.set()
        paid = sum(await asyncio.gather(*payers))
        assert await available(store, "b") == paid
        assert paid > 20
        book.verify()


@pytest.mark.peer
async def test_nothing_is_left_in_a_backend_for_whoever_gets_it_next(
    by_transaction: Pooled,
) -> None:
    async with by_transaction.open() as store:
        await fund(store)
        for number in range(6):
            reads = (available(store, "a") for _ in range(6))
            await asyncio.gather(do(store, f"p:{number}", PAY), *reads)
    backends = set()
    with psycopg.connect(by_transaction.dsn, autocommit=True, prepare_threshold=None) as db:
        for _ in range(6):
            left = db.execute(
                "SELECT pg_backend_pid(), current_setting('lock_timeout'), "
                "current_setting('enable_seqscan'), (SELECT count(*) FROM pg_prepared_statements), "
                "(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')"
            ).fetchone()
            assert left is not None
            backends.add(left[0])
            assert left[1:] == ("0", "on", 0, 0)
    assert len(backends) > 1


@pytest.mark.peer
async def test_a_pooler_by_statement_is_refused_with_the_way_out(postgres: Postgres) -> None:
    for book in pooled(postgres, "statement", 3):
        with pytest.raises(StoreError, match=r"takes no transactions.*transaction or session") as e:
            await PostgresStore.open(book.dsn, RECORDS)
        assert "password" not in str(e.value)


async def test_where_there_is_no_pooler_statements_are_prepared(postgres: Postgres) -> None:
    direct = await connection.connect(connection.conninfo(postgres.dsn))
    for _ in range(2):
        await direct.execute("SELECT %s::int4", (1,), prepare=True)
    found = await direct.execute("SELECT count(*) FROM pg_prepared_statements")
    assert (await found.fetchone() or (0,))[0] > 0
    await direct.close()
