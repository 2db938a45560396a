"""The whole house on a real chain: paid in USDC and ether, spent, given back, paid out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from eth_utils.address import to_checksum_address

from tests.integration.evm_house import FLOAT_WEI, PRICE_MSAT, EvmHouse, evm_house, somebody
from tests.peers.anvil import CHAIN_ID, Anvil
from tests.waiting import eventually

pytestmark = pytest.mark.peer
DEPOSIT = 500_000_000  # dollars, in millionths
SMALL = 1_000_000  # too little to be swept
#: Less one percent of spread; 1 msat for each unit.
CREDITED_MSAT = 495_000_000


@pytest.fixture
async def house(anvil: Anvil, tmp_path: Path) -> AsyncIterator[EvmHouse]:
    async with evm_house(tmp_path / "house", anvil) as found:
        yield found


async def lies_there(house: EvmHouse, asset: str) -> int:
    """What the rail says that there is of an asset, wherever on the chain."""
    return next(one.amount for one in await house.rail.holdings() if one.asset == asset)


async def test_dollars_come_in_are_spent_go_back_and_go_out(house: EvmHouse) -> None:
    asked = await house.asked("USDC", DEPOSIT)
    assert asked["uri"] == (
        f"ethereum:{to_checksum_address(house.usdc.address)}@{CHAIN_ID}/transfer"
        f"?address={asked['pay']}&uint256={DEPOSIT}"
    )
    assert asked["amount_msat"] == CREDITED_MSAT
    await house.pay(asked, DEPOSIT)
    await house.mine()
    told = await house.until_credited(asked)
    assert (told["state"], told["marks"]) == ("credited", [])
    assert await lies_there(house, "USDC") == DEPOSIT  # swept or not
    body = {"initial_balance_token": asked["pay"], "claim_secret": asked["claim_secret"]}
    key = str((await house.post("/create", body)).json()["api_key"])
    assert await house.balance_msat(key) == CREDITED_MSAT

    served = await house.http.get("/echo", headers={"Authorization": f"Bearer {key}"})
    assert served.status_code == 200, served.text
    assert await house.balance_msat(key) == CREDITED_MSAT - PRICE_MSAT

    await house.until_swept(asked["pay"])
    back, friend = somebody(), somebody()
    order: dict[str, object] = {"destination": back}  # the way it came, and in what
    quote = await house.post(
        "/v1/refunds", {**order, "amount_msat": 1_000_000, "dry_run": True}, key
    )
    assert quote.status_code == 200, quote.text
    refund = await house.paid_out(
        "/v1/refunds", {**order, "amount_msat": 1_000_000}, key, "the-refund"
    )
    assert refund["asset"] == "USDC"
    got = house.usdc.call("balanceOf", back)
    assert 0 < got < 1_000_000

    await house.paid_out(
        "/v1/payouts",
        {"method": "anvil", "asset": "USDC", "destination": friend, "amount": "500000"},
        key,
        "the-payout",
    )
    assert house.usdc.call("balanceOf", friend) == 500_000
    left = await house.balance_msat(key)
    assert 0 < left < CREDITED_MSAT - PRICE_MSAT - 1_500_000
    assert await lies_there(house, "USDC") == await house.held("custody:evm:anvil:USDC")


async def test_ether_comes_in_and_goes_out(house: EvmHouse) -> None:
    key = await house.funded(10**16, "ETH")
    before = await house.balance_msat(key)
    assert before == 19_800_000  # 0.01 of 2,000 dollars, less one percent
    to = somebody()
    await house.paid_out(
        "/v1/payouts",
        {"method": "anvil", "asset": "ETH", "destination": to, "amount": str(10**15)},
        key,
        "the-payout",
    )
    assert house.anvil.balance(to) == 10**15
    await house.until_forgotten()  # or a sweep may be under way, whose gas the books lack yet
    there = await house.held("custody:evm:anvil:ETH") - await house.held("expense:evm:anvil:gas")
    beside = house.anvil.balance(house.addresses[0])  # the sweep left it, and it is not counted
    assert await lies_there(house, "ETH") + beside == there + FLOAT_WEI


async def test_what_can_be_paid_with_says_that_it_works(house: EvmHouse) -> None:

    async def ask() -> Any:
        told = await house.get("/v1/methods")
        return next(one for one in told["methods"] if one["method"] == "anvil")

    method = await eventually(ask, lambda method: method["works"])
    assert {one["asset"]: one["scale"] for one in method["assets"]} == {"ETH": 18, "USDC": 6}


async def test_a_deposit_address_is_not_paid(house: EvmHouse) -> None:
    key = await house.funded(DEPOSIT)
    other = await house.asked("USDC", None, key)
    order = {"method": "anvil", "asset": "USDC", "amount": "100000"}
    refused = await house.post("/v1/payouts", {**order, "destination": other["pay"]}, key)
    assert refused.json()["code"] == "destination_invalid", refused.text


async def test_what_was_spent_of_a_payment_that_vanishes_is_owed(house: EvmHouse) -> None:
    asked = await house.asked("USDC", SMALL)
    await house.pay(asked, SMALL)
    await house.mine()
    await house.until_credited(asked)
    body = {"initial_balance_token": asked["pay"], "claim_secret": asked["claim_secret"]}
    key = str((await house.post("/create", body)).json()["api_key"])
    assert (await house.http.get("/echo", headers={"Authorization": f"Bearer {key}"})).is_success
    await asyncio.to_thread(house.anvil.reorganise, 3)
    path, secret = f"/v1/deposits/{asked['deposit']}", asked["claim_secret"]
    await eventually(lambda: house.get(path, secret), lambda told: told["state"] == "reversed")
    assert await house.balance_msat(key) == 0
    more = await house.asked("USDC", SMALL, key)
    await house.pay(more, SMALL)
    await house.mine()
    await house.until_credited(more)
    assert await house.balance_msat(key) == SMALL - SMALL // 100 - PRICE_MSAT


async def test_a_node_that_is_gone_takes_nothing_else_down(
    anvil: Anvil, tmp_path: Path, house: EvmHouse, dead_port: int
) -> None:
    key = await house.funded(DEPOSIT)
    nowhere = f"http://127.0.0.1:{dead_port}"
    async with evm_house(tmp_path / "other", anvil, url=nowhere) as lonely:
        asked = {"method": "anvil", "asset": "USDC", "amount": str(DEPOSIT)}
        assert (await lonely.post("/v1/deposits", asked)).status_code == 503
        (method,) = [
            one for one in (await lonely.get("/v1/methods"))["methods"] if one["method"] == "anvil"
        ]
        assert not method["works"]
        assert "127.0.0.1" not in method["reason"]
        assert (await lonely.http.get("/healthz")).is_success
    assert await house.balance_msat(key) == CREDITED_MSAT
