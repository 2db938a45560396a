"""ASGI, as far as a gateway needs it: a request's body in, an answer out, a caller that leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from farebox.errors import FareboxError, InvalidInput
from farebox.paywall.model import Answer

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
RawHeaders = Iterable[tuple[bytes, bytes]]
LetGo = Callable[[asyncio.Task[Any]], object]

#: The ASGI extension of a server that cancels no task it was told to let go of; what it is told by.
LET_GO: Final = "farebox.let_go"

#: What a header costs beside its name and its value, so that empty ones count too.
_HEADER_OVERHEAD_BYTES: Final = 4
#: What each body may have without a share in the room for all.
_OWN_BYTES: Final = 65_536


class BodyTooLarge(InvalidInput):
    """A request body is longer than its limit."""


class CallerLeft(FareboxError):
    """The caller hung up before its request was whole."""


class NoRoom(FareboxError):
    """The bodies of other requests take up all the memory that there is for them."""


class Room:
    """The memory that the bodies of all requests share, beyond what each has of its own: whoever
    sends large ones keeps none of the small ones out."""

    def __init__(self, bytes_max: int) -> None:
        #: How many bytes are left.
        self.free = bytes_max

    def grow(self, before: int, now: int) -> None:
        """Make room for a body that has grown. Raises NoRoom; what it had it has still."""
        more = _shared(now) - _shared(before)
        if more > self.free:
            raise NoRoom
        self.free -= more

    def give_back(self, length: int) -> None:
        """A body is gone."""
        self.free += _shared(length)


def _shared(length: int) -> int:
    return max(0, length - _OWN_BYTES)


async def read_body(receive: Receive, bytes_max: int, room: Room | None = None) -> bytes:
    """The whole request body, which whoever asks gives back to `room` when it is gone.

    Raises BodyTooLarge, CallerLeft, NoRoom.
    """
    message = await receive()
    if not message.get("more_body") and message["type"] == "http.request":
        whole: bytes = message.get("body", b"")
        if len(whole) > bytes_max:
            raise BodyTooLarge
        if room is not None:
            room.grow(0, len(whole))
        return whole
    body, taken = bytearray(), 0
    try:
        while True:
            if message["type"] == "http.disconnect":
                raise CallerLeft
            body += message.get("body", b"")
            if len(body) > bytes_max:
                raise BodyTooLarge
            if room is not None:
                room.grow(taken, len(body))
                taken = len(body)
            if not message.get("more_body"):
                return bytes(body)
            message = await receive()
    except BaseException:  # also where it takes too long
        if room is not None:
            room.give_back(taken)
        raise


def replayed(body: bytes, receive: Receive) -> Receive:
    """The `receive` of an app behind us, as if nobody had read the body before it."""
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return unread.pop() if unread else await receive()

    return receive_again


def header(headers: RawHeaders, name: bytes) -> bytes:
    """The first value of a header by its lower-case name; empty where there is none."""
    for key, value in headers:
        if key == name:
            return value
    return b""


def with_query(path: str, scope: Scope) -> str:
    """A request's path and query, as they were sent."""
    query = scope.get("query_string", b"")
    return f"{path}?{query.decode('latin-1')}" if query else path


def client_address(scope: Scope) -> str:
    """The caller's network address; empty where the server does not know it."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def let_go(scope: Scope) -> LetGo | None:
    """How to have a request's task for oneself; None where its server may always cancel it."""
    extensions = scope.get("extensions")
    return extensions.get(LET_GO) if extensions else None


def declared_length(headers: RawHeaders) -> int:
    """What `Content-Length` says; 0 where it says nothing readable."""
    text = header(headers, b"content-length")
    return int(text) if text.isdigit() and len(text) < 19 else 0


def headers_bytes(headers: RawHeaders) -> int:
    """How large headers are together."""
    sizes = [len(name) + len(value) for name, value in headers]
    return sum(sizes) + len(sizes) * _HEADER_OVERHEAD_BYTES


async def send_answer(send: Send, answer: Answer, *, method: str = "GET") -> None:
    """One whole answer; without its body where the method is HEAD."""
    await send(
        {"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)}
    )
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else answer.body})
