"""What a caller of `farebox serve` can send, and what it is answered, byte by byte."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn

from farebox.cli import connection
from farebox.cli.listener import listening, server_config
from farebox.settings import Address
from farebox.testing.asgi import App, Receive, Scope, Send, respond

ASK = b"GET /%s HTTP/1.1\r\nhost: here\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the path and the body, once that is whole."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    await respond(send, 200, scope["raw_path"] + b" " + body)


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in two pieces, of a length that is not said."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"one ", "more_body": True})
    await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"two", "more_body": True})
    await send({"type": "http.response.body"})


class Served(uvicorn.Server):
    """Tells when it listens, and when it stops."""

    def __init__(self, app: App) -> None:
        super().__init__(server_config(app, 8_192, stop_timeout_s=60))
        self.listens = asyncio.Event()
        self.stops = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Uvicorn tells the connections before it waits for anything.
        asyncio.get_running_loop().call_soon(self.stops.set)
        await super().shutdown(sockets)


@asynccontextmanager
async def serving(app: App = echo) -> AsyncIterator[int]:
    async with served(app) as (port, _):
        yield port


@asynccontextmanager
async def served(app: App) -> AsyncIterator[tuple[int, Served]]:
    with listening(Address("127.0.0.1", 0), "gateway.listen") as listener:
        server = Served(app)
        running = asyncio.create_task(server._serve([listener]))
        await server.listens.wait()
        yield listener.getsockname()[1], server
        server.should_exit = True
        await running


async def told(port: int, *pieces: bytes) -> bytes:
    """Everything that is answered until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0)  # so that it is read by itself
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    return answer


async def test_requests_that_come_together_are_answered_one_after_the_other() -> None:
    async with serving() as port:
        answer = await told(port, ASK % b"first" + ASK % b"second" + LAST)
    assert [part for part in answer.split() if part.startswith(b"/")] == [
        b"/first",
        b"/second",
        b"/last",
    ]
    assert answer.count(b"connection: close") == 1


async def test_a_body_in_chunks_and_pieces_is_put_together() -> None:
    head = b"POST /b HTTP/1.1\r\nhost: h\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    async with serving() as port:
        answer = await told(port, head, b"3\r\nabc\r\n", b"2\r\nde\r", b"\n0\r\n\r\n")
    assert answer.endswith(b"/b abcde")


async def test_a_caller_that_waits_to_be_told_is_told_to_go_on() -> None:
    head = b"POST /b HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert (await reader.readuntil(b"abc")).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()


async def test_an_answer_of_unknown_length_is_chunked_and_its_connection_goes_on() -> None:
    async with serving(stream) as port:
        answer = await told(port, ASK % b"", LAST)
    assert answer.count(b"\r\n\r\n4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n") == 2


async def test_a_caller_that_knows_no_chunks_reads_to_the_end_of_the_connection() -> None:
    async with serving(stream) as port:
        answer = await told(port, b"GET / HTTP/1.0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\none two")
    assert b"chunked" not in answer


async def test_an_answer_to_head_has_the_length_and_no_body() -> None:
    async with serving() as port:
        answer = await told(port, b"HEAD /x HTTP/1.1\r\nhost: h\r\n\r\n" + LAST)
    first, _, rest = answer.partition(b"\r\n\r\n")
    assert b"content-length: 3" in first
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("before", [b"", ASK % b"before"])
async def test_nonsense_is_refused_and_what_came_before_it_is_answered(before: bytes) -> None:
    async with serving() as port:
        answer = await told(port, before + b"NONSENSE\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 " if before else b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


async def test_a_body_that_breaks_is_no_request() -> None:
    head = b"POST /b HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
    async with serving() as port:
        assert (await told(port, head, b"nonsense\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_what_follows_a_body_is_no_header_and_has_an_end() -> None:
    head = b"POST /b HTTP/1.1\r\nhost: h\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"

    async def names(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        await respond(send, 200, b" ".join(name for name, _ in scope["headers"]))

    async with serving(names) as port:
        assert b"x-late" not in await told(port, head, b"0\r\nx-late: 1\r\n\r\n")
        endless = [b"x" * 10_000 for _ in range(10)]
        with suppress(ConnectionResetError):  # which may come before what was written
            answer = await told(port, head, b"0\r\nx-late: ", *endless, b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_large_body_and_the_next_head_in_one_piece_are_two_requests() -> None:
    body = b"x" * 150_000
    head = b"POST /b HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + body + LAST[:20])
        await reader.readuntil(body)
        writer.write(LAST[20:])
        assert (await reader.read()).endswith(b"/last ")
        writer.close()


async def test_two_lengths_are_no_request() -> None:
    head = b"POST /b HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"
    async with serving() as port:
        assert (await told(port, head, b"0\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_what_comes_behind_an_upgrade_is_never_read() -> None:
    ask = b"GET /up HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    async with serving() as port:
        answer = await told(port, ask + ASK % b"smuggled", ASK % b"later")
    assert answer.count(b"HTTP/1.1 200") == 1
    assert answer.endswith(b"/up ")


@pytest.mark.parametrize("begun", [False, True])
async def test_an_app_that_fails_is_not_taken_for_one_that_answered(begun: bool) -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError("a defect")

    async with serving(fail) as port:
        answer = await told(port, ASK % b"")
    assert answer.startswith(b"HTTP/1.1 200 " if begun else b"HTTP/1.1 500 ")
    assert not answer.endswith(b"0\r\n\r\n") or not begun


@pytest.mark.parametrize(("name", "value"), [(b"x-a", b"b\r\nx-c: d"), (b"x-a\nx-c", b"d")])
async def test_a_line_break_in_a_header_is_not_sent(name: bytes, value: bytes) -> None:
    async def split(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, b"", headers=((name, value),))

    async with serving(split) as port:
        answer = await told(port, ASK % b"")
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"x-c" not in answer


@pytest.mark.parametrize("length", [b"3", b"5"])
async def test_an_answer_of_another_length_than_it_says_breaks_off(length: bytes) -> None:
    async def lie(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"four"})

    async with serving(lie) as port:
        answer = await told(port, ASK % b"" + ASK % b"next")
    assert answer.count(b"HTTP/1.1") == 1
    assert not answer.endswith(b"four")


async def test_the_rest_of_a_body_that_nobody_reads_is_not_the_next_request() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 413, b"no")

    head = b"POST /b HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % len(ASK % b"inner")
    async with serving(refuse) as port:
        answer = await told(port, head, ASK % b"inner", LAST)
    assert answer.count(b"HTTP/1.1 413 ") == 2


async def test_reading_stops_while_an_app_reads_nothing() -> None:
    go_on = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await echo(scope, receive, send)

    size = 16 * 1024 * 1024
    async with serving(slow) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /b HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % size)
        writer.write(b"x" * size)
        with pytest.raises(TimeoutError):  # what the kernel holds is much less than this
            await asyncio.wait_for(writer.drain(), 0.2)
        go_on.set()
        answer = await reader.readuntil(b"/b ")
        assert b"content-length: %d" % (size + 3) in answer
        writer.transport.abort()


async def test_a_caller_that_leaves_is_noticed_by_who_listens() -> None:
    listening_, heard = asyncio.Event(), asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        listening_.set()
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        heard.set()

    async with serving(wait) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ASK % b"")
        await listening_.wait()
        writer.transport.abort()
        await asyncio.wait_for(heard.wait(), 60)


async def test_an_idle_connection_is_closed_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_IDLE_TIMEOUT_S", 0.1)
    async with serving() as port:
        answer = await told(port, ASK % b"only")
    assert answer.endswith(b"/only ")


async def test_a_server_that_stops_finishes_the_answer_and_takes_no_other_request() -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        began.set()
        await go_on.wait()
        await respond(send, 200, b"done")

    async with served(slow) as (port, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ASK % b"")
        await began.wait()
        server.should_exit = True
        await server.stops.wait()
        go_on.set()
        answer = await reader.read()
        assert b"connection: close" in answer
        assert answer.endswith(b"done")
        writer.close()
