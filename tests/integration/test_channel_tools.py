"""Tools of an MCP server are sold, to its own SDK's client and to payment-kit's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import MCPServer
from mcp.types import CallToolResult, InputRequiredResult, TextContent

from farebox.channels import (
    BillingEngine,
    FixedRates,
    PaidToolResult,
    PaymentChannelPayerClient,
    PaymentProcessor,
    PaymentProcessorConfig,
    SpendingLimits,
    call_paid_tool,
    parse_rules,
)
from farebox.clock import SystemClock
from farebox.gateway.channel_endpoints import ChannelEndpoints
from farebox.gateway.tools import PaidTools
from farebox.ids import new_id
from farebox.paywall.channel_service import ChannelService
from farebox.testing.asgi import serving
from farebox.testing.channels import RGAS
from farebox.wire.subrav import mcp
from farebox.wire.subrav.documents import signed_document
from farebox.wire.subrav.keys import KeyType, SigningKey, sign_sub_rav
from farebox.wire.subrav.model import SignedSubRAV
from farebox.wire.subrav.payload import RequestPayload, ResponsePayload
from tests.integration.channel_world import (
    ASSET,
    CHANNEL_ID,
    ECHO_COST,
    FRAGMENT,
    KEY,
    PAYEE_DID,
    PAYER_DID,
    World,
    check_books,
    world,
)
from tests.peers.payment_kit import PaymentKit, key_document

RULES = """
rules:
  - {id: add, when: {path: /tool/add}, strategy: {type: PerRequest, price: "1e9"}}
  - {id: fails, when: {path: /tool/fails}, strategy: {type: PerRequest, price: "1e9"}}
  - {id: cached, when: {path: /tool/cached}, strategy: {type: PerRequest, price: "1e9"}}
  - {id: asks, when: {path: /tool/asks}, strategy: {type: PerRequest, price: "1e9"}}
  - {id: slow, when: {path: /tool/slow}, strategy: {type: PerRequest, price: "1e9"}}
  - {id: write, when: {path: /tool/write}, strategy: {type: PerToken, unitPricePicoUSD: "2e7"}}
  - {id: meta, when: {path: /tool/meta}, strategy: {type: PerToken, unitPricePicoUSD: "2e7"}}
  - {id: free, when: {path: /tool/free}, strategy: {type: PerRequest, price: 0}}
"""
WRITE_COST = 24_000_000
LIMITS = SpendingLimits(request_max=10**9, unserved_max=10**9, total_max=10**12)
OTHER_KEY = SigningKey(KeyType.SECP256K1, b"\x02" * 32)


async def cached(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Middleware within ours that answers by itself, with a model of the SDK's."""
    if ctx.method == "tools/call" and (ctx.params or {}).get("name") == "cached":
        return CallToolResult(content=[TextContent(type="text", text="kept")])
    return await call_next(ctx)


@dataclass
class Shop:
    """A payee whose tools are sold at `url`, and what they were called with."""

    town: World
    url: str
    called: list[dict[str, Any]] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)

    def tools(self, service: ChannelService) -> MCPServer[Any]:
        server: MCPServer[Any] = MCPServer("shop", middleware=[PaidTools(service), cached])

        @server.tool()
        async def add(a: int, b: int) -> int:
            self.called.append({"a": a, "b": b})
            return a + b

        @server.tool()
        async def write(text: str) -> dict[str, Any]:
            return {"text": text, mcp.USAGE_KEY: 120}

        @server.tool()
        async def meta() -> CallToolResult:
            said = TextContent(type="text", text="said")
            return CallToolResult(content=[said], _meta={mcp.USAGE_KEY: 120})

        @server.tool()
        async def fails() -> str:
            raise ValueError("no")

        @server.tool()
        async def asks() -> InputRequiredResult:
            return InputRequiredResult(request_state="more, please")

        @server.tool()
        async def slow() -> str:
            self.started.set()
            await asyncio.Event().wait()
            return "never"

        @server.tool()
        async def free() -> str:
            return "free"

        @server.tool()
        async def unpriced() -> str:
            return "never"

        return server

    def payer(self, key: SigningKey = KEY, fragment: str = FRAGMENT) -> PaymentChannelPayerClient:
        town = self.town
        return PaymentChannelPayerClient(
            town.ledger, town.contract, key, CHANNEL_ID, fragment, LIMITS
        )

    async def latest(self) -> int:
        """All that was signed for."""
        voucher = await self.town.latest()
        return 0 if voucher is None else voucher.sub_rav.accumulated_amount


@asynccontextmanager
async def shop(directory: Path, *, json_response: bool = False) -> AsyncIterator[Shop]:
    async with world(directory, clock=SystemClock()) as town:
        await town.open()
        await town.open(0, fragment="other-key", key=OTHER_KEY.public)
        billing = BillingEngine(parse_rules(RULES, "yaml"), FixedRates({ASSET: 100, RGAS: 100}))
        config = PaymentProcessorConfig(
            payee_client=town.payee,
            billing_engine=billing,
            service_id="tools",
            default_asset_id=RGAS,
            claim_scheduler=town.claims,
        )
        service = ChannelService(
            processor=PaymentProcessor(config),
            payee=town.payee,
            info=town.service.info,
            channel_id=town.service.channel_id,
            claims=town.claims,
            admins=town.service.admins,
        )
        made = Shop(town, "")
        server = made.tools(service)
        app = server.streamable_http_app(json_response=json_response)
        async with serving(ChannelEndpoints(app, service)) as url:
            made.url = url
            yield made
    check_books(directory)


async def calls(
    client: Client, payer: PaymentChannelPayerClient, name: str, **arguments: Any
) -> PaidToolResult:
    return await call_paid_tool(client.call_tool, payer, name, arguments)


def told(result: CallToolResult) -> ResponsePayload:
    """What a result says of its payment."""
    content = [item.model_dump(by_alias=True, mode="json") for item in result.content]
    payment = mcp.find_payment_item(content)
    assert payment is not None, content
    return payment


def code(result: CallToolResult) -> str | None:
    error = told(result).error
    return None if error is None else error.code


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_tools_are_paid_for_over_streamable_http(tmp_path: Path, mode: Any) -> None:
    async with shop(tmp_path) as made, Client(f"{made.url}/mcp", mode=mode) as client:
        payer = made.payer()
        sums = [await calls(client, payer, "add", a=1, b=each) for each in (1, 2)]
        written = await calls(client, payer, "write", text="hi")
        meta = await calls(client, payer, "meta")
        free = await calls(client, payer, "free")
        assert await made.latest() == 2 * ECHO_COST + 2 * WRITE_COST
        kept = await calls(client, payer, "cached")
        last = await calls(client, payer, "add", a=3, b=4)
        latest = await made.latest()
    assert [each.result.structured_content for each in sums] == [{"result": 2}, {"result": 3}]
    assert made.called == [{"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 3, "b": 4}]
    costs = [each.payment.cost for each in (*sums, written, meta, kept, last) if each.payment]
    assert costs == [ECHO_COST, ECHO_COST, WRITE_COST, WRITE_COST, ECHO_COST, ECHO_COST]
    assert written.result.structured_content == {"text": "hi"}
    assert mcp.USAGE_KEY not in (meta.result.meta or {})
    assert free.payment is None
    assert latest == sum(costs[:-1])


async def test_the_list_of_tools_admits_payments(tmp_path: Path) -> None:
    async with shop(tmp_path) as made, Client(f"{made.url}/mcp") as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    reserved = {mcp.AUTH_ARGUMENT, mcp.PAYMENT_ARGUMENT}
    assert all(reserved <= set(tool.input_schema["properties"]) for tool in tools.values())
    assert not any(reserved & set(tool.input_schema.get("required", ())) for tool in tools.values())
    assert {
        "nuwa.health",
        "nuwa.discovery",
        "nuwa.recovery",
        "nuwa.commit",
        "nuwa.subrav.query",
        "nuwa.admin.status",
        "nuwa.admin.claimTrigger",
    } < set(tools)


async def test_nothing_is_served_that_is_not_paid_for(tmp_path: Path) -> None:
    async with shop(tmp_path) as made, Client(f"{made.url}/mcp") as client:
        stranger = await client.call_tool("add", {"a": 1, "b": 1})
        unreadable = await client.call_tool("add", {"a": 1, "b": 1, mcp.PAYMENT_ARGUMENT: "u"})
        payer = made.payer()
        unpriced = await calls(client, payer, "unpriced")
        assert not made.called
        first = await calls(client, payer, "add", a=1, b=1)
        assert first.payment is not None
        owing = await client.call_tool("add", await arguments(payer, "add"))
        forged = await client.call_tool("add", await arguments(payer, "add", forge(first)))
        called = len(made.called)
    assert code(stranger) == "PAYMENT_REQUIRED"
    assert code(unreadable) == "INVALID_PAYMENT"
    assert unpriced.payment is not None
    assert unpriced.payment.error is not None
    assert unpriced.payment.error.code == "BILLING_CONFIG_ERROR"
    assert code(owing) == "PAYMENT_REQUIRED"
    assert told(owing).sub_rav == first.payment.sub_rav
    assert code(forged) == "INVALID_SIGNATURE"
    assert called == 1
    assert all(each.is_error for each in (stranger, unreadable, owing, forged))


async def arguments(
    payer: PaymentChannelPayerClient, tool: str, voucher: SignedSubRAV | None = None
) -> dict[str, Any]:
    reference = new_id("tx")
    auth = await payer.authorize("mcp_tool_call", {"tool": tool, "clientTxRef": reference})
    payment = RequestPayload(client_tx_ref=reference, signed_sub_rav=voucher)
    return mcp.give_arguments({"a": 1, "b": 1}, auth, payment)


def forge(served: PaidToolResult) -> SignedSubRAV:
    assert served.payment is not None
    assert served.payment.sub_rav is not None
    return sign_sub_rav(served.payment.sub_rav, OTHER_KEY)


async def test_an_authorization_is_for_one_call_of_one_service(tmp_path: Path) -> None:
    async with shop(tmp_path) as made, Client(f"{made.url}/mcp") as client:
        payer = made.payer()
        given = await arguments(payer, "add")
        auth = given[mcp.AUTH_ARGUMENT]
        elsewhere = await client.call_tool("write", {"text": "hi", mcp.AUTH_ARGUMENT: auth})
        served = await client.call_tool("add", given)
        again = await client.call_tool("free", given)
        replayed = await client.call_tool("add", given)
    assert code(elsewhere) == "AUTH_INVALID"
    assert code(served) is None
    assert code(again) == "AUTH_INVALID"
    assert code(replayed) == "PAYMENT_REQUIRED"


async def test_a_call_that_fails_or_is_given_up_costs_nothing(tmp_path: Path) -> None:
    async with shop(tmp_path) as made, Client(f"{made.url}/mcp") as client:
        payer, other = made.payer(), made.payer(OTHER_KEY, "other-key")
        failed = await calls(client, payer, "fails")
        assert failed.result.is_error
        assert failed.payment is None
        given_up = asyncio.create_task(calls(client, other, "slow"))
        await made.started.wait()
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        # Its sub-channel's turn is free, and it owes nothing.
        served = await calls(client, other, "add", a=1, b=1)
    assert served.payment is not None
    assert served.payment.sub_rav is not None
    assert (served.payment.sub_rav.nonce, served.payment.cost) == (1, ECHO_COST)


async def test_a_tool_that_asks_back_is_not_sold_and_costs_nothing(tmp_path: Path) -> None:
    async with shop(tmp_path) as made, Client(f"{made.url}/mcp") as client:
        payer = made.payer()
        asked = await calls(client, payer, "asks")
        assert asked.payment is not None
        assert asked.payment.error is not None
        assert asked.payment.error.code == "AUTH_INVALID"
        served = await calls(client, payer, "add", a=1, b=1)
    assert served.payment is not None
    assert served.payment.sub_rav is not None
    assert served.payment.sub_rav.accumulated_amount == ECHO_COST


async def test_what_costs_more_than_allowed_is_withheld(tmp_path: Path) -> None:
    async with shop(tmp_path) as made, Client(f"{made.url}/mcp") as client:
        payer = made.payer()
        dear = await call_paid_tool(
            client.call_tool, payer, "write", {"text": "hi"}, max_amount=WRITE_COST - 1
        )
        fair = await call_paid_tool(
            client.call_tool, payer, "write", {"text": "hi"}, max_amount=WRITE_COST
        )
    assert dear.payment is not None
    assert dear.payment.error is not None
    assert dear.payment.error.code == "BILLING_MAX_AMOUNT_EXCEEDED"
    assert dear.result.structured_content is None
    assert fair.payment is not None
    assert fair.payment.cost == WRITE_COST


async def test_a_lost_answer_is_paid_with_the_next_call(tmp_path: Path) -> None:
    async with shop(tmp_path) as made, Client(f"{made.url}/mcp") as client:
        payer = made.payer()

        async def loses(name: str, given: dict[str, Any]) -> Any:
            await client.call_tool(name, given)
            raise ConnectionResetError("the answer was lost")

        with pytest.raises(ConnectionResetError):
            await call_paid_tool(loses, payer, "add", {"a": 1, "b": 1})
        served = await calls(client, payer, "add", a=2, b=2)
        state = await payer.state()
    assert served.payment is not None
    assert served.payment.error is None
    assert state is not None
    assert (state.amount, state.unserved) == (ECHO_COST, ECHO_COST)


async def test_a_payer_asks_with_the_built_in_tools(tmp_path: Path) -> None:
    async with shop(tmp_path) as made, Client(f"{made.url}/mcp") as client:
        payer = made.payer()
        first = await calls(client, payer, "add", a=1, b=1)
        assert first.payment is not None
        assert first.payment.sub_rav is not None
        voucher = sign_sub_rav(first.payment.sub_rav, KEY)

        async def asks(name: str, **given: Any) -> CallToolResult:
            auth = await payer.authorize("mcp_tool_call", {"tool": name})
            return await client.call_tool(name, given | {mcp.AUTH_ARGUMENT: auth.header()})

        recovered = await asks("nuwa.recovery")
        missing = await asks("nuwa.subrav.query", nonce="1")
        committed = await asks("nuwa.commit", signedSubRav=signed_document(voucher))
        kept = await asks("nuwa.subrav.query", nonce="1")
        forbidden = await asks("nuwa.admin.status")
        nobody = await client.call_tool("nuwa.recovery", {})
        health = await client.call_tool("nuwa.health", {})
        discovery = await client.call_tool("nuwa.discovery", {})
        latest = await made.latest()
        async with httpx.AsyncClient(base_url=made.url, timeout=60) as web:
            info = await web.get("/.well-known/nuwa-payment/info")
    assert '"nonce":"1"' in text(recovered)
    assert missing.is_error
    assert text(committed) == '{"success":true}'
    assert latest == ECHO_COST
    assert '"accumulatedAmount":10000000' in text(kept)
    assert code(forbidden) == "AUTH_ADMIN_FORBIDDEN"
    assert code(nobody) == "AUTH_MISSING"
    assert '"status":"healthy"' in text(health)
    assert f'"serviceDid":"{PAYEE_DID}"' in text(discovery)
    assert text(discovery) == info.text


def text(result: CallToolResult) -> str:
    (item,) = result.content
    assert isinstance(item, TextContent)
    return item.text


@pytest.mark.peer
@pytest.mark.parametrize("json_response", [False, True])
async def test_payment_kits_client_pays_for_tools(
    tmp_path: Path, payment_kit: PaymentKit, json_response: bool
) -> None:
    async with shop(tmp_path, json_response=json_response) as made:
        scenario = {
            "baseUrl": f"{made.url}/mcp",
            "chain": {"channelId": CHANNEL_ID, "payerDid": PAYER_DID, "payeeDid": PAYEE_DID},
            "keys": {
                "main": key_document(PAYER_DID, FRAGMENT, KEY),
                "other": key_document(PAYER_DID, "other-key", OTHER_KEY),
            },
            "steps": [
                {"tools": True},
                {"tool": "add", "arguments": {"a": 1, "b": 2}},
                {"tool": "add", "arguments": {"a": 3, "b": 4}},
                {"tool": "write", "arguments": {"text": "hi"}},
                {"tool": "free", "arguments": {}},
                {"do": "health"},
                {"do": "recover"},
                {"client": "other", "tool": "add", "arguments": {"a": 5, "b": 6}},
                {"tool": "add", "arguments": {"a": 7, "b": 8}},
                {"do": "forget"},  # the payee then asks for the last call, and it pays
                {"tool": "add", "arguments": {"a": 9, "b": 10}},
                {"tool": "unpriced", "arguments": {}},
            ],
        }
        happened = await asyncio.to_thread(payment_kit.drive, scenario, "tools.mjs")
        latest = await made.latest()
    listed, one, two, write, free, health, recovered, other, three, _, retried, unpriced = happened
    sold = ["add", "write", "meta", "fails", "asks", "slow", "free", "unpriced"]
    assert listed["tools"] == sold
    assert listed["arguments"]["add"] == ["a", "b"]
    results = [each["data"] for each in (one, two, other, three, retried)]
    assert [str(each) for each in results] == ["3", "7", "11", "15", "19"]
    costs = [int(each["payment"]["cost"]) for each in (one, two, write)]
    assert costs == [ECHO_COST, ECHO_COST, WRITE_COST]
    assert free == {"data": "free"}
    assert health["health"]["status"] == "healthy"
    assert recovered["recovered"]["channel"]["channelId"] == CHANNEL_ID
    assert int(retried["payment"]["cost"]) == ECHO_COST
    assert unpriced["code"] == "BILLING_CONFIG_ERROR"
    assert made.called == [{"a": a, "b": a + 1} for a in (1, 3, 5, 7, 9)]
    assert latest == sum(costs) + ECHO_COST
