"""A TCP proxy on loopback that breaks what passes it, where a plan says so.

It stands between any two processes that speak HTTP/1.1, or the protocol of PostgreSQL. An exchange
is one request and its answer; it begins with the first byte that a caller sends after the answer
before it began. A plan is asked once about each exchange, by its number and its first line, so that
the same plan breaks the same exchanges again, however they fall in time.
"""

from __future__ import annotations

import asyncio
import enum
import random
import re
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_CHUNK_BYTES = 1 << 16
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"
#: Close with a reset instead of in order.
_LINGER_NOT = struct.pack("ii", 1, 0)

#: As a position: when the request is complete, by the length it announces.
WHOLE = 1 << 40


class Side(enum.Enum):
    """Which way the bytes go that are counted and broken."""

    REQUEST = "request"
    ANSWER = "answer"


class What(enum.Enum):
    """What goes wrong. Nothing of what comes behind the position passes, but for LATENCY."""

    LATENCY = "latency"  # what comes behind the position passes late
    RESET = "reset"  # both connections are reset
    TRUNCATE = "truncate"  # both are closed in order, as if all had been said
    HALF_CLOSE = "half-close"  # nothing more is said this way; the other way goes on
    BLACK_HOLE = "black-hole"  # both stay open, and nothing more arrives this way


@dataclass(frozen=True, slots=True)
class Strike:
    """What goes wrong with an exchange, and after how many bytes of its request or answer."""

    what: What
    side: Side
    at: int = 0
    seconds: float = 0.05

    def __str__(self) -> str:
        at = "whole" if self.at == WHOLE else str(self.at)
        return f"{self.what.value}-{self.side.value}-{at}"


#: The request is carried out, and nobody hears of it.
ANSWER_DROPPED = Strike(What.RESET, Side.ANSWER)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a plan is asked about: the number of it, from 0, and its request line."""

    number: int
    line: str


Plan = Callable[[Exchange], Strike | None]
#: What the bytes of a request begin: its line, and how long it will be; None while too few are
#: there to tell.
Language = Callable[[bytes], tuple[str, int] | None]


def http(data: bytes) -> tuple[str, int] | None:
    """A request's line, and its length as its head announces it."""
    head, end, _ = data.partition(_HEAD_END)
    if not end:
        return None
    length = _LENGTH.search(head)
    line = " ".join(head.split(b"\r\n", 1)[0].decode("latin-1").split()[:2])
    return line, len(head) + len(end) + (int(length[1]) if length else 0)


def sql(data: bytes) -> tuple[str, int] | None:
    """A round trip of PostgreSQL: BEGIN, COMMIT, or neither; up to where its answer is due."""
    line = next((word for word in ("COMMIT", "BEGIN") if word.encode() in data), "other")
    at = 0
    while len(data) >= at + 5:
        # The first message of a connection has no type, and begins with a zero of its length.
        kind = data[at : at + 1].strip(b"\0")
        at += len(kind) + int.from_bytes(data[at + len(kind) : at + len(kind) + 4])
        if kind in (b"", b"S", b"Q", b"H", b"p", b"X"):
            return (line, at) if len(data) >= at else None
    return None


def nothing(_: Exchange) -> Strike | None:
    """The plan of a good day."""
    return None


def once(strike: Strike, line: str) -> Plan:
    """Break the first exchange whose request line begins so."""
    left = [strike]

    def plan(exchange: Exchange) -> Strike | None:
        return left.pop() if left and exchange.line.startswith(line) else None

    return plan


def seeded(seed: str, strikes: Sequence[Strike], share: float, spare: str = "/_") -> Plan:
    """Break about this share of all exchanges, by a seed. What is asked of `spare` is spared."""

    def plan(exchange: Exchange) -> Strike | None:
        if exchange.line.partition(" ")[2].startswith(spare):
            return None
        draw = random.Random(f"{seed}:{exchange.number}")
        return draw.choice(strikes) if draw.random() < share else None

    return plan


@dataclass
class FaultProxy:
    """Use it as `async with FaultProxy(target) as proxy`, and ask `proxy.url` instead.

    `plan` may be changed at any time; `struck` tells what has happened.
    """

    target: str
    plan: Plan = nothing
    struck: list[tuple[Exchange, Strike]] = field(default_factory=list)
    url: str = ""
    language: Language = http

    def __post_init__(self) -> None:
        self._count = 0
        self._port = 0
        self._server: asyncio.Server | None = None
        self._pairs: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.refuse()

    async def accept(self) -> None:
        """Listen; after `refuse` on the same port."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def refuse(self) -> None:
        """Refuse connections from now on, and reset those that are open."""
        assert self._server is not None
        self._server.close()
        pairs = tuple(self._pairs)
        for pair in pairs:
            pair.cancel()
        await asyncio.gather(*pairs, return_exceptions=True)
        await asyncio.sleep(0)  # for the transports to close

    def next(self, line: str) -> tuple[Exchange, Strike | None]:
        """Ask the plan about one more exchange."""
        exchange = Exchange(self._count, line)
        self._count += 1
        return exchange, self.plan(exchange)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pairs.add(task)
        parts = urlsplit(self.target)
        caller = _End(reader, writer)
        try:
            server = _End(*await asyncio.open_connection(parts.hostname, parts.port))
        except OSError:
            caller.reset()
            self._pairs.discard(task)
            return
        try:
            await _Pair(self, caller, server).run()
        except asyncio.CancelledError:
            caller.reset()
            server.reset()
        finally:
            self._pairs.discard(task)
            caller.close()
            server.close()


class _End:
    """One of the two connections."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        """The next bytes; empty when there will be none, in whatever way."""
        try:
            return await self._reader.read(_CHUNK_BYTES)
        except OSError:
            return b""

    async def write(self, data: bytes) -> None:
        with suppress(OSError):
            self._writer.write(data)
            await self._writer.drain()

    def end(self) -> None:
        """Say that nothing more is said."""
        with suppress(OSError):
            if not self._writer.is_closing():
                self._writer.write_eof()

    def reset(self) -> None:
        sock = self._writer.get_extra_info("socket")
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()


class _Struck(Exception):
    """The connections have come to their end."""


class _Pair:
    """A caller's connection, and ours to the server."""

    def __init__(self, proxy: FaultProxy, caller: _End, server: _End) -> None:
        self._proxy = proxy
        self._caller = caller
        self._server = server
        self._exchange: Exchange | None = None
        self._strike: Strike | None = None
        self._request_bytes = 0  # how long the request will be
        self._passed = dict.fromkeys(Side, 0)
        self._shut: set[Side] = set()

    async def run(self) -> None:
        """Pass both ways until both have ended, or a strike ends them."""
        both = [asyncio.create_task(self._pass(side)) for side in Side]
        try:
            await asyncio.gather(*both)
        except _Struck:
            pass
        finally:
            for one in both:
                one.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _pass(self, side: Side) -> None:
        giver, taker = self._caller, self._server
        if side is Side.ANSWER:
            giver, taker = taker, giver
        while data := await giver.read():
            if side is Side.REQUEST and (self._exchange is None or self._passed[Side.ANSWER]):
                data = await self._begin(data)
            if side not in self._shut:
                await self._through(side, taker, data)
        if side not in self._shut:
            taker.end()

    async def _begin(self, data: bytes) -> bytes:
        """A new exchange: read at least what tells what it is."""
        while (heard := self._proxy.language(data)) is None:
            if not (more := await self._caller.read()):
                return data
            data += more
        line, self._request_bytes = heard
        self._passed = dict.fromkeys(Side, 0)
        self._exchange, self._strike = self._proxy.next(line)
        return data

    async def _through(self, side: Side, taker: _End, data: bytes) -> None:
        strike = self._strike
        if strike is None or strike.side is not side:
            self._passed[side] += len(data)
            await taker.write(data)
            return
        at = self._request_bytes if strike.at == WHOLE else strike.at
        left = at - self._passed[side]
        is_due = len(data) >= left if strike.at == WHOLE else len(data) > left
        before = data[:left] if is_due else data
        self._passed[side] += len(before)
        if before:
            await taker.write(before)
        if is_due:
            await self._strike_now(strike, side, taker, data[len(before) :])

    async def _strike_now(self, strike: Strike, side: Side, taker: _End, rest: bytes) -> None:
        assert self._exchange is not None
        self._proxy.struck.append((self._exchange, strike))
        self._strike = None
        match strike.what:
            case What.LATENCY:
                await asyncio.sleep(strike.seconds)
                self._passed[side] += len(rest)
                await taker.write(rest)
            case What.RESET:
                self._caller.reset()
                self._server.reset()
                raise _Struck
            case What.TRUNCATE:
                raise _Struck
            case What.HALF_CLOSE:
                self._shut.add(side)
                taker.end()
            case What.BLACK_HOLE:
                self._shut.add(side)
