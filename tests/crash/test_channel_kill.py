"""A payee is killed again and again while its payer pays: neither loses more than a request."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import httpx2
import pytest
from mcp import Client, MCPError

from farebox.channels import (
    RECORDS,
    HttpPaymentCodec,
    PaymentChannelPayerClient,
    SpendingLimits,
    call_paid_tool,
)
from farebox.channels.model import SUB_CHANNEL, sub_channel_key
from farebox.clock import NS_PER_S, SystemClock
from farebox.ids import new_id
from farebox.ledger.processes import PROCESS
from farebox.ledger.service import Ledger
from farebox.stores.sqlite import SqliteStore
from farebox.testing.channels import RGAS, PlayContract
from farebox.wire.subrav.didauth import sign_did_auth
from farebox.wire.subrav.payload import HEADER_NAME
from tests.integration.channel_world import (
    CHANNEL_ID,
    ECHO_COST,
    FRAGMENT,
    KEY,
    PAYEE_DID,
    PAYER_DID,
    check_books,
)

LIVES = 4
PAID_PER_LIFE = 12
CODEC = HttpPaymentCodec()

#: Serves the book in a directory; prints its address once it does.
OVER_HTTP = """
import asyncio, pathlib, sys
from farebox.clock import SystemClock
from farebox.testing.asgi import serving
from tests.integration.channel_world import world

async def main(directory):
    async with world(pathlib.Path(directory), clock=SystemClock()) as town:
        await town.open()
        async with serving(town.app) as url:
            print(url, flush=True)
            await asyncio.sleep(3600)

asyncio.run(main(*sys.argv[1:]))
"""
#: The same with an MCP server's tools.
TOOLS = """
import asyncio, pathlib, sys
from tests.integration.test_channel_tools import shop

async def main(directory):
    async with shop(pathlib.Path(directory)) as made:
        print(made.url, flush=True)
        await asyncio.sleep(3600)

asyncio.run(main(*sys.argv[1:]))
"""


def payee(directory: Path, code: str) -> tuple[subprocess.Popen[str], str]:
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    return child, child.stdout.readline().strip()


async def pays(payer: PaymentChannelPayerClient, http: httpx.AsyncClient) -> int:
    """One request, sent again once where it is asked to; what was answered cost."""
    for _ in range(2):
        payment = await payer.sign_and_encode(None, CODEC)
        auth = sign_did_auth(
            PAYER_DID,
            FRAGMENT,
            KEY,
            operation="http_request",
            params={"uri": "http://payee/echo", "method": "GET"},
            nonce=new_id("nonce"),
            timestamp_s=SystemClock().now_ns() // NS_PER_S,
        )
        headers = {HEADER_NAME: payment, "Authorization": auth.header()}
        answer = await http.get("/echo", headers=headers)
        told = await payer.decode_and_validate(answer.headers[HEADER_NAME], CODEC)
        if not told.is_retry_wanted:
            assert told.error is None, told.error
            return told.cost
    raise AssertionError("it asks for more than one lost answer")


async def calls(payer: PaymentChannelPayerClient, client: Client) -> int:
    """One call of a tool; what was answered cost."""
    told = await call_paid_tool(client.call_tool, payer, "add", {"a": 1, "b": 1})
    assert told.payment is not None
    assert told.payment.error is None, told.payment.error
    return told.payment.cost


async def one_life(payer: PaymentChannelPayerClient, directory: Path, life: int, code: str) -> int:
    """Pay until the payee is killed in the midst of it."""
    child, url = await asyncio.to_thread(payee, directory, code)
    answered = 0

    async def until_killed(pay: Callable[[], Awaitable[int]]) -> None:
        nonlocal answered
        for _ in range(PAID_PER_LIFE):
            answered += await pay()
        # A little later each life, so that it dies at another step of the request.
        asyncio.get_running_loop().call_later(0.003 * (life + 1), child.kill)
        while True:
            answered += await pay()

    try:
        if code == TOOLS:
            async with Client(f"{url}/mcp") as client:
                await until_killed(lambda: calls(payer, client))
        else:
            async with httpx.AsyncClient(base_url=url, timeout=60) as http:
                await until_killed(lambda: pays(payer, http))
    except* (httpx.TransportError, httpx2.TransportError, MCPError):
        pass  # the SDK's client tells of it in groups
    finally:
        child.kill()
        await asyncio.to_thread(child.communicate)  # waits, and closes its pipe
        assert child.returncode == -signal.SIGKILL
    return answered


@pytest.mark.parametrize("code", [OVER_HTTP, TOOLS], ids=["http", "tools"])
async def test_a_killed_payee_goes_on_where_it_was(tmp_path: Path, code: str) -> None:
    contract = PlayContract()
    await contract.open_channel_with_sub_channel(
        payer_did=PAYER_DID,
        payee_did=PAYEE_DID,
        asset_id=RGAS,
        collateral=10**12,
        fragment=FRAGMENT,
        key=KEY.public,
    )
    limits = SpendingLimits(request_max=ECHO_COST, unserved_max=LIVES * ECHO_COST, total_max=10**12)
    purse = SqliteStore(tmp_path / "payer.db", RECORDS)
    try:
        payer = PaymentChannelPayerClient(
            Ledger(purse, SystemClock()), contract, KEY, CHANNEL_ID, FRAGMENT, limits
        )
        answered = 0
        for life in range(LIVES):
            answered += await one_life(payer, tmp_path, life, code)
        state = await payer.state()
    finally:
        await purse.close()
    check_books(tmp_path)
    book = SqliteStore(tmp_path / "book.db", [*RECORDS, PROCESS])
    try:
        row = await book.get(SUB_CHANNEL, sub_channel_key(CHANNEL_ID, FRAGMENT))
    finally:
        await book.close()
    assert row is not None
    assert state is not None
    assert answered >= LIVES * PAID_PER_LIFE * ECHO_COST
    assert row.value.paid_amount <= state.amount
    assert state.amount <= answered + state.unserved
    owed = row.value.pending.cost if row.value.pending else 0
    assert answered <= row.value.paid_amount + owed + 2 * ECHO_COST
