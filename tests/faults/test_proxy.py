"""The fault proxy does what its plan says, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from tests.faults.proxy import (
    ANSWER_DROPPED,
    WHOLE,
    Exchange,
    FaultProxy,
    Side,
    Strike,
    What,
    nothing,
    once,
    seeded,
)
from tests.waiting import WAIT_S, eventually

ASK = b"POST /pay HTTP/1.1\r\nContent-Length: 10\r\n\r\n0123456789"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine"


@dataclass
class Server:
    """Answers each complete request, and remembers what it heard."""

    heard: list[bytes] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    open: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while True:
                data = await reader.readexactly(len(ASK))
                self.heard.append(data)
                writer.write(ANSWER)
                await writer.drain()
        except asyncio.IncompleteReadError as error:
            self.ended.append("closed")
            if error.partial:
                self.heard.append(error.partial)
                writer.write(b"half")
        except ConnectionResetError:
            self.ended.append("reset")
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            self.open -= 1


@dataclass
class Line:
    """A caller's connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    patience_s: float = WAIT_S

    async def ask(self) -> bytes:
        """Ask, and read until the answer is there, the end, or a while."""
        self.writer.write(ASK)
        return await self.answer()

    async def answer(self) -> bytes:
        try:
            async with asyncio.timeout(self.patience_s):
                return await self.reader.readexactly(len(ANSWER))
        except asyncio.IncompleteReadError as error:
            return error.partial + b"|"
        except TimeoutError:
            return b"..."
        except ConnectionResetError:
            return b"!"


@dataclass
class House:
    """A proxy with a server behind it."""

    proxy: FaultProxy
    server: Server
    lines: list[Line] = field(default_factory=list)

    async def line(self) -> Line:
        parts = urlsplit(self.proxy.url)
        line = Line(*await asyncio.open_connection(parts.hostname, parts.port))
        self.lines.append(line)
        return line

    async def ask(self, strike: Strike) -> bytes:
        """What comes of a request that is struck."""
        self.proxy.plan = once(strike, "POST /pay")
        line = await self.line()
        if strike.what is What.BLACK_HOLE:
            line.patience_s = 0.3
        answer = await line.ask()
        await eventually(lambda: [struck for _, struck in self.proxy.struck] == [strike])
        return answer

    async def saw(self, heard: list[bytes], *ended: str) -> None:
        """Wait until the server has heard this, and its connections have ended so."""
        wanted = (heard, list(ended))
        await eventually(lambda: (self.server.heard, self.server.ended), lambda it: it == wanted)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    server = Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with FaultProxy(url) as proxy:
        house = House(proxy, server)
        yield house
        for line in house.lines:
            line.writer.close()
    listener.close()
    await eventually(lambda: not server.open)


async def test_without_a_strike_everything_passes(house: House) -> None:
    line = await house.line()
    assert [await line.ask() for _ in range(3)] == [ANSWER] * 3
    line.writer.close()
    await house.saw([ASK] * 3, "closed")


async def test_latency_delays_and_loses_nothing(house: House) -> None:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    assert await house.ask(Strike(What.LATENCY, Side.ANSWER, 3, seconds=0.1)) == ANSWER
    assert loop.time() - began_s >= 0.1


async def test_a_reset_is_one_for_both(house: House) -> None:
    assert await house.ask(Strike(What.RESET, Side.REQUEST, 5)) == b"!"
    await house.saw([], "reset")


async def test_a_reset_in_an_answer_lets_through_what_came_before_it_or_less(house: House) -> None:
    assert await house.ask(Strike(What.RESET, Side.ANSWER, 7)) in (b"!", ANSWER[:7] + b"|")
    assert house.server.heard == [ASK]


async def test_a_dropped_answer_is_to_a_request_that_was_carried_out(house: House) -> None:
    assert await house.ask(ANSWER_DROPPED) == b"!"
    assert house.server.heard == [ASK]


async def test_a_truncated_answer_ends_in_order(house: House) -> None:
    assert await house.ask(Strike(What.TRUNCATE, Side.ANSWER, 20)) == ANSWER[:20] + b"|"
    await house.saw([ASK], "closed")


async def test_a_truncated_request_ends_in_order(house: House) -> None:
    assert await house.ask(Strike(What.TRUNCATE, Side.REQUEST, 20)) == b"|"
    await house.saw([ASK[:20]], "closed")


async def test_a_half_closed_request_still_gets_its_answer(house: House) -> None:
    assert await house.ask(Strike(What.HALF_CLOSE, Side.REQUEST, WHOLE)) == ANSWER
    await house.saw([ASK], "closed")


async def test_a_half_closed_answer_leaves_the_other_way_open(house: House) -> None:
    assert await house.ask(Strike(What.HALF_CLOSE, Side.ANSWER, 9)) == ANSWER[:9] + b"|"
    assert await house.lines[0].ask() == b"|"
    await eventually(lambda: house.server.heard == [ASK, ASK])


async def test_a_black_hole_swallows_and_stays_open(house: House) -> None:
    assert await house.ask(Strike(What.BLACK_HOLE, Side.ANSWER, 0)) == b"..."
    await house.saw([ASK])
    assert await house.lines[0].ask() == b"..."


async def test_who_refuses_cannot_be_reached_and_accepts_again_at_the_same_address(
    house: House,
) -> None:
    line, url = await house.line(), house.proxy.url
    assert await line.ask() == ANSWER
    await house.proxy.refuse()
    assert await line.ask() == b"!"
    with pytest.raises(ConnectionRefusedError):
        await house.line()
    await house.proxy.accept()
    assert house.proxy.url == url
    assert await (await house.line()).ask() == ANSWER


async def test_only_the_exchange_that_is_meant_is_struck(house: House) -> None:
    house.proxy.plan = lambda exchange: ANSWER_DROPPED if exchange.number == 2 else None
    line = await house.line()
    assert [await line.ask() for _ in range(3)] == [ANSWER, ANSWER, b"!"]
    assert house.proxy.struck == [(Exchange(2, "POST /pay"), ANSWER_DROPPED)]
    house.proxy.plan = once(ANSWER_DROPPED, "GET /")
    assert await (await house.line()).ask() == ANSWER


async def test_a_server_that_is_not_there_is_a_reset(house: House) -> None:
    house.proxy.target = "http://127.0.0.1:9"
    assert await (await house.line()).ask() == b"!"


def test_a_seed_gives_the_same_strikes_again_whatever_the_order() -> None:
    strikes = [ANSWER_DROPPED, Strike(What.TRUNCATE, Side.REQUEST, 5)]
    exchanges = [Exchange(number, "POST /pay") for number in range(1_000)]
    one = seeded("7", strikes, 0.2)
    told = {exchange: one(exchange) for exchange in exchanges}
    again = seeded("7", strikes, 0.2)
    assert told == {exchange: again(exchange) for exchange in reversed(exchanges)}
    assert 100 < sum(strike is not None for strike in told.values()) < 300
    assert set(told.values()) == {None, *strikes}
    assert told != {exchange: seeded("8", strikes, 0.2)(exchange) for exchange in exchanges}
    assert all(one(Exchange(number, "GET /_crash/books")) is None for number in range(100))
    assert nothing(exchanges[0]) is None
