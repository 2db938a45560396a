"""Money in and out over Lightning, through a real LND and a channel to another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.lightning_house import (
    PRICE_MSAT,
    LightningHouse,
    lightning_house,
    pay,
)
from tests.peers.lnd import LightningNetwork

pytestmark = pytest.mark.peer


@pytest.fixture
async def house(
    tmp_path: Path, lightning: LightningNetwork, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LightningHouse]:
    async with lightning_house(tmp_path / "data", lightning, monkeypatch) as opened:
        yield opened


async def test_a_deposit_is_credited_spent_refunded_and_paid_out(
    house: LightningHouse, lightning: LightningNetwork
) -> None:
    asked = await house.asked(100_000)
    assert asked["state"] == "awaiting"
    assert asked["uri"] == f"lightning:{asked['pay']}"
    assert asked["qr_svg"].startswith("<svg")
    assert await pay(lightning, asked["pay"]) == "SUCCEEDED"
    told = await house.until_credited(asked)
    assert (told["state"], told["marks"], told["credited_msat"]) == ("credited", [], 100_000)
    claim = {"initial_balance_token": asked["pay"], "claim_secret": asked["claim_secret"]}
    key = str((await house.post("/create", claim)).json()["api_key"])

    spent = await house.http.get("/echo", headers={"Authorization": f"Bearer {key}"})
    assert spent.status_code == 200
    assert await house.balance_msat(key) == 100_000 - PRICE_MSAT

    back = await asyncio.to_thread(lightning.payer.invoice, 30_000)
    quote = (await house.post("/v1/refunds", {"destination": back, "dry_run": True}, key)).json()
    assert (quote["amount_msat"], quote["fee_estimate_msat"]) == (30_000, 0)
    refunded = await house.post("/v1/refunds", {"destination": back}, key, "refund")
    assert refunded.json()["amount_msat"] == 30_000, refunded.text
    again = await house.post("/v1/refunds", {"destination": back}, key, "refund")
    assert again.json() == refunded.json()
    assert await asyncio.to_thread(lightning.payer.received_msat, back) == 30_000

    bill = await asyncio.to_thread(lightning.payer.invoice, 20_000)
    paid = await house.post("/v1/payouts", {"destination": bill, "max_fee_msat": 0}, key)
    assert paid.json()["msats"] == "20000", paid.text
    assert await house.balance_msat(key) == 100_000 - PRICE_MSAT - 50_000
    assert await house.held_msat() == 50_000
    kinds = {one["event"] for one in (await house.get("/v1/wallet/history", key))["history"]}
    assert {"deposit.credited", "refund.completed", "payout.completed"} <= kinds
