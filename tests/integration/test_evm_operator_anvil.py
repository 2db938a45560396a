"""What the operator of a house on an EVM chain sees and does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from farebox.cli import checks
from farebox.cli.desk import carry_out
from farebox.cli.money import _balance_text, _withdrawn_text
from farebox.cli.requests import Balance, Withdraw
from farebox.errors import InvalidInput, RailRejected
from farebox.operating import Verdict
from farebox.rails.evm.contracts import DEPLOYER, artifact
from farebox.rails.evm.scan import RpcScan
from farebox.settings import Secret
from tests.integration.evm_house import EvmHouse, evm_house, somebody
from tests.peers.anvil import Anvil

pytestmark = pytest.mark.peer
DEPOSIT = 500_000_000
#: One per cent of spread, in msat: a unit is one.
EARNED_MSAT = 5_000_000


async def withdrawn(house: EvmHouse, wanted: Withdraw) -> dict[str, object]:
    """What a withdrawal comes to; blocks are made meanwhile."""

    async def ask() -> dict[str, object]:
        house.clock.ahead_s += 5
        return await carry_out(house.farebox, wanted)

    return await house.until(ask, lambda facts: facts.get("state") != "pending")


async def test_earnings_are_withdrawn_on_the_chain(anvil: Anvil, tmp_path: Path) -> None:
    async with evm_house(tmp_path / "house", anvil) as house:
        key = await house.funded(DEPOSIT)
        await house.until_swept(house.addresses[0])
        left = await house.balance_msat(key)
        to = somebody()
        mistyped = Withdraw("wd_0", destination=to, method="anvil", asset="USDX")
        with pytest.raises(InvalidInput, match="pays out"):
            await carry_out(house.farebox, mistyped)
        wanted = Withdraw("wd_1", destination=to, method="anvil", asset="USDC")
        facts = await withdrawn(house, wanted)
        assert facts["recipient"] == to, facts
        got = house.usdc.call("balanceOf", to)
        assert 0 < got < EARNED_MSAT
        assert await withdrawn(house, wanted) == facts
        assert house.usdc.call("balanceOf", to) == got
        assert await house.balance_msat(key) == left
        told = await carry_out(house.farebox, Balance())
        fee = int(told["other_assets"]["USDC"]["earned"])
        revenue = await house.farebox.store.account("revenue/USDC")
        assert revenue is not None
        assert fee == revenue.available > 0
        assert f"{fee} earned" in _balance_text(told)


async def test_what_was_earned_of_an_asset_that_is_held_is_withdrawn_as_it_is(
    anvil: Anvil, tmp_path: Path
) -> None:
    rates = {"btc_usd": "100000", "held": ["USDC"]}
    async with evm_house(tmp_path / "house", anvil, {"rates": rates}) as house:
        asked = await house.asked("USDC", DEPOSIT)
        await house.pay(asked, DEPOSIT)
        await house.until(
            lambda: house.farebox.deposits.by_id(asked["deposit"]),
            lambda request: request and request.credited,
        )
        await house.until_swept(asked["pay"])
        claim = {"initial_balance_token": asked["pay"], "claim_secret": asked["claim_secret"]}
        key = str((await house.post("/create", claim)).json()["api_key"])
        order = {"method": "anvil", "asset": "USDC", "amount": "500000", "destination": somebody()}
        for name in ("first", "second", "third"):
            await house.paid_out("/v1/payouts", order, key, name)
        earned = int((await carry_out(house.farebox, Balance()))["other_assets"]["USDC"]["earned"])
        to = somebody()
        wanted = Withdraw("wd_1", destination=to, method="anvil", asset="USDC")
        with pytest.raises(InvalidInput, match="leave the amount out"):
            await carry_out(house.farebox, Withdraw("wd_0", 1, to, "", "anvil", "USDC"))
        facts = await withdrawn(house, wanted)
        assert (facts["asset"], facts["amount"]) == ("USDC", str(earned))
        assert f"{earned} of USDC went to {to}" == _withdrawn_text(facts)
        assert 0 < house.usdc.call("balanceOf", to) < earned


async def test_the_doctor_asks_the_node_and_says_what_is_wrong(
    anvil: Anvil, tmp_path: Path, dead_port: int
) -> None:
    async with evm_house(tmp_path / "house", anvil) as house:
        (found,) = house.farebox.settings.evm
        usdc = found.assets[1]

    async def told(**changes: object) -> dict[Verdict, str]:
        looked = await checks.evm(replace(found, **changes))  # type: ignore[arg-type]
        text = " ".join(one.found + one.advice + one.check for one in looked)
        assert house.secrets[1] not in text
        return {one.verdict: f"{one.check}: {one.found}" for one in looked}

    assert set(await told()) == {Verdict.FINE}
    doubts: tuple[tuple[dict[str, object], str], ...] = (
        ({"senders": 2}, "has no coin"),
        ({"assets": (replace(usdc, scale=18),)}, "6 decimals, not 18"),
        ({"assets": (replace(usdc, contract=somebody()),)}, "no contract at its address"),
    )
    for changes, what in doubts:
        assert what in (await told(**changes))[Verdict.WARNING]
    with anvil.lacking(DEPLOYER, artifact("Disperse").address):
        assert "batches: the chain lacks" in (await told(batch_wait_s=5))[Verdict.WARNING]
        assert set(await told()) == {Verdict.FINE}
    assert set(await told(traces=True)) == {Verdict.FINE}
    refuses = RailRejected("the method trace_block does not exist")
    with patch.object(RpcScan, "inner", side_effect=refuses):
        assert "traces: the node does not tell" in (await told(traces=True))[Verdict.WARNING]
    faults: tuple[tuple[dict[str, object], str], ...] = (
        ({"chain_id": 1}, "the node is on chain 31337"),
        ({"url": Secret(f"http://127.0.0.1:{dead_port}/secret-key")}, "gave no answer"),
        ({"url": Secret("ftp://n")}, "url"),
        ({"key": Secret("11" * 31)}, "key"),
    )
    for changes, what in faults:
        seen = (await told(**changes))[Verdict.FAILURE]
        assert what in seen
        assert "secret-key" not in seen
