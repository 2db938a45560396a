"""A book on a primary with a streaming standby: what may read there, and what a fail-over keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from unittest.mock import patch

import pytest

from farebox.errors import OutcomeUnknown, StoreError, StoreRewound
from farebox.ledger.checkpoint import Checkpoint
from farebox.ledger.invariants import verify
from farebox.ledger.model import Applied, Transfer, Unit
from farebox.ledger.replay import Broken
from farebox.stores.postgres import PostgresStore, batch, connection
from farebox.stores.postgres.audit import PostgresAuditReader
from farebox.tally import Commits
from tests.contract.store.books import RECORDS, available, do, fund
from tests.contract.store.test_postgres_faults import pay_until
from tests.peers.standby import Pair
from tests.waiting import eventually

PAY = Transfer("a", "b", 1, "x")


@contextmanager
def hurry() -> Iterator[None]:
    """Time-outs that a test can wait for, in the order they have."""
    hurried = batch.SYNCED.replace("'5s'", "'300ms'").replace("'20s'", "'500ms'")
    with (
        patch.multiple(connection, PATIENCE_S=1, _TRIP_MAX_S=2),
        patch.object(batch, "SYNCED", hurried),
    ):
        yield


def audited(pair: Pair, since: Checkpoint | None = None, at: str = "") -> object:
    """What the audit says of the book, read at any of them that answers."""
    with PostgresAuditReader(at or pair.dsn, RECORDS) as reader:
        result = verify(reader, since or Checkpoint())
    return result if isinstance(result, Broken) else result[1]


async def opened(pair: Pair, commits: Commits | None = None) -> PostgresStore:
    """A funded book."""
    store = await PostgresStore.open(pair.dsn, RECORDS, commits=commits)
    await fund(store)
    return store


async def until_known(store: PostgresStore, unit_id: str) -> object:
    """Ask until there is an answer."""

    async def ask() -> list[object]:
        with suppress(StoreError):
            return [await store.outcome(unit_id)]
        return []

    (outcome,) = await eventually(ask)
    return outcome


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.peer
async def test_the_audit_reads_at_a_standby_and_whoever_decides_does_not(pair: Pair) -> None:
    """Not even where the address asks for it: a standby does not know what has just happened."""
    dsn = f"{pair.dsn}&target_session_attrs=prefer-standby"
    store = await PostgresStore.open(dsn, RECORDS)
    await fund(store)
    for number in range(5):
        await do(store, f"p:{number}", PAY)
        assert await available(store, "b") == number + 1, "it reads what it has just written"
    asked = await store._readers.read(_in_recovery)
    assert asked == (False,)
    await asyncio.to_thread(pair.catch_up)
    with PostgresAuditReader(dsn, RECORDS) as reader:
        assert reader._one("SELECT pg_is_in_recovery()", ()) == (True,)
    checkpoint = await asyncio.to_thread(audited, pair, None, dsn)
    assert isinstance(checkpoint, Checkpoint)
    assert checkpoint.seq == 6
    await store.close()


async def _in_recovery(connection: connection.Connection) -> object:
    return await (await connection.execute("SELECT pg_is_in_recovery()")).fetchone()


# ── a standby that is waited for ─────────────────────────────────────────────────────────────────


@pytest.mark.peer
@pytest.mark.usefixtures("patient")
async def test_a_fail_over_under_load_to_a_standby_that_is_waited_for_loses_nothing(
    pair: Pair,
) -> None:
    store = await opened(pair)
    await do(store, "more", Transfer("custody", "a", 10**9, "deposit"))
    await asyncio.to_thread(pair.wait_for_standby)
    enough = asyncio.Event()
    payers = [asyncio.create_task(pay_until(store, enough, task)) for task in range(20)]
    await eventually(lambda: available(store, "b"))
    before = await available(store, "b")
    await asyncio.to_thread(pair.fail_over)
    await eventually(lambda: available(store, "b"), lambda paid: paid > before)
    enough.set()
    paid = sum(await asyncio.gather(*payers))
    assert await available(store, "b") == paid > before, "it went on"
    assert isinstance(await asyncio.to_thread(audited, pair), Checkpoint)
    await store.close()


@pytest.mark.peer
@pytest.mark.parametrize("restarts", [False, True])
async def test_a_commit_that_the_standby_does_not_have_is_told_to_nobody(
    pair: Pair, restarts: bool
) -> None:
    """Not when time is up; nor after a restart, which makes the commit visible all the same."""
    store = await opened(pair)
    await asyncio.to_thread(pair.wait_for_standby)
    await do(store, "p:1", PAY)
    await asyncio.to_thread(pair.standby.stop, "immediate")
    with hurry():
        paying = asyncio.create_task(do(store, "p:2", PAY))
        if restarts:
            await asyncio.to_thread(pair.until_a_commit_waits)
            await asyncio.to_thread(pair.primary.restart, "immediate")
        with pytest.raises(OutcomeUnknown):
            await paying
    await asyncio.to_thread(pair.standby.start)
    assert isinstance(await until_known(store, "p:2"), Applied)
    assert await available(store, "b") == 2
    await store.close()


# ── a standby that is not ────────────────────────────────────────────────────────────────────────


@pytest.mark.peer
async def test_who_was_told_what_a_fail_over_has_lost_writes_nothing_more(pair: Pair) -> None:
    commits = Commits()
    store, other = await opened(pair, commits), await PostgresStore.open(pair.dsn, RECORDS)
    await do(other, "other's", PAY)
    await asyncio.to_thread(pair.catch_up)
    await asyncio.to_thread(pair.standby.stop)
    assert isinstance(await do(store, "lost", PAY), Applied)
    checkpoint = await asyncio.to_thread(audited, pair)
    assert isinstance(checkpoint, Checkpoint)
    await asyncio.to_thread(pair.primary.kill)
    await asyncio.to_thread(pair.standby.start)
    await asyncio.to_thread(pair.standby.promote)

    for name in ("after", "after that"):
        with pytest.raises(StoreError, match="had acknowledged unit 3") as told:
            await do(store, name, PAY)
        assert isinstance(told.value.__cause__, StoreRewound)
    with pytest.raises(StoreError, match="had acknowledged unit 3"):
        await store.expire_due()
    assert commits.is_failing
    # It stays so, however far others take the book; they were told nothing that is lost.
    for number in range(3):
        assert isinstance(await do(other, f"new:{number}", PAY), Applied)
    with pytest.raises(StoreError, match="had acknowledged unit 3"):
        await do(store, "after all", PAY)
    assert await store.outcome("lost") is None
    assert await available(store, "b") == 4
    # A verify that goes on from the last one notices as well, whoever was restarted meanwhile.
    assert isinstance(await asyncio.to_thread(audited, pair, checkpoint), Broken)
    assert isinstance(await asyncio.to_thread(audited, pair), Checkpoint)
    await store.close()
    await other.close()


@pytest.mark.peer
async def test_what_nobody_asked_to_be_synced_may_be_lost_in_silence(pair: Pair) -> None:
    store = await opened(pair)
    await asyncio.to_thread(pair.catch_up)
    await asyncio.to_thread(pair.standby.stop)
    assert isinstance(await store.commit(Unit("light", (PAY,)), synced=False), Applied)
    await asyncio.to_thread(pair.primary.kill)
    await asyncio.to_thread(pair.standby.start)
    await asyncio.to_thread(pair.standby.promote)
    assert isinstance(await do(store, "after", PAY), Applied)
    assert await available(store, "b") == 1
    await store.close()
