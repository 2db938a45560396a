"""The bounds of a connection, before any request has reached the app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn

from farebox.cli import connection
from farebox.cli.connection import Outbox
from farebox.cli.listener import listening, server_config
from farebox.errors import InvalidSettings
from farebox.gateway.asgi import LET_GO
from farebox.settings import Address
from farebox.testing.asgi import App, Receive, Scope, Send, respond

LIMIT = 8_192


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, 200, b"fine")


@asynccontextmanager
async def serving(app: App = app, *, stop_timeout_s: int = 1) -> AsyncIterator[int]:
    with listening(Address("127.0.0.1", 0), "gateway.listen") as listener:
        server = uvicorn.Server(server_config(app, LIMIT, stop_timeout_s=stop_timeout_s))
        running = asyncio.create_task(server._serve([listener]))
        for _ in range(500):
            if server.started:
                break
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        await running


async def exchange(port: int, *pieces: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    except ConnectionResetError:
        return b"reset"
    finally:
        writer.close()


async def test_an_ordinary_request_is_served_however_it_is_cut() -> None:
    request = b"GET / HTTP/1.1\r\nhost: here\r\nx-long: " + b"a" * LIMIT + b"\r\n\r\n"
    async with serving() as port:
        whole = await exchange(port, request)
        pieces = [request[at : at + 100] for at in range(0, len(request), 100)]
        assert whole.startswith(b"HTTP/1.1 200 ")
        assert (await exchange(port, *pieces)).startswith(b"HTTP/1.1 200 ")


async def test_an_endless_head_is_cut_off() -> None:
    flood = [b"GET / HTTP/1.1\r\n", *(b"x-%d: %s\r\n" % (at, b"a" * 1_000) for at in range(60))]
    async with serving() as port:
        told = await exchange(port, *flood)
    assert told == b"reset" or told.startswith(b"HTTP/1.1 431 ")


async def test_a_large_body_is_no_large_head() -> None:
    body = b"b" * 200_000
    head = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with serving() as port:
        assert (await exchange(port, head + body)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("begun", [b"", b"GET / HTT", b"GET / HTTP/1.1\r\nhost: he"])
async def test_a_head_that_does_not_come_is_not_waited_for(
    begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_HEAD_TIMEOUT_S", 0.1)
    async with serving() as port:
        assert (await exchange(port, begun)).startswith(b"HTTP/1.1 408 ")


async def test_the_second_head_of_a_connection_is_bounded_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "_HEAD_TIMEOUT_S", 0.1)
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: here\r\n\r\nGET / HTTP/1.1\r\nhost: he")
        answered, _, cut_off = (await asyncio.wait_for(reader.read(), 60)).partition(b"fine")
        assert answered.startswith(b"HTTP/1.1 200 ")
        assert cut_off.startswith(b"HTTP/1.1 408 ")
        writer.close()


def test_an_address_that_is_taken_is_said() -> None:
    with listening(Address("127.0.0.1", 0), "gateway.listen") as first:
        port = first.getsockname()[1]
        with pytest.raises(InvalidSettings, match="stop what listens there"):
            with listening(Address("127.0.0.1", port), "gateway.listen"):
                pass


async def test_a_caller_that_sends_no_more_has_what_was_answered() -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
        writer.write_eof()
        assert (await asyncio.wait_for(reader.read(), 60)).endswith(b"fine")
        writer.close()


@pytest.mark.parametrize("lets_go", [True, False])
async def test_a_server_that_ends_cancels_only_what_it_was_not_told_to_let_go_of(
    lets_go: bool,
) -> None:
    started, told = asyncio.Event(), asyncio.Event()
    became: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        if lets_go:
            scope["extensions"][LET_GO](task)
        started.set()
        try:
            await told.wait()
            became.append("ended")
        except asyncio.CancelledError:
            became.append("cancelled")
        await respond(send, 200, b"late")

    async with serving(app, stop_timeout_s=0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
        await started.wait()
    told.set()
    await reader.read()
    assert became == ["ended" if lets_go else "cancelled"]
    writer.close()


class Sent(asyncio.Transport):
    """Remembers each call to the system that a transport would make."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes | str] = []
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.calls.append(bytes(data))

    def close(self) -> None:
        self._is_closing = True
        self.calls.append("close")

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")


async def test_what_is_written_in_one_turn_leaves_at_once_and_in_order() -> None:
    sent = Sent()
    transport = Outbox(sent, asyncio.get_running_loop())
    transport.write(b"head ")
    transport.write(b"body")
    assert sent.calls == []
    await asyncio.sleep(0)
    transport.write(b"next")
    await asyncio.sleep(0)
    assert sent.calls == [b"head body", b"next"]


async def test_much_does_not_wait_for_the_end_of_the_turn() -> None:
    sent = Sent()
    transport = Outbox(sent, asyncio.get_running_loop())
    for _ in range(20):
        transport.write(b"x" * 16_384)
    assert sum(len(call) for call in sent.calls) >= 15 * 16_384
    await asyncio.sleep(0)
    assert sum(len(call) for call in sent.calls) == 20 * 16_384


async def test_closing_writes_what_was_held_and_nothing_is_written_after_it() -> None:
    sent = Sent()
    transport = Outbox(sent, asyncio.get_running_loop())
    transport.write(b"last words")
    transport.close()
    transport.write(b"too late")
    await asyncio.sleep(0)
    assert sent.calls == [b"last words", "close"]
