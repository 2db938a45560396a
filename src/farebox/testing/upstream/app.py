"""The upstream as a bare ASGI app."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from farebox.errors import InvalidInput
from farebox.testing.asgi import (
    BodyTooLarge,
    Receive,
    Scope,
    Send,
    drop,
    length_header,
    read_body,
    respond,
    start,
)
from farebox.testing.upstream import anthropic, openai
from farebox.testing.upstream.ask import Ask, read_ask
from farebox.testing.upstream.openai import Document, Event

_BODY_MAX_BYTES = 1 << 24
_BYTES_MAX = 1 << 30
_BLOCK = b"0123456789abcdef" * 4_096
_ECHO = b'{"echo":"Money is a promise kept in whole numbers."}'
_SEEN_MAX = 1_000
_EVENTS = ((b"cache-control", b"no-cache"),)


@dataclass(frozen=True, slots=True)
class _Protocol:
    whole: Callable[[Ask], Document]
    events: Callable[[Ask], Iterator[Event]] | None
    error: Callable[[int, str], Document] = openai.error_document
    error_event: Callable[[str], Event] = openai.error_event


_PROTOCOLS = {
    "/v1/chat/completions": _Protocol(openai.chat, openai.chat_events),
    "/v1/completions": _Protocol(openai.completion, openai.completion_events),
    "/v1/responses": _Protocol(openai.response, openai.response_events),
    "/v1/embeddings": _Protocol(openai.embeddings, None),
    "/v1/messages": _Protocol(
        anthropic.message,
        anthropic.message_events,
        anthropic.error_document,
        anthropic.error_event,
    ),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it arrived; header names in lower case."""

    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class PlayUpstream:
    """Serve it with `farebox.testing.asgi.serving`.

    `seen` holds the last requests, `cancelled` counts the streams whose client left. `GET /echo`
    answers with a short fixed body, `POST /echo` with the request's, `GET /bytes/N` with N bytes.
    """

    def __init__(self) -> None:
        self.seen: deque[Seen] = deque(maxlen=_SEEN_MAX)
        self.cancelled = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            raise NotImplementedError("a play upstream speaks HTTP only")
        method, path, headers = scope["method"], scope["path"], tuple(scope["headers"])
        try:
            body = await read_body(receive, _BODY_MAX_BYTES)
        except BodyTooLarge:
            return await _error(send, 413, "the body is too large")
        self.seen.append(Seen(method, path, headers, body))
        protocol = _PROTOCOLS.get(path) if method == "POST" else None
        if protocol is not None:
            header = next((value for name, value in headers if name == b"x-play"), None)
            return await self._answer(protocol, body, header, receive, send)
        match method, path:
            case "GET", "/echo":
                return await respond(send, 200, _ECHO)
            case "POST", "/echo":
                return await respond(send, 200, body, "application/octet-stream")
            case "GET", "/v1/models":
                return await respond(send, 200, msgspec.json.encode(openai.models()))
        if method == "GET" and path.startswith("/bytes/") and path[7:].isdigit():
            return await _bytes(send, min(int(path[7:19]), _BYTES_MAX))
        return await _error(send, 404, "there is nothing here")

    async def _answer(
        self,
        protocol: _Protocol,
        body: bytes,
        header: bytes | None,
        receive: Receive,
        send: Send,
    ) -> None:
        try:
            ask = read_ask(body, None if header is None else header.decode("latin-1"))
            streamed = protocol.events if ask.stream else None
            whole = b"" if streamed else msgspec.json.encode(protocol.whole(ask))
        except InvalidInput as error:
            return await _error(send, 400, str(error), protocol.error)
        play = ask.play
        if play.drop:
            return await drop(send)
        if play.status is not None:
            return await _error(send, play.status, "failed on purpose", protocol.error)
        if play.garbage:
            return await respond(send, 200, b"<html>no JSON", "text/html")
        if streamed:
            return await self._stream(protocol, streamed(ask), ask, receive, send)
        await _pause(play.slow)
        if play.cut is None:
            return await respond(send, 200, whole)
        await start(send, 200, "application/json", (length_header(whole),))
        half = whole[: len(whole) // 2]
        await send({"type": "http.response.body", "body": half, "more_body": True})
        await _flushed()
        return await drop(send)

    async def _stream(
        self,
        protocol: _Protocol,
        events: Iterator[Event],
        ask: Ask,
        receive: Receive,
        send: Send,
    ) -> None:
        left = asyncio.ensure_future(_left(receive)) if ask.play.slow else None
        try:
            await self._send_events(protocol, events, ask, left, send)
        finally:
            if left is not None:
                left.cancel()

    async def _send_events(
        self,
        protocol: _Protocol,
        events: Iterator[Event],
        ask: Ask,
        left: asyncio.Future[None] | None,
        send: Send,
    ) -> None:
        await start(send, 200, "text/event-stream; charset=utf-8", _EVENTS)
        play, words = ask.play, 0
        for event in events:
            if event.is_word:
                if words == play.cut:
                    await _flushed()
                    return await drop(send)
                if words == play.error:
                    last = protocol.error_event("failed on purpose").raw
                    return await send({"type": "http.response.body", "body": last})
                words += 1
                await _pause(play.slow)
                if left is not None and left.done():
                    self.cancelled += 1
                    return None
            await send({"type": "http.response.body", "body": event.raw, "more_body": True})
        return await send({"type": "http.response.body", "body": b""})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _pause(seconds: float) -> None:
    if seconds:
        await asyncio.sleep(seconds)


async def _flushed() -> None:
    """Let what was written leave before the connection breaks."""
    await asyncio.sleep(0.01)


async def _bytes(send: Send, count: int) -> None:
    length = (b"content-length", str(count).encode())
    await start(send, 200, "application/octet-stream", (length,))
    for at in range(0, count, len(_BLOCK)):
        block = _BLOCK[: count - at]
        await send({"type": "http.response.body", "body": block, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _error(
    send: Send,
    status: int,
    text: str,
    document: Callable[[int, str], Document] = openai.error_document,
) -> None:
    await respond(send, status, msgspec.json.encode(document(status, text)))
