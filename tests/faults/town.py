"""A house, its mint, its upstream and its callers, with a fault proxy on each way between them."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp

from tests.crash.world import Lost, Nursery, Run, new_run, outside
from tests.faults.proxy import FaultProxy, nothing, sql
from tests.peers.postgres import Postgres

_T = TypeVar("_T")
#: Shorter than the callers' patience, so that the house gives up on others before it is given up.
_PATIENCE_S = 0.4
_CALLERS_PATIENCE_S = 1
_TRIES_MAX = 3_000
_PAUSE_S = 0.02


class Way(enum.Enum):
    """Between whom."""

    CALLER = "caller-house"
    UPSTREAM = "house-upstream"
    MINT = "house-mint"
    DATABASE = "house-database"


@dataclass
class Town:
    """Everybody, and the proxies between them."""

    house: Run
    ways: Mapping[Way, FaultProxy]
    fees: int = 0

    async def restart(self) -> None:
        """Kill the house and open it again."""
        await self.house.kill()
        assert await self.house.start()
        self.meet()

    def meet(self) -> None:
        """Have callers reach the house through their proxy, at the address they know."""
        callers = self.ways[Way.CALLER]
        callers.target, self.house.url = self.house.url, callers.url

    def be_well(self) -> None:
        """Nothing more goes wrong."""
        for proxy in self.ways.values():
            proxy.plan = nothing

    async def surely(self, step: Callable[[], Awaitable[_T]]) -> _T:
        """Do it again until an answer arrives, as a caller does who wants his money's worth."""
        for _ in range(_TRIES_MAX):
            try:
                return await step()
            except Lost:
                await asyncio.sleep(_PAUSE_S)
        raise AssertionError("nobody ever answered")

    async def look(self) -> None:
        """Settle what is open, and find that no unit was lost or made."""
        await self.house.settle()
        seen = await self.house.look()
        assert not seen.faults, seen.faults
        assert seen.fees == self.fees


@asynccontextmanager
async def town(
    nursery: Nursery, folder: Path, server: Postgres | None = None
) -> AsyncIterator[Town]:
    """A house that is open, and everybody reaches everybody else through a proxy.

    With a server the house's book is in PostgreSQL, in a database of its own.
    """
    connector = aiohttp.TCPConnector(force_close=True)  # a request is sent once, and then lost
    patience = aiohttp.ClientTimeout(total=_CALLERS_PATIENCE_S)
    async with (
        outside() as around,
        aiohttp.ClientSession(connector=connector, timeout=patience) as session,
        FaultProxy(around.mints[0].url) as to_mint,
        FaultProxy(around.upstream_url) as to_upstream,
        FaultProxy("") as to_house,
        AsyncExitStack() as opened,
    ):
        around.mints[0].url = to_mint.url  # tokens name the mint by where it is reached
        patient = {
            "urls": [to_upstream.url],
            "first_byte_timeout_s": _PATIENCE_S,
            "idle_timeout_s": _PATIENCE_S,
        }
        settings: dict[str, object] = {
            "ecash.mint_timeout_s": _PATIENCE_S,
            "upstream": [patient],
        }
        ways = {Way.CALLER: to_house, Way.UPSTREAM: to_upstream, Way.MINT: to_mint}
        if server is not None:
            name = opened.enter_context(server.database())
            proxy = FaultProxy(f"tcp://127.0.0.1:{server.port}", language=sql)
            ways[Way.DATABASE] = await opened.enter_async_context(proxy)
            port = urlsplit(proxy.url).port
            assert port is not None
            settings["database.url"] = server.dsn_at(port, dbname=name)
        reached = replace(around, session=session)
        house = new_run(nursery, reached, folder, settings=settings)
        made = Town(house, ways)
        try:
            assert await house.start()
            made.meet()
            yield made
        finally:
            await house.kill()
