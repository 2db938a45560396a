"""The user's own app as an upstream: it runs in a task, and its answer is handed on piece by piece.

Its `send` returns when the piece before was taken, so a slow caller slows the app down.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable

from farebox.gateway.asgi import App, Message, Receive, Scope
from farebox.gateway.exchange import UpstreamDied, UpstreamFailed
from farebox.gateway.headers import lowered
from farebox.paywall.model import Headers

_GONE: Message = {"type": "http.disconnect"}


class Inbox:
    """One `receive` for two readers: the app, and the watch for a caller who leaves.

    What the watch gets before the app asks for it is kept for the app, one message at most.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._lock = asyncio.Lock()
        self._kept: Message | None = None
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._left = False
        self._read = hashlib.sha256()

    @property
    def digest(self) -> bytes:
        """What the app has read of the request's body, as far as it tells requests apart."""
        return self._read.digest()

    @property
    def has_left(self) -> bool:
        """Whether either reader has heard that the caller has left."""
        return self._left

    async def receive(self) -> Message:
        """The app's next message."""
        async with self._lock:
            if self._kept is not None:
                message, self._kept = self._kept, None
                self._has_room.set()
            else:
                message = await self._next()
        self._read.update(message.get("body", b""))
        return message

    async def left(self) -> Message:
        """Returns when the caller has left."""
        while True:
            await self._has_room.wait()
            async with self._lock:
                if self._kept is not None:
                    continue
                message = await self._next()
                if message["type"] == "http.disconnect":
                    return message
                self._kept = message
                self._has_room.clear()

    async def _next(self) -> Message:
        if self._left:
            return _GONE
        message = await self._receive()
        self._left = message["type"] == "http.disconnect"
        return message


class InnerExchange:
    """One call of an app. `on_undecided` is told when an answer begins or the app is done."""

    def __init__(
        self, app: App, scope: Scope, inbox: Inbox, on_undecided: Callable[[], None]
    ) -> None:
        self.status = 0
        self.headers: Headers = ()
        self._inbox = inbox
        self._on_undecided = on_undecided
        self._head = asyncio.Event()
        self._piece: bytes | None = None
        self._is_taken = asyncio.Event()
        self._is_there = asyncio.Event()
        self._is_complete = False
        self._is_closed = False
        calling: Awaitable[None] = app(scope, inbox.receive, self._send)
        self._task = asyncio.ensure_future(calling)
        self._task.add_done_callback(self._done)

    @property
    def has_ended(self) -> bool:
        """Whether it is known already that nothing more comes."""
        return self._is_complete and self._piece is None

    async def opened(self) -> InnerExchange:
        """Wait for the head of the answer. Raises UpstreamFailed."""
        await self._head.wait()
        if not self.status:
            raise UpstreamFailed("the app did not answer")
        return self

    async def read(self) -> bytes:
        """The next bytes; empty at the end. Raises UpstreamDied, ConnectionResetError.

        An app that hears of its caller's leaving before we do, and stops, has not broken off.
        """
        while self._piece is None:
            if self._is_complete:
                return b""
            if self._task.done():
                if self._inbox.has_left:
                    raise ConnectionResetError("the caller has left")
                raise UpstreamDied("the app broke off in the middle of its answer")
            self._is_there.clear()
            await self._is_there.wait()
        piece, self._piece = self._piece, None
        self._is_taken.set()
        return piece or (b"" if self._is_complete else await self.read())

    def close(self) -> None:
        """Cancel the app, unless its answer is complete: it may have something left to do."""
        self._is_closed = True
        if not self._is_complete:
            self._task.cancel()

    async def ended(self) -> None:
        """Wait until the app has returned. Raises what it raised."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(self._task)

    async def _send(self, message: Message) -> None:
        if self._is_closed:
            return
        if message["type"] == "http.response.start":
            self.headers = lowered(message.get("headers", ()))
            self.status = message["status"]
            self._head.set()
            self._on_undecided()
        elif message["type"] == "http.response.body":
            while self._piece is not None:
                self._is_taken.clear()
                await self._is_taken.wait()
            self._piece = bytes(message.get("body", b""))
            self._is_complete = not message.get("more_body", False)
            self._is_there.set()

    def _done(self, _: asyncio.Future[None]) -> None:
        self._head.set()
        self._is_there.set()
        self._on_undecided()
