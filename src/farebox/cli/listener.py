"""Where callers connect: a socket, and HTTP/1.1 on it with bounds that uvicorn's own has not.

What is written in one turn of the loop leaves with one system call: the head and the body of a
short answer, the chunks of a stream that came together.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from farebox.errors import InvalidSettings
from farebox.gateway.asgi import LET_GO
from farebox.settings import Address

BACKLOG = 2_048
#: A request line and what frames the headers, beside the headers themselves.
_HEAD_EXTRA_BYTES = 16 * 1024
_HEAD_TIMEOUT_S = 30
_HELD_MAX_BYTES = 64 * 1024
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\n"
_NO_BODY = b"content-length: 0\r\nconnection: close\r\n\r\n"


@contextmanager
def listening(address: Address, setting: str) -> Iterator[socket.socket]:
    """A bound socket. Raises InvalidSettings naming `setting` when the address is not to be had.

    It says that it is TCP: asyncio turns Nagle's algorithm off only then, and with it on an answer
    in two parts waits 40 ms for the caller's delayed acknowledgement.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        found = f"{address.host}:{address.port} ({error.strerror})"
        allowed = "a free address of this machine: stop what listens there, or name another"
        raise InvalidSettings(setting, found, allowed) from None
    with listener:
        yield listener


class _OneWrite(asyncio.Transport):
    """A transport that passes on what was written when the turn of the loop ends.

    Only what uvicorn's protocol calls is here. Flow control stays the inner transport's: no more
    than `_HELD_MAX_BYTES` waits outside of it.
    """

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._inner = inner
        self._loop = loop
        self._held: list[bytes] = []
        self._held_bytes = 0
        self.is_closing = inner.is_closing  # type: ignore[method-assign]
        self.pause_reading = inner.pause_reading  # type: ignore[method-assign]
        self.resume_reading = inner.resume_reading  # type: ignore[method-assign]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hold it until the turn ends."""
        held = self._held
        if not held:
            self._loop.call_soon(self._pass_on)
        held.append(bytes(data))
        self._held_bytes += len(data)
        if self._held_bytes > _HELD_MAX_BYTES:
            self._pass_on()

    def close(self) -> None:
        """Close once all is written."""
        self._pass_on()
        self._inner.close()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The inner transport's."""
        return self._inner.get_extra_info(name, default)

    def _pass_on(self) -> None:
        held, self._held, self._held_bytes = self._held, [], 0
        if held and not self._inner.is_closing():
            self._inner.write(held[0] if len(held) == 1 else b"".join(held))


class _Bounded(HttpToolsProtocol):
    """A connection whose request heads are bounded in size and time.

    Uvicorn's parser collects a head for as long as it keeps coming, and the app hears of it only
    when it is whole: by then an endless one has eaten the memory.
    """

    head_bytes_max: ClassVar[int]
    _head_bytes = 0
    _in_head = False
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_OneWrite(transport, self.loop))
        # Uvicorn cancels at its end what is in `tasks` then, and nothing else.
        self._extensions: dict[str, Any] = {LET_GO: self.tasks.discard}
        self._await_head()

    def eof_received(self) -> None:
        # The loop closes its own transport then, and what is held would be lost.
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head:
            return
        self._head_bytes += len(data)
        if self._head_bytes > self.head_bytes_max:
            self._refuse(_TOO_LARGE)
        elif self._head_timer is None:
            self._await_head()

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()
        self.scope["extensions"] = self._extensions

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(_HEAD_TIMEOUT_S, self._refuse, _TOO_SLOW)

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: bytes) -> None:
        self._end_head()
        if not self.transport.is_closing():
            self.transport.write(status + _NO_BODY)
            self.transport.close()


def server_config(app: Any, header_bytes_max: int, *, stop_timeout_s: int) -> uvicorn.Config:
    """How `app` is served: by this module's protocol, and with nothing said or logged beside it.

    Headers a little over their limit reach the app, which answers with a problem document; what
    is far over, or slower than 30 s, is cut off. What runs when the server ends is cancelled after
    `stop_timeout_s`.
    """
    head_bytes_max = header_bytes_max + _HEAD_EXTRA_BYTES
    return uvicorn.Config(
        app,
        http=type("BoundedHttp", (_Bounded,), {"head_bytes_max": head_bytes_max}),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=stop_timeout_s,
    )
