"""The same house on each kind of node: paid in, refunded, and the books agree."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.contract.rail.conftest import Side, side
from tests.integration.lightning_house import house_on

__all__ = ["side"]  # the fixture: LND, LNbits, and the contract fake of Core Lightning


async def test_a_house_is_paid_and_pays_whatever_its_node(
    side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, object] = {
        "node": side.name,
        "url": side.url,
        "key": side.secret,
        "network": side.network,
        "pay_timeout_s": 60,
    }
    if side.certificate is not None:
        settings["certificate"] = str(side.certificate)
    secrets: tuple[str, ...] = (side.secret,)
    if side.invoice_key:
        settings["invoice_key"] = side.invoice_key
        secrets += (side.invoice_key,)
    async with house_on(tmp_path, settings, secrets, monkeypatch) as house:
        asked = await house.asked(100_000)
        await asyncio.to_thread(side.payer_pay, asked["pay"])
        assert (await house.until_credited(asked))["credited_msat"] == 100_000
        claim = {"initial_balance_token": asked["pay"], "claim_secret": asked["claim_secret"]}
        key = str((await house.post("/create", claim)).json()["api_key"])
        ours = (await house.asked(10_000, key))["pay"]
        refused = await house.post("/v1/payouts", {"destination": ours}, key)
        assert refused.json()["code"] == "destination_invalid", refused.text
        bill = await asyncio.to_thread(side.payer_invoice, 20_000)
        tight = {"destination": bill, "max_fee_msat": 0}
        for body in (tight, {"destination": bill}):
            paid = await house.post("/v1/payouts", body, key)
            if paid.status_code == 200:
                break
            assert paid.json()["code"] in ("fee_over_limit", "payment_failed"), paid.text
        assert paid.status_code == 200, paid.text
        fee_msat = int(paid.json()["fee_msat"])
        assert await house.balance_msat(key) == 80_000 - fee_msat == await house.held_msat()
        history = (await house.get("/v1/wallet/history", key))["history"]
        assert (
            sum(one["received_msat"] - one["returned_msat"] for one in history) == 80_000 - fee_msat
        )
