"""HTTP to a node: one call, or one stream of lines; bounded, its failures told apart.

Nothing of an answer that could be a secret reaches an error: a node's own words are cut short and
what looks like a key, a hash or an invoice in them is blanked.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import msgspec
from yarl import URL

from farebox.errors import RailRejected, RailUnavailable
from farebox.rails.web.bounded import read_bounded
from farebox.rails.web.breaker import Breaker, BreakerState

_T = TypeVar("_T")
_BYTES_MAX = 1 << 20
_CONNECT_S = 5
#: A subscription that says nothing is renewed: a line cut silently looks the same.
_SILENCE_S = 600
_SAID_MAX_CHARS = 160
_SECRET_LIKE = re.compile(r"[0-9A-Za-z_+/=-]{20,}")


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes = field(repr=False)

    def read(self, shape: type[_T]) -> _T:
        """The body as `shape`. Raises RailUnavailable."""
        return decode(self.body, shape)


def open_node_session() -> aiohttp.ClientSession:
    """A session for one node; close it in the end. Needs a running loop."""
    return aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
    )


class Line:
    """The way to one node: its address, the header that lets us in, its certificate, its breaker.

    `secret_headers` never reach a repr, a log or an error.
    """

    def __init__(
        self,
        url: str,
        secret_headers: Mapping[str, str],
        session: aiohttp.ClientSession,
        breaker: Breaker,
        *,
        tls: ssl.SSLContext | None = None,
        call_s: float = 15,
    ) -> None:
        self._base = URL(url)
        self._headers = {"Content-Type": "application/json", **secret_headers}
        self._session = session
        self._tls = tls
        self._call_s = call_s
        self.breaker = breaker

    def __repr__(self) -> str:
        return f"Line({self._base})"

    @property
    def url(self) -> URL:
        """Where the node is."""
        return self._base

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] | None = None,
        wait_s: float | None = None,
    ) -> Answer:
        """One exchange. Raises RailUnavailable for a lost one, and for 5xx without a document."""
        with self.breaker.attempt():
            async with self._open(method, path, body, query, wait_s or self._call_s) as response:
                raw = await read_bounded(response, _BYTES_MAX, "the node")
                return Answer(response.status, raw)

    async def lines(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] | None = None,
        wait_s: float | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """The lines of an answer that goes on; `wait_s` is how long all of it may take.

        Raises RailUnavailable where it breaks, at once while the breaker is open.
        """
        if self.breaker.state is BreakerState.OPEN:
            raise RailUnavailable("the node did not answer lately; it is left alone for a while")
        async with self._open(method, path, body, query, wait_s) as response:
            rest = b""
            async for chunk in response.content.iter_any():
                *whole, rest = (rest + chunk).split(b"\n")
                for line in filter(None, whole):
                    yield line
                if len(rest) > _BYTES_MAX:
                    raise RailUnavailable("the node's answer is too long")
            if rest:
                yield rest

    @asynccontextmanager
    async def websocket(self, path: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A websocket of the node. Raises RailUnavailable where it breaks."""
        try:
            async with self._session.ws_connect(
                self._base.join(URL(path, encoded=True)),
                headers=self._headers,
                heartbeat=30,
                max_msg_size=_BYTES_MAX,
                ssl=self._tls or True,
            ) as socket:
                yield socket
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise RailUnavailable(f"the node cannot be heard: {type(error).__name__}") from None

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        body: object,
        query: Mapping[str, str] | None,
        wait_s: float | None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        silence_s = None if wait_s else _SILENCE_S
        url = self._base.join(URL(path, encoded=True))
        try:
            async with self._session.request(
                method,
                url if query is None else url.update_query(query),
                data=None if body is None else msgspec.json.encode(body),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(
                    total=wait_s, sock_connect=_CONNECT_S, sock_read=silence_s
                ),
                allow_redirects=False,  # the header that lets us in goes to this node or nowhere
                ssl=self._tls or True,
            ) as response:
                try:
                    yield response
                finally:
                    _hang_up(response)
        except TimeoutError:
            raise RailUnavailable("the node did not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # The text of a foreign error may quote what was sent; its type says enough.
            raise RailUnavailable(f"the node gave no answer: {type(error).__name__}") from None


def _hang_up(response: aiohttp.ClientResponse) -> None:
    """Leave an answer that has not ended. A farewell over TLS would wait for the node's own, and a
    node that gives none would keep the socket open when the session is closed."""
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()


def decode(raw: bytes, shape: type[_T]) -> _T:
    """A node's document as `shape`. Raises RailUnavailable."""
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, RecursionError, OverflowError, UnicodeError):
        raise RailUnavailable("the node's answer is not what the call answers with") from None


def said(text: object) -> str:
    """A node's own words, fit to be shown."""
    shown = text if isinstance(text, str) else ""
    return _SECRET_LIKE.sub("…", shown)[:_SAID_MAX_CHARS] or "it said no more"


def refused(status: int, text: object) -> RailRejected | RailUnavailable:
    """What an answer that is no success means for a call that moves nothing."""
    if status in (401, 403):
        return RailUnavailable("the node does not let us in: check its macaroon, rune or key")
    if 400 <= status < 500 and status not in (408, 425, 429):
        return RailRejected(f"the node refused: {said(text)}")
    return RailUnavailable(f"the node answered with status {status}: {said(text)}")


Json = dict[str, Any]
