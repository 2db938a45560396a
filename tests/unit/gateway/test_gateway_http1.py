"""HTTP/1.1 towards upstreams, against servers that say exactly what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from farebox.gateway.exchange import Outgoing, UpstreamDied, UpstreamUnreachable
from farebox.gateway.http1 import Http1Exchange, Origin
from farebox.gateway.upstream import Upstream, UpstreamConfig, Upstreams

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Line:
    """Upstreams with one address, and how many connections it took."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams
        self.connections = 0

    async def ask(
        self, method: str = "GET", target: str = "/", body: bytes = b"", *extra: tuple[bytes, bytes]
    ) -> Http1Exchange:
        upstream: Upstream = self._upstreams.all[0]
        return await self._upstreams.open(upstream, Outgoing(method, target, list(extra), body))


@asynccontextmanager
async def line(script: Script) -> AsyncIterator[Line]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.connections += 1
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Upstreams([UpstreamConfig((f"http://127.0.0.1:{port}/base",))]) as upstreams:
        made = Line(upstreams)
        yield made
    server.close()
    await server.wait_closed()


def saying(*answers: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        await reader.read(1)

    return script


async def whole(exchange: Http1Exchange) -> bytes:
    body = b""
    while piece := await exchange.read():
        body += piece
    return body


PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\r\n\r\nok"


async def test_a_connection_is_used_again() -> None:
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    async with line(saying(PLAIN, chunked, PLAIN)) as it:
        first = await it.ask()
        assert (await whole(first), first.has_ended) == (b"ok", True)
        assert (b"x-a", b"b") in first.headers
        assert await whole(await it.ask()) == b"abc"
        assert await whole(await it.ask()) == b"ok"
        assert it.connections == 1


async def test_head_and_no_content_have_no_body() -> None:
    async with line(saying(PLAIN.removesuffix(b"ok"))) as it:
        answer = await it.ask("HEAD")
        assert (answer.status, await whole(answer)) == (200, b"")
        gone = b"HTTP/1.1 204 No Content\r\n\r\n"
    async with line(saying(gone, PLAIN)) as it:
        assert await whole(await it.ask()) == b""
        assert await whole(await it.ask()) == b"ok"


async def test_answers_on_the_way_are_passed_over() -> None:
    async with line(saying(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + PLAIN)) as it:
        answer = await it.ask()
        assert (answer.status, await whole(answer)) == (200, b"ok")
        assert (b"link", b"x") not in answer.headers


async def test_what_is_left_of_an_answer_is_nobody_elses() -> None:
    """A body longer than it said may hold what looks like the answer to the next request."""
    hidden = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n"

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(PLAIN + hidden)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"poison" + PLAIN)
        await reader.read(1)

    async with line(script) as it:
        assert await whole(await it.ask()) == b"ok"
        assert await whole(await it.ask()) == b"ok"
        assert it.connections == 2


async def test_a_coding_that_nobody_asked_for_is_no_answer() -> None:
    packed = b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
    async with line(saying(packed)) as it:
        with pytest.raises(UpstreamUnreachable):
            await it.ask()


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        await writer.drain()

    async with line(script) as it:
        assert await whole(await it.ask()) == b"all of it"


@pytest.mark.parametrize(
    "cut",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
)
async def test_a_body_that_is_cut_does_not_pass_for_whole(cut: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(cut)
        await writer.drain()

    async with line(script) as it:
        answer = await it.ask()
        assert await answer.read() == b"abc"
        with pytest.raises(UpstreamDied):
            await answer.read()


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000,
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 40_000,
    ],
)
async def test_what_is_no_answer_is_an_upstream_that_broke_off(nonsense: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(nonsense)
        await writer.drain()

    async with line(script) as it:
        with pytest.raises(UpstreamUnreachable):
            await it.ask()


async def test_a_request_cannot_smuggle_another() -> None:
    async with line(saying(PLAIN)) as it:
        for target, extra in [
            ("/ HTTP/1.1\r\nx: y", (b"a", b"b")),
            ("/a b", (b"a", b"b")),
            ("/", (b"a", b"b\r\nx: y")),
            ("/", (b"a\nb", b"c")),
        ]:
            with pytest.raises(UpstreamUnreachable):
                await it.ask("GET", target, b"", extra)


async def test_a_request_is_written_as_it_must_be() -> None:
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(4))
        writer.write(PLAIN)

    async with line(script) as it:
        await whole(await it.ask("POST", "/x?y=1", b"body", (b"a", b"b")))
    first, *rest = seen[0].split(b"\r\n")
    assert first == b"POST /base/x?y=1 HTTP/1.1"
    assert rest[0].startswith(b"host: 127.0.0.1:")
    assert rest[1:] == [b"a: b", b"content-length: 4", b"", b"body"]


async def test_giving_up_closes_the_connection() -> None:
    closed = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nx")
        await reader.read()
        closed.set()

    async with line(script) as it:
        answer = await it.ask()
        answer.close()
        await asyncio.wait_for(closed.wait(), 60)


def test_an_origin_is_read_from_its_url() -> None:
    assert Origin.of("https://api.example.com/v1") == Origin(
        "api.example.com", 443, True, b"api.example.com", "/v1"
    )
    assert Origin.of("http://[::1]:81") == Origin("::1", 81, False, b"[::1]:81", "")
