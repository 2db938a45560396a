"""docs/channels.md does what it says."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.server.mcpserver import MCPServer

import farebox.channels
from farebox.clock import SystemClock
from farebox.gateway.channel_endpoints import ChannelEndpoints
from farebox.gateway.channels import ChannelPaywall
from farebox.gateway.tools import PaidTools
from farebox.ledger.model import Kind, Open, Transfer, Unit
from farebox.ledger.processes import PROCESS, Processes
from farebox.ledger.service import Ledger
from farebox.paywall.channel_service import ChannelService
from farebox.stores.sqlite import SqliteStore
from farebox.wire.subrav.documents import ServiceInfo
from farebox.wire.subrav.keys import KeyType, SigningKey
from farebox.wire.subrav.model import ErrorCode, http_status
from farebox.wire.subrav.payload import ResponsePayload
from tests.integration.channel_house import PRICE_MSAT, house

PAGE = (Path(__file__).parents[2] / "docs" / "channels.md").read_text()
#: All but the one for a chain, which a test on one runs, and the one for a house elsewhere.
BLOCKS = re.findall(
    r"(?<!<!-- on anvil -->\n)(?<!<!-- at a house -->\n)```python\n(.*?)```", PAGE, re.DOTALL
)
(AT_A_HOUSE,) = re.findall(r"<!-- at a house -->\n```python\n(.*?)```", PAGE, re.DOTALL)
RULES = re.findall(r"<!-- rules -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)


async def run(block: str, names: dict[str, Any]) -> None:
    code = compile(block, "docs/channels.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    ran = eval(code, names)
    if inspect.iscoroutine(ran):
        await ran


async def test_payee_and_payer_of_the_page_trade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {
        **{name: getattr(farebox.channels, name) for name in farebox.channels.__all__},
        **{each.__name__: each for each in (Path, SqliteStore, Ledger, SystemClock, Processes)},
        **{each.__name__: each for each in (ResponsePayload, ServiceInfo)},
        **{each.__name__: each for each in (ChannelPaywall, ChannelService, ChannelEndpoints)},
        **{each.__name__: each for each in (MCPServer, Client, PaidTools)},
        "PROCESS": PROCESS,
        "RULES": RULES[0],
        "key": SigningKey(KeyType.ED25519, b"\x01" * 32),
        "codec": farebox.channels.HttpPaymentCodec(),
        "app": None,
    }
    payee, serve, payer, http, tools, calls = BLOCKS
    await run(payee, names)
    try:
        steps = (
            Open("custody:mint", "BTC", Kind.CUSTODY),
            Open("customer:alice", "BTC", Kind.CUSTOMER),
            Transfer("custody:mint", "customer:alice", 60_000, "deposit"),
        )
        await names["store"].commit(Unit("funds", steps))
        await run(serve, names)
        await run(payer, names)
        await run(http, names)
        paywall = names["app"]
        await run(tools, names)
        await run(calls, names)
        earned = await names["store"].account("revenue")
    finally:
        await names["store"].close()
    assert names["joke"].startswith("A receipt")
    assert names["response"].sub_rav.nonce == 3
    assert earned.available == 4 * 50
    assert isinstance(paywall, ChannelPaywall)
    assert names["told"].result.structured_content == {"result": "A receipt walks into a bar."}


async def test_the_channel_of_the_page_is_opened_and_pays(tmp_path: Path) -> None:
    (body,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    async with house(tmp_path) as shop:
        headers = shop.auth | {"Idempotency-Key": "mine"}
        opened = await shop.http.post("/v1/channels", content=body, headers=headers)
        assert opened.status_code == 201
        told = set(opened.json())
        assert {"channel", "payer_did", "payee_did", "chain_id", "asset"} <= told
        assert (await shop.asks()).status == 200


async def test_the_payer_of_the_page_has_its_channel_at_a_house_elsewhere(tmp_path: Path) -> None:
    """In a process of its own, which never imports anything of a house."""
    async with house(tmp_path) as shop:
        script = PROGRAM.format(
            block=textwrap.indent(AT_A_HOUSE.replace("sk-…", shop.key), " " * 8),
            url=shop.url,
            book=tmp_path / "payer.db",
        )
        ran = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
        )
        told, _ = await asyncio.wait_for(ran.communicate(), 60)
        assert ran.returncode == 0
        shown = (await shop.http.get("/v1/channels", headers=shop.auth)).json()
        balance = await shop.balance()
    ended = json.loads(told)
    assert ended["imported"] == []
    assert ended["cost"] == PRICE_MSAT
    assert shown["status"] == "closing"
    # The third request was not signed for: that is the house's risk.
    assert shown["collateral_msat"] == ended["left"] == 600_000 - 2 * PRICE_MSAT
    assert balance == 10_000_000 - 600_000


PROGRAM = """
import asyncio, json, sys
from pathlib import Path
import aiohttp
from farebox.channels import PAYER_SUB_CHANNEL, HttpPaymentCodec, PaymentChannelPayerClient
from farebox.channels import SpendingLimits
from farebox.client import RemoteLedgerContract
from farebox.clock import SystemClock
from farebox.ledger.service import Ledger
from farebox.stores.sqlite import SqliteStore
from farebox.wire.subrav.keys import KeyType, SigningKey
from farebox.wire.subrav.payload import HEADER_NAME

async def main():
    key, codec = SigningKey(KeyType.ED25519, b"\\x01" * 32), HttpPaymentCodec()
    limits = SpendingLimits(request_max=10_000, unserved_max=10_000, total_max=600_000)
    store = SqliteStore(Path("{book}"), [PAYER_SUB_CHANNEL])
    ledger = Ledger(store, SystemClock())
    async with aiohttp.ClientSession("{url}") as session:
{block}
        left = await account.balance()
    await store.close()
    rooms = ("api", "bootstrap", "gateway", "paywall", "payments", "identity", "worker")
    imported = [room for room in rooms if f"farebox.{{room}}" in sys.modules]
    print(json.dumps({{"imported": imported, "left": left, "cost": response.cost}}))

asyncio.run(main())
"""


def test_the_page_tells_the_status_of_each_code() -> None:
    rows = re.findall(r"(?m)^\| (`[A-Z].*?) \| (\d{3}) \|", PAGE)
    told = {name: int(status) for names, status in rows for name in re.findall("[A-Z_]{6,}", names)}
    assert len(told) >= 15
    for code in set(told) & set(ErrorCode):
        assert http_status(ErrorCode(code)) == told[code]


def test_each_example_is_about_ten_lines() -> None:
    assert all(len(block.splitlines()) <= 12 for block in (*BLOCKS, AT_A_HOUSE))
