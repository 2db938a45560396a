"""The JSON-RPC client against anvil, and against a node that answers badly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
from aiohttp import web

from farebox.clock import SystemClock
from farebox.errors import RailRejected, RailUnavailable
from farebox.rails.evm.rpc import Data, Quantity, Rpc, open_rpc_session
from farebox.rails.web import Breaker
from tests.peers.anvil import CHAIN_ID, Anvil

Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def node(anvil: Anvil) -> AsyncIterator[Rpc]:
    async with open_rpc_session() as session:
        yield Rpc(anvil.url, session, Breaker(SystemClock(), who="the node"))


@pytest.fixture
async def bad_node() -> AsyncIterator[Callable[[Reply], Awaitable[Rpc]]]:
    """A node that answers as it is told to."""
    async with open_rpc_session() as session:
        runners = []

        async def start(reply: Reply) -> Rpc:
            app = web.Application()
            app.router.add_post("/{tail:.*}", reply)
            runner = web.AppRunner(app)
            runners.append(runner)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            breaker = Breaker(SystemClock(), who="the node")
            return Rpc(f"http://127.0.0.1:{port}/v2/SECRETKEY", session, breaker, call_s=60)

        yield start
        for runner in runners:
            await runner.cleanup()


def saying(document: object, status: int = 200) -> Reply:
    async def reply(request: web.Request) -> web.Response:
        return web.json_response(document, status=status)

    return reply


async def test_a_call_reads_its_result_into_a_type(node: Rpc, anvil: Anvil) -> None:
    assert await node.call(Quantity, "eth_chainId") == CHAIN_ID
    for height, is_there in ((10**9, False), (0, True)):
        asked = ("eth_getBlockByNumber", hex(height), False)
        block = await node.find(msgspec.Raw, *asked)
        assert (block is not None) == is_there
    assert await node.call(Data, "eth_getCode", anvil.accounts[0], "latest") == b""


async def test_a_batch_answers_in_order_however_long_it_is(node: Rpc, anvil: Anvil) -> None:
    anvil.mine(120)

    class Block(msgspec.Struct, frozen=True):
        number: Quantity

    asked = [(hex(number), False) for number in range(120, 0, -1)]
    blocks = await node.batch(Block, "eth_getBlockByNumber", asked)
    assert [block.number for block in blocks] == list(range(120, 0, -1))
    assert await node.batch(Block, "eth_getBlockByNumber", []) == []


async def test_the_nodes_own_no_is_a_rejection_with_its_code(node: Rpc) -> None:
    with pytest.raises(RailRejected) as caught:
        await node.call(Quantity, "eth_nonsense")
    assert caught.value.code == -32601
    with pytest.raises(RailRejected):
        await node.batch(Quantity, "eth_nonsense", [()])


@pytest.mark.parametrize(
    ("document", "status"),
    [
        ({"result": "0x1"}, 500),
        ({"result": "0x1"}, 429),
        ({"error": {"code": 1, "message": "no"}}, 429),
        ({"error": {"code": 1, "message": "no"}}, 403),
        ({"error": {"code": -32603, "message": "Internal error"}}, 200),
        ({"error": {"code": -32005, "message": "daily request count exceeded, rate limited"}}, 200),
        ({"result": 7}, 200),
        ({"result": "7"}, 200),
        ({"result": None}, 200),
        ([1], 200),
    ],
)
async def test_what_is_no_answer_is_unavailable(
    bad_node: Callable[[Reply], Awaitable[Rpc]], document: object, status: int
) -> None:
    rpc = await bad_node(saying(document, status))
    with pytest.raises(RailUnavailable) as caught:
        await rpc.call(Quantity, "eth_blockNumber")
    assert "SECRETKEY" not in str(caught.value)
    assert "SECRETKEY" not in repr(rpc)


@pytest.mark.parametrize(
    "document",
    [
        {"id": 0, "result": "0x1"},
        [{"id": 0, "result": "0x1"}],
        [{"id": 0, "result": "0x1"}, {"id": 7, "result": "0x1"}],
    ],
)
async def test_a_batch_with_gaps_is_unavailable(
    bad_node: Callable[[Reply], Awaitable[Rpc]], document: object
) -> None:
    rpc = await bad_node(saying(document))
    with pytest.raises(RailUnavailable):
        await rpc.batch(Quantity, "eth_getBalance", [("0x1",), ("0x2",)])


async def test_a_batch_in_another_order_is_put_in_order(
    bad_node: Callable[[Reply], Awaitable[Rpc]],
) -> None:
    rpc = await bad_node(saying([{"id": 1, "result": "0x2"}, {"id": 0, "result": "0x1"}]))
    assert await rpc.batch(Quantity, "eth_getBalance", [("0x1",), ("0x2",)]) == [1, 2]


async def test_a_nodes_words_are_cut_and_what_may_be_a_key_is_blanked(
    bad_node: Callable[[Reply], Awaitable[Rpc]],
) -> None:
    address = "0x" + "ab" * 20
    said = f"nonce too low for {address}, key abcdefghij0123456789XYZ " + "x " * 500
    rpc = await bad_node(saying({"error": {"code": -32000, "message": said}}))
    with pytest.raises(RailRejected) as caught:
        await rpc.call(Quantity, "eth_sendRawTransaction", "0x00")
    assert "nonce too low" in str(caught.value)
    assert address in str(caught.value)
    assert "abcdefghij" not in str(caught.value)
    assert len(str(caught.value)) < 300


async def test_a_silent_and_an_endless_node_are_unavailable(
    bad_node: Callable[[Reply], Awaitable[Rpc]],
) -> None:
    over = asyncio.Event()

    async def silent(request: web.Request) -> web.Response:
        await over.wait()
        return web.Response()

    rpc = await bad_node(silent)
    rpc._call_s = 0.5
    with pytest.raises(RailUnavailable, match="in time"):
        await rpc.call(Quantity, "eth_blockNumber")
    over.set()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        chunk = b" " * (1 << 20)
        for _ in range(64):
            await response.write(chunk)
        return response

    rpc = await bad_node(endless)
    with pytest.raises(RailUnavailable, match=r"too long|no answer"):
        await rpc.call(Quantity, "eth_blockNumber")


async def test_a_node_that_is_down_is_left_alone(
    bad_node: Callable[[Reply], Awaitable[Rpc]],
) -> None:
    asked = 0

    async def down(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=503)

    rpc = await bad_node(down)
    for _ in range(9):
        with pytest.raises(RailUnavailable):
            await rpc.call(Quantity, "eth_blockNumber")
    assert asked == 5
