"""Holds, time, limits, balancing transfers and large amounts."""

from __future__ import annotations

from typing import Any

import pytest

from farebox.clock import NS_PER_S, ManualClock
from farebox.ids import new_id
from farebox.ledger.model import (
    Applied,
    Balancing,
    Code,
    Event,
    Hold,
    Kind,
    Open,
    Post,
    Refused,
    SetCeiling,
    Step,
    Transfer,
    Unit,
    Void,
)
from farebox.ledger.store import Store
from farebox.money import AMOUNT_END
from tests.contract.store.books import Backend, available, balances, do, fund, opens

SECOND = NS_PER_S


def hold(amount: int, timeout_s: int = 0) -> Hold:
    return Hold("a", "revenue", amount, "request", timeout_s * SECOND)


# ── two phases ───────────────────────────────────────────────────────────────────────────────────


async def test_a_hold_reserves_and_a_post_takes_all_or_part(store: Store) -> None:
    await fund(store)
    await do(store, "h", hold(300), hold(100))
    assert await balances(store, "a") == (400, 0, 0, 1_000)
    assert await balances(store, "revenue") == (0, 0, 400, 0)
    assert (await do(store, "p", Post("h/0", 120))).amounts == (120,)
    assert (await do(store, "q", Post("h/1"))).amounts == (100,)
    assert await balances(store, "a") == (0, 220, 0, 1_000)
    assert await balances(store, "revenue") == (0, 0, 0, 220)


async def test_a_void_releases_and_so_does_posting_nothing(store: Store) -> None:
    await fund(store)
    await do(store, "h", hold(300), hold(100))
    assert (await do(store, "v", Void("h/0"), Post("h/1", 0))).amounts == (0, 0)
    assert await balances(store, "a") == (0, 0, 0, 1_000)


RESOLUTIONS: dict[str, tuple[Step, Code]] = {
    "post": (Post("h/0", 1), Code.PENDING_TRANSFER_ALREADY_POSTED),
    "void": (Void("h/0"), Code.PENDING_TRANSFER_ALREADY_VOIDED),
}


@pytest.mark.parametrize("first", RESOLUTIONS)
@pytest.mark.parametrize("second", RESOLUTIONS)
async def test_a_hold_is_resolved_at_most_once(store: Store, first: str, second: str) -> None:
    await fund(store)
    await do(store, "h", hold(300))
    step, code = RESOLUTIONS[first]
    assert isinstance(await do(store, "1", step), Applied)
    assert await do(store, "2", RESOLUTIONS[second][0]) == Refused(0, code)
    assert await do(store, "h2", hold(10), Post("h2/0"), Void("h2/0")) == Refused(
        2, Code.PENDING_TRANSFER_ALREADY_POSTED
    )


async def test_no_more_is_taken_than_was_held(store: Store) -> None:
    await fund(store)
    await do(store, "h", hold(300))
    too_much = Code.EXCEEDS_PENDING_TRANSFER_AMOUNT
    assert await do(store, "p", Post("h/0", 301)) == Refused(0, too_much)
    assert await do(store, "n", Post("h/0", -1)) == Refused(0, Code.AMOUNT_OUT_OF_RANGE)
    assert await do(store, "u", Post("x/0")) == Refused(0, Code.PENDING_TRANSFER_NOT_FOUND)


async def test_what_is_held_cannot_be_spent_and_is_not_yet_anybodys(store: Store) -> None:
    await fund(store, 100)
    await do(store, "h", Hold("a", "b", 80, "x"))
    assert await do(store, "1", hold(21)) == Refused(0, Code.EXCEEDS_CREDITS)
    assert await available(store, "b") == 0
    assert await do(store, "2", Transfer("b", "a", 1, "x")) == Refused(0, Code.EXCEEDS_CREDITS)


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_hold_that_is_due_expires_before_its_accounts_are_touched(
    store: Store, clock: ManualClock
) -> None:
    await fund(store, 100)
    clock.advance(1)
    await do(store, "h", hold(80, timeout_s=10))
    clock.advance(9)
    assert await do(store, "early", hold(80)) == Refused(0, Code.EXCEEDS_CREDITS)
    clock.advance(1)
    assert isinstance(await do(store, "now", hold(80)), Applied)
    assert await do(store, "late", Post("h/0")) == Refused(0, Code.PENDING_TRANSFER_EXPIRED)
    assert await do(store, "void", Void("h/0")) == Refused(0, Code.PENDING_TRANSFER_EXPIRED)


async def test_a_post_just_before_the_time_and_not_at_it(store: Store, clock: ManualClock) -> None:
    await fund(store, 100)
    clock.advance(1)
    await do(store, "h", hold(10, timeout_s=10), hold(10, timeout_s=10))
    clock.advance(9)
    assert isinstance(await do(store, "in time", Post("h/0")), Applied)
    clock.advance(1)
    expired = Refused(0, Code.PENDING_TRANSFER_EXPIRED)
    assert await do(store, "too late", Post("h/1")) == expired
    assert await balances(store, "a") == (0, 10, 0, 100)


async def test_the_credited_side_releases_as_well(store: Store, clock: ManualClock) -> None:
    """A hold towards custody frees what it reserved when only custody is touched."""
    await fund(store, 100)
    await do(store, "h", Hold("a", "custody", 100, "refund", 5 * SECOND))
    clock.advance(6)
    await do(store, "s", SetCeiling("custody", 500))
    assert await balances(store, "a") == (0, 0, 0, 100)


async def test_due_holds_of_untouched_accounts_wait_for_the_sweep(
    store: Store, clock: ManualClock
) -> None:
    await fund(store, 100)
    await do(store, "h", *(hold(1, timeout_s=5) for _ in range(30)), hold(1))
    clock.advance(6)
    assert await available(store, "a") == 69
    assert await store.expire_due() == 30
    assert await store.expire_due() == 0
    assert await balances(store, "a") == (1, 0, 0, 100)
    assert isinstance(await do(store, "p", Post("h/30")), Applied)


@pytest.mark.parametrize("ahead_s", [3_600, 400 * 86_400])
async def test_time_stands_never_still_after_the_clock_was_ahead(
    store: Store, clock: ManualClock, ahead_s: int
) -> None:
    """It runs at half the clock's speed until the two meet: time-outs take twice as long."""
    clock.jump(ahead_s)
    await fund(store, 100)
    clock.jump(-ahead_s)
    await do(store, "h", hold(80, timeout_s=100), hold(20))
    for _ in range(19):
        clock.advance(10)
        assert await store.expire_due() == 0
        assert isinstance(await do(store, new_id("still"), SetCeiling("custody", 500)), Applied)
    assert await available(store, "a") == 0
    clock.advance(20)
    assert await store.expire_due() == 1
    assert await available(store, "a") == 80


async def test_time_is_the_clocks_once_the_clock_is_no_more_behind(
    store: Store, clock: ManualClock
) -> None:
    clock.jump(100)
    await fund(store, 100)
    clock.jump(-100)
    await do(store, "one", SetCeiling("custody", 500))
    for _ in range(5):
        clock.advance(50)
        await do(store, new_id("later"), SetCeiling("custody", 500))
    last = (await store.commit(Unit("last"))).at  # type: ignore[union-attr]
    assert abs(last - clock.now_ns()) < SECOND


async def test_time_never_goes_back_when_the_clock_does(store: Store, clock: ManualClock) -> None:
    await fund(store, 100)
    first = await do(store, "h", hold(10, timeout_s=10))
    clock.jump(-3_600)
    second = await do(store, "i", hold(10, timeout_s=10))
    third = await do(store, "j", hold(10))
    assert first.at < second.at < third.at
    clock.advance(19)
    assert await do(store, "p", Post("h/0")) != Refused(0, Code.PENDING_TRANSFER_EXPIRED)
    clock.advance(2)
    assert await store.expire_due() == 1


async def test_time_never_goes_back_across_a_restart(backend: Backend, clock: ManualClock) -> None:
    async with backend.open(clock) as store:
        await fund(store)
        first = await do(store, "h", hold(10))
    clock.advance(-86_400)
    async with backend.open(clock) as store:
        assert (await do(store, "i", hold(10))).at > first.at
    backend.verify()


# ── limits ───────────────────────────────────────────────────────────────────────────────────────


async def test_custody_holds_no_more_than_its_ceiling_pending_included(store: Store) -> None:
    await do(store, "o", *opens(), SetCeiling("custody", 100))
    assert isinstance(await do(store, "1", Hold("custody", "a", 60, "deposit")), Applied)
    full = Refused(0, Code.EXCEEDS_CEILING)
    assert await do(store, "2", Transfer("custody", "a", 41, "deposit")) == full
    assert isinstance(await do(store, "3", Transfer("custody", "a", 40, "deposit")), Applied)
    assert isinstance(await do(store, "4", Post("1/0")), Applied)
    assert await do(store, "5", Transfer("custody", "b", 1, "deposit")) == full
    assert isinstance(await do(store, "6", Transfer("a", "custody", 30, "refund")), Applied)
    assert isinstance(await do(store, "7", Transfer("custody", "b", 30, "deposit")), Applied)


async def test_money_on_its_way_out_makes_no_room_before_it_has_left(store: Store) -> None:
    await do(store, "o", *opens(), SetCeiling("custody", 100))
    await do(store, "in", Transfer("custody", "a", 100, "deposit"))
    await do(store, "out", Hold("a", "custody", 50, "refund"))
    full = Refused(0, Code.EXCEEDS_CEILING)
    assert await do(store, "1", Transfer("custody", "b", 1, "deposit")) == full
    await do(store, "done", Post("out/0", 20))
    assert await do(store, "2", Transfer("custody", "b", 21, "deposit")) == full
    assert isinstance(await do(store, "3", Transfer("custody", "b", 20, "deposit")), Applied)


async def test_a_lower_ceiling_lets_stay_what_is_there(store: Store) -> None:
    await fund(store, 100)
    await do(store, "in", Hold("custody", "b", 50, "deposit"))
    await do(store, "low", SetCeiling("custody", 10))
    assert isinstance(await do(store, "p", Post("in/0")), Applied)
    full = Refused(0, Code.EXCEEDS_CEILING)
    assert await do(store, "1", Transfer("custody", "a", 1, "deposit")) == full
    assert isinstance(await do(store, "out", Transfer("a", "custody", 5, "refund")), Applied)
    await do(store, "lift", SetCeiling("custody", None))
    assert isinstance(await do(store, "1", Transfer("custody", "a", 1, "deposit")), Applied)


async def test_a_receivable_is_a_credit_limit(store: Store) -> None:
    await do(store, "o", *opens(), Open("owed", "BTC", Kind.RECEIVABLE), SetCeiling("owed", 50))
    assert isinstance(await do(store, "1", Transfer("owed", "a", 50, "voucher")), Applied)
    full = Refused(0, Code.EXCEEDS_CEILING)
    assert await do(store, "2", Transfer("owed", "a", 1, "voucher")) == full
    assert isinstance(await do(store, "3", Transfer("custody", "owed", 50, "claim")), Applied)


async def test_clearing_has_no_limit_on_either_side(store: Store) -> None:
    await do(store, "o", *opens(), Open("clearing", "BTC", Kind.CLEARING))
    assert isinstance(await do(store, "1", Transfer("clearing", "a", 50, "x")), Applied)
    assert isinstance(await do(store, "2", Transfer("a", "clearing", 50, "x")), Applied)


# ── balancing ────────────────────────────────────────────────────────────────────────────────────


async def test_a_balancing_debit_moves_what_can_be_spent(store: Store) -> None:
    await fund(store, 100)
    await do(store, "h", hold(30))

    def all_of(most: int) -> Transfer:
        return Transfer("a", "b", most, "x", Balancing.DEBIT)

    assert (await do(store, "1", all_of(50))).amounts == (50,)
    assert (await do(store, "2", all_of(50))).amounts == (20,)
    assert (await do(store, "3", all_of(50))).amounts == (0,)


async def test_a_balancing_credit_moves_what_is_held(store: Store) -> None:
    await fund(store, 100)
    await do(store, "p", Transfer("a", "revenue", 100, "charge"))
    await do(store, "h", Hold("revenue", "custody", 30, "withdrawal"))
    await do(store, "o", Open("suspense", "BTC", Kind.SUSPENSE))
    step = Transfer("suspense", "custody", 10**6, "x", Balancing.CREDIT)
    assert (await do(store, "1", step)).amounts == (70,)
    assert (await do(store, "2", step)).amounts == (0,)


# ── large amounts ────────────────────────────────────────────────────────────────────────────────

WEI = 123_456_789 * 10**18 + 7


async def test_wei_is_exact_beyond_64_bits(backend: Backend) -> None:
    async with backend.open() as store:
        await do(store, "o", *opens("ETH"), SetCeiling("custody", 2 * WEI))
        steps = (Transfer("custody", "a", WEI, "deposit"), Hold("a", "revenue", WEI - 1, "x"))
        events = (Event("deposited", "a", {}, {"amount_wei": 0}),)
        assert (await do(store, "in", *steps, events=events)).amounts == (WEI, WEI - 1)
    async with backend.open() as store:
        assert await balances(store, "a") == (WEI - 1, 0, 0, WEI)
        assert (await do(store, "p", Post("in/1", WEI - 2))).amounts == (WEI - 2,)
        assert (await store.events())[0].data == {"amount_wei": WEI}
        custody = await store.account("custody")
        assert custody is not None
        assert custody.ceiling == 2 * WEI
        outcome = await store.outcome("in")
        assert isinstance(outcome, Applied)
        assert outcome.amounts == (WEI, WEI - 1)
    backend.verify()


async def test_an_account_that_would_overflow_is_refused(store: Store) -> None:
    await fund(store, AMOUNT_END - 1)
    overflow = Refused(0, Code.OVERFLOWS_ACCOUNT)
    assert await do(store, "1", Transfer("custody", "b", 1, "x")) == overflow
    await do(store, "o", Open("other", "BTC", Kind.CUSTODY))
    assert await do(store, "2", Transfer("other", "a", 1, "x")) == overflow
    assert await do(store, "3", Hold("other", "a", 1, "x")) == overflow
    assert isinstance(await do(store, "4", Transfer("other", "b", 1, "x")), Applied)


async def test_moving_nothing_is_allowed(store: Store) -> None:
    await fund(store, 0)
    told: Any = await store.commit(Unit("0", (hold(0), Post("0/0"), Transfer("a", "b", 0, "x"))))
    assert told.amounts == (0, 0, 0)
