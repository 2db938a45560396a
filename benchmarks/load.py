"""What the gateway's benchmark stands between: a tiny upstream and a load generator.

    python -m benchmarks.load PORT PAUSE_MS        serves the upstream

Both speak HTTP/1.1 on raw asyncio protocols, so that they cost a fraction of what they measure.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from typing import cast

import msgspec
import uvloop

STREAM_CHUNKS = 20
_ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"tiny","choices":[{"index"'
    b':0,"message":{"role":"assistant","content":"Paid per request."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":8,"completion_tokens":4,"total_tokens":12}}'
)
_PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(_ANSWER),
    _ANSWER,
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny",'
    b'"choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'
)
_LAST = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny",'
    b'"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":19,"total_tokens":27}}\n\n'
    b"data: [DONE]\n\n"
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Upstream(asyncio.Protocol):
    """Answers a chat completion at once, or streams one in 20 chunks, a turn of the loop each."""

    def __init__(self, pause_s: float) -> None:
        self._buffer = b""
        self._pause_s = pause_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            at = self._buffer.lower().find(b"content-length:", 0, end)
            length = int(self._buffer[at + 15 : self._buffer.find(b"\r\n", at)]) if at >= 0 else 0
            whole = end + 4 + length
            if len(self._buffer) < whole:
                return
            streams = b'"stream":true' in self._buffer[end:whole]
            self._buffer = self._buffer[whole:]
            if self._pause_s:
                asyncio.get_running_loop().call_later(self._pause_s, self._answer, streams)
            else:
                self._answer(streams)

    def _answer(self, streams: bool) -> None:
        if streams:
            self._transport.write(_STREAM_HEAD)
            self._stream(STREAM_CHUNKS)
        else:
            self._transport.write(_PLAIN)

    def _stream(self, left: int) -> None:
        if left > 1:
            self._transport.write(_chunk(_EVENT))
            asyncio.get_running_loop().call_soon(self._stream, left - 1)
        else:
            self._transport.write(_chunk(_LAST) + b"0\r\n\r\n")


class Load(msgspec.Struct, frozen=True):
    """What one round measured."""

    requests: int
    seconds: float
    latency_median_ms: float

    @property
    def per_s(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


class _Caller(asyncio.Protocol):
    """One keep-alive connection that asks again as soon as it is answered."""

    def __init__(self, round_: _Round) -> None:
        self._round = round_
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def _ask(self) -> None:
        if self._round.take():
            self._asked_at = time.perf_counter()
            self._transport.write(self._round.request)
        else:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not _is_whole(self._answer):
            return
        if not self._answer.startswith(b"HTTP/1.1 200 "):
            self._round.fail(RuntimeError(f"answered {self._answer[:600]!r}"))
            return
        self._round.done(time.perf_counter() - self._asked_at)
        self.heard(self._answer)
        self._answer = b""
        self._ask()

    def heard(self, answer: bytes) -> None:
        """A whole answer, for who makes the next request out of it."""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer:
            self._round.fail(exc or RuntimeError("the connection was lost in an answer"))


def _is_whole(answer: bytes) -> bool:
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    at = answer.find(b"content-length:", 0, end)
    if at < 0:
        at = answer.find(b"Content-Length:", 0, end)
    if at < 0:
        return answer.endswith(b"\r\n0\r\n\r\n")
    return len(answer) >= end + 4 + int(answer[at + 15 : answer.index(b"\r\n", at)])


class _Round:
    def __init__(self, request: bytes, count: int) -> None:
        self.request = request
        self.latencies: list[float] = []
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count = self._left = count

    def take(self) -> bool:
        self._left -= 1
        return self._left >= 0

    def done(self, latency_s: float) -> None:
        self.latencies.append(latency_s)
        if len(self.latencies) == self._count and not self.finished.done():
            self.finished.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.finished.done():
            self.finished.set_exception(error)


async def drive(port: int, request: bytes, *, connections: int, count: int) -> Load:
    """Ask `count` times over `connections` connections. Raises when an answer is not 200."""
    round_ = _Round(request, count)
    loop = asyncio.get_running_loop()
    started_at = time.perf_counter()
    for _ in range(connections):
        await loop.create_connection(lambda: _Caller(round_), "127.0.0.1", port)
    await round_.finished
    seconds = time.perf_counter() - started_at
    return Load(count, seconds, statistics.median(round_.latencies) * 1e3)


def chat_request(port: int, *, stream: bool, headers: bytes = b"") -> bytes:
    """A chat completion as a model client asks for it."""
    body = (
        b'{"model":"tiny","messages":[{"role":"user","content":"Say something short."}],'
        b'"max_tokens":64%s}' % (b',"stream":true' if stream else b"")
    )
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n"
        b"content-type: application/json\r\naccept: application/json\r\n%scontent-length: %d"
        b"\r\n\r\n%s" % (port, headers, len(body), body)
    )


async def _serve(port: int, pause_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Upstream(pause_s), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2]) / 1000))
