"""Several whole houses on one shared book, as if each were a process of its own.

Each house has its own caches, clock, name and connection (`Line`) to the one store. A house is
*killed* by cutting its line: from then on nothing that it does reaches the book, as nothing a dead
process does would. It is *paused* by holding its line: what it asks waits until it goes on.
"""

from __future__ import annotations

import asyncio
import io
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import psycopg
import pytest

from farebox.books import RECORDS
from farebox.bootstrap import Farebox
from farebox.clock import ManualClock, SystemClock
from farebox.errors import StoreError
from farebox.identity.keys import KeyTerms, NewKey, new_account
from farebox.ids import new_id
from farebox.ledger.invariants import AuditReader
from farebox.ledger.model import (
    Account,
    Applied,
    Kind,
    Open,
    Outcome,
    Refused,
    StoredEvent,
    Transfer,
    Unit,
)
from farebox.ledger.processes import LAPSE_BEATS
from farebox.ledger.records import RecordType, Row
from farebox.ledger.store import PAGE_MAX, Store
from farebox.settings import load_settings
from farebox.stores.postgres import PostgresStore
from farebox.stores.postgres.audit import PostgresAuditReader
from farebox.stores.sqlite import SqliteStore
from farebox.stores.sqlite.audit import SqliteAuditReader
from farebox.testing.asgi import serving
from farebox.testing.mint import PlayMint
from farebox.testing.upstream import PlayUpstream
from tests.integration.whole_house import PRICES, ROOT_KEY, Door, WholeHouse, plain_client
from tests.peers.postgres import Postgres

T = TypeVar("T", bound=msgspec.Struct)


class Shared(Protocol):
    """A book that several processes have open; one class for each backend."""

    async def connect(self) -> Store:
        """The store of one more process; the same object where a book has but one."""
        ...

    def reader(self) -> AbstractContextManager[AuditReader]:
        """A snapshot for the audit, while the book is open."""
        ...

    async def close(self) -> None:
        """Let go of every store."""
        ...


class SharedSqlite:
    """One store for all houses: as far as each can tell, the others are processes."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "farebox.db"
        self._store: SqliteStore | None = None

    async def connect(self) -> Store:
        self._store = self._store or SqliteStore(self._path, RECORDS)
        return self._store

    def reader(self) -> AbstractContextManager[AuditReader]:
        return SqliteAuditReader(self._path, RECORDS)

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()


class SharedPostgres:
    """A book in a schema of its own; each house has a store and connections of its own."""

    def __init__(self, server: Postgres) -> None:
        self._schema = f"shared_{secrets.token_hex(6)}"
        self._dsn = server.dsn_at(server.port, options=f"-csearch_path%3D{self._schema}")
        self._stores: list[PostgresStore] = []
        self._run(f"CREATE SCHEMA {self._schema}")

    async def connect(self) -> Store:
        self._stores.append(await PostgresStore.open(self._dsn, RECORDS))
        return self._stores[-1]

    def reader(self) -> AbstractContextManager[AuditReader]:
        return PostgresAuditReader(self._dsn, RECORDS)

    async def close(self) -> None:
        for store in self._stores:
            await store.close()
        self._run(f"SET client_min_messages = warning; DROP SCHEMA {self._schema} CASCADE")

    def _run(self, statement: str) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as db:
            db.execute(statement.encode())


#: Each backend by its name; what a server has to be started for is asked of the test.
SHARED: dict[str, Callable[[pytest.FixtureRequest, Path], Shared]] = {
    "sqlite": lambda _, directory: SharedSqlite(directory),
    "postgres": lambda test, _: SharedPostgres(test.getfixturevalue("postgres")),
}


class Line:
    """One process's connection to the shared book."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open = asyncio.Event()
        self._open.set()
        self._is_cut = False

    def cut(self) -> None:
        """The process is dead: nothing of it reaches the book, and it hears nothing."""
        self._is_cut = True
        self._open.set()

    def hold(self) -> None:
        """The process is paused before its next word with the book."""
        self._open.clear()

    def go_on(self) -> None:
        """The process goes on where it was paused."""
        self._open.set()

    async def _through(self) -> Store:
        await self._open.wait()
        if self._is_cut:
            raise StoreError("this process was killed")
        return self._store

    async def commit(self, unit: Unit, *, synced: bool = True) -> Outcome:
        return await (await self._through()).commit(unit, synced=synced)

    async def commit_many(self, units: Sequence[Unit], *, synced: bool = True) -> Sequence[Outcome]:
        return await (await self._through()).commit_many(units, synced=synced)

    async def outcome(self, unit_id: str) -> Applied | Refused | None:
        return await (await self._through()).outcome(unit_id)

    async def get(self, record: RecordType[T], key: str) -> Row[T] | None:
        return await (await self._through()).get(record, key)

    async def find(
        self,
        record: RecordType[T],
        where: Mapping[str, str | int],
        *,
        at_most: tuple[str, int] | None = None,
        after: str = "",
        limit: int = PAGE_MAX,
    ) -> list[tuple[str, Row[T]]]:
        store = await self._through()
        return await store.find(record, where, at_most=at_most, after=after, limit=limit)

    async def account(self, account_id: str) -> Account | None:
        return await (await self._through()).account(account_id)

    async def accounts(self, after: str = "", limit: int = PAGE_MAX) -> list[Account]:
        return await (await self._through()).accounts(after, limit)

    async def events(
        self, after: int = 0, *, subject: str | None = None, limit: int = PAGE_MAX
    ) -> list[StoredEvent]:
        return await (await self._through()).events(after, subject=subject, limit=limit)

    async def expire_due(self) -> int:
        return await (await self._through()).expire_due()

    async def close(self) -> None:
        raise AssertionError("the shared store is not a house's to close")


class House(WholeHouse):
    """A process: a whole house with a line to the shared book."""

    line: Line
    shared: Shared

    def reader(self) -> AbstractContextManager[AuditReader]:
        return self.shared.reader()

    def kill(self) -> None:
        """SIGKILL: no word of it reaches the book any more."""
        self.line.cut()


class World:
    """The shared book, the mint and the upstream, and the houses that were opened."""

    def __init__(
        self, shared: Shared, store: Store, mint: PlayMint, upstream_url: str, directory: Path
    ) -> None:
        self.shared = shared
        self.store = store
        self.mint = mint
        self.houses: list[House] = []
        self._upstream_url = upstream_url
        self._directory = directory
        self._opened = AsyncExitStack()

    async def house(self, **overrides: object) -> House:
        """Start another process. Its jobs run only when a test says so."""
        settings: dict[str, object] = {
            "data_dir": str(self._directory),
            "mint": [{"url": self.mint.url, **_terms(overrides)}],
            "upstream": [{"urls": [self._upstream_url]}],
            "price": PRICES,
            "ecash.mint_timeout_s": 60,
            "gateway.stop_grace_s": 1,
            **overrides,
        }
        line, clock = Line(await self.shared.connect()), ManualClock(SystemClock().now_ns())
        made = Farebox(load_settings(None, {}, settings), ROOT_KEY, clock=clock, shared=line)
        farebox = await self._opened.enter_async_context(made)
        await farebox.worker.stop()
        url = await self._opened.enter_async_context(serving(farebox.app))
        http = await self._opened.enter_async_context(plain_client(url))
        issued = self.houses[0].issued if self.houses else []
        house = House(
            farebox, self.mint, PlayUpstream(), clock, http, url, io.StringIO(), issued=issued
        )
        house.line, house.shared = line, self.shared
        self.houses.append(house)
        return house

    async def beats(self, *alive: House, times: int = LAPSE_BEATS + 1) -> None:
        """As much time passes as ends every process that is not `alive`."""
        for _ in range(times):
            for house in alive:
                await house.farebox.processes.beat()

    async def key(self, house: House, amount_msat: int = 1_000_000) -> NewKey:
        """A funded account key, made in one process."""
        account = new_account()
        steps = (
            Open("custody:test", "BTC", Kind.CUSTODY),
            Open(account, "BTC", Kind.CUSTOMER),
            Transfer("custody:test", account, amount_msat, "fund"),
        )
        assert isinstance(await self.store.commit(Unit(new_id("fund"), steps)), Applied)
        made = await house.farebox.keys.create(account, KeyTerms(refund_method="cashu"))
        assert isinstance(made, NewKey)
        return made

    async def available(self, account: str) -> tuple[int, int]:
        """What an account can spend, and what is held of it."""
        found = await self.store.account(account)
        assert found is not None
        return found.available, found.debits_pending

    async def close(self) -> None:
        """Let go of every house, dead or alive."""
        for house in self.houses:
            house.line.go_on()
        await self._opened.aclose()


def _terms(overrides: dict[str, object]) -> dict[str, Any]:
    terms = overrides.pop("mint_terms", {})
    assert isinstance(terms, dict)
    return terms


@asynccontextmanager
async def shared_world(shared: Shared, directory: Path) -> AsyncIterator[World]:
    """A book, a mint and an upstream. At the end books, inventory and mint must agree."""
    mint = PlayMint(units=("sat", "msat"))
    async with AsyncExitStack() as opened:
        opened.push_async_callback(shared.close)
        store = await shared.connect()
        mint.url = await opened.enter_async_context(serving(mint))
        upstream_url = await opened.enter_async_context(serving(PlayUpstream()))
        world = World(shared, store, mint, upstream_url, directory)
        opened.push_async_callback(world.close)
        yield world
        await audited(world)


async def audited(world: World) -> None:
    """Books, proofs and mint agree, as seen by a process that is alive."""
    alive = [house for house in world.houses if not house.line._is_cut]
    for house in alive:
        house.line.go_on()
        await house.settled()
    await alive[-1].assert_whole()


__all__ = ["SHARED", "Door", "House", "Line", "Shared", "World", "shared_world"]
