"""Every test here runs against every backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from farebox.clock import ManualClock
from farebox.ledger.store import Store
from farebox.stores.postgres import connection
from tests.contract.store.books import Backend, PostgresBook, SimulatedBook, SqliteBook


@pytest.fixture(params=["postgres", "simulated", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    backend: Backend
    if request.param == "postgres":
        backend = PostgresBook(request.getfixturevalue("postgres"))
    elif request.param == "simulated":
        backend = SimulatedBook()
    else:
        backend = SqliteBook(tmp_path)
    yield backend
    backend.remove()


@pytest.fixture
def clock(backend: Backend) -> ManualClock:
    return backend.clock()


@pytest.fixture
async def store(backend: Backend, clock: ManualClock) -> AsyncIterator[Store]:
    """An open book, which must verify when the test has done with it."""
    async with backend.open(clock) as store:
        yield store
        backend.verify()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time for a server to start again on a machine that is slow, or stands still for a while."""
    monkeypatch.setattr(connection, "PATIENCE_S", 60)
