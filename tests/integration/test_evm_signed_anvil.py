"""What a payer has signed pays by itself, once: claims of a payment, and transfers that we send."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account import Account
from eth_account.messages import encode_defunct

from farebox.clock import NS_PER_S
from farebox.rails.evm.claims import sentence
from tests.integration.evm_house import PRICE_MSAT, EvmHouse, authorization_of, evm_house
from tests.peers.anvil import CHAIN_ID, Anvil

pytestmark = pytest.mark.peer
AMOUNT = 200_000_000
CREDITED_MSAT = 198_000_000
SETTLED_BLOCKS = 64


@pytest.fixture
async def house(anvil: Anvil, tmp_path: Path) -> AsyncIterator[EvmHouse]:
    async with evm_house(tmp_path / "house", anvil) as found:
        yield found


async def payer_of(house: EvmHouse, amount: int = AMOUNT) -> Any:
    """Somebody with dollars and coin, who signs for himself."""
    payer = Account.create()
    await asyncio.to_thread(house.anvil.rpc, "anvil_setBalance", payer.address, hex(10**18))
    await asyncio.to_thread(house.anvil.rpc, "anvil_impersonateAccount", payer.address)
    sent = await asyncio.to_thread(house.usdc.send, "mint", payer.address, amount)
    await asyncio.to_thread(house.anvil.mined, sent)
    return payer


async def paid(house: EvmHouse, payer: Any, amount: int = AMOUNT) -> str:
    """The transaction in which somebody pays the address that all may pay to."""

    def pay() -> str:
        sent = house.usdc.send("transfer", house.sender, amount, sender=payer.address)
        house.anvil.mined(sent)
        return sent

    return await asyncio.to_thread(pay)


def claim(payer: Any, transaction: str) -> str:
    message = encode_defunct(text=sentence(CHAIN_ID, transaction))
    signature = Account.sign_message(message, payer.key).signature.hex()
    return f"eip191:{CHAIN_ID}:{transaction}:0x{signature}"


def authorization(house: EvmHouse, payer: Any, amount: int = AMOUNT) -> str:
    """What an x402 client sends: a transfer to us, signed."""
    message = {
        "from": payer.address,
        "to": house.sender,
        "value": amount,
        "validAfter": 0,
        "validBefore": house.clock.now_ns() // NS_PER_S + 86_400,
        "nonce": f"0x{secrets.token_hex(32)}",
    }
    return authorization_of(house.usdc.address, payer, message)


async def until_told(house: EvmHouse, path: str, body: object, bearer: str = "") -> Any:
    """Ask until it is known; blocks are made meanwhile."""

    async def ask() -> Any:
        house.clock.ahead_s += 3
        return await house.post(path, body, bearer)

    return await house.until(ask, lambda answer: answer.status_code not in (202, 503))


async def test_who_signs_for_the_paying_key_is_credited_once_it_is_settled(
    house: EvmHouse,
) -> None:
    payer, stranger = await payer_of(house), Account.create()
    sent = await paid(house, payer)
    early = await house.post("/create", {"initial_balance_token": claim(payer, sent)})
    assert early.json()["code"] == "claim_unconfirmed", early.text
    await house.mine(SETTLED_BLOCKS)
    for text, code in (
        (claim(stranger, sent), "claim_refused"),
        (claim(payer, f"0x{secrets.token_hex(32)}"), "claim_unknown"),
        (f"{claim(payer, sent)[:-4]}ffff", "credential_malformed"),
    ):
        refused = await house.post("/create", {"initial_balance_token": text})
        assert refused.status_code >= 400
        assert refused.json()["code"] in (code, "claim_refused"), refused.text
    made = await house.post("/create", {"initial_balance_token": claim(payer, sent)})
    assert made.status_code == 200, made.text
    assert made.json()["balance"] == CREDITED_MSAT
    other = str((await house.post("/create", {"initial_balance_token": claim(payer, sent)})).json())
    assert made.json()["api_key"] in other  # the same call is told the same
    key = await house.funded(AMOUNT)
    twice = await house.post("/topup", {"cashu_token": claim(payer, sent)}, key)
    assert twice.json()["code"] == "already_credited", twice.text


async def test_a_signed_transfer_is_sent_by_us_and_credited_once(house: EvmHouse) -> None:
    payer = await payer_of(house)
    credential = authorization(house, payer)
    key = await house.funded(AMOUNT)
    added = await until_told(house, "/topup", {"cashu_token": credential}, key)
    assert added.status_code == 200, added.text
    assert added.json()["msats"] == CREDITED_MSAT
    assert await house.balance_msat(key) == 2 * CREDITED_MSAT
    again = await house.post("/topup", {"cashu_token": credential}, key)
    assert again.json() == added.json()
    assert await house.balance_msat(key) == 2 * CREDITED_MSAT
    other = await house.funded(AMOUNT)
    twice = await house.post("/topup", {"cashu_token": credential}, other)
    assert twice.json()["code"] == "already_credited", twice.text


async def test_what_a_signed_transfer_moved_is_claimed_by_nobody_again(house: EvmHouse) -> None:
    payer = await payer_of(house)
    since = house.anvil.height() + 1
    body = {"initial_balance_token": authorization(house, payer)}
    key = str((await house.post("/create", body)).json()["api_key"])

    async def balance_msat() -> int:
        house.clock.ahead_s += 3
        return await house.balance_msat(key)

    assert await house.until(balance_msat) == CREDITED_MSAT
    assert (await house.get("/info", key))["refund_currency"] == "USDC"
    slots = await house.rail.sending.open_slots()
    transactions = [
        transaction
        for height in range(since, house.anvil.height() + 1)
        for transaction in house.anvil.rpc("eth_getBlockByNumber", hex(height), False)[
            "transactions"
        ]
        if house.anvil.receipt(transaction)["from"] == house.sender.lower()  # type: ignore[index]
    ]
    assert transactions, slots
    await house.mine(SETTLED_BLOCKS)
    for transaction in transactions:
        refused = await house.post("/create", {"initial_balance_token": claim(payer, transaction)})
        assert refused.json()["code"] == "claim_refused", refused.text


async def test_a_signed_transfer_of_another_house_is_refused(house: EvmHouse) -> None:
    payer = await payer_of(house)
    document = json.loads(base64.b64decode(authorization(house, payer)))
    document["payload"]["authorization"]["to"] = payer.address
    forged = base64.b64encode(json.dumps(document).encode()).decode()
    refused = await house.post("/create", {"initial_balance_token": forged})
    assert refused.json()["code"] == "signature_invalid", refused.text


async def test_a_signed_transfer_pays_inside_of_a_request(house: EvmHouse) -> None:
    payer = await payer_of(house)
    bearer = {"Authorization": f"Bearer {authorization(house, payer)}"}

    async def ask() -> httpx.Response:
        house.clock.ahead_s += 3
        served = await house.http.get("/echo", headers=bearer)
        assert served.status_code in (200, 503), served.text
        return served

    await house.until(ask, lambda served: served.status_code == 200)
    credential = bearer["Authorization"].removeprefix("Bearer ")
    assert await house.balance_msat(credential) == CREDITED_MSAT - PRICE_MSAT
