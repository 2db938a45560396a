"""The little that a bare ASGI app needs: bodies in and out, a broken connection, a server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import uvicorn

from farebox.errors import FareboxError, InvalidInput

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_STOP_GRACE_S = 1
_TICK_S = 1
#: How many milliseconds a connection may take to be gone.
_DROP_MS_MAX = 1_000


class BodyTooLarge(InvalidInput):
    """A request body is longer than its limit; the caller answers 413."""


async def read_body(receive: Receive, bytes_max: int) -> bytes:
    """The whole request body. Raises BodyTooLarge."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the client left while sending")
        body += message.get("body", b"")
        if len(body) > bytes_max:
            raise BodyTooLarge
        more = message.get("more_body", False)
    return bytes(body)


async def respond(
    send: Send,
    status: int,
    body: bytes,
    content_type: str = "application/json",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    """One whole answer."""
    await start(send, status, content_type, (*headers, length_header(body)))
    await send({"type": "http.response.body", "body": body})


async def start(
    send: Send, status: int, content_type: str, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    """The head of an answer whose body follows."""
    fields = [(b"content-type", content_type.encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})


def length_header(body: bytes) -> tuple[bytes, bytes]:
    """The header that says how long `body` is."""
    return (b"content-length", str(len(body)).encode())


async def drop(send: Send) -> None:
    """Break the client's connection without a word more.

    ASGI knows no such thing. Uvicorn's `send` belongs to the object that holds the connection;
    under another server the exception is what comes nearest.
    """
    cycle = getattr(send, "__self__", None)
    transport: Any = getattr(cycle, "transport", None)
    if not hasattr(transport, "abort"):  # uvloop's are none of asyncio's classes
        raise ConnectionResetError("the connection was dropped on purpose")
    transport.abort()
    for _ in range(_DROP_MS_MAX):
        # To return before the server has noticed would have it answer with 500.
        if getattr(cycle, "disconnected", True):
            return
        await asyncio.sleep(0.001)


class _Server(uvicorn.Server):
    """A server that leaves the process's signals alone, and says when it has started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self._stopping = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        # Uvicorn looks ten times a second whether to end, which hundreds of tests would wait for.
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _TICK_S)

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    # asyncio turns Nagle's algorithm off only where the socket says that it is TCP. With it on,
    # an answer in two parts waits 40 ms for the client's delayed acknowledgement.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


@asynccontextmanager
async def serving(app: App, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve `app` in the running loop; gives its URL. Port 0 takes a free one.

    Raises FareboxError if the app does not start.
    """
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        log_level="critical",
        timeout_graceful_shutdown=_STOP_GRACE_S,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    task.add_done_callback(lambda _: server.ready.set())
    try:
        await server.ready.wait()
        if not server.started:
            raise FareboxError("the app did not start")
        yield f"http://{host}:{listener.getsockname()[1]}"
    finally:
        server.stop()
        await task
        # Who came while it stopped, or has not left, would keep a socket beyond the loop.
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)
        listener.close()
