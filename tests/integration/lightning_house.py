"""A whole house with a real Lightning node, behind its real door; and somebody who pays it.

Leaving it proves that the book verifies, nothing is open, and no key of the node stands in any log.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest

from farebox import bootstrap
from farebox.bootstrap import Farebox
from farebox.bootstrap.lightning import config_of
from farebox.clock import SystemClock
from farebox.rails.web import open_guarded_session
from farebox.settings import load_settings
from farebox.testing.asgi import Receive, Scope, Send, respond, serving
from farebox.testing.upstream import PlayUpstream
from tests.crash.victim import AheadClock
from tests.integration.rail_house import RailHouse
from tests.integration.whole_house import listening
from tests.peers.lnd import LightningNetwork

ROOT_KEY = b"k" * 32
PRICE_MSAT = 10_000
CUSTODY = "custody:lightning:main"


@dataclass
class LightningHouse(RailHouse):
    """A running house; `network` is where its money is."""

    farebox: Farebox
    clock: AheadClock
    http: httpx.AsyncClient
    log: io.StringIO
    secrets: tuple[str, ...]
    keys: list[str] = field(default_factory=list)

    async def asked(self, amount_msat: int | None, bearer: str = "") -> dict[str, Any]:
        """A deposit that was asked for."""
        body = {"method": "lightning", "asset": "BTC", "amount": amount_msat}
        answer = await self.post("/v1/deposits", body, bearer)
        assert answer.status_code == 201, answer.text
        asked: dict[str, Any] = answer.json()
        return asked

    async def funded(self, network: LightningNetwork, amount_msat: int) -> str:
        """The key of a new account with so much on it, paid in over Lightning."""
        asked = await self.asked(amount_msat)
        assert await pay(network, asked["pay"]) == "SUCCEEDED"
        made = await self.post(
            "/create",
            {"initial_balance_token": asked["pay"], "claim_secret": asked["claim_secret"]},
        )
        assert made.status_code == 200, made.text
        assert made.json()["balance"] == amount_msat
        return str(made.json()["api_key"])

    async def held_msat(self) -> int:
        """What the books say lies on the node."""
        account = await self.farebox.store.account(CUSTODY)
        return account.held if account else 0

    async def assert_whole(self) -> None:
        """The books verify, and hold as much as they owe."""
        await super().assert_whole()
        accounts = await self.farebox.store.accounts()
        owed = sum(
            one.credits_posted - one.debits_posted
            for one in accounts
            if one.kind.value in ("customer", "revenue")
        )
        assert sum(one.held for one in accounts if one.kind.value == "custody") == owed


class Payee:
    """A Lightning address whose invoices are the payer's; one that `lies` asks for more."""

    def __init__(self, network: LightningNetwork) -> None:
        self._network = network
        self.url = ""
        self.lies = False

    @property
    def address(self) -> str:
        return "bob@" + self.url.removeprefix("http://")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        document: dict[str, object] = {
            "tag": "payRequest",
            "callback": f"{self.url}/pay",
            "minSendable": 1_000,
            "maxSendable": 10**9,
            "metadata": '[["text/plain","bob"]]',
        }
        if scope["path"] == "/pay":
            amount_msat = int(parse_qs(scope["query_string"].decode())["amount"][0])
            asked_msat = amount_msat + 1_000 * self.lies
            text = await asyncio.to_thread(self._network.payer.invoice, asked_msat)
            document = {"pr": text, "routes": []}
        await respond(send, 200, json.dumps(document).encode())


async def pay(network: LightningNetwork, invoice: str) -> str:
    """The payer pays, while the house goes on."""
    return await asyncio.to_thread(network.payer.pay, invoice)


def lightning_settings(network: LightningNetwork, macaroon: str) -> dict[str, object]:
    """How the house is told of its node."""
    return {
        "node": "lnd",
        "url": network.house.url,
        "key": macaroon,
        "certificate": str(network.house.certificate),
        "network": "sb",
        "timeout_s": 60,
        "pay_timeout_s": 60,
    }


@asynccontextmanager
async def lightning_house(
    data_dir: Path,
    network: LightningNetwork,
    patch: pytest.MonkeyPatch,
    **terms: object,
) -> AsyncIterator[LightningHouse]:
    """A house on the network's LND; what was done is audited when its doors close."""
    macaroon = await asyncio.to_thread(network.house.bake)
    settings = {**lightning_settings(network, macaroon), **terms}
    async with house_on(data_dir, settings, (macaroon,), patch) as house:
        yield house


@asynccontextmanager
async def house_on(
    data_dir: Path,
    lightning: Mapping[str, object],
    secrets: tuple[str, ...],
    patch: pytest.MonkeyPatch,
) -> AsyncIterator[LightningHouse]:
    """A house on any node, by its settings; no log may have one of its `secrets`."""
    patch.setattr(
        bootstrap, "open_guarded_session", partial(open_guarded_session, allow_private=True)
    )
    patch.setattr(bootstrap.lightning, "config_of", partial(config_of, allow_private=True))
    clock = AheadClock()
    async with AsyncExitStack() as open_things:
        heard = open_things.enter_context(listening())
        upstream_url = await open_things.enter_async_context(serving(PlayUpstream()))
        settings = {
            "data_dir": str(data_dir),
            "upstream": [{"urls": [upstream_url]}],
            "price": [{"path": "/*", "per_request": f"{PRICE_MSAT} msat"}],
            "lightning": lightning,
        }
        farebox = await open_things.enter_async_context(
            Farebox(load_settings(None, {}, settings), ROOT_KEY, clock=clock)
        )
        url = await open_things.enter_async_context(serving(farebox.app))
        http = await open_things.enter_async_context(httpx.AsyncClient(base_url=url, timeout=60))
        house = LightningHouse(farebox, clock, http, heard, secrets)
        yield house
        await house.settled()
        await house.assert_whole()
        for secret in house.secrets:
            assert secret not in heard.getvalue()


def now_s() -> int:
    """Unix seconds."""
    return SystemClock().now_ns() // 10**9
