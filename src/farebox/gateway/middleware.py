"""The paywall inside a user's own app: ASGI middleware, and a decorator that says a price.

    app.add_middleware(Paywall, farebox=Farebox(settings, root_key))

    @app.get("/joke")
    @price("10 sat")
    async def joke() -> str: ...

The app routes, validates and resolves dependencies first; the price is asked for at the moment
the endpoint would run. So a request that the app refuses costs nothing and takes nothing.
What is not decorated is not for sale, and passes untouched.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar

import msgspec

from farebox.errors import FareboxError, InvalidSettings
from farebox.gateway.app import Gateway
from farebox.gateway.asgi import (
    App,
    Receive,
    Scope,
    Send,
    client_address,
    header,
    send_answer,
    with_query,
)
from farebox.gateway.carrier import Carrier
from farebox.gateway.delivery import Call
from farebox.gateway.exchange import Patience
from farebox.gateway.inner import Inbox, InnerExchange
from farebox.gateway.names import named
from farebox.paywall.model import Admission, Answer
from farebox.pricing.book import PriceBook
from farebox.pricing.parse import parse_price
from farebox.pricing.request import RequestFacts, read_request

R = TypeVar("R")

#: An app in our own process is waited for; only its caller may grow impatient.
_FOR_EVER_S: Final = 10**9
_PATIENCE: Final = Patience(_FOR_EVER_S, _FOR_EVER_S)


class House(Protocol):
    """What the middleware needs: `farebox.bootstrap.Farebox` is one."""

    app: Gateway

    async def __aenter__(self) -> Any:
        """Open the book and everything behind it."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Settle what runs, and close."""
        ...


class PriceWithoutPaywall(FareboxError):
    """An endpoint has a price, and no Paywall middleware is there to ask for it."""


class Paywall:
    """ASGI middleware that sells the endpoints decorated with `price`.

    The house is opened by the app's lifespan, or with the first request where the server or the
    framework sends none; then close it yourself when the app stops (`await paywall.close()`).
    The wallet API answers at its own paths, before the app's.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], *, farebox: House) -> None:
        self._app: App = app  # frameworks name the same type in ways of their own
        self._house = farebox
        self._opening = asyncio.Lock()
        self._is_open = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._with_house(send))
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await self.open()
        gateway = self._house.app
        if gateway.owns(scope["path"]):
            await gateway(scope, receive, send)
        else:
            await gateway.carrier.carry(_run(gateway.carrier, self._app, scope, receive, send))

    async def open(self) -> None:
        """Open the house, once."""
        if self._is_open:
            return
        async with self._opening:
            if not self._is_open:
                await self._house.__aenter__()
                self._is_open = True

    async def close(self) -> None:
        """Settle what runs and close the house."""
        if self._is_open:
            self._is_open = False
            await self._house.__aexit__(None, None, None)

    def _with_house(self, send: Send) -> Send:
        """The app's own start comes first, its own stop, too: it may still want to spend."""

        async def send_with_house(message: Any) -> None:
            if message["type"] == "lifespan.startup.complete":
                await self.open()
            elif message["type"].startswith("lifespan.shutdown."):
                await self.close()
            await send(message)

        return send_with_house


class _Visit:
    """One request: what it has to pay is decided when its endpoint is called, or never."""

    def __init__(self, carrier: Carrier, scope: Scope, inbox: Inbox) -> None:
        self._carrier = carrier
        self._scope = scope
        self._inbox = inbox
        self._is_asked = False
        raw = scope.get("raw_path") or scope["path"].encode()
        path = raw.decode("latin-1")
        self._target = with_query(path, scope)
        self.facts: RequestFacts = read_request(scope["method"], path, None)
        self.decided: asyncio.Future[Admission | Answer | None] = (
            asyncio.get_running_loop().create_future()
        )

    async def pay(self, book: PriceBook) -> None:
        """Returns when the request is paid for. When it is not, this is where it ends."""
        if self._is_asked or self.decided.done():
            raise FareboxError("a request is paid for once, before it is answered")
        self._is_asked = True
        scope = self._scope
        found = self._carrier.paywall.read(scope["headers"], scope["method"], self._target)
        presented = named(found, scope, self._target, self._inbox.digest)
        answer: Admission | Answer
        if isinstance(presented, Answer):
            self._carrier.tally.answered(presented)
            answer = presented
        else:
            address = client_address(self._scope)
            authorising = asyncio.ensure_future(
                self._carrier.authorise(presented, self.facts, address, book)
            )
            try:
                answer = await asyncio.shield(authorising)
            except asyncio.CancelledError:
                self._carrier.forsake(authorising)
                raise
        self.decided.set_result(answer)
        if isinstance(answer, Answer):
            # Whoever carries the request cancels the app, which unwinds it as any cancellation.
            await asyncio.Future()

    def undecided(self) -> None:
        """The answer begins or the app is done, and nothing is left to be decided."""
        if not self.decided.done():
            self.decided.set_result(None)


_visit: ContextVar[_Visit] = ContextVar("farebox_visit")


async def _run(carrier: Carrier, app: App, scope: Scope, receive: Receive, send: Send) -> None:
    inbox = Inbox(receive)
    visit = _Visit(carrier, scope, inbox)
    _visit.set(visit)
    exchange = InnerExchange(app, {**scope, "extensions": {}}, inbox, visit.undecided)
    try:
        decided = await visit.decided
        if isinstance(decided, Answer):
            exchange.close()
            await send_answer(send, decided, method=scope["method"])
        elif decided is None:
            await _pass_on(exchange, send)
        else:
            call = _call(scope, visit.facts)
            await carrier.deliver(decided, call, exchange.opened, inbox.left, send)
    finally:
        exchange.close()
    await exchange.ended()


async def _pass_on(exchange: InnerExchange, send: Send) -> None:
    """An answer that costs nothing."""
    if not exchange.status:
        return  # the app raised, and so shall we
    headers = list(exchange.headers)
    await send({"type": "http.response.start", "status": exchange.status, "headers": headers})
    while piece := await exchange.read():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _call(scope: Scope, facts: RequestFacts) -> Call:
    return Call(
        method=scope["method"],
        facts=facts,
        body=b"",
        upstream_body=b"",
        strip_usage_chunk=False,
        stream_receipt=header(scope["headers"], b"x-farebox-stream-receipt") == b"1",
        patience=_PATIENCE,
    )


def price(
    text: str, *, max_seconds: int | None = None, max_bytes: int | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Coroutine[Any, Any, Any]]]:
    """Sell an endpoint: `@price("10 sat")`, below the decorator that routes to it.

    `text` is a price as in the settings, by the request, second or byte. What is measured is the
    answer. The most it can come to is held first: by the byte that is far more than callers have,
    unless `max_bytes` says what the endpoint can answer. Plain functions are run in a thread, as
    frameworks do. Raises InvalidSettings.
    """
    rule = msgspec.structs.replace(parse_price(text), max_seconds=max_seconds, max_bytes=max_bytes)
    if rule.is_counted:
        raise InvalidSettings("price", text, "a price by the request, second or byte")
    book = PriceBook([rule])

    def sell(endpoint: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
        @functools.wraps(endpoint)
        async def sold(*args: Any, **named: Any) -> Any:
            visit = _visit.get(None)
            if visit is None:
                raise PriceWithoutPaywall("add the Paywall middleware to the app")
            await visit.pay(book)
            if inspect.iscoroutinefunction(endpoint):
                return await endpoint(*args, **named)
            return await asyncio.to_thread(endpoint, *args, **named)

        return sold

    return sell
