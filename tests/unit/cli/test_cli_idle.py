"""How long `farebox serve` keeps a connection that says nothing, by a clock that is a number."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from uvicorn.server import ServerState

from farebox.cli.listener import server_config
from farebox.testing.asgi import Receive, Scope, Send, respond
from tests.simulation.loop import SimulatedLoop

ASK = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"
#: What callers' libraries keep a connection for at most, and what is said of ours.
LIBRARIES_S, OURS_S = 15, 20
ANSWER_S = 90


class Line(asyncio.Transport):
    """The caller's end of a connection: what it was told, and when it was hung up."""

    def __init__(self) -> None:
        super().__init__()
        self.told = b""
        self.closed_s: float | None = None
        self.hung_up, self.has_answer = asyncio.Event(), asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.told += bytes(data)
        self.has_answer.set()

    def close(self) -> None:
        self.closed_s = self.closed_s or asyncio.get_running_loop().time()
        self.hung_up.set()

    def is_closing(self) -> bool:
        return self.closed_s is not None

    @property
    def answers(self) -> int:
        return self.told.count(b"HTTP/1.1 200 ")


async def fine(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once, or to `/slow` after longer than any connection may be idle."""
    if scope["path"] == "/slow":
        await asyncio.sleep(ANSWER_S)
    await respond(send, 200, b"fine")


def told(story: Callable[[asyncio.Protocol, Line], Awaitable[None]]) -> Line:
    """What a connection came to, whose caller does as the story says."""
    line = Line()
    config = server_config(fine, 8_192, stop_timeout_s=1)
    config.load()

    async def run() -> None:
        connection = config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=ServerState(), app_state={}
        )
        connection.connection_made(line)
        await story(connection, line)
        await line.hung_up.wait()
        connection.connection_lost(None)

    loop = SimulatedLoop(Random(0), is_shuffled=False)
    try:
        loop.run_until_complete(run())
    finally:
        loop.close()
    return line


async def ask(connection: asyncio.Protocol, line: Line, request: bytes = ASK) -> None:
    """One request, and its answer."""
    line.has_answer.clear()
    connection.data_received(request)
    await line.has_answer.wait()


def test_it_is_closed_without_a_word_when_its_caller_asks_no_more() -> None:
    line = told(ask)
    assert line.closed_s == pytest.approx(OURS_S)
    assert line.told.count(b"HTTP/1.1 ") == 1


def test_who_asks_again_within_the_time_of_its_library_is_always_answered() -> None:
    async def story(connection: asyncio.Protocol, line: Line) -> None:
        for _ in range(10):
            await ask(connection, line)
            await asyncio.sleep(LIBRARIES_S)

    line = told(story)
    assert line.answers == 10
    assert line.closed_s == pytest.approx(9 * LIBRARIES_S + OURS_S)


def test_an_answer_may_take_longer_than_a_connection_may_be_idle() -> None:
    async def story(connection: asyncio.Protocol, line: Line) -> None:
        await ask(connection, line, ASK.replace(b"/ ", b"/slow ", 1))

    line = told(story)
    assert line.answers == 1
    assert line.closed_s == pytest.approx(ANSWER_S + OURS_S)


def test_one_that_never_asks_is_told_and_closed() -> None:
    async def silent(_: asyncio.Protocol, __: Line) -> None:
        await asyncio.sleep(0)

    line = told(silent)
    assert line.told.startswith(b"HTTP/1.1 408 ")
    assert line.closed_s == pytest.approx(30)
