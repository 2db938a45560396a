"""Money out as tokens: exact, once, and restartable at every point."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from farebox.ecash.codes import NutError
from farebox.ledger.model import Applied, Kind, Open, Transfer, Unit
from farebox.money import BTC
from farebox.payments import Refusal
from farebox.payments.service import Pending, Received, Refunded
from farebox.rails.cashu.records import ProofUse
from farebox.testing.mint import DropAfter, DropBefore, Fail, Garbage, PlayMint, Refuse
from farebox.wire.cashu.token import decode_token
from tests.integration.cashu_house import CUSTOMER, House, PowerCut, house_of, is_spent, issue

FAULTS = [DropBefore(), DropAfter(), Fail(500), Garbage()]


def token_sat(mint: PlayMint, refunded: Refunded) -> int:
    """What a refund's token is worth at the mint now."""
    token = refunded.reply["token"]
    assert not is_spent(mint, token)
    amount = decode_token(token).amount
    assert refunded.reply["sats"] == str(amount)
    return amount


async def test_exact_proofs_are_given_without_a_call(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 100))
        mint.calls.clear()

        refunded = await house.refund(68, "ref_1")

        assert isinstance(refunded, Refunded)
        assert token_sat(mint, refunded) == 68
        assert refunded.amount == 68_000
        assert not mint.calls
        assert await house.balance_sat() == 32
        await house.assert_whole(mint)


@pytest.mark.parametrize("fee_ppk", [0, 100, 2_000])
async def test_a_swap_makes_what_is_not_at_hand_and_its_fee_comes_off_the_token(
    tmp_path: Path, fee_ppk: int
) -> None:
    mint = PlayMint(fee_ppk=fee_ppk)
    async with house_of(tmp_path, mint) as house:
        fee = -(-fee_ppk // 1_000)
        await house.receive(issue(mint, 64))
        before = await house.balance_sat()
        amount = before - 3

        refunded = await house.refund(amount, "ref_1")

        assert isinstance(refunded, Refunded)
        assert refunded.amount == amount * 1_000
        given = token_sat(mint, refunded)
        assert amount - 6 * fee <= given <= amount - (fee if mint.calls["swap"] > 1 else 0)
        assert await house.balance_sat() == 3
        assert mint.audit().outstanding["sat"] == given + await house.custody_sat(mint)
        await house.assert_whole(mint)


async def test_everything_can_be_refunded_at_a_mint_with_fees(tmp_path: Path) -> None:
    mint = PlayMint(fee_ppk=1_000)
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 200), "customer:bob")
        await house.receive(issue(mint, 100))
        balance = await house.balance_sat()

        for account in (CUSTOMER, "customer:bob"):
            amount = await house.balance_sat(account)
            refunded = await house.refund(amount, f"ref_{account}", account=account)
            assert isinstance(refunded, Refunded)

        assert balance > 0
        assert await house.custody_sat(mint) == 0
        await house.assert_whole(mint)


async def test_the_same_refund_gives_the_same_token_for_ever(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 100))
        first = await house.refund(33, "ref_1")
        await house.restart()

        assert await house.refund(33, "ref_1") == first
        assert await house.balance_sat() == 67


async def test_a_refund_can_be_received_again(tmp_path: Path) -> None:
    mint = PlayMint(fee_ppk=100)
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 100))
        refunded = await house.refund(50, "ref_1")
        assert isinstance(refunded, Refunded)

        received = await house.receive(refunded.reply["token"], "customer:bob")

        assert isinstance(received, Received)
        assert received.amount_msat == int(refunded.reply["msats"]) - 1_000


async def test_refunds_come_from_the_mint_wished_for_else_where_most_is(tmp_path: Path) -> None:
    small, large = PlayMint(), PlayMint()
    async with house_of(tmp_path, small, large) as house:
        await house.receive(issue(small, 50))
        await house.receive(issue(large, 100))

        wished = await house.refund(20, "ref_1", metadata={"refund_mint_url": small.url})
        other = await house.refund(20, "ref_2")
        too_large_there = await house.refund(60, "ref_3", metadata={"refund_mint_url": small.url})

        assert isinstance(wished, Refunded)
        assert isinstance(other, Refunded)
        assert isinstance(too_large_there, Refunded)
        assert [one.reply["mint"] for one in (wished, other, too_large_there)] == [
            small.url,
            large.url,
            large.url,
        ]


async def test_what_cannot_be_given_is_refused(tmp_path: Path) -> None:
    mint, other = PlayMint(fee_ppk=3_000), PlayMint()
    async with house_of(tmp_path, mint, other) as house:
        await house.receive(issue(mint, 64))
        await house.receive(issue(other, 64))

        refusals = [
            await house.refund(0, "ref_1"),
            await house.refund(110, "ref_2"),
            await house.refund(50, "ref_3", account="customer:nobody"),
        ]

        assert [one.code for one in refusals if isinstance(one, Refusal)] == [
            "amount_too_small",
            "insufficient_funds",
            "debit_account_not_found",
        ]
        assert (await house.proofs_sat(mint))[ProofUse.RESERVED] == 0


async def test_an_overdraft_reserves_nothing(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 64), "customer:bob")
        await house.receive(issue(mint, 8))

        refused = await house.refund(9, "ref_1")

        assert isinstance(refused, Refusal)
        assert refused.code == "insufficient_balance"
        assert (await house.proofs_sat(mint))[ProofUse.RESERVED] == 0
        assert isinstance(await house.refund(64, "ref_2", account="customer:bob"), Refunded)


async def test_exact_proofs_are_given_while_the_mint_is_down(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 96))
        await house.restart()
        mint.faults.always("keysets", Fail(503))

        exact, inexact = await house.refund(32, "ref_1"), await house.refund(63, "ref_2")

        assert isinstance(exact, Refunded)
        assert isinstance(inexact, Refusal)
        assert inexact.code == "mint_unavailable"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("fee_ppk", [0, 100])
async def test_a_lost_answer_to_the_swap_of_a_refund_is_asked_about(
    tmp_path: Path, fault: DropBefore, fee_ppk: int
) -> None:
    mint = PlayMint(fee_ppk=fee_ppk)
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 129))
        before = await house.balance_sat()
        mint.faults.next("swap", fault)

        assert isinstance(await house.refund(63, "ref_1"), Pending)
        await house.recover()

        refunded = await house.refund(63, "ref_1")
        assert isinstance(refunded, Refunded)
        given = token_sat(mint, refunded)
        assert await house.balance_sat() == before - 63
        assert mint.audit().outstanding["sat"] == given + await house.custody_sat(mint)
        await house.assert_whole(mint)


@pytest.mark.parametrize("code", sorted(NutError))
async def test_no_error_code_loses_or_doubles_a_refund(tmp_path: Path, code: NutError) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 64))
        mint.faults.next("swap", Refuse(code))

        await house.refund(63, "ref_1")
        await house.recover()

        refunded = await house.refund(63, "ref_1")
        given = token_sat(mint, refunded) if isinstance(refunded, Refunded) else 0
        assert await house.balance_sat() == 64 - given
        assert mint.audit().outstanding["sat"] == given + await house.custody_sat(mint)
        assert (await house.proofs_sat(mint))[ProofUse.RESERVED] == 0
        await house.assert_whole(mint)


@pytest.mark.parametrize("amount_sat", [64, 63], ids=["exact", "swap"])
@pytest.mark.parametrize("cut", range(1, 5))
@pytest.mark.parametrize("side", ["cut_before", "cut_after"])
async def test_a_power_cut_at_any_commit_of_a_refund_loses_nothing(
    tmp_path: Path, amount_sat: int, cut: int, side: str
) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 64))
        setattr(house.store, side, cut)
        with suppress(PowerCut):
            await house.refund(amount_sat, "ref_1")
        await house.recover()

        refunded = await house.refund(amount_sat, "ref_1")

        assert isinstance(refunded, Refunded)
        assert token_sat(mint, refunded) == amount_sat
        assert await house.balance_sat() == 64 - amount_sat
        await house.assert_whole(mint)


async def test_the_operator_withdraws_what_was_earned(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 100))
        steps = (
            Open("revenue", BTC.code, Kind.REVENUE),
            Transfer(CUSTOMER, "revenue", 60_500, "charge"),
        )
        assert isinstance(await house.store.commit(Unit("earn", steps)), Applied)

        withdrawn = await house.refund(60, "wd_1", account="revenue")
        too_much = await house.refund(1, "wd_2", account="revenue")

        assert isinstance(withdrawn, Refunded)
        assert token_sat(mint, withdrawn) == 60
        assert isinstance(too_much, Refusal)
        await house.assert_whole(mint)


async def test_concurrent_refunds_share_the_proofs_out(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        for _ in range(4):
            await house.receive(issue(mint, 63))

        done = await asyncio.gather(*(house.refund(7, f"ref_{n}") for n in range(20)))

        given = sum(token_sat(mint, one) for one in done if isinstance(one, Refunded))
        assert given == 7 * sum(isinstance(one, Refunded) for one in done)
        assert given >= 7 * 10
        assert await house.balance_sat() == 4 * 63 - given
        await house.assert_whole(mint)


async def test_top_ups_and_refunds_that_race_lose_nothing(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 64))
        given = 0
        for number in range(100):
            topped, refunded = await asyncio.gather(
                house.receive(issue(mint, 5)), _refund_all(house, f"ref_{number}")
            )
            assert isinstance(topped, Received)
            if isinstance(refunded, Refunded):
                given += token_sat(mint, refunded)

        assert await house.balance_sat() == 64 + 500 - given
        assert mint.audit().outstanding["sat"] == given + await house.custody_sat(mint)
        await house.assert_whole(mint)


async def _refund_all(house: House, operation_id: str) -> Refunded | Pending | Refusal:
    return await house.refund(await house.balance_sat(), operation_id)


async def test_asking_for_more_than_the_balance_is_not_told_as_a_shortage_of_ours(
    tmp_path: Path,
) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 32))

        refused = await house.refund(64, "ref_1")

        assert isinstance(refused, Refusal)
        assert refused.code == "insufficient_balance"
        await house.assert_whole(mint)
