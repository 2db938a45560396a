"""HTTP/1.1 towards callers: one connection of uvicorn's server, on the parser that it uses itself.

Uvicorn listens, counts and stops; this takes the place of its protocol. A head is bounded in size
and time, a task is let go of (`LET_GO`), what is written in one turn of the loop leaves with one
call to the system, and a request costs half.
"""

from __future__ import annotations

import asyncio
from collections import deque
from http import HTTPStatus
from typing import Any, ClassVar, Final, cast
from urllib.parse import unquote

import httptools
import structlog
import uvicorn
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from farebox.errors import InvalidInput
from farebox.gateway.asgi import LET_GO, App, Message, Scope, header

_log = structlog.get_logger("farebox.serve")

#: How long a head may take, and how long a connection may be idle between two requests: longer than
#: callers' libraries keep one (5 to 15 s), or a request that is on its way while we close is lost.
_HEAD_TIMEOUT_S = 30
_IDLE_TIMEOUT_S = 20
#: Reading pauses when an app leaves so much of a body unread.
_BODY_HIGH_BYTES: Final = 64 * 1024
_HELD_MAX_BYTES: Final = 64 * 1024
_NO_BODY: Final = frozenset({204, 304})
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_END_OF_CHUNKS: Final = b"0\r\n\r\n"
_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %s" % (status, status.phrase.encode()) for status in HTTPStatus
}


def connections(head_bytes_max: int) -> type[asyncio.Protocol]:
    """What a `uvicorn.Config` takes as `http`; heads longer than this are cut off."""
    return type("Connection", (_Connection,), {"head_bytes_max": head_bytes_max})


class Outbox:
    """Passes on what was written when the turn of the loop ends, or when an answer is whole.

    Flow control stays the transport's: no more than `_HELD_MAX_BYTES` waits outside of it.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._is_due = False

    def write(self, data: bytes) -> None:
        """Hold it until the turn ends."""
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > _HELD_MAX_BYTES:
            self.flush()
        elif not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._turn_ended)

    def flush(self) -> None:
        """Pass it on now."""
        held, self._held, self._held_bytes = self._held, [], 0
        if held and not self._transport.is_closing():
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))

    def close(self) -> None:
        """Close once all is written."""
        self.flush()
        self._transport.close()

    def _turn_ended(self) -> None:
        self._is_due = False
        self.flush()


class _Request:
    """One request and its answer, as ASGI has them: `receive` and `send` are its app's."""

    def __init__(self, connection: _Connection, scope: Scope, *, keep_alive: bool) -> None:
        self._connection = connection
        self.scope = scope
        self.keep_alive = keep_alive
        #: Whether all of its body has come.
        self.is_whole = False
        self.is_answered = False
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._has_news = False
        self._is_lost = False
        self._waiting: asyncio.Future[None] | None = None
        self.is_begun = False
        #: What is still to come of an answer whose length was said.
        self._left: int | None = None
        self._is_chunked = False
        self._is_empty = scope["method"] == "HEAD"

    async def run(self, app: App) -> None:
        """Have it answered."""
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._connection.close()
            raise
        except Exception:
            _log.exception("request.crashed")
        if self.is_answered or self._is_lost:
            return
        if self.is_begun:  # whoever reads it must see that it is not whole
            self._connection.close()
        else:
            self._connection.refuse(HTTPStatus.INTERNAL_SERVER_ERROR)

    async def receive(self) -> Message:
        """More of the body; after its end, that nobody waits for an answer any more."""
        while not self._has_news and not self.is_answered and not self._is_lost:
            if not self.is_begun and self._expects_continue():
                self._connection.out.write(_CONTINUE)
            self._connection.resume()
            if self._waiting is None:
                self._waiting = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._waiting)
        if self.is_answered or self._is_lost:
            return {"type": "http.disconnect"}
        body, self._body, self._body_bytes = b"".join(self._body), [], 0
        self._has_news = False
        return {"type": "http.request", "body": body, "more_body": not self.is_whole}

    async def send(self, message: Message) -> None:
        """The head of the answer, then its body. Raises RuntimeError for what is no answer."""
        if self._connection.is_full:
            await self._connection.drained()
        if self._is_lost:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.is_begun:
            self._begin(message["status"], message.get("headers", ()))
        elif kind == "http.response.body" and self.is_begun and not self.is_answered:
            self._go_on(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"{kind} is out of turn")

    def feed(self, piece: bytes) -> None:
        """More of the body has come."""
        if self.is_answered:
            return  # nobody will read it
        self._body.append(piece)
        self._body_bytes += len(piece)
        if self._body_bytes > _BODY_HIGH_BYTES:
            self._connection.pause()
        self._tell()

    def end(self) -> None:
        """All of the body has come."""
        self.is_whole = True
        self._tell()

    def lose(self) -> None:
        """The caller has left."""
        self._is_lost = True
        self._tell()

    def _tell(self) -> None:
        self._has_news = True
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.set_result(None)

    def _expects_continue(self) -> bool:
        expected = header(self.scope["headers"], b"expect").lower() == b"100-continue"
        return expected and not self._body_bytes and not self.is_whole and self._waiting is None

    def _begin(self, status: int, headers: Any) -> None:
        self.is_begun = True
        self._is_empty = self._is_empty or status in _NO_BODY
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status]
        for name, value in (*self._connection.default_headers, *headers):
            lowered = name.lower()
            if lowered == b"content-length":
                self._left = int(value)
            elif lowered in (b"connection", b"transfer-encoding"):
                self.keep_alive = self.keep_alive and value.lower() != b"close"
                continue  # how an answer is framed, and what comes after it, is said by us
            lines.append(b"%s: %s" % (lowered, value))
        if self._left is None and not self._is_empty:
            if self.scope["http_version"] == "1.1":
                self._is_chunked = True
                lines.append(b"transfer-encoding: chunked")
            else:  # which knows no chunks: the end of the connection is the end of the answer
                self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"connection: close")
        head = b"\r\n".join(lines)
        # A line break within a name or a value would be another header, or another answer.
        if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1:
            self.is_begun = False
            raise InvalidInput("an answer's head has a line break in it")
        self._connection.out.write(head + b"\r\n\r\n")

    def _go_on(self, body: bytes, *, more: bool) -> None:
        if self._left is not None and not self._is_empty:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("an answer is not as long as its content-length says")
        if body and not self._is_empty:
            framed = b"%x\r\n%s\r\n" % (len(body), body) if self._is_chunked else body
            self._connection.out.write(framed)
        if not more:
            if self._is_chunked:
                self._connection.out.write(_END_OF_CHUNKS)
            self.is_answered = True
            self._tell()
            self._connection.answered(self)


class _Connection(asyncio.Protocol):
    """One caller's connection: its requests one after the other, each answered by a task.

    What uvicorn's server does with it: it makes it, calls `shutdown`, waits for the connections and
    the tasks in `ServerState`, and cancels those tasks when it has waited long enough.
    """

    head_bytes_max: ClassVar[int]

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self._app = cast("App", config.loaded_app)
        self._state = server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        # Whoever asks for a close and goes on sending has an answer to what came before it.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._extensions = {LET_GO: server_state.tasks.discard}
        #: The request being read, the one being answered, and those that came meanwhile.
        self._reading: _Request | None = None
        self._answering: _Request | None = None
        self._next: deque[_Request] = deque()
        self._headers: list[tuple[bytes, bytes]] = []
        self._in_head = False
        #: Of a head, or of what frames a body and follows it.
        self._head_bytes = 0
        self._has_body = False
        self._is_deaf = False
        self._has_answered = False
        #: When a caller's time is over: for its head, or for being idle. None while it is served.
        self._until_s: float | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None
        self._is_paused = False

    # What uvicorn and asyncio call.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.out = Outbox(self._transport, self._loop)
        self._state.connections.add(self)  # type: ignore[arg-type]
        self._server = get_local_addr(self._transport)
        self._client = get_remote_addr(self._transport)
        self._wait_at_most(_HEAD_TIMEOUT_S)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        if self._look_timer is not None:
            self._look_timer.cancel()
        for request in (self._answering, *self._next):
            if request is not None:
                request.lose()
        self._next.clear()
        self.resume_writing()

    def eof_received(self) -> None:
        # The loop closes the transport then, and what is held would be lost.
        self.close()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        head, request = self._headers if self._in_head else None, self._reading
        self._has_body = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # It is answered as what it is without the upgrade, and nothing is read after it.
            self._end_after_these()
        except httptools.HttpParserError:
            self._reject(HTTPStatus.BAD_REQUEST)
        else:
            if self._in_head and head is not self._headers:
                self._await_head()
            elif self._in_head or (request is not None and request is self._reading):
                self._bound_head(len(data))

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def shutdown(self) -> None:
        """Take no request after those that are here."""
        if self._answering is None:
            self.close()
        else:
            self._last().keep_alive = False

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._url = b""
        self._headers = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what comes behind a body is not read: nobody has agreed to it
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes, self._until_s = False, 0, None
        url = httptools.parse_url(self._url)
        version = self._parser.get_http_version()
        path = url.path.decode("ascii")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": self._server,
            "client": self._client,
            "scheme": "http",
            "method": self._parser.get_method().decode("ascii"),
            "root_path": "",
            "path": unquote(path) if "%" in path else path,
            "raw_path": url.path,
            "query_string": url.query or b"",
            "headers": self._headers,
            "extensions": self._extensions,
        }
        keep_alive = version == "1.1" and self._parser.should_keep_alive()
        self._reading = request = _Request(self, scope, keep_alive=keep_alive)
        if self._answering is None:
            self._answer(request)
        else:
            self._next.append(request)
            self.pause()

    def on_body(self, body: bytes) -> None:
        self._has_body, self._head_bytes = True, 0
        if self._reading is not None:
            self._reading.feed(body)

    def on_message_complete(self) -> None:
        if self._reading is not None:
            self._reading.end()
            self._reading = None

    # What requests call.

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """What stands in every answer: the date."""
        return self._state.default_headers

    @property
    def is_full(self) -> bool:
        """Whether its caller takes less than it is sent."""
        return self._writable is not None

    async def drained(self) -> None:
        """Wait until its caller has taken enough, or left."""
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def pause(self) -> None:
        """Read no more for now."""
        if not self._is_paused and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on, unless others wait to be answered."""
        if self._is_paused and not self._next and not self._transport.is_closing():
            self._is_paused = False
            self._transport.resume_reading()

    def answered(self, request: _Request) -> None:
        """An answer is whole; the next one's turn."""
        self._state.total_requests += 1
        if not request.keep_alive:
            self.close()
            return
        self.out.flush()
        self._answering, self._has_answered = None, True
        if self._next:
            self._answer(self._next.popleft())
        else:
            self._wait_at_most(_HEAD_TIMEOUT_S if self._in_head else _IDLE_TIMEOUT_S)
        self.resume()

    def refuse(self, status: HTTPStatus) -> None:
        """An answer without an app, and the end."""
        if not self._transport.is_closing():
            line = _STATUS_LINES[status]
            self.out.write(line + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.close()

    def close(self) -> None:
        """Close once all is written."""
        self.out.close()

    def _answer(self, request: _Request) -> None:
        self._answering = request
        task = self._loop.create_task(request.run(self._app))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def _last(self) -> _Request:
        assert self._answering is not None
        return self._next[-1] if self._next else self._answering

    def _end_after_these(self) -> None:
        """Hear nothing more, and close when what came so far is answered."""
        self._is_deaf = True
        if self._answering is None:
            self.close()
            return
        self._last().keep_alive = False
        self._last().end()

    def _reject(self, status: HTTPStatus) -> None:
        """What comes now is no request; those before it are answered all the same."""
        broken, self._reading = self._reading, None
        if self._next and self._next[-1] is broken:
            self._next.pop()
        elif broken is self._answering:  # as are both where nothing but a head is broken
            if broken is not None and broken.is_begun:
                self.close()
            else:
                self.refuse(status)
            return
        self._end_after_these()

    def _await_head(self) -> None:
        """One has begun, and is not whole. Its time runs once what came before it is answered."""
        if self._answering is None:
            self._wait_at_most(_HEAD_TIMEOUT_S)

    def _bound_head(self, size: int) -> None:
        """Count what belongs to one head, or to one body and is nothing of it: its chunks' frames,
        and what follows it. What came with the first of it is bounded by what is read at once."""
        if not self._has_body:
            self._head_bytes += size
        if self._head_bytes > self.head_bytes_max:
            self._reject(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _wait_at_most(self, seconds: float) -> None:
        self._until_s = self._loop.time() + seconds

    def _look(self) -> None:
        """Look whether the caller's time is over. One timer a connection, not two a request."""
        left_s = float(_IDLE_TIMEOUT_S)
        if self._until_s is not None:
            left_s = min(left_s, self._until_s - self._loop.time())
        if left_s > 0:
            self._look_timer = self._loop.call_later(left_s, self._look)
        elif self._has_answered and not self._in_head:
            self.close()
        else:
            self.refuse(HTTPStatus.REQUEST_TIMEOUT)
