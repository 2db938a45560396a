"""Others that keep a house waiting for as long as a test wants, and a house that gives up soon."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from farebox.rails.cashu import HttpMint
from farebox.testing.asgi import Message, Receive, Scope, Send, read_body
from farebox.testing.mint import PlayMint
from farebox.testing.upstream import PlayUpstream

#: How long a house waits that is `impatient`, and for how long a mint is late to it.
PATIENCE_S, LATE_S = 0.5, 1.0


@contextmanager
def answers_wait(place: PlayMint | PlayUpstream) -> Iterator[None]:
    """What is asked of a place within is carried out at once, and answered afterwards."""
    kind, let_go = type(place), asyncio.Event()
    really = kind.__call__

    async def held(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
        async def late(message: Message) -> None:
            await let_go.wait()
            await send(message)

        await really(self, scope, receive, late if self is place else send)

    with patch.object(kind, "__call__", held):
        try:
            yield
        finally:
            let_go.set()


@contextmanager
def calls_wait(place: PlayMint, path: str) -> Iterator[None]:
    """What is asked of a place at a path within is carried out afterwards, whoever has left."""
    really, let_go = PlayMint.__call__, asyncio.Event()

    async def held(self: PlayMint, scope: Scope, receive: Receive, send: Send) -> None:
        if self is not place or scope.get("path") != path:
            return await really(self, scope, receive, send)
        body = await read_body(receive, 1 << 20)
        await let_go.wait()

        async def late() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        return await really(self, scope, late, send)

    with patch.object(PlayMint, "__call__", held):
        try:
            yield
        finally:
            let_go.set()


@contextmanager
def impatient(path: str) -> Iterator[None]:
    """Within, an answer of a mint to this call alone is not waited for, as /v1/swap."""
    really: Any = HttpMint._call

    async def soon(self: HttpMint, method: str, asked: str, *rest: Any) -> Any:
        *told, total_s = rest
        return await really(self, method, asked, *told, PATIENCE_S if asked == path else total_s)

    with patch.object(HttpMint, "_call", soon):
        yield
