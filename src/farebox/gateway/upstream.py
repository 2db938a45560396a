"""Upstreams: which one serves a path, the next one when it is down, one pool of connections.

Promises: a request is sent at most once; only where nothing of it can have been sent is another
address tried. Never: a cookie kept, a redirect followed, a body decoded, a caller's money passed
on, our keys passed back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import structlog

from farebox.gateway.asgi import RawHeaders, header
from farebox.gateway.exchange import (
    Outgoing,
    Patience,
    UpstreamRefusedUs,
    UpstreamUnreachable,
)
from farebox.gateway.headers import KEPT_FROM_UPSTREAM, for_upstream, relocated
from farebox.gateway.http1 import Http1Exchange, Origin, Pool

_log = structlog.get_logger("farebox.gateway")

#: After a failed connection an address comes last for this long, doubled each time.
_DOWN_FIRST_S = 1
_DOWN_MOST_S = 30
#: Answers about our own credentials.
_ABOUT_US = frozenset({401, 402, 407})


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """A service: the paths it has, its addresses in order of preference, what it is sent."""

    urls: tuple[str, ...]
    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    connect_timeout_s: float = 5
    first_byte_timeout_s: float = 120
    idle_timeout_s: float = 60
    #: Whether what it states in /v1/models are prices here.
    states_prices: bool = False


class _Address:
    """One address, and whether it answered lately."""

    def __init__(self, url: str, connect_timeout_s: float) -> None:
        self.url = url
        self.pool = Pool(Origin.of(url), connect_timeout_s)
        self.failures = 0
        #: All of them, those that are over as well.
        self.failures_ever = 0
        self.down_until_s = 0.0

    def failed(self, now_s: float) -> None:
        """Come last for a while."""
        self.failures_ever += 1
        pause_s = min(_DOWN_FIRST_S << min(self.failures, 10), _DOWN_MOST_S)
        self.failures += 1
        self.down_until_s = now_s + pause_s

    def answered(self) -> None:
        """All is well again."""
        self.failures = 0
        self.down_until_s = 0.0


class Upstream:
    """A service with its addresses."""

    def __init__(self, config: UpstreamConfig) -> None:
        self.path = config.path.rstrip("/")
        self.addresses = [_Address(url, config.connect_timeout_s) for url in config.urls]
        self.patience = Patience(config.first_byte_timeout_s, config.idle_timeout_s)
        self.states_prices = config.states_prices
        self._set = [
            (name.lower().encode(), value.encode()) for name, value in config.headers.items()
        ]
        self._kept_out = KEPT_FROM_UPSTREAM.union(name for name, _ in self._set)

    def headers(self, given: RawHeaders, *, is_metered: bool) -> list[tuple[bytes, bytes]]:
        """What goes on: the caller's headers that may, ours in place of its own.

        An answer that is to be metered must not come compressed.
        """
        headers = for_upstream(given, self._kept_out)
        headers += self._set
        encoding = b"identity" if is_metered else header(given, b"accept-encoding")
        if encoding:
            headers.append((b"accept-encoding", encoding))
        return headers

    def is_down(self, now_s: float) -> bool:
        """Whether none of its addresses could be reached just now."""
        return all(address.down_until_s > now_s for address in self.addresses)

    def in_order(self, now_s: float) -> list[_Address]:
        """The addresses to try: those that are up first, as configured; none is left out."""
        if len(self.addresses) == 1:
            return self.addresses
        return sorted(self.addresses, key=lambda address: address.down_until_s > now_s)


class Upstreams:
    """All upstreams of a gateway. Use it as `async with Upstreams(configs)`."""

    def __init__(self, configs: Sequence[UpstreamConfig]) -> None:
        self._configs = configs
        self.all: Sequence[Upstream] = ()

    async def __aenter__(self) -> Self:
        # The longest path first: the first that fits is the upstream of a request.
        self.all = sorted(map(Upstream, self._configs), key=lambda upstream: -len(upstream.path))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for upstream in self.all:
            for address in upstream.addresses:
                address.pool.close()
        await asyncio.sleep(0)  # for the transports to close

    def find(self, path: str) -> Upstream | None:
        """The upstream of a path: of those whose path it begins with, the longest."""
        for upstream in self.all:
            own = upstream.path
            if not own or path == own or path.startswith(own + "/"):
                return upstream
        return None

    async def open(self, upstream: Upstream, outgoing: Outgoing) -> Http1Exchange:
        """Send a request; returns when the head of the answer is there.

        Raises UpstreamUnreachable, UpstreamRefusedUs. How long to wait is the caller's to say, by
        cancelling.
        """
        now_s = asyncio.get_running_loop().time()
        for address in upstream.in_order(now_s):
            head = address.pool.head(outgoing)
            try:
                connection = await address.pool.connect()
            except OSError as error:  # a time-out is one as well: nothing was sent
                address.failed(now_s)
                _log.warning("upstream.down", url=address.url, error=type(error).__name__)
                continue
            address.answered()
            exchange = connection.request(head, outgoing.body, has_body=outgoing.method != "HEAD")
            try:
                await exchange.head
            except BaseException:
                exchange.close()
                raise
            if exchange.status in _ABOUT_US:
                exchange.close()
                raise UpstreamRefusedUs(exchange.status)
            if exchange.status != 200:
                exchange.headers = relocated(exchange.headers, address.url)
            return exchange
        raise UpstreamUnreachable("no address of the upstream could be reached")
