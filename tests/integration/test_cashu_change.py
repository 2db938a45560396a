"""Change: cut by the swap that received the token, given with no call to a mint."""

from __future__ import annotations

from pathlib import Path

import pytest

from farebox.ids import new_id
from farebox.ledger.model import Applied, Transfer, Unit
from farebox.payments import PlannedChange
from farebox.payments.service import Received, Refunded
from farebox.rails.cashu.records import ProofUse
from farebox.testing.mint import DropAfter, PlayMint
from farebox.wire.cashu.token import decode_token
from tests.integration.cashu_house import CUSTOMER, House, house_of, is_spent, issue


async def give_change(house: House, owner: str, amount_sat: int) -> PlannedChange:
    """What the paywall's settling commit does with planned change."""
    planned = await house.method.plan_change(owner, amount_sat * 1_000)
    assert planned is not None
    steps = (Transfer(CUSTOMER, planned.custody, planned.amount_msat, "change"),)
    outcome = await house.store.commit(Unit(new_id("settle"), steps, planned.puts))
    assert isinstance(outcome, Applied), outcome
    return planned


async def change_of(house: House, planned: PlannedChange) -> int:
    text = await house.method.render_change(planned.reference)
    return 0 if text is None else decode_token(text).amount


async def test_any_change_is_at_hand_without_a_call(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        for charged in range(14):
            owner = f"req_{charged}"
            await house.receive(issue(mint, 20), reserve_sat=13, owner=owner)
            mint.calls.clear()

            planned = await give_change(house, owner, 20 - charged)

            assert planned.amount_msat == (20 - charged) * 1_000
            assert await change_of(house, planned) == 20 - charged
            assert not mint.calls
            await house.assert_whole(mint)


async def test_change_is_the_same_token_each_time_and_survives_a_restart(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 100), reserve_sat=30, owner="req_1")
        planned = await give_change(house, "req_1", 77)
        first = await house.method.render_change(planned.reference)
        await house.restart()

        assert first is not None
        assert await house.method.render_change(planned.reference) == first
        assert all(proof.dleq is not None for proof in decode_token(first).proofs)
        assert not is_spent(mint, first)
        assert isinstance(await house.receive(first), Received)
        assert await house.balance_sat() == 100


async def test_what_is_not_given_is_free_again(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 100), reserve_sat=30, owner="req_1")
        assert (await house.proofs_sat(mint))[ProofUse.RESERVED] == 100

        planned = await give_change(house, "req_1", 0)

        assert planned.amount_msat == 0
        assert await house.method.render_change(planned.reference) is None
        assert (await house.proofs_sat(mint))[ProofUse.AVAILABLE] == 100
        assert await house.method.plan_change("req_1", 50_000) is None
        assert await house.method.plan_change("req_unknown", 50_000) is None


@pytest.mark.parametrize(
    ("fee_ppk", "small_change_msat", "left_sat", "given_sat"),
    [
        (0, 0, 1, 1),
        (1_000, 0, 1, 0),  # a proof of 1 costs 1 to spend
        (1_000, 0, 5, 4),  # of 4 + 1 the 1 stays as credit
        (500, 0, 1, 0),  # the fee is rounded up to 1
        (0, 6_000, 5, 0),
        (0, 6_000, 6, 6),
    ],
)
async def test_change_not_worth_spending_stays_as_credit(
    tmp_path: Path, fee_ppk: int, small_change_msat: int, left_sat: int, given_sat: int
) -> None:
    mint = PlayMint(fee_ppk=fee_ppk)
    async with house_of(tmp_path, mint, small_change_msat=small_change_msat) as house:
        await house.receive(issue(mint, 64), reserve_sat=62, owner="req_1")
        before = await house.balance_sat()

        planned = await give_change(house, "req_1", left_sat)

        assert planned.amount_msat == given_sat * 1_000
        assert await change_of(house, planned) == given_sat
        assert await house.balance_sat() == before - given_sat
        assert (await house.proofs_sat(mint))[ProofUse.RESERVED] == 0
        await house.assert_whole(mint)


async def test_more_credit_than_was_cut_gives_all_that_was_cut(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 50))
        await house.receive(issue(mint, 20), reserve_sat=5, owner="req_1")

        assert (await give_change(house, "req_1", 70)).amount_msat == 20_000


async def test_money_that_arrived_late_is_free_for_refunds_and_still_makes_change(
    tmp_path: Path,
) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        for owner in ("req_1", "req_2"):
            mint.faults.next("swap", DropAfter())
            await house.receive(issue(mint, 20), reserve_sat=13, owner=owner)
        await house.recover()
        assert (await house.proofs_sat(mint))[ProofUse.RESERVED] == 0

        assert isinstance(await house.refund(20, "ref_1"), Refunded)
        one = await house.method.plan_change("req_1", 9_000)
        two = await house.method.plan_change("req_2", 9_000)

        assert 9_000 in [planned.amount_msat for planned in (one, two) if planned]
        await house.assert_whole(mint)
