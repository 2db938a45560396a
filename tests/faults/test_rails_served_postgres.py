"""Two `farebox serve` on one PostgreSQL book and one rail, of which one ends in its work.

Both are asked, and both know how to listen, scan, sweep and send: what came in is credited once,
what was to leave has left once, and the one that is left finishes what the other began.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from farebox.books import RECORDS
from farebox.ledger.invariants import verify
from farebox.ledger.replay import Broken
from farebox.rails.evm.outbox import SLOT
from farebox.stores.postgres.audit import PostgresAuditReader
from farebox.stores.rows import table
from tests.acceptance.world import Server, start_server
from tests.faults.rails import Bitcoin, Cards, Evm, Lightning, Rail, write_settings
from tests.faults.test_storm import SEED
from tests.peers.postgres import Postgres
from tests.waiting import eventually

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(600)]

_ROOT_KEY = "6b" * 32
_PAUSE_S = 0.1
#: A killed process has ended for the other after about ten seconds; the rest is the peers' time.
_WAIT_S = 60
RAILS = {"anvil": Evm, "bitcoin": Bitcoin, "lightning": Lightning, "localstripe": Cards}


class Book:
    """The book that both serve, read past them."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def count(self, event: str) -> int:
        """How often it has happened."""
        return self._one("SELECT count(*) FROM events WHERE name = %s", event)

    def unfinished(self) -> int:
        """How many holds are open, and transactions of a chain on their way."""
        held = self._one("SELECT count(*) FROM holds WHERE state = %s", "open")
        sent = f"SELECT count(*) FROM {table(SLOT)} WHERE f_state = ANY(string_to_array(%s, ' '))"
        return held + self._one(sent, "sent mined")

    def accounts(self) -> dict[str, int]:
        """What each holds, once all of it is proven."""
        with PostgresAuditReader(self._dsn, RECORDS) as reader:
            verified = verify(reader)
            assert not isinstance(verified, Broken), str(verified)
            return {one.id: one.held for one in reader.accounts()}

    def _one(self, question: str, value: str) -> int:
        with psycopg.connect(self._dsn, autocommit=True) as db:
            found = db.execute(question.encode(), (value,)).fetchone()
        assert found is not None
        return int(found[0])


@dataclass
class Gateway:
    """One of the two."""

    server: Server
    http: httpx.AsyncClient

    async def post(
        self, path: str, body: object, bearer: str = "", name: str = ""
    ) -> httpx.Response:
        """One call of its API."""
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        if name:
            headers["Idempotency-Key"] = name
        return await self.http.post(f"{self.server.url}{path}", json=body, headers=headers)


@dataclass
class Payer:
    """Somebody who pays in, and has a part of it paid out under one name."""

    asked: dict[str, Any]
    order: dict[str, object]
    key: str = ""


@asynccontextmanager
async def two_gateways(
    rail: Rail, upstream: str, folder: Path
) -> AsyncIterator[tuple[Gateway, Gateway]]:
    """Both serve the book that the environment names."""
    settings = {
        "upstream": [{"urls": [upstream]}],
        "price": [{"path": "/*", "per_request": "10 sat"}],
        **rail.settings(),
    }
    servers: list[Server] = []
    try:
        for name in ("one", "two"):
            home = folder / name
            home.mkdir()
            write_settings(home / "farebox.toml", settings)
            flags = ["--data", "data", "--listen", "127.0.0.1:0"]
            servers.append(await asyncio.to_thread(start_server, flags, home))
        async with httpx.AsyncClient(timeout=40, verify=False) as http:
            one, two = (Gateway(server, http) for server in servers)
            yield one, two
    finally:
        for server in servers:
            server.process.kill()
            server.process.wait()


@pytest.mark.parametrize("name", RAILS)
async def test_of_two_gateways_one_ends_and_nothing_happens_twice_or_never(
    name: str,
    postgres: Postgres,
    upstream: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    rail: Rail = await asyncio.to_thread(RAILS[name], request.getfixturevalue(name))
    seed = os.environ.get(SEED) or str(random.SystemRandom().randrange(1_000_000))
    monkeypatch.setenv("FAREBOX_ROOT_KEY", _ROOT_KEY)
    with postgres.database() as database:
        dsn = postgres.dsn_at(postgres.port, dbname=database)
        monkeypatch.setenv("FAREBOX_DATABASE", dsn)
        async with two_gateways(rail, upstream, tmp_path) as (one, two):
            try:
                await _live(rail, Book(dsn), one, two, random.Random(seed))
            except BaseException as error:
                error.add_note(f"{SEED}={seed}")
                raise


async def _live(rail: Rail, book: Book, one: Gateway, two: Gateway, chance: random.Random) -> None:
    await asyncio.to_thread(rail.begin, one.server.url)
    payers = [await _pays_in(rail, door) for door in (one, two, one, two)]
    await _credited(rail, book, len(payers))
    for payer, door in zip(payers, (two, one, two, one), strict=True):
        payer.key = await _claims(door, payer)
    # Two are paid out while both are at work.
    await asyncio.gather(*map(partial(_paid_out, rail, one), payers[:2]))
    late = await _asks(rail, two)
    # The rest is asked of both at once, and the one that was first, and so watches, ends over it.
    asking = [
        asyncio.create_task(_orders(rail, door, payer))
        for payer in payers[2:]
        for door in (one, two)
    ]
    for _ in range(chance.randrange(10)):
        await asyncio.sleep(_PAUSE_S)
        await asyncio.to_thread(rail.go_on)
    is_frozen = chance.random() < 0.5
    one.server.process.send_signal(signal.SIGSTOP if is_frozen else signal.SIGKILL)
    payers.append(late)
    await asyncio.to_thread(rail.pay, late.asked)
    await _credited(rail, book, len(payers))
    await _settled(rail, book)
    late.key = await _claims(two, late)
    await _right(rail, book, two, payers)
    if is_frozen:
        # Nobody told it that it was taken for dead.
        one.server.process.send_signal(signal.SIGCONT)
        for told in await asyncio.gather(*asking, return_exceptions=True):
            # A connection whose time was over meanwhile is closed, asked or not: who is cut off
            # asks again, below.
            assert isinstance(told, httpx.Response | httpx.TransportError), told
        payers.append(await _pays_in(rail, one))
        await _credited(rail, book, len(payers))
        payers[-1].key = await _claims(one, payers[-1])
        await _right(rail, book, one, payers)
    await asyncio.gather(*asking, return_exceptions=True)
    assert "Traceback" not in one.server.said() + two.server.said()


async def _right(rail: Rail, book: Book, door: Gateway, payers: Sequence[Payer]) -> None:
    """Everybody has what he ordered, once, and books and rail agree."""
    for payer in payers:
        await _paid_out(rail, door, payer)
    await _settled(rail, book)
    for payer in payers:
        assert await asyncio.to_thread(rail.arrived, payer.order) == [rail.wanted(payer.order)]
    await asyncio.to_thread(rail.assert_right, await asyncio.to_thread(book.accounts))


async def _pays_in(rail: Rail, door: Gateway) -> Payer:
    payer = await _asks(rail, door)
    await asyncio.to_thread(rail.pay, payer.asked)
    return payer


async def _asks(rail: Rail, door: Gateway) -> Payer:
    body = {"method": rail.method, "asset": rail.asset, "amount": rail.amount}
    answer = await _told(door, "/v1/deposits", body)
    assert answer.status_code == 201, answer.text
    asked = answer.json()
    return Payer(asked, await asyncio.to_thread(rail.order, asked))


async def _credited(rail: Rail, book: Book, deposits: int) -> None:
    """Wait until so many have been credited, once each. Nobody asks the house about them."""

    def is_so() -> bool:
        return book.count("deposit.credited") == deposits

    await _until(rail, is_so, f"{deposits} deposits credited")


async def _settled(rail: Rail, book: Book) -> None:
    """Wait until all that was asked for has come to its end, without asking again."""
    await _until(rail, lambda: not book.unfinished() and rail.is_at_rest(), "all settled")


async def _until(rail: Rail, holds: Callable[[], bool], what: str) -> None:
    for _ in range(round(_WAIT_S / _PAUSE_S)):
        if await asyncio.to_thread(holds):
            return
        await asyncio.to_thread(rail.go_on)
        await asyncio.sleep(_PAUSE_S)
    raise AssertionError(f"never: {what}")


async def _claims(door: Gateway, payer: Payer) -> str:
    asked = payer.asked
    for text in (asked["pay"], asked["uri"]):
        body = {"initial_balance_token": text, "claim_secret": asked["claim_secret"]}
        made = await _told(door, "/create", body)
        if made.status_code == 200:
            return str(made.json()["api_key"])
    raise AssertionError(made.text)


async def _told(door: Gateway, path: str, body: object) -> httpx.Response:
    """Ask, and again while it says to come later."""
    return await eventually(lambda: door.post(path, body), lambda it: it.status_code != 503)


async def _orders(rail: Rail, door: Gateway, payer: Payer) -> httpx.Response:
    body = {key: value for key, value in payer.order.items() if key != "_"}
    return await door.post(rail.out_path, body, payer.key, "the-order")


async def _paid_out(rail: Rail, door: Gateway, payer: Payer) -> None:
    """Ask until it is told to have left."""
    for _ in range(round(_WAIT_S / _PAUSE_S)):
        told = await _orders(rail, door, payer)
        if told.status_code == 200:
            return
        assert told.status_code in (202, 409, 503), told.text
        await asyncio.to_thread(rail.go_on)
        await asyncio.sleep(_PAUSE_S)
    raise AssertionError(f"it never left: {told.text}")
