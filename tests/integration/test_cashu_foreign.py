"""Tokens of mints that nobody listed, swapped across Lightning where the settings allow it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from farebox.ecash.mint import MeltQuoteState
from farebox.payments import Refusal
from farebox.payments.model import OperationState
from farebox.payments.service import Pending, Received
from farebox.rails.cashu import MintTerms
from farebox.rails.cashu.records import PROOF, ProofUse
from farebox.testing.asgi import serving
from farebox.testing.mint import (
    AnswersLate,
    DropAfter,
    DropBefore,
    ExecutesLate,
    Fail,
    Fault,
    Garbage,
    PlayLightning,
    PlayMint,
    Refuse,
    StaysPending,
)
from farebox.testing.mint.books import Change, SpentRow
from farebox.wire.cashu.crypto import hash_to_curve
from farebox.wire.cashu.token import encode_token
from tests.integration.cashu_house import House, PowerCut, house_of, is_spent, issue
from tests.integration.test_cashu_change import change_of, give_change
from tests.slowness import LATE_S, impatient


@asynccontextmanager
async def two_mints(
    path: Path, *, fee_ppk: int = 0, allow_private: bool = True
) -> AsyncIterator[tuple[House, PlayMint, PlayMint]]:
    """A house that trusts the first of two mints on one Lightning network."""
    lightning = PlayLightning()
    home = PlayMint(lightning=lightning, invoices_pay_themselves=False)
    foreign = PlayMint(lightning=lightning, invoices_pay_themselves=False, fee_ppk=fee_ppk)
    async with serving(foreign) as foreign.url:
        async with house_of(path, home, swap_foreign=True, allow_private=allow_private) as house:
            yield house, home, foreign


@pytest.mark.parametrize("fee_ppk", [0, 100, 1_000])
async def test_a_foreign_token_is_credited_with_what_arrives(tmp_path: Path, fee_ppk: int) -> None:
    async with two_mints(tmp_path, fee_ppk=fee_ppk) as (house, home, foreign):
        token = issue(foreign, 100)

        received = await house.receive(token, reserve_sat=40, owner="req_1")

        fee = -(-fee_ppk * 3 // 1_000)
        assert isinstance(received, Received)
        assert received.amount_msat == (100 - 2 - fee) * 1_000  # 2 sat are reserved for the fee
        assert home.audit().outstanding["sat"] == await house.custody_sat(home) == 98 - fee
        planned = await give_change(house, "req_1", 98 - fee - 11)
        assert await change_of(house, planned) == 98 - fee - 11
        assert isinstance(await house.receive(token), Received)
        await house.assert_whole(home)


async def test_what_the_foreign_mint_gives_back_is_kept_in_rows(tmp_path: Path) -> None:
    async with two_mints(tmp_path) as (house, _, foreign):
        await house.receive(issue(foreign, 100))

        assert (await house.proofs_sat(foreign))[ProofUse.AVAILABLE] == 1
        assert foreign.audit().outstanding["sat"] == 1


async def test_a_foreign_token_that_is_too_small_is_refused_and_unspent(tmp_path: Path) -> None:
    async with two_mints(tmp_path) as (house, _, foreign):
        for amount, reserve, code in ((2, 0, "amount_too_small"), (40, 39, "insufficient_payment")):
            token = issue(foreign, amount)
            refused = await house.receive(token, reserve_sat=reserve)
            assert isinstance(refused, Refusal)
            assert refused.code == code
            assert not is_spent(foreign, token)


async def test_a_mint_at_a_private_address_is_not_connected_to(tmp_path: Path) -> None:
    async with two_mints(tmp_path, allow_private=False) as (house, _, foreign):
        refused = await house.receive(issue(foreign, 100))

        assert isinstance(refused, Refusal)
        assert refused.code == "mint_unavailable"
        assert not foreign.calls


async def test_a_refused_mint_is_not_swapped_either(tmp_path: Path) -> None:
    mint = PlayMint()
    async with serving(mint) as mint.url:
        terms = [MintTerms(url=mint.url, trusted=False)]
        async with house_of(tmp_path, terms=terms, swap_foreign=True) as house:
            refused = await house.receive(issue(mint, 100))

            assert isinstance(refused, Refusal)
            assert refused.code == "mint_not_accepted"


LOST: list[Fault] = [
    DropBefore(),
    DropAfter(),
    Fail(500),
    Garbage(),
    ExecutesLate(LATE_S),
    AnswersLate(LATE_S),
]


@pytest.mark.parametrize("fault", LOST, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("step", ["melt", "mint"])
async def test_a_lost_answer_on_either_side_is_asked_about(
    tmp_path: Path, fault: Fault, step: str
) -> None:
    async with two_mints(tmp_path) as (house, home, foreign):
        token = issue(foreign, 100)
        (foreign if step == "melt" else home).faults.next(step, fault)

        with impatient(f"/v1/{step}/bolt11"):
            assert isinstance(await house.receive(token), Pending)
        await house.recover()
        await house.recover()

        assert isinstance(await house.receive(token), Received)
        assert await house.balance_sat() == 98
        assert home.audit().outstanding["sat"] == 98
        await house.assert_whole(home)


@pytest.mark.parametrize("cut", range(1, 6))
@pytest.mark.parametrize("side", ["cut_before", "cut_after"])
async def test_a_power_cut_at_any_commit_loses_nothing(tmp_path: Path, cut: int, side: str) -> None:
    async with two_mints(tmp_path) as (house, home, foreign):
        token = issue(foreign, 100)
        setattr(house.store, side, cut)
        with suppress(PowerCut):
            await house.receive(token)
        await house.recover()

        assert isinstance(await house.receive(token), Received)
        assert await house.balance_sat() == 98
        await house.assert_whole(home)


@pytest.mark.parametrize("code", [10001, 11001, 11000, 20004, 20005, 20007, 12003])
async def test_a_foreign_mint_that_refuses_ends_it_one_way_or_the_other(
    tmp_path: Path, code: int
) -> None:
    async with two_mints(tmp_path) as (house, home, foreign):
        token = issue(foreign, 100)
        foreign.faults.next("melt", Refuse(code))

        await house.receive(token)
        await house.recover()

        assert await house.balance_sat() == (98 if is_spent(foreign, token) else 0)
        await house.assert_whole(home)


LIE = (
    '{"quote":"q","amount":98,"unit":"sat","fee_reserve":2,"state":"PAID","expiry":null,'
    '"request":"r"}'
)


@pytest.mark.parametrize("answer", [None, Garbage(LIE), Fail(500)], ids=["pending", "lie", "down"])
async def test_a_foreign_mint_that_never_pays_does_not_keep_us_waiting_for_ever(
    tmp_path: Path, answer: Fault | None
) -> None:
    async with two_mints(tmp_path) as (house, home, foreign):
        foreign.faults.always("melt", DropBefore() if answer else StaysPending())
        if answer:
            foreign.faults.always("melt_quote_state", answer)
        assert isinstance(await house.receive(issue(foreign, 100)), Pending)
        await house.recover()
        assert any(account.debits_pending for account in await house.store.accounts())

        house.clock.advance(3 * 3_600)
        await house.recover()

        assert not await house.operations.unfinished()
        assert not any(account.debits_pending for account in await house.store.accounts())
        assert await house.balance_sat() == 0
        await house.assert_whole(home)


@pytest.mark.parametrize("fault", [None, DropBefore(), Fail(500)], ids=str)
async def test_our_mint_may_rotate_its_keys_while_a_foreign_token_is_on_its_way(
    tmp_path: Path, fault: Fault | None
) -> None:
    async with two_mints(tmp_path) as (house, home, foreign):
        if fault is None:
            foreign.faults.next("melt", StaysPending())
        else:
            home.faults.next("mint", fault)
        token = issue(foreign, 100)
        assert isinstance(await house.receive(token), Pending)
        for quote in _hanging(foreign):
            foreign.settle(quote)
        home.rotate(fee_ppk=100)

        await house.recover()

        received = await house.receive(token)
        assert isinstance(received, Received)
        assert home.audit().outstanding["sat"] == await house.custody_sat(home) == 98
        fees = {row.value.fee_ppk for _, row in await house.store.find(PROOF, {"mint": home.url})}
        assert fees == {100}, "the rows know what spending them costs"
        await house.assert_whole(home)


async def test_our_mint_may_rotate_its_keys_right_after_we_have_read_them(tmp_path: Path) -> None:
    async with two_mints(tmp_path) as (house, home, foreign):
        foreign.faults.next("melt", StaysPending())
        token = issue(foreign, 100)
        assert isinstance(await house.receive(token), Pending)
        for quote in _hanging(foreign):
            foreign.settle(quote)
        house.clock.advance(400)
        await house.method.mints.trusted()[0].keysets("sat")
        home.rotate(fee_ppk=100)

        await house.operations.recover()
        (waits,) = await house.operations.unfinished()
        assert waits.state is OperationState.OPEN, "nobody has to look at it"

        await house.recover()
        assert isinstance(await house.receive(token), Received)
        await house.assert_whole(home)


async def test_vague_words_of_our_mint_about_what_it_was_paid_call_nobody(tmp_path: Path) -> None:
    async with two_mints(tmp_path) as (house, home, foreign):
        home.faults.next("mint", DropBefore(), Refuse(11000), Refuse(11000))
        token = issue(foreign, 100)
        assert isinstance(await house.receive(token), Pending)
        for _ in range(3):
            house.clock.advance(400)
            await house.operations.recover()
        assert isinstance(await house.receive(token), Received)
        await house.assert_whole(home)


async def test_what_a_silent_foreign_mint_gives_back_is_asked_for_until_it_tells(
    tmp_path: Path,
) -> None:
    async with two_mints(tmp_path) as (house, home, foreign):
        foreign.faults.next("melt", DropAfter())
        foreign.faults.always("melt_quote_state", Fail(503))
        token = issue(foreign, 100)
        assert isinstance(await house.receive(token), Pending)
        await house.recover()
        assert isinstance(await house.receive(token), Received), "it waits for our mint alone"
        assert not (await house.proofs_sat(foreign))[ProofUse.AVAILABLE]

        foreign.faults.clear()
        await house.recover()

        assert (await house.proofs_sat(foreign))[ProofUse.AVAILABLE] == 1
        assert not await house.operations.unfinished()
        await house.assert_whole(home)


async def test_a_foreign_mint_that_never_tells_is_asked_for_a_day(tmp_path: Path) -> None:
    async with two_mints(tmp_path) as (house, home, foreign):
        foreign.faults.next("melt", DropAfter())
        foreign.faults.always("melt_quote_state", Fail(503))
        assert isinstance(await house.receive(issue(foreign, 100)), Pending)
        await house.recover()
        [asking] = await house.operations.unfinished()
        assert asking.kind == "cashu.leftover"
        house.clock.advance(24 * 3_600)
        await house.operations.recover()
        assert not await house.operations.unfinished()
        await house.assert_whole(home)


async def test_a_foreign_token_that_was_spent_elsewhere_is_refused_within_minutes(
    tmp_path: Path,
) -> None:
    async with two_mints(tmp_path) as (house, home, foreign):
        money = foreign.issue(100)
        spent = [SpentRow(hash_to_curve(one.secret), one.amount, "sat") for one in money.proofs]
        foreign._bank._books.commit(Change(spent=tuple(spent)))
        token = encode_token(money)
        assert isinstance(await house.receive(token), Pending)
        for _ in range(3):
            house.clock.advance(400)
            await house.operations.recover()
        refused = await house.receive(token)
        assert isinstance(refused, Refusal)
        assert refused.code == "token_spent"
        await house.assert_whole(home)


def _hanging(mint: PlayMint) -> list[str]:
    quotes = mint._bank._books.melt_quotes.values()
    return [one.quote for one in quotes if one.state is MeltQuoteState.PENDING]
