"""What PostgreSQL alone can do to a store: connections that break, servers that restart, limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import psycopg
import pytest

from farebox.clock import ManualClock
from farebox.errors import OutcomeUnknown, StoreBusy, StoreError, StoreOutdated
from farebox.ledger.model import Applied, Event, Replayed, Transfer, Unit
from farebox.ledger.service import Ledger
from farebox.stores.postgres import PostgresStore, batch, connection, writer
from farebox.stores.postgres.connection import conninfo, place
from farebox.tally import Commits
from tests.contract.store.books import RECORDS, PostgresBook, available, do, fund
from tests.contract.store.wire import CommitBreaker, Fault
from tests.peers.postgres import Postgres
from tests.waiting import eventually

PAY = Transfer("a", "b", 1, "x")


@pytest.fixture
def book(postgres: Postgres) -> Iterator[PostgresBook]:
    book = PostgresBook(postgres)
    yield book
    book.verify()
    book.remove()


@pytest.fixture
async def breaker(postgres: Postgres) -> AsyncIterator[CommitBreaker]:
    async with CommitBreaker(postgres.port) as breaker:
        yield breaker


@pytest.fixture
async def store(book: PostgresBook, breaker: CommitBreaker) -> AsyncIterator[PostgresStore]:
    """A funded book, reached through the breaker."""
    store = await PostgresStore.open(book.dsn_at(breaker.port), RECORDS)
    await fund(store)
    yield store
    await store.close()


@contextmanager
def hurry(patience_s: float = 1) -> Iterator[None]:
    """Patience and silence that a test can wait for."""
    with patch.multiple(connection, PATIENCE_S=patience_s, _TRIP_MAX_S=2):
        yield


async def somebody_waits(dsn: str) -> None:
    """Wait until a backend waits for a book's lock."""
    with psycopg.connect(dsn, autocommit=True) as db:
        asked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await eventually(lambda: db.execute(asked).fetchone(), lambda found: found != (0,))


# ── a COMMIT whose answer is lost ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fault", [Fault.ANSWER_LOST, Fault.NEVER_ARRIVED])
async def test_a_lost_commit_is_asked_for_and_told_as_if_nothing_had_been(
    store: PostgresStore, breaker: CommitBreaker, fault: Fault
) -> None:
    breaker.faults = [fault, fault]
    told = [await do(store, f"p:{n}", PAY, events=(Event("paid", "a"),)) for n in range(4)]
    assert breaker.faults == []
    assert [type(outcome) for outcome in told] == [Applied] * 4
    assert [outcome.seq for outcome in told] == [2, 3, 4, 5]
    assert await available(store, "b") == 4
    assert len(await store.events()) == 4


@pytest.mark.parametrize("fault", [Fault.ANSWER_LOST, Fault.NEVER_ARRIVED])
async def test_many_whose_commit_is_lost_happen_once_each(
    store: PostgresStore, breaker: CommitBreaker, fault: Fault
) -> None:
    breaker.faults = [fault, fault]
    ledger = Ledger(store, ManualClock())
    told = await ledger.post_many({f"p:{n}": PAY for n in range(400)})
    assert breaker.faults == []
    assert {type(outcome) for outcome in told.values()} == {Applied}
    assert await available(store, "b") == 400


@pytest.mark.parametrize("fault", [Fault.ANSWER_LOST, Fault.NEVER_ARRIVED])
async def test_many_that_cannot_be_asked_for_are_unknown_and_the_same_call_tells(
    store: PostgresStore, breaker: CommitBreaker, fault: Fault
) -> None:
    breaker.faults, breaker.open = [fault], False
    ledger = Ledger(store, ManualClock())
    asked = {f"p:{n}": PAY for n in range(400)}
    with hurry(), pytest.raises(OutcomeUnknown, match="p:0"):
        await ledger.post_many(asked)
    breaker.open = True
    again = await ledger.post_many(asked)
    happened = fault is Fault.ANSWER_LOST
    assert {type(outcome) for outcome in again.values()} == {Replayed if happened else Applied}
    assert await available(store, "b") == 400


async def test_a_server_that_falls_silent_is_hung_up_on(
    store: PostgresStore, breaker: CommitBreaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_TRIP_MAX_S", 1)
    breaker.faults = [Fault.SILENCE]
    assert isinstance(await do(store, "p", PAY), Applied)
    assert await available(store, "b") == 1


@pytest.mark.parametrize(
    ("fault", "happened"), [(Fault.ANSWER_LOST, True), (Fault.NEVER_ARRIVED, False)]
)
async def test_what_cannot_be_asked_for_is_unknown_until_it_can(
    store: PostgresStore, breaker: CommitBreaker, fault: Fault, happened: bool
) -> None:
    breaker.faults, breaker.open = [fault], False
    with hurry(), pytest.raises(OutcomeUnknown):
        await do(store, "p", PAY)
    breaker.open = True
    assert isinstance(await store.outcome("p"), Applied) is happened
    again = await do(store, "p", PAY)
    assert isinstance(again, Replayed if happened else Applied)
    assert await available(store, "b") == 1


async def test_while_the_old_backend_holds_the_book_nobody_is_told_that_nothing_was_done(
    store: PostgresStore, breaker: CommitBreaker
) -> None:
    impatient = batch.SYNCED.replace("'lock_timeout', '5s'", "'lock_timeout', '200ms'")
    breaker.faults = [Fault.STUCK]
    with hurry(), patch.object(batch, "SYNCED", impatient), pytest.raises(OutcomeUnknown):
        await do(store, "p", PAY)
    breaker.released.set()
    assert await store.outcome("p") is None
    assert isinstance(await do(store, "p", PAY), Applied)


async def test_where_the_database_cannot_be_reached_nothing_was_done(
    store: PostgresStore, breaker: CommitBreaker, book: PostgresBook
) -> None:
    breaker.open = False
    cut_all(book)
    with hurry():
        told = await asyncio.gather(
            *(do(store, f"p:{n}", PAY) for n in range(5)), return_exceptions=True
        )
        assert {type(error) for error in told} == {StoreError}
        with pytest.raises(StoreError):
            await store.account("a")
    breaker.open = True
    assert await available(store, "b") == 0
    assert isinstance(await do(store, "p:0", PAY), Applied)


@pytest.mark.parametrize("fault", [Fault.ANSWER_LOST, Fault.NEVER_ARRIVED, Fault.SILENCE])
async def test_a_read_whose_connection_breaks_is_asked_again_and_tells_the_same(
    store: PostgresStore, breaker: CommitBreaker, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_TRIP_MAX_S", 1)
    assert isinstance(await do(store, "p", PAY, events=(Event("paid", "a"),)), Applied)
    reads: dict[bytes, Callable[[], Awaitable[Sequence[object]]]] = {
        b"FROM accounts": store.accounts,
        b"FROM events": store.events,
    }
    for words, read in reads.items():
        breaker.at, breaker.faults = words, [fault]
        told = await read()
        assert breaker.faults == [], "it was struck"
        assert told == await read()
        assert told


async def test_a_read_that_nobody_answers_is_an_error_and_never_nothing(
    store: PostgresStore, breaker: CommitBreaker, book: PostgresBook
) -> None:
    breaker.open = False
    cut_all(book)
    reads: tuple[Callable[[], Awaitable[object]], ...] = (store.accounts, store.events)
    for read in reads:
        with hurry(), pytest.raises(StoreError):
            await read()
    breaker.open = True
    assert await store.accounts()


async def test_who_waits_behind_others_for_a_database_that_is_away_waits_no_longer_than_they(
    store: PostgresStore, breaker: CommitBreaker, book: PostgresBook
) -> None:
    """However many callers there are: each is told to come again after the same time."""
    breaker.open = False
    cut_all(book)
    reads = (store.account("a") for _ in range(40))
    with hurry():  # one after the other, over four connections, they would wait ten times as long
        async with asyncio.timeout(8 * connection.PATIENCE_S):
            told = await asyncio.gather(*reads, return_exceptions=True)
    assert {type(error) for error in told} == {StoreError}
    breaker.open = True
    assert await store.account("a")


async def test_none_is_told_of_a_unit_only_once_no_commit_of_it_is_on_its_way(
    store: PostgresStore, book: PostgresBook
) -> None:
    """A process died after it had sent a COMMIT; its backend still holds the book."""
    with psycopg.connect(book.dsn) as dying:
        dying.execute("SELECT pg_advisory_xact_lock(%s, 1)", (0x46415245,))
        dying.execute("DELETE FROM units WHERE seq > 1")  # its work
        asked = asyncio.create_task(store.outcome("p"))
        await somebody_waits(book.dsn)
        assert not asked.done()
        dying.rollback()
    assert await asked is None


# ── backends and servers that end ────────────────────────────────────────────────────────────────


def cut_all(book: PostgresBook) -> None:
    """End every connection that a store has."""
    with psycopg.connect(book.dsn, autocommit=True) as db:
        db.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = 'farebox'"
        )


async def pay_until(store: PostgresStore, enough: asyncio.Event, task: int) -> int:
    """Pay one after the other; returns how often it was told that it had."""
    number = 0
    while not enough.is_set():
        unit = Unit(f"p:{task}:{number}", (PAY,), events=(Event("paid", "a"),))
        assert isinstance(await store.commit(unit), Applied)
        number += 1
    return number


@pytest.mark.usefixtures("patient")
async def test_backends_that_are_ended_under_load_lose_nothing(
    store: PostgresStore, book: PostgresBook
) -> None:
    await do(store, "more", Transfer("custody", "a", 10**9, "deposit"))
    enough = asyncio.Event()
    payers = [asyncio.create_task(pay_until(store, enough, task)) for task in range(20)]
    for _ in range(15):
        await asyncio.sleep(0.05)
        await asyncio.to_thread(cut_all, book)
    await eventually(lambda: available(store, "b"), lambda paid: paid > 20)
    enough.set()
    paid = sum(await asyncio.gather(*payers))
    assert await available(store, "b") == paid
    assert paid > 20


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_server_that_restarts_under_load_loses_nothing(
    store: PostgresStore, postgres: Postgres, mode: str
) -> None:
    await do(store, "more", Transfer("custody", "a", 10**9, "deposit"))
    enough = asyncio.Event()
    payers = [asyncio.create_task(pay_until(store, enough, task)) for task in range(20)]
    for _ in range(2):
        await asyncio.sleep(0.2)
        await asyncio.to_thread(postgres.restart, mode)
    await eventually(lambda: available(store, "b"), lambda paid: paid > 20)
    enough.set()
    paid = sum(await asyncio.gather(*payers))
    assert await available(store, "b") == paid
    assert paid > 20


# ── limits ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_unit_that_cannot_be_stored_does_not_fail_its_neighbours(
    store: PostgresStore,
) -> None:
    ids = ["ok:1", "no\0text", "ok:2", "x" * 3_000_000, "ok:3", "\ud800", "ok:4"]
    told = await asyncio.gather(*(do(store, name, PAY) for name in ids), return_exceptions=True)
    assert [type(outcome) for outcome in told] == [Applied, StoreError] * 3 + [Applied]
    assert await available(store, "b") == 4


async def test_a_full_queue_says_so_before_anything_is_done(
    store: PostgresStore, book: PostgresBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "QUEUE_MAX", 3)
    with psycopg.connect(book.dsn) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s, 1)", (0x46415245,))
        first = asyncio.create_task(do(store, "first", PAY))
        await somebody_waits(book.dsn)
        waiting = [asyncio.create_task(do(store, f"p:{n}", PAY)) for n in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(StoreBusy):
            await do(store, "one too many", PAY)
        with pytest.raises(StoreBusy):
            await store.commit_many([Unit("one more", (PAY,)), Unit("and another", (PAY,))])
        other.rollback()
    told = await asyncio.gather(first, *waiting)
    assert [type(outcome) for outcome in told] == [Applied] * 4
    assert await store.outcome("one too many") is None


async def test_a_book_does_not_wait_for_another(book: PostgresBook) -> None:
    mine = await PostgresStore.open(book.dsn, RECORDS, book=1)
    other = await PostgresStore.open(book.dsn, RECORDS, book=2)
    with psycopg.connect(book.dsn) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(%s, 1)", (0x46415245,))
        waits = asyncio.create_task(fund(mine))
        await fund(other)
        assert await available(other, "a") == 1_000
        assert not waits.done()
        holder.rollback()
    await waits
    assert [(await store.account("a")) is not None for store in (mine, other)] == [True, True]
    assert (await do(mine, "p", PAY)).seq == (await do(other, "p", PAY)).seq == 2
    await mine.close()
    await other.close()


async def test_only_a_batch_in_which_nobody_asks_for_it_is_not_synced(
    store: PostgresStore, book: PostgresBook
) -> None:
    with psycopg.connect(book.dsn, autocommit=True) as db:
        db.execute("CREATE TABLE seen (id text, synced text)")
        db.execute(
            "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO seen "
            "VALUES (new.id, current_setting(''synchronous_commit'')); RETURN new; END'"
        )
        db.execute("CREATE TRIGGER see AFTER INSERT ON units FOR EACH ROW EXECUTE FUNCTION see()")
        await store.commit(Unit("light", (PAY,)), synced=False)
        await asyncio.gather(
            store.commit(Unit("light too", (PAY,)), synced=False), store.commit(Unit("grave"))
        )
        seen: dict[str, str] = dict(db.execute("SELECT id, synced FROM seen").fetchall())
    assert seen == {"light": "off", "light too": "on", "grave": "on"}


async def test_batches_are_counted_by_their_size_and_their_end(
    book: PostgresBook, breaker: CommitBreaker
) -> None:
    commits = Commits()
    store = await PostgresStore.open(book.dsn_at(breaker.port), RECORDS, commits=commits)
    await fund(store)
    with psycopg.connect(book.dsn) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s, 1)", (0x46415245,))
        first = asyncio.create_task(do(store, "first", PAY, events=(Event("paid", "a"),)))
        await somebody_waits(book.dsn)
        await asyncio.sleep(0.1)
        waiting = [asyncio.create_task(do(store, f"p:{n}", PAY)) for n in range(30)]
        await asyncio.sleep(0)
        assert commits.waiting() == 30
        other.rollback()
    await asyncio.gather(first, *waiting)
    sizes = dict(zip(commits.sizes.bounds, commits.sizes.buckets, strict=False))
    assert {bound: count for bound, count in sizes.items() if count} == {1: 2, 50: 1}
    assert commits.sizes.sum == 32
    assert sum(commits.took.buckets) == 3
    assert commits.took.sum > 0.1, "a batch takes as long as it waits for the lock"
    head = await store.outcome("p:29")
    assert head is not None
    assert (commits.unit, commits.event, commits.waiting()) == (32, 1, 0)
    assert commits.at_ns == ManualClock().now_ns() + 2, "the book's own time, which always rises"

    assert isinstance(await do(store, "p:0", PAY), Replayed)
    with pytest.raises(StoreError):
        await do(store, "no\0text", PAY)
    assert (commits.failures, commits.is_failing) == (1, False)
    breaker.open = False
    await asyncio.to_thread(cut_all, book)
    with hurry(0.2), pytest.raises(StoreError):
        await do(store, "away", PAY)
    assert (commits.failures, commits.is_failing) == (2, True)
    breaker.open = True
    await do(store, "back", PAY)
    assert (commits.failures, commits.is_failing, commits.unit) == (2, False, 33)
    await store.close()


# ── opening ──────────────────────────────────────────────────────────────────────────────────────


async def test_many_that_open_at_once_make_the_tables_once(book: PostgresBook) -> None:
    stores = await asyncio.gather(*(PostgresStore.open(book.dsn, RECORDS) for _ in range(8)))
    await fund(stores[0])
    for store in stores:
        assert await available(store, "a") == 1_000
        await store.close()


async def test_a_newer_database_is_refused(book: PostgresBook) -> None:
    store = await PostgresStore.open(book.dsn, RECORDS)
    await store.close()
    with psycopg.connect(book.dsn, autocommit=True) as db:
        db.execute("INSERT INTO migrations (number, name) VALUES (9999, 'later')")
    with pytest.raises(StoreOutdated, match="run a newer farebox"):
        await PostgresStore.open(book.dsn, RECORDS)


async def test_the_password_is_never_shown(postgres: Postgres) -> None:
    password = "s3cr3t"
    for dsn in (
        f"postgresql://farebox:{password}@127.0.0.1:1/postgres",
        f"postgresql://farebox:{password}@127.0.0.1:{postgres.port}/postgres",
        f"host=127.0.0.1 port=1 password={password}",
    ):
        with hurry(), pytest.raises(StoreError) as failed:
            await PostgresStore.open(dsn, RECORDS)
        assert password not in str(failed.value)
        assert password not in place(dsn)
    for wrong in (f"postgresql://a:{password}@h/d?wrong={password}", f"password {password}"):
        with pytest.raises(StoreError) as failed:
            conninfo(wrong)
        assert password not in str(failed.value)
        assert failed.value.__cause__ is None
