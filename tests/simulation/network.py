"""Everything between two machines: calls that get lost, answers that do, and those who hang up.

A call is carried by the world, not by the process that makes it: once it has left, it arrives or
not whatever becomes of its sender.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
from yarl import URL

from farebox.gateway import Upstreams
from farebox.gateway.exchange import Outgoing, UpstreamDied, UpstreamUnreachable
from farebox.gateway.upstream import Upstream
from farebox.testing.asgi import App, Message
from tests.simulation.loop import Gate, Process
from tests.simulation.weather import NetworkWeather

T = TypeVar("T")
Headers = tuple[tuple[bytes, bytes], ...]
#: The longest that a call may be on its way, by what the house assumes, with something to spare.
_DELAY_MAX_S = 240
_GARBAGE = b"<html>502 Bad Gateway</html>"


class Lost(Exception):
    """The connection broke: nobody tells what became of the call."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. `is_whole` is False where it broke off."""

    status: int
    headers: Headers
    body: bytes
    is_whole: bool = True

    def header(self, name: str) -> str:
        """The first value of a header."""
        wanted = name.lower().encode()
        return next((value.decode() for key, value in self.headers if key.lower() == wanted), "")


@dataclass(frozen=True, slots=True)
class Ask:
    """A call as it leaves."""

    method: str
    target: str
    headers: Headers = ()
    body: bytes = b""

    def scope(self) -> dict[str, Any]:
        """The same for an ASGI app."""
        path, _, query = self.target.partition("?")
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [*self.headers, (b"host", b"house.sim")],
            "client": ("203.0.113.1", 1),
            "server": ("house.sim", 80),
        }


class Connection:
    """One call at the machine that serves it: ASGI's `receive` and `send`, and two ends to pull."""

    def __init__(self, ask: Ask, *, loudly: bool = False, is_slow: bool = False) -> None:
        """`loudly`: writing to a caller who left is an error, as it is with some servers."""
        self._unread: list[Message] = [{"type": "http.request", "body": ask.body}]
        self._loudly = loudly
        self._is_slow = is_slow
        self._gate = Gate()
        self._status = 0
        self._headers: Headers = ()
        self._chunks: list[bytes] = []
        self.is_gone = False
        self.done: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    async def receive(self) -> Message:
        """The body, then nothing until the caller has left."""
        if self._unread:
            return self._unread.pop()
        while not self.is_gone:
            await self._gate
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """A piece of the answer."""
        if self.is_gone:
            if self._loudly:
                raise OSError("the caller has left")
            return
        if self._is_slow:
            await asyncio.sleep(0.5)
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = tuple((bytes(k), bytes(v)) for k, v in message["headers"])
            return
        self._chunks.append(bytes(message.get("body", b"")))
        if not message.get("more_body"):
            self._finish(is_whole=True)

    def left(self) -> None:
        """The caller hangs up."""
        self.is_gone = True
        self._gate.open()

    def broke(self) -> None:
        """The machine that serves it says no more."""
        if self._status:
            self._finish(is_whole=False)
        elif not self.done.done():
            self.done.set_exception(Lost("reset"))

    def _finish(self, *, is_whole: bool) -> None:
        if not self.done.done():
            body = b"".join(self._chunks)
            self.done.set_result(Reply(self._status, self._headers, body, is_whole))


async def served(app: App, connection: Connection, ask: Ask) -> None:
    """Have an app answer a call."""
    try:
        await app(ask.scope(), connection.receive, connection.send)
    except OSError:  # how a play mint drops a connection
        pass
    finally:
        connection.broke()


class Line(Connection):
    """A call whose answer comes piece by piece, and may never end: a node's subscription.

    The one end is its machine's, the other its caller's; the wire between them may break, or go
    dead without a word, while the call goes on.
    """

    def __init__(self, ask: Ask, network: Network, host: str) -> None:
        super().__init__(ask)
        self._network = network
        self._host = host
        self._target = ask.target
        self._came = Gate()
        self._pieces: deque[bytes] = deque()
        self._is_dead = self._is_over = self._is_cut = False
        self.status = 0

    @property
    def _weather(self) -> NetworkWeather:
        return self._network.weather_to(self._host)

    async def send(self, message: Message) -> None:
        """A piece of the answer."""
        network = self._network
        await asyncio.sleep(self._weather.pause_s(network._chance))
        if self.is_gone or self._is_dead:
            return
        if network._happens(self._weather.loses_answer):
            self.lose("line")
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        if message.get("body"):
            self._pieces.append(bytes(message["body"]))
        self._is_over = not message.get("more_body")
        self._came.open()

    def lose(self, what: str) -> None:
        """Let no more of it arrive, and let that be known, or not."""
        self._network._trace(f"network loses the {what}: {self._target}")
        self._is_dead = True
        self._is_cut = self._network._chance.random() < 0.5
        self._came.open()

    def broke(self) -> None:
        """The machine that serves it says no more."""
        if not self._is_dead:
            self._is_cut = not self._is_over
            self._came.open()

    async def head(self) -> int:
        """Its status. Raises OSError."""
        await self._something()
        return self.status

    async def piece(self) -> bytes:
        """What came next; b"" is the end. Raises OSError."""
        await self._something()
        return self._pieces.popleft() if self._pieces else b""

    async def _something(self) -> None:
        while not self._pieces and not self._is_over:
            if self._is_cut:
                raise ConnectionResetError("lost on the way")
            await self._came


class Network:
    """The wires between the house and the machines it calls."""

    def __init__(self, outside: Process, chance: Random, trace: Callable[[str], None]) -> None:
        self._outside = outside
        self._chance = chance
        self._trace = trace
        self.weather = NetworkWeather()
        #: Of the wire to a machine, where that has one of its own.
        self.weathers: dict[str, NetworkWeather] = {}
        self.hosts: dict[str, App] = {}

    def weather_to(self, host: str) -> NetworkWeather:
        """How the wire to a machine is now."""
        return self.weathers.get(host, self.weather)

    async def call(self, host: str, ask: Ask) -> Reply:
        """Call another machine. Raises OSError; may never return."""
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._outside.spawn(self._carry(host, ask, answer))
        return await answer

    def open(self, host: str, ask: Ask) -> Line:
        """Call another machine, and hear its answer as it comes."""
        line = Line(ask, self, host)
        self._outside.spawn(self._pour(host, ask, line))
        return line

    async def _pour(self, host: str, ask: Ask, line: Line) -> None:
        weather = self.weather_to(host)
        await asyncio.sleep(weather.pause_s(self._chance))
        if self._happens(weather.loses_call) or host not in self.hosts:
            return line.lose("call")
        if self._happens(weather.delays_call):
            self._trace(f"network delays {ask.method} {ask.target}")
            await asyncio.sleep(self._chance.uniform(1, _DELAY_MAX_S))
        if self._happens(weather.repeats_call):
            self._trace(f"network repeats {ask.method} {ask.target}")
            self._outside.spawn(served(self.hosts[host], Connection(ask), ask))
            await asyncio.sleep(weather.pause_s(self._chance))
        return await served(self.hosts[host], line, ask)

    async def _carry(self, host: str, ask: Ask, answer: asyncio.Future[Reply]) -> None:
        weather = self.weather_to(host)
        await asyncio.sleep(weather.pause_s(self._chance))
        if self._happens(weather.loses_call):
            return self._lose(ask, "call", answer)
        if self._happens(weather.delays_call):
            self._trace(f"network delays {ask.method} {ask.target}")
            await asyncio.sleep(self._chance.uniform(1, _DELAY_MAX_S))
        try:
            if self._happens(weather.repeats_call):
                # As a proxy does that hears nothing of its first try: the last answer is told.
                self._trace(f"network repeats {ask.method} {ask.target}")
                await self._execute(host, ask)
                await asyncio.sleep(weather.pause_s(self._chance))
            reply = await self._execute(host, ask)
        except Lost:
            return self._lose(ask, "connection", answer)
        await asyncio.sleep(weather.pause_s(self._chance))
        if self._happens(weather.loses_answer):
            return self._lose(ask, "answer", answer)
        if self._happens(weather.breaks_answer):
            self._trace(f"network breaks the answer to {ask.method} {ask.target}")
            half = reply.body[: len(reply.body) // 2]
            reply = Reply(*self._chance.choice(((200, (), half), (502, (), _GARBAGE))))
        if not answer.done():
            answer.set_result(reply)
        return None

    async def _execute(self, host: str, ask: Ask) -> Reply:
        if host not in self.hosts:
            raise Lost("no such host")
        connection = Connection(ask)
        await served(self.hosts[host], connection, ask)
        return await connection.done

    def _lose(self, ask: Ask, what: str, answer: asyncio.Future[Reply]) -> None:
        self._trace(f"network loses the {what}: {ask.method} {ask.target}")
        if self._chance.random() < 0.5 and not answer.done():
            answer.set_exception(ConnectionResetError("lost on the way"))

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._chance.random() < probability


# ── the house's own client of mints and wallets ──────────────────────────────────────────────────


class Session:
    """As much of `aiohttp.ClientSession` as the rails use."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is open."""

    def request(
        self,
        method: str,
        url: URL | str,
        *,
        data: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: aiohttp.ClientTimeout,
        allow_redirects: bool = False,
    ) -> _Answering:
        """One call."""
        url, data = URL(url), data.encode() if isinstance(data, str) else data
        told = tuple((key.lower().encode(), one.encode()) for key, one in (headers or {}).items())
        ask = Ask(method.upper(), url.raw_path_qs, told, data or b"")
        return _Answering(self._network.call(url.host or "", ask), timeout.total)

    def post(self, url: URL, **how: Any) -> _Answering:
        """One call that brings something."""
        return self.request("POST", url, **how)

    def get(self, url: URL, *, timeout: aiohttp.ClientTimeout, allow_redirects: bool) -> _Answering:
        """One question."""
        return self.request("GET", url, timeout=timeout, allow_redirects=allow_redirects)


class _Answering:
    def __init__(self, call: Awaitable[Reply], total_s: float | None) -> None:
        self._call = call
        self._total_s = total_s

    async def __aenter__(self) -> _Response:
        async with asyncio.timeout(self._total_s):
            return _Response(await self._call)

    def __await__(self) -> Generator[Any, None, _Response]:
        return self.__aenter__().__await__()

    async def __aexit__(self, *_: object) -> None:
        """Nothing is open."""


class _Response:
    def __init__(self, reply: Reply) -> None:
        self.status = reply.status
        self.headers: Mapping[str, str] = {}
        self.content = self
        self._body = reply.body

    async def iter_chunked(self, _: int) -> Any:
        """The whole body at once."""
        yield self._body

    async def read(self) -> bytes:
        """The same."""
        return self._body


# ── the house's own client of its node ───────────────────────────────────────────────────────────


class NodeSession(Session):
    """The same for what a node is asked: answers that come line by line."""

    def request(  # type: ignore[override]
        self, method: str, url: URL, *, data: bytes | None = None, **how: Any
    ) -> _Listening:
        """One call; it may be listened to for ever."""
        headers = tuple((key.lower().encode(), one.encode()) for key, one in how["headers"].items())
        ask = Ask(method, url.raw_path_qs, headers, data or b"")
        return _Listening(self._network.open(url.host or "", ask), how["timeout"])


class _Listening:
    #: No socket that could be cut: whoever leaves is heard by the line.
    connection = None

    def __init__(self, line: Line, timeout: aiohttp.ClientTimeout) -> None:
        self._line = line
        self._timeout = timeout
        self._end_s: float | None = None
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.content = self

    async def __aenter__(self) -> Self:
        if self._timeout.total:
            self._end_s = asyncio.get_running_loop().time() + self._timeout.total
        self.status = await self._in_time(self._line.head())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._line.left()

    async def iter_any(self) -> AsyncGenerator[bytes, None]:
        """Pieces as they come."""
        while piece := await self._in_time(self._line.piece()):
            yield piece

    async def iter_chunked(self, _: int) -> AsyncGenerator[bytes, None]:
        """The same."""
        async with aclosing(self.iter_any()) as pieces:
            async for piece in pieces:
                yield piece

    async def _in_time(self, coming: Coroutine[Any, Any, T]) -> T:
        async with asyncio.timeout_at(self._end_s), asyncio.timeout(self._timeout.sock_read):
            return await coming


# ── the house's own client of what it sells ──────────────────────────────────────────────────────


class SimulatedUpstreams(Upstreams):
    """The real table of upstreams, with one machine behind all of them."""

    def __init__(self, configs: Any, network: Network, outside: Process, app: App) -> None:
        super().__init__(configs)
        self._network = network
        self._outside = outside
        self._app = app

    async def open(self, upstream: Upstream, outgoing: Outgoing) -> Any:
        """Send a request; returns when the head of the answer is there."""
        network, weather = self._network, self._network.weather
        await asyncio.sleep(weather.pause_s(network._chance))
        if network._happens(weather.loses_call):
            raise UpstreamUnreachable("the simulated upstream is down")
        ask = Ask(outgoing.method, outgoing.target, tuple(outgoing.headers), outgoing.body)
        exchange = _UpstreamExchange(ask)
        self._outside.spawn(exchange.serve(self._app))
        await exchange.head()
        return exchange


class _UpstreamExchange:
    """Implements `farebox.gateway.exchange.Exchange`, one chunk at a time."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._gate = Gate()
        self._messages: list[Message] = []
        self._is_closed = self._is_broken = False
        self._body_given = False
        self.status = 0
        self.headers: Headers = ()
        self.has_ended = False

    async def serve(self, app: App) -> None:
        """In the upstream's own process."""
        try:
            await app(self._ask.scope(), self._receive, self._send)
        except OSError:  # dropped on purpose
            pass
        finally:
            self._is_broken = True
            self._gate.open()

    async def head(self) -> None:
        """Wait for status and headers. Raises UpstreamDied."""
        start = await self._next()
        self.status = start["status"]
        self.headers = tuple((bytes(k).lower(), bytes(v)) for k, v in start["headers"])

    async def read(self) -> bytes:
        """The next bytes."""
        while not self.has_ended:
            message = await self._next()
            self.has_ended = not message.get("more_body")
            if message.get("body") or self.has_ended:
                return bytes(message.get("body", b""))
        return b""

    def close(self) -> None:
        """Have no more of it."""
        self._is_closed = True
        self._gate.open()

    async def _next(self) -> Message:
        while not self._messages:
            if self._is_broken:
                raise UpstreamDied("the simulated upstream broke off")
            await self._gate
        return self._messages.pop(0)

    async def _receive(self) -> Message:
        if not self._body_given:
            self._body_given = True
            return {"type": "http.request", "body": self._ask.body}
        while not self._is_closed:
            await self._gate
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self._messages.append(message)
        self._gate.open()
        await asyncio.sleep(0)
