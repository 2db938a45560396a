"""payment-kit's unmodified client pays `farebox serve`, from a channel that its account opened."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from farebox.books import open_audit
from farebox.ledger.invariants import verify
from farebox.ledger.replay import Broken
from farebox.settings import load_settings
from farebox.testing.asgi import serving
from farebox.wire.subrav.keys import KeyType, SigningKey
from farebox.wire.subrav.payload import RequestPayload, parse_response_header
from tests.acceptance.conftest import Serve
from tests.acceptance.world import Answered, Mint, Server, call
from tests.integration.channel_house import PRICE_MSAT, PRICES, TOKEN_MSAT, Shop, key_terms
from tests.peers.payment_kit import PaymentKit, key_document

pytestmark = pytest.mark.peer

KEYS = {
    "main": SigningKey(KeyType.ED25519, b"\x01" * 32),
    "other": SigningKey(KeyType.SECP256K1, b"\x02" * 32),
    "third": SigningKey(KeyType.SECP256R1, b"\x03" * 32),
}
ADMIN = SigningKey(KeyType.ED25519, b"\x09" * 32)
FUNDS_SAT, COLLATERAL_MSAT = 4_096, 2_000_000
ADMINS = {
    name: key_document(key.public.did_key, key.public.did_key.removeprefix("did:key:"), key)
    for name, key in (("admin", ADMIN), ("stranger", KEYS["main"]))
}
CHAT = {"model": "play-1", "max_tokens": 20, "messages": [{"role": "user", "content": "Hi"}]}
CHAT_PATH = {"method": "POST", "path": "/v1/chat/completions"}


@dataclass
class Counter:
    """A served house, a payer's account with a channel, and payment-kit to pay with it."""

    server: Server
    shop: Shop
    kit: PaymentKit
    auth: Mapping[str, str]
    channel: Mapping[str, Any]

    async def pays(self, *steps: Mapping[str, Any], **settings: Any) -> list[Any]:
        """What came of a scenario of payment-kit's client."""
        did = self.channel["payer_did"]
        scenario = {
            "baseUrl": self.server.url,
            "chain": {
                "channelId": self.channel["channel"],
                "payerDid": did,
                "payeeDid": self.channel["payee_did"],
                "chainId": self.channel["chain_id"],
                "assetId": self.channel["asset"],
            },
            "keys": {name: key_document(did, name, key) for name, key in KEYS.items()} | ADMINS,
            "steps": steps,
            **settings,
        }
        return await asyncio.to_thread(self.kit.drive, scenario)

    async def call(self, path: str, body: object = None, **headers: str) -> Answered:
        """A call on the account's key, or with the headers given."""
        given = headers or self.auth
        return await asyncio.to_thread(call, f"{self.server.url}{path}", given, body)

    async def shown(self) -> Mapping[str, Any]:
        """The channel as the API shows it."""
        return (await self.call("/v1/channels")).json()


@asynccontextmanager
async def counter(
    serve: Serve, mint: Mint, kit: PaymentKit, folder: Path
) -> AsyncIterator[Counter]:
    shop = Shop()
    async with serving(shop) as upstream:
        settings = folder / "farebox.json.toml"
        settings.write_text(_toml(upstream, mint.url))
        server = await asyncio.to_thread(serve, "--settings", str(settings), "--data", "data")
        token = await asyncio.to_thread(mint.token, FUNDS_SAT)
        body = {"initial_balance_token": token}
        made = (await asyncio.to_thread(call, f"{server.url}/create", None, body)).json()
        auth = {"Authorization": f"Bearer {made['api_key']}"}
        house = Counter(server, shop, kit, auth, {})
        amount = COLLATERAL_MSAT
        for name, key in KEYS.items():
            opened = await house.call("/v1/channels", key_terms(name, key, amount))
            assert opened.status == 201, opened.body
            house.channel, amount = opened.json(), 0
        yield house
        assert await asyncio.to_thread(server.stop) == 0
    data = load_settings(None, {}, {"data_dir": str(folder / "data")})
    with open_audit(data) as reader:
        verified = verify(reader)
    assert not isinstance(verified, Broken), str(verified)
    assert verified[0].open_holds <= len(KEYS), "one proposal for each sub-channel"


def _toml(upstream: str, mint: str) -> str:
    admins = f'[channels]\nadmins = ["{ADMIN.public.did_key}"]'
    tables = [admins, f'[[upstream]]\nurls = ["{upstream}"]', f'[[mint]]\nurl = "{mint}"']
    for price in PRICES:
        lines = (f"{name} = {json.dumps(value)}" for name, value in price.items())
        tables.append("\n".join(["[[price]]", *lines]))
    return "\n\n".join(tables)


def echo(**more: Any) -> dict[str, Any]:
    return {"path": "/echo", **more}


def costs(happened: list[Any]) -> list[int]:
    return [int(step["payment"]["cost"]) for step in happened if step.get("payment")]


async def test_paid_free_metered_and_streamed_requests(
    serve: Serve, mint: Mint, payment_kit: PaymentKit, tmp_path: Path
) -> None:
    async with counter(serve, mint, payment_kit, tmp_path) as house:
        happened = await house.pays(
            {"do": "health"},
            echo(),
            echo(),
            {"path": "/free"},
            CHAT_PATH | {"body": CHAT},
            CHAT_PATH | {"body": CHAT | {"stream": True}},
            {"path": "/ndjson"},
            echo(),
        )
        spent = (await house.call("/info")).json()
        history = (await house.call("/v1/wallet/history")).json()["history"]
    assert [step.get("status") for step in happened[1:]] == [200] * 7, happened
    told = costs(happened)
    chat = told[2]
    assert chat % TOKEN_MSAT == 0
    assert told == [PRICE_MSAT, PRICE_MSAT, chat, chat, PRICE_MSAT, PRICE_MSAT]
    assert "nuwa_payment_header" not in happened[5]["body"]
    assert happened[5]["body"].rstrip().endswith("data: [DONE]")
    assert happened[6]["body"].strip() == '{"t":0}\n{"t":1}'
    assert spent["total_spent"] == sum(told)
    assert spent["balance"] == FUNDS_SAT * 1_000 - COLLATERAL_MSAT
    charged = [line["charged_msat"] for line in history if line["event"] == "payment.completed"]
    assert charged == told


async def test_a_payer_that_lost_its_state_retries_and_only_admins_trigger_claims(
    serve: Serve, mint: Mint, payment_kit: PaymentKit, tmp_path: Path
) -> None:
    async with counter(serve, mint, payment_kit, tmp_path) as house:
        trigger = {"do": "claim", "of": {"channelId": house.channel["channel"]}}
        happened = await house.pays(
            echo(),
            {"do": "forget"},
            echo(),
            {"do": "recover"},
            echo(),
            trigger,
            trigger | {"client": "stranger"},
            {"do": "status", "client": "stranger"},
            trigger | {"client": "admin"},
            {"do": "status", "client": "admin"},
        )
        assert [happened[at]["status"] for at in (0, 2, 4)] == [200, 200, 200]
        assert house.shop.served == {"/echo": 3}
        claimed_msat = (await house.shown())["keys"][0]["claimed_msat"]
    recovered = happened[3]["recovered"]
    assert recovered["channel"]["channelId"] == house.channel["channel"]
    assert recovered["pendingSubRav"]["nonce"] == "2"
    assert recovered["pendingSubRav"]["accumulatedAmount"] == str(2 * PRICE_MSAT)
    assert not any("told" in step for step in happened[5:8]), happened[5:8]
    queued, status = happened[8]["told"]["queued"], happened[9]["told"]
    assert queued == [{"vmIdFragment": "main", "delta": 2 * PRICE_MSAT}]
    assert claimed_msat == 2 * PRICE_MSAT
    assert status["claims"]["policy"]["min_claim_amount"] == 1_000


async def test_keys_pay_at_once_and_closing_gives_back_what_they_did_not_spend(
    serve: Serve, mint: Mint, payment_kit: PaymentKit, tmp_path: Path
) -> None:
    async with counter(serve, mint, payment_kit, tmp_path) as house:
        at_once = {"parallel": [{"path": "/slow", "client": name} for name in KEYS]}
        happened = await house.pays(at_once, at_once, at_once)
        assert [[step["status"] for step in steps] for steps in happened] == [[200] * 3] * 3
        closing = await house.call("/v1/channels/close", {})
        assert closing.status == 202
        shown = closing.json()
        # The third request of each is not signed for, and was the house's risk.
        assert [key["claimed_msat"] for key in shown["keys"]] == [2 * PRICE_MSAT] * 3
        assert shown["collateral_msat"] == COLLATERAL_MSAT - 6 * PRICE_MSAT
        assert shown["status"] == "closing"
        refused = await house.pays(echo())
        assert "CHANNEL_CLOSED" in json.dumps(refused[0])


async def test_of_parallel_calls_none_is_served_unpaid(
    serve: Serve, mint: Mint, payment_kit: PaymentKit, tmp_path: Path
) -> None:
    async with counter(serve, mint, payment_kit, tmp_path) as house:
        happened = await house.pays({"parallel": [{"path": "/slow"}] * 5}, echo())
        statuses = [step["status"] for step in happened[0]]
        assert set(statuses) <= {200, 402}
        assert house.shop.served["/slow"] == statuses.count(200)
        assert happened[1]["status"] == 200
        spent = (await house.call("/info")).json()["total_spent"]
        assert spent == (statuses.count(200) + 1) * PRICE_MSAT


async def test_what_is_refused_or_fails_costs_nothing(
    serve: Serve, mint: Mint, payment_kit: PaymentKit, tmp_path: Path
) -> None:
    async with counter(serve, mint, payment_kit, tmp_path) as house:
        happened = await house.pays(
            {"path": "/broken"}, {"path": "/dear"}, echo(), maxAmount=str(PRICE_MSAT)
        )
        assert happened[0]["status"] == 503
        assert "BILLING_MAX_AMOUNT_EXCEEDED" in json.dumps(happened[1])
        assert happened[2]["status"] == 200
        assert house.shop.served == {"/broken": 1, "/echo": 1}
        assert (await house.call("/info")).json()["total_spent"] == PRICE_MSAT


async def test_the_challenge_names_channels_and_two_payments_are_refused_untouched(
    serve: Serve, mint: Mint, payment_kit: PaymentKit, tmp_path: Path
) -> None:
    async with counter(serve, mint, payment_kit, tmp_path) as house:
        asked = await house.call("/echo", None, accept="*/*")
        assert asked.status == 402
        channels = asked.json()["channels"]
        assert channels["payee_did"] == house.channel["payee_did"]
        info = await asyncio.to_thread(call, channels["info"])
        assert info.json()["serviceDid"] == house.channel["payee_did"]
        token = await asyncio.to_thread(mint.token, 64)
        header = {"X-Payment-Channel-Data": RequestPayload(client_tx_ref="tx-1").header()}
        for other in ({"X-Cashu": token}, dict(house.auth)):
            both = await house.call("/echo", None, **header, **other)
            assert (both.status, both.json()["code"]) == (400, "two_payments")
        stranger = await house.call("/echo", None, **header)
        assert stranger.status == 402
        told = parse_response_header(stranger.headers["x-payment-channel-data"])
        assert told.error is not None
        assert (told.client_tx_ref, told.error.code) == ("tx-1", "PAYMENT_REQUIRED")
        assert (await house.call("/info")).json()["total_spent"] == 0
        paid = await house.call("/echo", None, **{"X-Cashu": token})
        assert paid.status == 200, "the token was not touched"
        assert "/echo" in house.shop.served
