"""The gateway: an ASGI app in front of a service. Bare, because every request passes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import structlog

from farebox.gateway import problems
from farebox.gateway.asgi import (
    App,
    BodyTooLarge,
    CallerLeft,
    NoRoom,
    Receive,
    Room,
    Scope,
    Send,
    client_address,
    declared_length,
    header,
    headers_bytes,
    let_go,
    read_body,
    replayed,
    send_answer,
    with_query,
)
from farebox.gateway.carrier import Carrier
from farebox.gateway.catalogue import Catalogue
from farebox.gateway.channel_endpoints import send_endpoint
from farebox.gateway.deadlines import Deadlines
from farebox.gateway.delivery import Call, Supervision
from farebox.gateway.exchange import Outgoing
from farebox.gateway.names import named, rename
from farebox.gateway.upstream import Upstream, Upstreams
from farebox.paywall.channel_service import ChannelService
from farebox.paywall.model import (
    Admission,
    Answer,
    BearerMoney,
    EmbeddedMoney,
)
from farebox.paywall.service import Paywall
from farebox.pricing.request import RequestFacts, ask_for_usage, read_request
from farebox.pricing.tokens import TokenCounter
from farebox.turns import Turns

_log = structlog.get_logger("farebox.gateway")

_ALLOWED: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_STREAM_RECEIPT: Final = b"x-farebox-stream-receipt"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a gateway takes at most, and how long it waits."""

    body_bytes_max: int = 10 * 1024 * 1024
    bodies_bytes_max: int = 256 * 1024 * 1024
    header_bytes_max: int = 65_536
    requests_max: int = 1024
    queue_max: int = 1024
    body_timeout_s: float = 30
    queue_timeout_s: float = 10
    stop_grace_s: float = 30


class Gateway:
    """Dispatches the wallet API's paths to it, and everything else through the paywall.

    `api` may be left out; `owns_path` says which paths are its. Where channels pay, `channels` has
    endpoints of its own. What stands in `probes`, by path, is answered also when every turn is
    taken and while it stops; it must cost nothing.
    """

    def __init__(
        self,
        paywall: Paywall,
        upstreams: Upstreams,
        counter: TokenCounter,
        limits: Limits,
        *,
        api: App | None = None,
        owns_path: Callable[[str], bool] = lambda _: False,
        channels: ChannelService | None = None,
        probes: Mapping[str, Callable[[], Answer]] | None = None,
        catalogue: Catalogue | None = None,
        supervision: Supervision | None = None,
    ) -> None:
        self._paywall = paywall
        self._upstreams = upstreams
        self._limits = limits
        self._api = api
        self._owns_path = owns_path
        self._channels = channels
        self._probes = probes or {}
        self._catalogue = catalogue
        self.carrier = Carrier(paywall, counter, supervision)
        self._body_deadlines = Deadlines(limits.body_timeout_s)
        self.room = Room(max(limits.bodies_bytes_max, limits.body_bytes_max))
        self.turns = Turns(limits.requests_max, limits.queue_max, limits.queue_timeout_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await _refuse_websocket(scope, receive, send)

    def owns(self, path: str) -> bool:
        """Whether a path is the wallet API's, or a probe's."""
        if path in self._probes or (self._api is not None and self._owns_path(path)):
            return True
        return self._channels is not None and self._channels.owns(path)

    @property
    def running(self) -> int:
        """How many requests are being carried."""
        return self.carrier.running

    async def stop(self) -> None:
        """Take nothing new; finish what runs, or settle it when the grace is over."""
        await self.carrier.stop(self._limits.stop_grace_s)

    def cut(self) -> None:
        """Be patient with nothing: settle what runs now. For a `stop` that takes too long."""
        self.carrier.cut()

    # ── before money moves ───────────────────────────────────────────────────────────────────────

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        probe = self._probes.get(scope["path"])
        if probe is not None:
            await send_answer(send, probe(), method=scope["method"])
            return
        refused = self._refuse_early(scope)
        if refused is None and not await self.turns.take():
            refused = problems.busy()
        if refused is not None:
            await self._answer(send, refused, scope)
            return
        body: bytes | Answer = b""
        try:
            body = await self._read_body(scope, receive)
            if isinstance(body, Answer):
                await self._answer(send, body, scope)
            elif self._api is not None and self._owns_path(scope["path"]):
                await self._api(scope, replayed(body, receive), send)
            elif self._channels is not None and self._channels.owns(scope["path"]):
                await send_endpoint(self._channels, scope, replayed(body, receive), send)
            else:
                work = self._carry(scope, body, receive, send)
                await self.carrier.carry(work, let_go(scope))
        except CallerLeft:
            return
        finally:
            self.turns.give_back()
            if not isinstance(body, Answer):
                self.room.give_back(len(body))

    async def _answer(self, send: Send, answer: Answer, scope: Scope) -> None:
        """Answer a request that nobody tried to authorise."""
        self.carrier.tally.answered(answer)
        await send_answer(send, answer, method=scope["method"])

    def _refuse_early(self, scope: Scope) -> Answer | None:
        headers = scope["headers"]
        if self.carrier.is_stopping:
            return problems.stopping()
        if self.carrier.is_closed:
            return problems.not_open()
        if headers_bytes(headers) > self._limits.header_bytes_max:
            return problems.headers_too_large(self._limits.header_bytes_max)
        if header(headers, b"upgrade").lower() == b"websocket" or scope["method"] == "CONNECT":
            return problems.upgrade_refused()
        if scope["method"] == "OPTIONS":
            # What a browser asks before it asks costs nothing and reaches nobody.
            return Answer(204, ((b"allow", _ALLOWED),), b"")
        return None

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes | Answer:
        bytes_max = self._limits.body_bytes_max
        if declared_length(scope["headers"]) > bytes_max:
            return problems.body_too_large(bytes_max)
        try:
            return await self._body_deadlines.wait(read_body(receive, bytes_max, self.room))
        except BodyTooLarge:
            return problems.body_too_large(bytes_max)
        except TimeoutError:
            return problems.body_too_slow()
        except NoRoom:
            return problems.busy()

    # ── the way through ──────────────────────────────────────────────────────────────────────────

    async def _carry(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        method = scope["method"]
        target = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        facts, is_metered = self._read(method, target, body)
        upstream = self._upstreams.find(facts.path)
        asked = with_query(target, scope)
        presented = named(self._paywall.read(scope["headers"], method, asked), scope, asked, body)
        if isinstance(presented, Answer):
            refused: Answer | None = presented
        elif upstream is None:
            refused = problems.no_upstream(facts.path)
        else:
            refused = await self._listed(method, facts.path)
        if refused is not None or upstream is None or isinstance(presented, Answer):
            await self._answer(send, refused or problems.failed(), scope)
            return
        authorising: Awaitable[Admission | Answer] = self.carrier.authorise(
            presented, facts, client_address(scope)
        )
        if isinstance(presented, EmbeddedMoney | BearerMoney):
            # A mint is asked meanwhile, which takes longer than a turn of the loop.
            authorising = asyncio.ensure_future(authorising)
            await asyncio.sleep(0)
        call = _call(scope, facts, body, upstream)
        outgoing = _outgoing(scope, asked, upstream, call, is_metered=is_metered)
        admission = await authorising
        if isinstance(admission, Answer):
            await send_answer(send, admission, method=method)
            return
        rename(outgoing.headers, admission.account)
        outgoing.headers.append((b"x-request-id", admission.request_id.encode()))
        await self.carrier.deliver(
            admission, call, lambda: self._upstreams.open(upstream, outgoing), receive, send
        )

    def _read(self, method: str, path: str, body: bytes) -> tuple[RequestFacts, bool]:
        """The facts of a request, and whether its price depends on more than that it was made."""
        facts = _facts_of(method, path)
        is_metered = self._paywall.prices.book.needs_body(method, facts.path)
        return (read_request(method, path, body) if is_metered else facts), is_metered

    async def _listed(self, method: str, path: str) -> Answer | None:
        """The list of models with our prices, which is free; None for everything else."""
        if self._catalogue is None or method not in ("GET", "HEAD"):
            return None
        return await self._catalogue.answer(path)

    # ── from start to stop ───────────────────────────────────────────────────────────────────────

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return


@lru_cache(maxsize=2048)
def _facts_of(method: str, path: str) -> RequestFacts:
    return read_request(method, path, None)


def _call(scope: Scope, facts: RequestFacts, body: bytes, upstream: Upstream) -> Call:
    asked = ask_for_usage(facts, body)
    return Call(
        method=scope["method"],
        facts=facts,
        body=body,
        upstream_body=asked.body,
        strip_usage_chunk=asked.strip_usage_chunk,
        stream_receipt=header(scope["headers"], _STREAM_RECEIPT) == b"1",
        patience=upstream.patience,
    )


def _outgoing(
    scope: Scope, target: str, upstream: Upstream, call: Call, *, is_metered: bool
) -> Outgoing:
    headers = upstream.headers(scope["headers"], is_metered=is_metered)
    return Outgoing(call.method, target, headers, call.upstream_body)


async def _refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1003})
        return
    refused = problems.upgrade_refused()
    await send(
        {
            "type": "websocket.http.response.start",
            "status": refused.status,
            "headers": list(refused.headers),
        }
    )
    await send({"type": "websocket.http.response.body", "body": refused.body})
