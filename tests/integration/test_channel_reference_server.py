"""Our payer pays payment-kit's own server over loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client

from farebox.channels import (
    RECORDS,
    HttpPaymentCodec,
    PaymentChannelPayerClient,
    SpendingLimits,
    call_paid_tool,
)
from farebox.channels.payer import PayerSubChannel
from farebox.clock import SystemClock
from farebox.ledger.service import Ledger
from farebox.stores.sqlite import SqliteStore
from farebox.testing.channels import RGAS, PlayContract
from farebox.wire.subrav.didauth import HTTP_OPERATION
from farebox.wire.subrav.documents import (
    parse_service_info,
    read_recovered_proposal,
    read_stored_voucher,
)
from farebox.wire.subrav.frames import FrameReader, stream_format
from farebox.wire.subrav.keys import PAYMENT_KIT_KEYS, KeyType, SigningKey
from farebox.wire.subrav.payload import HEADER_NAME
from tests.integration.channel_world import CHANNEL_ID, ECHO_COST, FRAGMENT, PAYEE_DID, PAYER_DID
from tests.peers.payment_kit import PaymentKit, key_document

pytestmark = pytest.mark.peer

CODEC = HttpPaymentCodec()
LIMITS = SpendingLimits(request_max=200_000_000, unserved_max=20 * ECHO_COST, total_max=10**12)
CHAT_COST = 24_000_000
SERVICE_KEY = SigningKey(KeyType.ED25519, b"\x05" * 32)


@dataclass
class Customer:
    """Our payer with a book of its own, and the server it pays."""

    payer: PaymentChannelPayerClient
    http: httpx.AsyncClient

    async def asks(self, path: str, body: Any = None) -> tuple[httpx.Response, bytes, int]:
        """A request paid for as it must be: the answer, its body, and what it cost."""
        answer = await self.sends(path, body, await self.payer.sign_and_encode(None, CODEC))
        text, header = answer.content, answer.headers.get(HEADER_NAME)
        form = stream_format(answer.headers["content-type"])
        if form is not None:
            reader = FrameReader(form)
            text, header = reader.feed(text) + reader.end(), reader.header
        if header is None:
            await self.payer.answered_free()
            return answer, text, 0
        told = await self.payer.decode_and_validate(header, CODEC)
        if told.is_retry_wanted:
            return await self.asks(path, body)
        assert told.error is None, told.error
        return answer, text, told.cost

    async def sends(self, path: str, body: Any, payment: str | None) -> httpx.Response:
        method = "GET" if body is None else "POST"
        uri = f"{self.http.base_url}{path.removeprefix('/')}"
        auth = await self.payer.authorize(HTTP_OPERATION, {"uri": uri, "method": method})
        headers = {"Authorization": auth.header()}
        if payment is not None:
            headers[HEADER_NAME] = payment
        return await self.http.request(method, path, headers=headers, json=body)

    async def state(self) -> PayerSubChannel:
        state = await self.payer.state()
        assert state is not None
        return state


@asynccontextmanager
async def customer(book: Path, url: str, key: SigningKey) -> AsyncIterator[Customer]:
    contract = PlayContract()
    await contract.open_channel_with_sub_channel(
        payer_did=PAYER_DID,
        payee_did=PAYEE_DID,
        asset_id=RGAS,
        collateral=10**12,
        fragment=FRAGMENT,
        key=key.public,
    )
    store = SqliteStore(book, RECORDS)
    try:
        payer = PaymentChannelPayerClient(
            Ledger(store, SystemClock()), contract, key, CHANNEL_ID, FRAGMENT, LIMITS
        )
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            yield Customer(payer, http)
    finally:
        await store.close()


def settings_for(key: SigningKey) -> dict[str, Any]:
    method = {
        "id": f"{PAYER_DID}#{FRAGMENT}",
        "type": key.type.value,
        "controller": PAYER_DID,
        "publicKeyMultibase": key.public.multibase,
    }
    document = {
        "@context": ["https://www.w3.org/ns/did/v1"],
        "id": PAYER_DID,
        "verificationMethod": [method],
        "authentication": [method["id"]],
    }
    return {
        "chain": {"channelId": CHANNEL_ID, "payerDid": PAYER_DID, "payeeDid": PAYEE_DID},
        "key": key_document(PAYEE_DID, "account-key", SERVICE_KEY),
        "documents": {PAYER_DID: document},
    }


@pytest.mark.parametrize("key_type", PAYMENT_KIT_KEYS)
async def test_our_payer_pays_payment_kits_server(
    tmp_path: Path, payment_kit: PaymentKit, key_type: KeyType
) -> None:
    key = SigningKey(key_type, b"\x01" * 32)
    server = payment_kit.server(tmp_path, settings_for(key))
    try:
        server.wait_ready()
        async with customer(tmp_path / "first.db", server.url, key) as payer:
            await sees_its_prices(payer)
            await recovers_a_lost_answer(payer)
        async with customer(tmp_path / "second.db", server.url, key) as payer:
            await begins_again_from_nothing(payer)
    finally:
        server.stop()


async def test_our_payer_pays_for_tools_of_payment_kits_server(
    tmp_path: Path, payment_kit: PaymentKit
) -> None:
    key = SigningKey(KeyType.ED25519, b"\x01" * 32)
    server = payment_kit.server(tmp_path, settings_for(key), "tools_server.mjs")
    try:
        server.wait_ready()
        async with customer(tmp_path / "first.db", server.url, key) as payer:
            await buys_tools(payer, f"{server.url}/mcp")
    finally:
        server.stop()


async def buys_tools(payer: Customer, url: str) -> None:
    async with Client(url, mode="legacy") as client:

        async def calls(name: str, **arguments: Any) -> tuple[str, int]:
            told = await call_paid_tool(client.call_tool, payer.payer, name, arguments)
            assert told.payment is None or told.payment.error is None, told.payment
            return told.result.content[0].text, told.payment.cost if told.payment else 0

        async def loses(name: str, given: dict[str, Any]) -> Any:
            await client.call_tool(name, given)
            raise ConnectionResetError

        assert await calls("add", a=1, b=2) == ("3", ECHO_COST)
        assert await calls("add", a=3, b=4) == ("7", ECHO_COST)
        assert (await calls("write", text="hi"))[1] == CHAT_COST
        assert await calls("free") == ('"free"', 0)
        with pytest.raises(ConnectionResetError):
            await call_paid_tool(loses, payer.payer, "add", {"a": 5, "b": 6})
        assert await calls("add", a=7, b=8) == ("15", ECHO_COST)
    assert (await payer.state()).unserved == ECHO_COST


async def sees_its_prices(payer: Customer) -> None:
    info = parse_service_info((await payer.http.get("/.well-known/nuwa-payment/info")).content)
    assert (info.service_did, info.network) == (PAYEE_DID, "local")
    assert (await payer.asks("/echo?q=1"))[1:] == (b'{"echo":"1"}', ECHO_COST)
    assert (await payer.asks("/echo?q=2"))[1:] == (b'{"echo":"2"}', ECHO_COST)
    assert (await payer.asks("/free"))[1:] == (b'{"free":true}', 0)
    assert (await payer.asks("/chat/completions", {"messages": []}))[2] == CHAT_COST
    _, body, cost = await payer.asks("/chat/completions", {"stream": True})
    assert (body.strip(), cost) == (b'data: {"t":0}\n\ndata: {"t":1}', CHAT_COST)
    assert (await payer.asks("/process", {"a": 1}))[2] == 100_000_000
    assert (await payer.asks("/echo?q=3"))[1:] == (b'{"echo":"3"}', ECHO_COST)
    assert (await payer.state()).unserved == 0


async def recovers_a_lost_answer(payer: Customer) -> None:
    await payer.sends("/echo?q=lost", None, await payer.payer.sign_and_encode(None, CODEC))
    assert (await payer.asks("/echo?q=4"))[1:] == (b'{"echo":"4"}', ECHO_COST)
    assert (await payer.state()).unserved == ECHO_COST


async def begins_again_from_nothing(payer: Customer) -> None:
    """A new book: the server proves with our own signature where we stood."""
    told = await payer.sends("/payment-channel/recovery", None, None)
    pending = read_recovered_proposal(told.content)
    assert pending is not None
    kept = await payer.sends(f"/payment-channel/subrav?nonce={pending.nonce - 1}", None, None)
    last = read_stored_voucher(kept.content)
    state = await payer.payer.recover(last)
    assert (state.nonce, state.amount) == (pending.nonce - 1, last.sub_rav.accumulated_amount)
    assert (await payer.asks("/echo?q=5"))[1:] == (b'{"echo":"5"}', ECHO_COST)
    assert (await payer.asks("/echo?q=6"))[1:] == (b'{"echo":"6"}', ECHO_COST)
    assert (await payer.state()).unserved == ECHO_COST
