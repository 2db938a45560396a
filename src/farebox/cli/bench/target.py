"""One HTTP server that is asked, on the client that the gateway itself uses: it repeats nothing.

A client that sends a request again by itself pays twice, and measures something else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from farebox.errors import InvalidInput
from farebox.gateway.exchange import Outgoing, UpstreamDied, UpstreamUnreachable
from farebox.gateway.http1 import Origin, Pool

ANSWER_TIMEOUT_S = 60
_CONNECT_TIMEOUT_S = 5
#: So much of an answer's end is kept: all of a problem document, and the receipt of a stream.
_KEPT_BYTES = 1 << 17


class NoAnswer(Exception):
    """No whole answer arrived; nobody knows what became of the request. Says how, in words."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to make. What pays for it stands in its headers."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that arrived whole; of a long one the end alone. `first_byte_s` is loop time."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    first_byte_s: float

    def document(self) -> dict[str, Any]:
        """The body as a JSON object; empty where it is none."""
        try:
            return msgspec.json.decode(self.body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return {}

    @property
    def says(self) -> str:
        """Status and, of a problem, its code."""
        return f"{self.status} {self.document().get('code', '')}".strip()


class Target:
    """A server by its address. Use it as `async with Target(url)`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"{url!r} is no address: write it as http://127.0.0.1:8080")
        self.url = url.rstrip("/")
        self._pool = Pool(Origin.of(self.url), _CONNECT_TIMEOUT_S)

    async def ask(self, ask: Ask) -> Reply:
        """Make a request, once. Raises NoAnswer."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await self._asked(ask)
        except TimeoutError:
            raise NoAnswer("no answer in time") from None
        except (UpstreamDied, UpstreamUnreachable):
            raise NoAnswer("the connection broke") from None
        except OSError as error:
            raise NoAnswer(f"no connection: {error.strerror or type(error).__name__}") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pool.close()
        await asyncio.sleep(0)  # for the transports to close

    async def _asked(self, ask: Ask) -> Reply:
        headers = [(name.encode(), value.encode()) for name, value in ask.headers.items()]
        head = self._pool.head(Outgoing(ask.method, ask.target, headers, ask.body))
        connection = await self._pool.connect()
        exchange = connection.request(head, ask.body, has_body=True)
        try:
            await exchange.head
            first_byte_s = asyncio.get_running_loop().time()
            body = b""
            while piece := await exchange.read():
                body = (body + piece)[-_KEPT_BYTES:]
            return Reply(exchange.status, _text(exchange.headers), body, first_byte_s)
        finally:
            exchange.close()


def _text(headers: tuple[tuple[bytes, bytes], ...]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
