"""A whole house with a provider of card money, behind its real door.

Leaving it proves that the book verifies, nothing is open, and no key stands in any log.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from farebox.bootstrap import Farebox
from farebox.ledger.model import Kind, Open, Transfer, Unit
from farebox.money import BTC
from farebox.settings import load_settings
from farebox.testing.asgi import serving
from farebox.testing.upstream import PlayUpstream
from tests.crash.victim import AheadClock
from tests.integration.rail_house import RailHouse
from tests.integration.whole_house import listening
from tests.waiting import eventually

ROOT_KEY = b"k" * 32
PRICE_MSAT = 10_000
EARNED_MSAT = 50_000_000
#: A bitcoin is 100,000 dollars.
CENT_MSAT = 10_000


@dataclass
class CardHouse(RailHouse):
    """A running house."""

    farebox: Farebox
    clock: AheadClock
    http: httpx.AsyncClient
    url: str
    log: io.StringIO
    secrets: tuple[str, ...]

    async def asked(
        self, method: str, cents: int, bearer: str = "", asset: str = "USD"
    ) -> dict[str, Any]:
        """A deposit that was asked for."""
        body = {"method": method, "asset": asset, "amount": cents}
        answer = await self.post("/v1/deposits", body, bearer)
        assert answer.status_code == 201, answer.text + self.log.getvalue()[-1500:]
        asked: dict[str, Any] = answer.json()
        return asked

    async def opened(self, asked: Mapping[str, Any]) -> str:
        """The key of the account that a paid deposit opens."""
        claim = {"initial_balance_token": asked["uri"], "claim_secret": asked["claim_secret"]}
        made = await self.post("/create", claim)
        assert made.status_code == 200, made.text
        return str(made.json()["api_key"])

    async def until(self, look: Callable[[], Awaitable[int]], wanted: int) -> None:
        """Wait for a figure to be what it has to become."""
        await eventually(look, lambda found: found == wanted)

    async def held(self, account: str) -> int:
        """What stands on a ledger account, on its own side."""
        found = await self.farebox.store.account(account)
        if found is None:
            return 0
        return abs(found.debits_posted - found.credits_posted)


async def have_earned(house: CardHouse) -> None:
    """As if the house had been open for a while: losses come out of what it has earned."""
    till = "custody:till"
    steps = (
        Open(till, BTC.code, Kind.CUSTODY),
        Open("revenue", BTC.code, Kind.REVENUE),
        Transfer(till, "revenue", EARNED_MSAT, "sale"),
    )
    await house.farebox.store.commit(Unit("earned-before", steps))


@asynccontextmanager
async def card_house(
    data_dir: Path, rails: Mapping[str, object], secrets: tuple[str, ...], *, spread_ppm: int = 0
) -> AsyncIterator[CardHouse]:
    """A house by the settings of its card rails; what was done is audited when its doors close."""
    clock = AheadClock()
    async with AsyncExitStack() as open_things:
        heard = open_things.enter_context(listening())
        upstream_url = await open_things.enter_async_context(serving(PlayUpstream()))
        settings = {
            "data_dir": str(data_dir),
            "upstream": [{"urls": [upstream_url]}],
            "price": [{"path": "/*", "per_request": f"{PRICE_MSAT} msat"}],
            "rates": {"btc_usd": "100000", "spread_ppm": spread_ppm},
            **rails,
        }
        farebox = await open_things.enter_async_context(
            Farebox(load_settings(None, {}, settings), ROOT_KEY, clock=clock)
        )
        url = await open_things.enter_async_context(serving(farebox.app))
        http = await open_things.enter_async_context(httpx.AsyncClient(base_url=url, timeout=60))
        house = CardHouse(farebox, clock, http, url, heard, secrets)
        yield house
        await house.settled()
        await house.assert_whole()
        for secret in house.secrets:
            assert secret not in heard.getvalue()
