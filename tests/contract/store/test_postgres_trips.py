"""A batch is two round trips, however much is in it: who is far from the database waits for two."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from farebox.ledger.model import ABSENT, Applied, Event, Put, Transfer
from farebox.stores.postgres import PostgresStore
from tests.contract.store.books import JOB, RECORDS, Job, PostgresBook, do, fund
from tests.peers.postgres import Postgres

#: Whoever says nothing for so long waits for an answer.
_SILENT_S = 0.2
_CHUNK_BYTES = 1 << 16


class FarAway:
    """A way to the server that brings answers only once nothing more is asked, and counts that."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.silent_s = 0.0
        self.trips = 0
        self._serving = set[asyncio.Task[None]]()

    async def ended(self) -> None:
        """Until every connection is closed."""
        await asyncio.gather(*self._serving)

    async def serve(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        answers, server = await asyncio.open_connection("127.0.0.1", self._port)
        is_silent = asyncio.Event()
        answering = asyncio.create_task(_answer(answers, back, is_silent))
        asking = asyncio.create_task(reader.read(_CHUNK_BYTES))
        while True:
            limit_s = None if is_silent.is_set() else self.silent_s
            done, _ = await asyncio.wait({asking}, timeout=limit_s)
            if not done:
                self.trips += 1
                is_silent.set()
                continue
            if not asking.result():
                break
            is_silent.clear()
            server.write(asking.result())
            asking = asyncio.create_task(reader.read(_CHUNK_BYTES))
        answering.cancel()
        for end in (server, back):
            end.close()
            with contextlib.suppress(OSError):
                await end.wait_closed()


async def _answer(
    answers: asyncio.StreamReader, back: asyncio.StreamWriter, is_silent: asyncio.Event
) -> None:
    while chunk := await answers.read(_CHUNK_BYTES):
        await is_silent.wait()
        back.write(chunk)


@pytest.fixture
def book(postgres: Postgres) -> Iterator[PostgresBook]:
    book = PostgresBook(postgres)
    yield book
    book.remove()


async def test_a_batch_takes_two_round_trips_whatever_is_in_it(
    book: PostgresBook, postgres: Postgres
) -> None:
    way = FarAway(postgres.port)
    async with await asyncio.start_server(way.serve, "127.0.0.1") as proxy:
        store = await PostgresStore.open(book.dsn_at(proxy.sockets[0].getsockname()[1]), RECORDS)
        await fund(store)
        way.silent_s = _SILENT_S
        taken = []
        for number in range(3):
            before = way.trips
            puts = (Put(JOB, f"job:{number}", Job(), ABSENT),)
            paying = do(
                store,
                f"p:{number}",
                Transfer("a", "b", 1, "x"),
                puts=puts,
                events=(Event("paid", "a"),),
            )
            assert isinstance(await paying, Applied)
            taken.append(way.trips - before)
        # A busy machine may take one trip for two, never two for one.
        assert min(taken) == 2
        await store.close()
        await way.ended()
