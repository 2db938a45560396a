"""Money in and out on a real chain: a regtest btcd asked over RPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.bitcoin_house import (
    BitcoinHouse,
    bitcoin_house,
    bitcoin_settings,
)
from tests.integration.lightning_house import PRICE_MSAT
from tests.peers.bitcoin import BitcoinChain
from tests.waiting import eventually

pytestmark = pytest.mark.peer
_names = iter(range(10_000))


@pytest.fixture
async def house(tmp_path: Path, bitcoin: BitcoinChain) -> AsyncIterator[BitcoinHouse]:
    terms = bitcoin_settings(bitcoin, start_height=bitcoin.node.height() + 1)
    async with bitcoin_house(tmp_path, terms) as opened:
        yield opened


async def test_a_deposit_is_credited_spent_refunded_and_paid_out(
    house: BitcoinHouse, bitcoin: BitcoinChain
) -> None:
    asked = await house.asked(50_000_000)
    assert asked["uri"] == f"bitcoin:{asked['pay']}?amount=0.00050000"
    assert "<svg" in asked["qr_svg"]
    await asyncio.to_thread(bitcoin.payer.pay, asked["pay"], 50_000)
    told = await house.until(asked, "detected")
    assert told["credited_msat"] == 0
    await asyncio.to_thread(bitcoin.node.mine)
    assert (await house.until(asked, "credited"))["credited_msat"] == 50_000_000
    key = await house.key_of(asked)
    scanned = {"cashu_token": f"BITCOIN:{asked['pay'].upper()}"}  # as QR codes have it
    assert (await house.post("/topup", scanned, key)).json() == {"msats": 50_000_000}
    spent = await house.http.get("/echo", headers={"Authorization": f"Bearer {key}"})
    assert spent.status_code == 200
    assert await house.balance_msat(key) == 50_000_000 - PRICE_MSAT

    first, second = bitcoin.payer.address(11), bitcoin.payer.address(12)
    body = {"destination": first, "amount_msat": 20_000_000}
    quote = (await house.post("/v1/refunds", {**body, "dry_run": True}, key)).json()
    assert quote["fee_estimate"] > 0, quote
    refund = await house.post("/v1/refunds", body, key, "refund")
    assert refund.status_code == 202, refund.text
    paid = await house.post(
        "/v1/payouts", {"destination": second, "amount_msat": 10_000_000}, key, "payout"
    )
    assert paid.status_code == 202, paid.text
    # What paid it in could still vanish with its block, and the payments with that.
    assert await asyncio.to_thread(bitcoin.node.pool) == []
    await asyncio.to_thread(bitcoin.node.mine)
    await eventually(lambda: asyncio.to_thread(bitcoin.node.pool))

    async def one_more_block() -> int:
        await asyncio.to_thread(bitcoin.node.mine)
        await house.passed(await asyncio.to_thread(bitcoin.node.height))
        house.clock.ahead_s += 400
        await house.farebox.recover()
        return len(await house.farebox.operations.unfinished())

    await eventually(one_more_block, lambda unfinished: unfinished == 0)
    assert await asyncio.to_thread(bitcoin.payer.received_sat, 12) == 10_000
    back_sat = await asyncio.to_thread(bitcoin.payer.received_sat, 11)
    assert back_sat * 1_000 == quote["amount"]
    assert await house.wallet_sat() * 1_000 == await house.held_msat()


async def test_a_transaction_id_is_public_and_pays_nobody_but_who_was_asked(
    house: BitcoinHouse, bitcoin: BitcoinChain
) -> None:
    key, asked = await house.credited(bitcoin, 50_000)
    stranger, _ = await house.credited(bitcoin, 20_000)
    (arrived,) = (await house.told(asked))["arrived"]
    txid = arrived["reference"]
    own = await house.post("/topup", {"cashu_token": txid}, key)
    assert own.status_code == 200, own.text
    assert await house.balance_msat(key) == 50_000_000
    for credential in (txid, asked["uri"], asked["pay"]):
        taken = await house.post("/topup", {"cashu_token": credential}, stranger)
        assert taken.status_code in (400, 403), taken.text
        at_once = await house.http.get("/echo", headers={"X-Cashu": credential})
        assert at_once.status_code >= 400
    unknown = await house.post("/topup", {"cashu_token": "00" * 32}, key)
    assert unknown.status_code == 400
    assert await house.balance_msat(stranger) == 20_000_000


async def test_no_address_is_given_twice_however_many_ask_at_once(
    house: BitcoinHouse, bitcoin: BitcoinChain
) -> None:
    key, first = await house.credited(bitcoin, 20_000)
    asked = await asyncio.gather(*(house.asked(None, key) for _ in range(20)))
    assert len({one["pay"] for one in (*asked, first)}) == 21
