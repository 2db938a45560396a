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

import aiohttp
import structlog
from multidict import CIMultiDict
from yarl import URL

from farebox.gateway.asgi import RawHeaders, header
from farebox.gateway.exchange import (
    Outgoing,
    Patience,
    UpstreamDied,
    UpstreamUnreachable,
)
from farebox.gateway.headers import for_upstream, lowered

_log = structlog.get_logger("farebox.gateway")

#: After a failed connection an address comes last for this long, doubled each time.
_DOWN_FIRST_S = 1
_DOWN_MOST_S = 30
_RESPONSE_HEADER_MAX_BYTES = 65_536
_READ_BUFFER_BYTES = 65_536
_POOLED_IDLE_S = 15
#: Nothing of the request can have reached the upstream.
_NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


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

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.failures = 0
        self.down_until_s = 0.0

    def failed(self, now_s: float) -> None:
        """Come last for a while."""
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
        self.addresses = [_Address(url) for url in config.urls]
        self.patience = Patience(config.first_byte_timeout_s, config.idle_timeout_s)
        self.connect_timeout_s = config.connect_timeout_s
        self.states_prices = config.states_prices
        self._set = [
            (name.lower().encode(), value.encode()) for name, value in config.headers.items()
        ]
        self._set_names = frozenset(name for name, _ in self._set)

    def headers(self, given: RawHeaders, *, is_metered: bool) -> list[tuple[bytes, bytes]]:
        """What goes on: the caller's headers that may, ours in place of its own.

        An answer that is to be metered must not come compressed.
        """
        headers = for_upstream(given, self._set_names)
        headers += self._set
        encoding = b"identity" if is_metered else header(given, b"accept-encoding")
        if encoding:
            headers.append((b"accept-encoding", encoding))
        return headers

    def in_order(self, now_s: float) -> list[_Address]:
        """The addresses to try: those that are up first, as configured; none is left out."""
        if len(self.addresses) == 1:
            return self.addresses
        return sorted(self.addresses, key=lambda address: address.down_until_s > now_s)


class Upstreams:
    """All upstreams of a gateway. Open it inside a running loop: `async with`."""

    def __init__(self, configs: Sequence[UpstreamConfig]) -> None:
        self._upstreams = sorted(map(Upstream, configs), key=lambda it: -len(it.path))

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_POOLED_IDLE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            read_bufsize=_READ_BUFFER_BYTES,
            max_line_size=_RESPONSE_HEADER_MAX_BYTES,
            max_field_size=_RESPONSE_HEADER_MAX_BYTES,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    @property
    def all(self) -> Sequence[Upstream]:
        """Every upstream, the longest path first."""
        return self._upstreams

    def find(self, path: str) -> Upstream | None:
        """The upstream of a path: of those whose path it begins with, the longest."""
        for upstream in self._upstreams:
            own = upstream.path
            if not own or path == own or path.startswith(own + "/"):
                return upstream
        return None

    async def open(self, upstream: Upstream, outgoing: Outgoing) -> AiohttpExchange:
        """Send a request; returns when the head of the answer is there.

        Raises UpstreamUnreachable. How long to wait is the caller's to say, by cancelling.
        """
        now_s = asyncio.get_running_loop().time()
        for address in upstream.in_order(now_s):
            try:
                answer = await self._send(address, upstream, outgoing)
            except _NOT_SENT as error:
                address.failed(now_s)
                _log.warning("upstream.down", url=address.url, error=type(error).__name__)
                continue
            except (aiohttp.ClientError, OSError, ValueError) as error:
                _log.warning("upstream.failed", url=address.url, error=type(error).__name__)
                raise UpstreamUnreachable(f"{address.url} broke off") from None
            address.answered()
            return AiohttpExchange(answer)
        raise UpstreamUnreachable("no address of the upstream could be reached")

    async def _send(
        self, address: _Address, upstream: Upstream, outgoing: Outgoing
    ) -> aiohttp.ClientResponse:
        return await self._session.request(
            outgoing.method,
            URL(address.url + outgoing.target, encoded=True),
            headers=CIMultiDict(
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in outgoing.headers
            ),
            data=outgoing.body or None,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=upstream.connect_timeout_s),
        )


class AiohttpExchange:
    """An answer that arrives through aiohttp, which stops reading when nobody takes it."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer
        self._content = answer.content
        self.status = answer.status
        self.headers = lowered(answer.raw_headers)

    @property
    def has_ended(self) -> bool:
        """Whether it is known already that nothing more comes."""
        return self._content.at_eof()

    async def read(self) -> bytes:
        """The next bytes; empty at the end. Raises UpstreamDied."""
        try:
            return await self._content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamDied(f"the upstream broke off: {type(error).__name__}") from None

    def close(self) -> None:
        """Cancel what has not ended."""
        if not self._content.at_eof():
            self._answer.close()
