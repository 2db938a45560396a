"""A gateway on a real book, in front of an upstream that does what a test tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from farebox.gateway import Catalogue, Gateway, Limits, Supervision, UpstreamConfig, Upstreams
from farebox.identity.keys import KeyTerms, NewKey, new_account
from farebox.ids import new_id
from farebox.ledger.model import Applied, Kind, Open, Transfer, Unit
from farebox.pricing.parse import parse_price, parse_rules
from farebox.pricing.tokens import EstimatingCounter
from farebox.testing.asgi import App, Receive, Scope, Send, read_body, serving
from tests.integration.test_paywall import House
from tests.waiting import eventually

Handler = Callable[["Asked", Send], Awaitable[None]]


class Asked:
    """What the upstream got."""

    def __init__(self, scope: Scope, body: bytes) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["raw_path"].decode()
        self.query: bytes = scope["query_string"]
        self.headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        self.body = body

    def header(self, name: str) -> str | None:
        found = [value.decode() for key, value in self.headers if key == name.encode()]
        return ", ".join(found) if found else None


class Behaviour:
    """An upstream: `answer` is replaced by tests; `asked` is what came in."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Handler = say({"hello": "world"})
        self.cancelled = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        asked = Asked(scope, await read_body(receive, 1 << 24))
        self.asked.append(asked)
        answering = asyncio.ensure_future(self.answer(asked, send))
        leaving = asyncio.ensure_future(receive())
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            self.cancelled.set()
            answering.cancel()
        leaving.cancel()
        if answering.done():
            answering.result()


def say(document: object, status: int = 200, *headers: tuple[bytes, bytes]) -> Handler:
    """Answer with a JSON document."""
    import msgspec

    body = msgspec.json.encode(document)

    async def answer(_: Asked, send: Send) -> None:
        fields = [(b"content-type", b"application/json"), *headers]
        fields.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": body})

    return answer


def events(*chunks: bytes, pause_s: float = 0, kind: bytes = b"text/event-stream") -> Handler:
    """Answer with a stream of these chunks."""

    async def answer(_: Asked, send: Send) -> None:
        fields = [(b"content-type", kind)]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await asyncio.sleep(pause_s)
        await send({"type": "http.response.body", "body": b""})

    return answer


class Door:
    """A running gateway with a caller's session and a funded key."""

    def __init__(self, house: House, gateway: Gateway, upstream: Behaviour, url: str) -> None:
        self.house = house
        self.gateway = gateway
        self.upstream = upstream
        self.url = url
        self.account = ""
        self.auth: dict[str, str] = {}

    async def left(self) -> int:
        """What the account can spend."""
        return await self.house.balance(self.account)

    async def settled(self) -> None:
        """Wait until no request is open."""
        await eventually(lambda: not self.gateway.running)


@asynccontextmanager
async def open_door(
    path: Path,
    *,
    price: str = "10 sat",
    rules: list[dict[str, object]] | None = None,
    upstream: Behaviour | None = None,
    limits: Limits | None = None,
    supervision: Supervision | None = None,
    api: App | None = None,
    catalogue: bool = False,
    **config: object,
) -> AsyncIterator[tuple[Door, aiohttp.ClientSession]]:
    """A gateway in front of `upstream`, with an account of 1,000,000 msat."""
    house = House(path / "book.db")
    await house.start(price)
    if rules is not None:
        house.prices.book = house.prices.book.with_rules(parse_rules(rules))
    behaviour = upstream or Behaviour()
    async with serving(behaviour) as upstream_url, aiohttp.ClientSession() as caller:
        urls = config.pop("urls", (upstream_url,))
        configs = [UpstreamConfig(urls=urls, **config)]  # type: ignore[arg-type]
        async with Upstreams(configs) as upstreams:
            listed = Catalogue(upstreams, house.prices, house.clock, house.prices.book.rules)
            gateway = Gateway(
                house.paywall,
                upstreams,
                EstimatingCounter(),
                limits or Limits(),
                api=api,
                owns_path=lambda path: path == "/info",
                catalogue=listed if catalogue else None,
                supervision=supervision,
            )
            async with serving(gateway) as url:
                door = Door(house, gateway, behaviour, url)
                door.account, secret = await funded_key(house)
                door.auth = {"Authorization": f"Bearer {secret}"}
                yield door, caller
                await gateway.stop()
        await house.store.close()


async def funded_key(house: House) -> tuple[str, str]:
    """A new account of 1,000,000 msat, and a key to it."""
    account = new_account()
    fund = Unit(
        new_id("fund"),
        (
            Open("custody:test", "BTC", Kind.CUSTODY),
            Open(account, "BTC", Kind.CUSTOMER),
            Transfer("custody:test", account, 1_000_000, "deposit"),
        ),
    )
    assert isinstance(await house.store.commit(fund), Applied)
    made = await house.keys.create(account, KeyTerms())
    assert isinstance(made, NewKey)
    return account, made.secret


__all__ = ["Asked", "Behaviour", "Door", "events", "funded_key", "open_door", "parse_price", "say"]
