"""A database whose disk is full takes nothing, and goes on by itself when there is room."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from farebox.errors import OutcomeUnknown, StoreError
from farebox.ledger.invariants import verify
from farebox.ledger.model import Applied, Replayed, Transfer, Unit
from farebox.ledger.replay import Broken
from farebox.stores.postgres import PostgresStore
from farebox.stores.postgres.audit import PostgresAuditReader
from tests.contract.store.books import RECORDS, available, do, fund
from tests.faults.test_disk import Small, mounted
from tests.peers.fixtures import missing
from tests.peers.install import PeerUnavailable
from tests.peers.postgres import Postgres

_AT_ONCE = 100
_CALLS_MAX = 500


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Small]:
    folder = Path(tempfile.mkdtemp(prefix="farebox-disk-"))
    try:
        with mounted(folder, "96m") as small:
            folder.chmod(0o755)  # the server is another user
            monkeypatch.setattr(tempfile, "tempdir", str(folder))
            yield small
    finally:
        folder.rmdir()


@pytest.fixture
def server(disk: Small) -> Iterator[Postgres]:
    try:
        server = Postgres()
        server.start()
    except PeerUnavailable as reason:
        missing("PostgreSQL", reason)
        return
    yield server
    server.remove()


async def test_a_full_disk_of_the_database_takes_nothing_and_goes_on_when_there_is_room(
    disk: Small, server: Postgres
) -> None:
    store = await PostgresStore.open(server.dsn, RECORDS)
    await fund(store)
    await do(store, "more", Transfer("custody", "a", 10**9, "deposit"))
    await asyncio.to_thread(disk.fill)
    told, refused = 0, []
    for call in range(_CALLS_MAX):
        units = [
            Unit(f"p:{call}:{number}", (Transfer("a", "b", 1, "x"),)) for number in range(_AT_ONCE)
        ]
        try:
            told += len(await store.commit_many(units))
        except OutcomeUnknown:
            raise  # the server said so itself
        except StoreError:
            refused.append(units)
        if len(refused) == 2:
            break
    assert len(refused) == 2, "it never was full"
    assert await available(store, "b") == told
    await asyncio.to_thread(disk.clear)
    for units in refused:
        outcomes = await store.commit_many(units)
        assert {type(one) for one in outcomes} <= {Applied, Replayed}
        told += len(units)
    assert await available(store, "b") == told
    await store.close()
    with PostgresAuditReader(server.dsn, RECORDS) as reader:
        assert not isinstance(verify(reader), Broken)
