"""Upkeep: fewer proofs, none in a keyset that ends, nothing kept of change that was spent."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from farebox.ledger.model import Applied, Kind, Open, Transfer, Unit
from farebox.money import BTC
from farebox.payments import Rejected
from farebox.payments.service import Received, Refunded
from farebox.rails.cashu.records import PROOF, ProofUse
from farebox.testing.mint import DropAfter, DropBefore, Fail, Fault, Garbage, PlayMint, Refuse
from tests.integration.cashu_house import CUSTOMER, House, PowerCut, house_of, issue
from tests.integration.test_cashu_change import give_change


async def earn(house: House, amount_sat: int) -> None:
    steps = (
        Open("revenue", BTC.code, Kind.REVENUE),
        Transfer(CUSTOMER, "revenue", amount_sat * 1_000, "charge"),
    )
    assert isinstance(await house.store.commit(Unit("earn", steps)), Applied)


async def leftovers(house: House, mint: PlayMint, tokens: int = 8) -> None:
    """Many small proofs: what received tokens leave behind."""
    for _ in range(tokens):
        assert isinstance(await house.receive(issue(mint, 63)), Received)


async def proof_count(house: House, mint: PlayMint) -> int:
    where = {"mint": mint.url, "unit": "sat", "use": ProofUse.AVAILABLE}
    return len(await house.store.find(PROOF, where))


async def test_leftovers_become_fewer_proofs_of_the_same_value(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint, consolidate_proofs=10) as house:
        await leftovers(house, mint)
        before = await proof_count(house, mint)
        mint.calls.clear()

        kept = await house.upkeep.run()

        assert kept.consolidated == 1
        assert mint.calls["swap"] == 1
        assert await proof_count(house, mint) < before - 10
        assert await house.balance_sat() == 8 * 63
        await house.assert_whole(mint)
        assert (await house.upkeep.run()).consolidated == 0


async def test_few_leftovers_are_left_alone(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint, consolidate_proofs=64) as house:
        await leftovers(house, mint)

        assert (await house.upkeep.run()).consolidated == 0


async def test_revenue_pays_the_fee_of_tidiness_or_it_is_not_done(tmp_path: Path) -> None:
    mint = PlayMint(fee_ppk=50)
    async with house_of(tmp_path, mint, consolidate_proofs=10) as house:
        await leftovers(house, mint, 12)
        for _ in range(4):
            await house.receive(issue(mint, 4_096))
        owed = await house.balance_sat()
        assert (await house.upkeep.run()).consolidated == 0, "nothing was earned yet"
        await earn(house, 100)

        done = await house.upkeep.run()

        assert done.consolidated == 1
        assert await house.balance_sat("revenue") == 100 - 4  # 72 inputs at 0.05
        assert await house.balance_sat() == owed - 100
        await house.assert_whole(mint)


@pytest.mark.parametrize("expires", [False, True])
async def test_proofs_leave_a_keyset_that_ends(tmp_path: Path, expires: bool) -> None:
    soon = 1_900_000_000
    mint = PlayMint(fee_ppk=100, final_expiry=soon if expires else None)
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 63))
        await earn(house, 10)
        if expires:
            house.clock.advance(soon - house.clock.now_ns() // 10**9 - 24 * 3600)
        else:
            house.clock.advance(400)
        new = mint.rotate(fee_ppk=100)

        assert (await house.upkeep.run()).consolidated == 1

        where = {"mint": mint.url, "unit": "sat", "use": ProofUse.AVAILABLE}
        rows = await house.store.find(PROOF, where)
        assert {row.value.keyset_id for _, row in rows} == {new}
        assert await house.balance_sat("revenue") == 9
        await house.assert_whole(mint)


FAULTS: list[Fault] = [DropBefore(), DropAfter(), Fail(500), Garbage(), Refuse(12002)]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_a_consolidation_survives_every_fault(tmp_path: Path, fault: Fault) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint, consolidate_proofs=10) as house:
        await leftovers(house, mint)
        mint.faults.next("swap", fault)

        assert (await house.upkeep.run()).consolidated == 0
        await house.recover()

        assert (await house.proofs_sat(mint))[ProofUse.RESERVED] == 0
        await house.assert_whole(mint)


@pytest.mark.parametrize("cut", range(1, 5))
@pytest.mark.parametrize("side", ["cut_before", "cut_after"])
async def test_a_consolidation_survives_a_power_cut(tmp_path: Path, cut: int, side: str) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint, consolidate_proofs=10) as house:
        await leftovers(house, mint)
        setattr(house.store, side, cut)
        with suppress(PowerCut):
            await house.upkeep.run()
        await house.recover()

        assert (await house.proofs_sat(mint))[ProofUse.RESERVED] == 0
        await house.assert_whole(mint)


async def test_change_that_was_spent_is_noticed_and_wiped(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 100), reserve_sat=30, owner="req_1")
        planned = await give_change(house, "req_1", 77)
        text = await house.method.render_change(planned.reference)
        assert text is not None
        assert (await house.upkeep.run()).seen_spent == 0

        await house.receive(text)
        kept = await house.upkeep.run()

        assert kept.seen_spent > 0
        assert await house.method.render_change(planned.reference) is None
        rows = await house.store.find(PROOF, {"owner": "req_1"})
        assert all(row.value.C == row.value.e == b"" for _, row in rows)
        assert (await house.upkeep.run()).seen_spent == 0


async def test_many_given_proofs_are_asked_about_in_bounded_questions(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        tokens = []
        for number in range(30):
            await house.receive(issue(mint, 255))
            refunded = await house.refund(255, f"ref_{number}")
            assert isinstance(refunded, Refunded)
            tokens.append(refunded.reply["token"])
        for token in tokens:
            await house.receive(token)
        mint.calls.clear()

        seen = (await house.upkeep.run()).seen_spent

        assert seen == 30 * 8
        assert mint.calls["checkstate"] == 3


async def test_a_mint_that_is_down_does_not_stop_upkeep_at_another(tmp_path: Path) -> None:
    down, up = PlayMint(), PlayMint()
    async with house_of(tmp_path, down, up, consolidate_proofs=10) as house:
        await leftovers(house, up)
        down.faults.always("keysets", Fail(503))
        await house.restart()

        assert (await house.upkeep.run()).consolidated == 1


@pytest.mark.parametrize("spent", [False, True])
async def test_proofs_of_an_operation_closed_by_hand_are_set_free_if_they_are_ours(
    tmp_path: Path, spent: bool
) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 64))
        mint.faults.next("swap", DropAfter() if spent else DropBefore())
        mint.faults.always("checkstate", DropBefore())
        await house.refund(63, "ref_1")
        house.clock.advance(8 * 24 * 3_600)
        await house.operations.recover()
        mint.faults.clear()
        assert (await house.upkeep.run()).released == 0, "an open operation keeps its proofs"

        closed = await house.operations.resolve("ref_1", Rejected("gone", "given up by hand"))
        assert closed is not None
        house.clock.advance(60)
        kept = await house.upkeep.run()

        assert kept.released == 1
        proofs = await house.proofs_sat(mint)
        assert proofs[ProofUse.RESERVED] == 0
        assert proofs[ProofUse.AVAILABLE] == (0 if spent else 64)
