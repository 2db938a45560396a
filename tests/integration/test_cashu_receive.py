"""Tokens in: credited once by one call to the mint, whatever is lost on the way."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from farebox.ecash import saga
from farebox.ecash.codes import NutError
from farebox.ecash.plan import SwapPlan
from farebox.errors import InvalidCredential
from farebox.payments import Refusal
from farebox.payments.service import Pending, Received, Refunded
from farebox.rails.cashu import MintTerms
from farebox.rails.cashu.anew import Replanning, Standing
from farebox.signer import Signer
from farebox.testing.asgi import serving
from farebox.testing.mint import (
    AnswersLate,
    DropAfter,
    DropBefore,
    ExecutesLate,
    Fail,
    Fault,
    Garbage,
    PlayMint,
    Refuse,
)
from farebox.wire.cashu.token import decode_token, encode_token, encode_token_v3
from tests.integration.cashu_house import CUSTOMER, House, PowerCut, house_of, is_spent, issue
from tests.slowness import LATE_S, answers_wait, impatient

FEES = pytest.mark.parametrize("fee_ppk", [0, 100, 1_000])


@FEES
async def test_a_token_is_credited_by_one_call_to_the_mint(tmp_path: Path, fee_ppk: int) -> None:
    mint = PlayMint(fee_ppk=fee_ppk)
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 8))
        before = await house.balance_sat()
        mint.calls.clear()

        received = await house.receive(issue(mint, 100), reserve_sat=20, owner="req_1")

        fee = -(-fee_ppk * 3 // 1_000)  # 100 = 64 + 32 + 4
        assert isinstance(received, Received)
        assert received.amount_msat == (100 - fee) * 1_000
        assert dict(mint.calls) == {"swap": 1}
        assert await house.balance_sat() == before + 100 - fee
        await house.assert_whole(mint)


async def test_the_same_money_written_differently_is_credited_once(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        token = mint.issue(100)
        other_order = replace(token, proofs=token.proofs[::-1], memo="thanks")
        await house.receive(encode_token(token))
        mint.calls.clear()

        again = [
            await house.receive(text)
            for text in (encode_token_v3(token), encode_token(other_order), encode_token(token))
        ]

        assert [isinstance(one, Received) for one in again] == [True] * 3
        assert not mint.calls
        assert await house.balance_sat() == 100


async def test_short_keyset_ids_name_the_same_money(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        token = mint.issue(21)
        short = [replace(proof, keyset_id=proof.keyset_id[:16]) for proof in token.proofs]
        shortened = encode_token_v3(replace(token, proofs=tuple(short)))

        one = await house.method.parse_credential(shortened)
        other = await house.method.parse_credential(encode_token(token))

        assert one.identity == other.identity
        assert isinstance(await house.receive(shortened), Received)


async def refusal_of(house: House, token: str, **options: int) -> Refusal:
    refused = await house.receive(token, **options)  # type: ignore[arg-type]
    assert isinstance(refused, Refusal), refused
    return refused


async def test_a_token_spent_elsewhere_is_refused_and_not_asked_about_again(
    tmp_path: Path,
) -> None:
    mint = PlayMint()
    (tmp_path / "other").mkdir()
    async with house_of(tmp_path, mint) as house:
        token = issue(mint, 10)
        other = House(tmp_path / "other" / "book.db", house.config, Signer(b"\x01" * 32))
        await other.open()
        assert isinstance(await other.receive(token), Received)
        await other.close()

        first = await refusal_of(house, token)
        mint.calls.clear()
        again = await refusal_of(house, token)

        assert (first.code, again.code) == ("token_spent", "token_spent")
        assert not mint.calls
        assert await house.balance_sat() == 0
        await house.assert_whole(mint)


async def test_foreign_mints_and_units_are_refused_with_what_is_accepted(tmp_path: Path) -> None:
    ours, foreign = PlayMint(units=("sat", "msat")), PlayMint()
    async with serving(foreign) as foreign.url, house_of(tmp_path, ours) as house:
        elsewhere = await refusal_of(house, issue(foreign, 10))
        millis = await refusal_of(house, issue(ours, 10, "msat"))

        assert (elsewhere.code, elsewhere.details) == ("mint_not_accepted", {"mints": [ours.url]})
        assert (millis.code, millis.details) == ("unit_not_accepted", {"units": ["sat"]})
        assert not foreign.calls


async def test_a_refused_mint_is_refused(tmp_path: Path) -> None:
    mint = PlayMint()
    async with serving(mint) as mint.url:
        terms = [MintTerms(url=mint.url, trusted=False)]
        async with house_of(tmp_path, terms=terms) as house:
            assert (await refusal_of(house, issue(mint, 10))).code == "mint_not_accepted"


async def test_msat_tokens_are_credited_to_the_millisatoshi(tmp_path: Path) -> None:
    mint = PlayMint(units=("sat", "msat"))
    async with serving(mint) as mint.url:
        terms = [MintTerms(url=mint.url, units=("sat", "msat"))]
        async with house_of(tmp_path, terms=terms) as house:
            received = await house.receive(issue(mint, 1_234, "msat"))

            assert isinstance(received, Received)
            assert received.amount_msat == 1_234


async def test_missing_and_wrong_dleq_proofs_are_refused(tmp_path: Path) -> None:
    mint = PlayMint()
    async with serving(mint) as mint.url:
        terms = [MintTerms(url=mint.url, require_dleq=True)]
        async with house_of(tmp_path, terms=terms) as house:
            token, other = mint.issue(8), mint.issue(8)
            bare = replace(token, proofs=tuple(replace(one, dleq=None) for one in token.proofs))
            swapped = replace(
                token,
                proofs=tuple(
                    replace(one, dleq=two.dleq)
                    for one, two in zip(token.proofs, other.proofs, strict=True)
                ),
            )

            assert (await refusal_of(house, encode_token(bare))).code == "dleq_missing"
            assert (await refusal_of(house, encode_token(swapped))).code == "dleq_invalid"
            assert isinstance(await house.receive(encode_token(token)), Received)


async def test_locked_unknown_and_too_small_tokens_are_refused(tmp_path: Path) -> None:
    mint = PlayMint(fee_ppk=1_000)
    async with house_of(tmp_path, mint) as house:
        token = mint.issue(2)
        secret = '["P2PK",{"nonce":"aa","data":"02' + "11" * 32 + '"}]'
        locked = replace(token, proofs=(replace(token.proofs[0], secret=secret, dleq=None),))
        unknown = replace(token, proofs=(replace(token.proofs[0], keyset_id="00" + "ab" * 7),))

        assert (await refusal_of(house, encode_token(locked))).code == "locked"
        assert (await refusal_of(house, encode_token(unknown))).code == "unknown_keyset"
        assert (await refusal_of(house, issue(mint, 1))).code == "amount_too_small"
        too_little = await refusal_of(house, issue(mint, 8), reserve_sat=8)
        assert too_little.code == "insufficient_payment"
        assert "swap" not in mint.calls


async def test_what_is_no_token_is_invalid(tmp_path: Path) -> None:
    async with house_of(tmp_path, PlayMint()) as house:
        for text in ("cashuB", "cashuA!!", "cashuBpGF0", "cashuA" + "A" * 100):
            assert house.method.can_handle(text)
            with pytest.raises(InvalidCredential):
                await house.method.parse_credential(text)
        assert not house.method.can_handle("sk-123")


async def test_a_full_custody_refuses_before_the_mint_is_asked(tmp_path: Path) -> None:
    mint = PlayMint()
    async with serving(mint) as mint.url:
        terms = [MintTerms(url=mint.url, ceiling_msat=50_000)]
        async with house_of(tmp_path, terms=terms) as house:
            assert isinstance(await house.receive(issue(mint, 30)), Received)
            token = issue(mint, 30)
            mint.calls.clear()

            refused = await refusal_of(house, token)

            assert refused.code == "custody_full"
            assert not mint.calls
            assert not is_spent(mint, token)


async def test_ceilings_follow_the_settings_at_the_next_start(tmp_path: Path) -> None:
    mint = PlayMint()
    async with serving(mint) as mint.url:
        terms = [MintTerms(url=mint.url, ceiling_msat=50_000)]
        async with house_of(tmp_path, terms=terms) as house:
            house.config = replace(house.config, mints=(MintTerms(url=mint.url),))
            await house.restart()

            assert isinstance(await house.receive(issue(mint, 60)), Received)


async def test_a_mint_that_is_down_is_refused_before_anything_moves_and_harms_no_other(
    tmp_path: Path,
) -> None:
    down, up = PlayMint(), PlayMint()
    async with house_of(tmp_path, down, up) as house:
        token = issue(down, 10)
        down.faults.always("keysets", Fail(503))
        for _ in range(6):
            assert (await refusal_of(house, token)).code == "mint_unavailable"
        down.calls.clear()

        assert (await refusal_of(house, token)).code == "mint_unavailable"
        assert not down.calls, "the breaker is open"
        assert isinstance(await house.receive(issue(up, 10)), Received)

        down.faults.clear()
        house.clock.advance(60)
        assert isinstance(await house.receive(token), Received)


#: What can go wrong on the way of the swap, and whether it is carried out all the same.
LOST: list[Fault] = [
    DropBefore(),
    DropAfter(),
    Fail(500),
    Garbage(),
    Garbage("{}"),
    ExecutesLate(LATE_S),
    AnswersLate(LATE_S),
]


@pytest.mark.parametrize("fault", LOST, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("fee_ppk", [0, 100])
async def test_a_lost_answer_is_asked_about_and_credited_once(
    tmp_path: Path, fault: Fault, fee_ppk: int
) -> None:
    mint = PlayMint(fee_ppk=fee_ppk)
    async with house_of(tmp_path, mint) as house:
        token = issue(mint, 100)
        fee = -(-fee_ppk * 3 // 1_000)
        mint.faults.next("swap", fault)

        with impatient("/v1/swap"):
            first = await house.receive(token)
        assert isinstance(first, Pending)
        assert await house.balance_sat() == 0
        await house.recover()

        assert await house.balance_sat() == 100 - fee
        again = await house.receive(token)
        assert isinstance(again, Received)
        await house.assert_whole(mint)


@pytest.mark.parametrize("step", ["checkstate", "restore"])
async def test_recovery_that_fails_itself_is_tried_again(tmp_path: Path, step: str) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        token = issue(mint, 100)
        mint.faults.next("swap", DropAfter())
        mint.faults.next(step, DropBefore(), Garbage(), Fail(502))
        await house.receive(token)

        for _ in range(4):
            await house.recover()

        assert await house.balance_sat() == 100
        await house.assert_whole(mint)


@pytest.mark.parametrize("code", sorted(NutError))
async def test_no_error_code_of_a_mint_loses_or_doubles_money(
    tmp_path: Path, code: NutError
) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        token = issue(mint, 100)
        mint.faults.next("swap", Refuse(code))

        await house.receive(token)
        await house.recover()

        credited = await house.balance_sat()
        assert credited == (100 if is_spent(mint, token) else 0)
        await house.assert_whole(mint)


@pytest.mark.parametrize("cut", range(1, 6))
@pytest.mark.parametrize("side", ["cut_before", "cut_after"])
async def test_a_power_cut_at_any_commit_of_a_receive_loses_nothing(
    tmp_path: Path, cut: int, side: str
) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        token = issue(mint, 100)
        setattr(house.store, side, cut)
        with suppress(PowerCut):
            await house.receive(token, reserve_sat=10, owner="req_1")
        await house.recover()

        if not is_spent(mint, token):
            assert await house.balance_sat() == 0
            assert isinstance(await house.receive(token), Received)
        assert await house.balance_sat() == 100
        await house.assert_whole(mint)


async def test_counters_are_never_used_twice_across_restarts(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        for _ in range(4):
            assert isinstance(await house.receive(issue(mint, 255)), Received)
            await house.restart()

        await house.assert_whole(mint)
        assert await house.balance_sat() == 4 * 255


async def test_a_book_begun_anew_with_the_same_key_skips_the_counters_used_before(
    tmp_path: Path,
) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        for _ in range(3):
            await house.receive(issue(mint, 255))
        (tmp_path / "anew").mkdir()
        anew = House(tmp_path / "anew" / "book.db", house.config)
        await anew.open()

        for _ in range(3):
            assert isinstance(await anew.receive(issue(mint, 255)), Received)

        assert await anew.balance_sat() == 3 * 255
        await anew.assert_whole(mint)
        await anew.close()


async def test_a_mint_that_rotates_its_keys_meanwhile_costs_the_payer_nothing(
    tmp_path: Path,
) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 8))  # keysets are remembered now
        token = issue(mint, 100)
        house.clock.advance(2)
        mint.rotate()

        assert isinstance(await house.receive(token), Received)
        assert await house.balance_sat() == 108
        await house.assert_whole(mint)


@pytest.mark.parametrize("fault", LOST, ids=lambda fault: type(fault).__name__)
async def test_a_swap_planned_anew_survives_a_lost_answer_too(tmp_path: Path, fault: Fault) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 8))
        token = issue(mint, 100)
        house.clock.advance(2)
        mint.rotate()
        mint.faults.next("swap", None, fault)

        with impatient("/v1/swap"):
            assert isinstance(await house.receive(token), Pending)
        await house.recover()

        assert await house.balance_sat() == 108
        await house.assert_whole(mint)


@pytest.mark.parametrize("code", [NutError.KEYSET_INACTIVE, NutError.QUOTE_ISSUED])
async def test_of_two_processes_that_plan_anew_at_once_the_first_plan_stands(
    tmp_path: Path, code: NutError
) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        place = house.method.mints.trusted()[0]
        before = await place.output_keyset("sat")
        assert before is not None
        swap = SwapPlan(
            mint=place.url,
            unit="sat",
            keyset_id=before.id,
            first_counter=0,
            inputs=(),
            amounts=(8,),
        )
        house.clock.advance(2)
        mint.rotate()
        replanning = Replanning(house.method.inventory, house.ledger, house.signer)
        refused = saga.Rejected(NutError.KEYSET_INACTIVE, "inactive")
        sent: list[SwapPlan] = []

        async def quick(plan: SwapPlan, _: bool) -> saga.Done | saga.Rejected:
            sent.append(plan)
            return refused if plan == swap else saga.Done(())

        async def slow(plan: SwapPlan, _: bool) -> saga.Done | saga.Rejected:
            assert plan == swap
            place.mint._keysets_doubted = True  # as a refusal of its own would have it
            await replanning.advance("r", Standing(swap, 0), place, quick, asked_before=True)
            return saga.Rejected(code, "not this one")

        first = Standing(swap, 0)
        _, end = await replanning.advance("r", first, place, slow, asked_before=True)
        assert isinstance(end, saga.Unknown), "its outputs are in nobody's plan"
        standing, _ = await replanning.advance("r", first, place, quick, asked_before=True)
        assert standing.plan == sent[1] == sent[2]


async def test_a_token_of_a_keyset_that_was_rotated_out_is_taken(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        token = issue(mint, 100)
        mint.rotate()
        newer = issue(mint, 10)

        assert isinstance(await house.receive(token), Received)
        assert isinstance(await house.receive(newer), Received)
        await house.assert_whole(mint)


async def test_nothing_of_a_token_shows_in_a_repr(tmp_path: Path) -> None:
    async with house_of(tmp_path, PlayMint()) as house:
        mint = PlayMint(url="http://127.0.0.1:1")
        text = issue(mint, 3)
        credentials = await house.method.parse_credential(text)

        shown = repr(credentials)

        assert text not in shown
        assert not any(proof.secret in shown for proof in decode_token(text).proofs)
        assert CUSTOMER not in shown


async def test_one_token_presented_by_many_at_once_is_credited_once(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 8), "customer:bob")
        token = issue(mint, 100)
        mint.calls.clear()

        done = await asyncio.gather(*(house.receive(token) for _ in range(50)))

        assert all(isinstance(one, Received) for one in done)
        assert mint.calls["swap"] == 1
        assert await house.balance_sat() == 100
        await house.assert_whole(mint)


async def test_a_lost_answer_among_many_presentations_is_still_credited_once(
    tmp_path: Path,
) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        token = issue(mint, 100)
        mint.faults.next("swap", DropAfter(), DropBefore())
        mint.faults.next("checkstate", DropBefore(), Fail(500))

        await asyncio.gather(*(house.receive(token) for _ in range(50)))
        await house.recover()

        assert isinstance(await house.receive(token), Received)
        assert await house.balance_sat() == 100
        await house.assert_whole(mint)


async def test_a_slow_mint_does_not_slow_another(tmp_path: Path) -> None:
    slow, quick = PlayMint(), PlayMint()
    async with house_of(tmp_path, slow, quick) as house:
        for mint in (slow, quick):
            await house.receive(issue(mint, 8))
        with answers_wait(slow):
            waiting = [asyncio.create_task(house.receive(issue(slow, 10))) for _ in range(20)]
            await asyncio.sleep(0)

            for _ in range(5):
                assert isinstance(await house.receive(issue(quick, 10)), Received)

            assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)


async def test_no_secret_of_a_proof_is_in_the_book(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        text = issue(mint, 100)
        mint.faults.next("swap", DropAfter())
        await house.receive(text)  # the plan is stored and stays
        await house.receive(issue(mint, 64))
        refunded = await house.refund(63, "ref_1", account=CUSTOMER)
        assert isinstance(refunded, Refunded)

        names = ("book.db", "book.db-wal")
        book = b"".join((tmp_path / name).read_bytes() for name in names)

        for token in (text, refunded.reply["token"]):
            assert token.encode() not in book
            for proof in decode_token(token).proofs:
                assert proof.secret.encode() not in book
                assert bytes.fromhex(proof.secret) not in book
