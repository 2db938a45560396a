"""HTTP/1.1 towards upstreams: as little as a proxy needs, on the parser that the server uses.

A request is bytes that are there, an answer arrives piece by piece, and a connection is used again
when its answer ended well. aiohttp's client does much more, and costs more than all the rest of a
forwarded request.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

from farebox.gateway.exchange import Outgoing, UpstreamDied, UpstreamUnreachable
from farebox.paywall.model import Headers

_HEAD_MAX_BYTES: Final = 65_536
#: Reading pauses above, and goes on below.
_BUFFER_HIGH_BYTES: Final = 262_144
_BUFFER_LOW_BYTES: Final = 65_536
_IDLE_MAX: Final = 512
_IDLE_MAX_S: Final = 15
_SWITCHING_PROTOCOLS: Final = 101
#: Any but chunked is one that nobody asked for, and that we cannot undo.
_CODING: Final = b"transfer-encoding"
_SAY_THE_END: Final = frozenset({b"content-length", b"transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection goes, and what every request line there begins with."""

    host: str
    port: int
    tls: bool
    authority: bytes
    path: str

    @staticmethod
    def of(url: str) -> Origin:
        """Read a base URL, as the settings have checked it."""
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        host = parts.hostname or ""
        port = parts.port or (443 if tls else 80)
        return Origin(host, port, tls, parts.netloc.encode("ascii"), parts.path.rstrip("/"))


class Http1Exchange:
    """An answer that arrives on one connection, which stops reading when nobody takes it."""

    def __init__(self, connection: _Connection, *, has_body: bool) -> None:
        self._connection: _Connection | None = connection
        self.has_body = has_body
        self.status = 0
        self.headers: Headers = ()
        self.head: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pieces: list[bytes] = []
        self._size = 0
        self._is_complete = False
        self._broke = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it is known already that nothing more comes."""
        return self._is_complete and not self._pieces

    async def read(self) -> bytes:
        """The next bytes; empty at the end. Raises UpstreamDied."""
        if not self._pieces and not self._is_complete and not self._broke:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._pieces:
            pieces = self._pieces
            chunk = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._pieces, self._size = [], 0
            if self._connection is not None:
                self._connection.resume()
            return chunk
        if self._broke:
            raise UpstreamDied("the upstream broke off in the middle of its answer")
        return b""

    def close(self) -> None:
        """Cancel what has not ended."""
        if self._connection is not None:
            self._connection.abort()

    def begin(self, status: int, headers: Headers) -> None:
        """The head is there."""
        self.status, self.headers = status, headers
        if not self.head.done():
            self.head.set_result(None)

    def feed(self, piece: bytes) -> bool:
        """More of the body; False when reading should pause."""
        self._pieces.append(piece)
        self._size += len(piece)
        self._wake()
        return self._size < _BUFFER_HIGH_BYTES

    def end(self, *, broke: bool = False) -> None:
        """Nothing more will come."""
        self._connection = None
        self._is_complete = not broke
        self._broke = broke
        if not self.head.done():
            self.head.set_exception(UpstreamUnreachable("the upstream broke off unanswered"))
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Connection(asyncio.Protocol):
    """One connection; at most one exchange at a time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Http1Exchange | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._ends_with_connection = False
        self._is_paused = False
        self.idle_since_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it can carry a request."""
        return not self._transport.is_closing()

    def request(self, head: bytes, body: bytes, *, has_body: bool) -> Http1Exchange:
        """Send a request."""
        exchange = Http1Exchange(self, has_body=has_body)
        self._exchange = exchange
        self._headers = []
        self._head_bytes = 0
        self._transport.write(head + body if len(body) < _BUFFER_LOW_BYTES else head)
        if len(body) >= _BUFFER_LOW_BYTES:
            self._transport.write(body)
        return exchange

    def resume(self) -> None:
        """What was buffered is taken."""
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Have nothing more to do with it."""
        self._transport.abort()
        self._lose(broke=True)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._exchange is None:
            self._transport.abort()  # nobody asked
            return
        if not self._exchange.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.abort()
            return
        head_is_open = self._exchange is not None and not self._exchange.status
        if head_is_open and self._head_bytes > _HEAD_MAX_BYTES:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        self._lose(broke=exc is not None or not self._ends_with_connection)

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._exchange is None:
            # An answer that nobody asked for, or the end of one that was longer than it said: what
            # comes next on this connection would pass for somebody else's.
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers, self._headers = tuple(self._headers), []
        exchange = self._exchange
        if exchange is None or (status < 200 and status != _SWITCHING_PROTOCOLS):
            return
        self._ends_with_connection = _SAY_THE_END.isdisjoint([name for name, _ in headers])
        coded = any(name == _CODING and value.lower() != b"chunked" for name, value in headers)
        if (
            coded
            or status == _SWITCHING_PROTOCOLS
            or self._head_bytes > _HEAD_MAX_BYTES + (_BUFFER_HIGH_BYTES)
        ):
            self.abort()
            return
        exchange.begin(status, headers)
        if not exchange.has_body:
            # The parser cannot know that a length announced here is of a body that never comes.
            self._exchange = None
            exchange.end()
            self._transport.close()

    def on_body(self, body: bytes) -> None:
        exchange = self._exchange
        if exchange is not None and not exchange.feed(body) and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        exchange = self._exchange
        if exchange is None or not exchange.status:
            return
        self._exchange = None
        exchange.end()
        self.resume()
        if self._parser.should_keep_alive():
            self._pool.keep(self)
        else:
            self._transport.close()

    def _lose(self, *, broke: bool) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.end(broke=broke or not exchange.status)


class Pool:
    """The connections to one origin."""

    def __init__(self, origin: Origin, connect_timeout_s: float) -> None:
        self._origin = origin
        self._connect_timeout_s = connect_timeout_s
        self._tls = ssl.create_default_context() if origin.tls else None
        self._idle: deque[_Connection] = deque()
        self._loop = asyncio.get_running_loop()

    async def connect(self) -> _Connection:
        """A connection that is ready. Raises OSError, TimeoutError: nothing was sent."""
        while self._idle:
            connection = self._idle.pop()
            fresh = self._loop.time() - connection.idle_since_s < _IDLE_MAX_S
            if fresh and connection.is_open:
                return connection
            connection.abort()
        async with asyncio.timeout(self._connect_timeout_s):
            _, made = await self._loop.create_connection(
                lambda: _Connection(self), self._origin.host, self._origin.port, ssl=self._tls
            )
        return made

    def head(self, outgoing: Outgoing) -> bytes:
        """A request but for its body. Raises UpstreamUnreachable for what is no request."""
        return _head(self._origin, outgoing)

    def keep(self, connection: _Connection) -> None:
        """It may carry another request."""
        connection.idle_since_s = self._loop.time()
        self._idle.append(connection)
        if len(self._idle) > _IDLE_MAX:
            self._idle.popleft().abort()

    def forget(self, connection: _Connection) -> None:
        """It is closed."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().abort()


def _head(origin: Origin, outgoing: Outgoing) -> bytes:
    target = (origin.path + outgoing.target).encode("latin-1")
    lines = [b"%s %s HTTP/1.1\r\nhost: %s" % (outgoing.method.encode(), target, origin.authority)]
    lines += [b"%s: %s" % pair for pair in outgoing.headers]
    if outgoing.body or outgoing.method in ("POST", "PUT", "PATCH"):
        lines.append(b"content-length: %d" % len(outgoing.body))
    head = b"\r\n".join(lines)
    breaks = len(lines)
    # A line break within a name or a value would begin another request.
    if b" " in target or head.count(b"\n") != breaks or head.count(b"\r") != breaks:
        raise UpstreamUnreachable("the request cannot be written as HTTP")
    return head + b"\r\n\r\n"
