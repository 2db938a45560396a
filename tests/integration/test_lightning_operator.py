"""What the operator of a house with a Lightning node sees and does."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from farebox.cli import checks
from farebox.cli.desk import carry_out
from farebox.cli.money import _balance_text
from farebox.cli.requests import Balance, ListWithdrawals, Withdraw
from farebox.operating import Verdict
from farebox.settings import Network, Secret
from tests.integration.lightning_house import lightning_house
from tests.peers.lnd import LightningNetwork

pytestmark = pytest.mark.peer


async def test_earnings_are_withdrawn_over_lightning(
    tmp_path: Path, lightning: LightningNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lightning_house(tmp_path, lightning, monkeypatch) as house:
        key = await house.funded(lightning, 30_000)
        for _ in range(2):
            answer = await house.http.get("/echo", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == 200
        bill = await asyncio.to_thread(lightning.payer.invoice, 15_000)
        wanted = Withdraw("wd_1", destination=bill, method="lightning")
        for _ in range(2):
            facts = await carry_out(house.farebox, wanted)
            assert (facts["amount_msat"], facts["recipient"]) == (15_000, bill)
        assert await asyncio.to_thread(lightning.payer.received_msat, bill) == 15_000
        [listed] = (await carry_out(house.farebox, ListWithdrawals()))["withdrawals"]
        told = [listed[name] for name in ("id", "method", "state", "amount_msat", "to")]
        assert told == ["wd_1", "lightning", "succeeded", 15_000, bill]
        shown = _balance_text(await carry_out(house.farebox, Balance()))
        assert "held at lightning, main  15 sat" in shown
        assert await house.balance_msat(key) == 10_000


async def test_the_doctor_asks_the_node_and_says_what_is_wrong(
    tmp_path: Path, lightning: LightningNetwork, monkeypatch: pytest.MonkeyPatch, dead_port: int
) -> None:
    async with lightning_house(tmp_path, lightning, monkeypatch) as house:
        found = house.farebox.settings.lightning

    async def verdicts(**changes: object) -> dict[Verdict, str]:
        looked = await checks.lightning(replace(found, **changes))  # type: ignore[arg-type]
        text = " ".join(one.found + one.advice for one in looked)
        assert house.secrets[0] not in text
        return {one.verdict: one.found for one in looked}

    assert set(await verdicts(deposit_max_msat=1_000, payout_max_msat=1_000)) == {Verdict.FINE}
    assert "can receive" in (await verdicts(deposit_max_msat=10**12))[Verdict.WARNING]
    wrong = (
        ({"network": Network.MAINNET}, "the node is on lnsb"),
        ({"url": f"https://127.0.0.1:{dead_port}"}, "gave no answer"),
        ({"key": Secret("00" * 40)}, "does not let us in"),
        ({"certificate": None}, "gave no answer"),
        ({"certificate": tmp_path / "none.cert"}, "No such file"),
    )
    for changes, told in wrong:
        assert told in (await verdicts(**changes))[Verdict.FAILURE]
