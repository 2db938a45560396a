"""A unit happens whole, once per id, or leaves no trace."""

from __future__ import annotations

import asyncio

import pytest

from farebox.ledger.model import (
    ABSENT,
    TIMEOUT_NS_MAX,
    Applied,
    Code,
    Event,
    Guard,
    Hold,
    Kind,
    Mismatch,
    Open,
    Put,
    Refused,
    Replayed,
    SetCeiling,
    Stale,
    Taken,
    Transfer,
    Unit,
    hold_id,
    transient,
)
from farebox.ledger.store import Store
from tests.contract.store.books import (
    COUNTER,
    JOB,
    Backend,
    Job,
    State,
    available,
    balances,
    do,
    fund,
    opens,
)


def pay(amount: int) -> Transfer:
    return Transfer("a", "revenue", amount, "charge")


# ── once per id ──────────────────────────────────────────────────────────────────────────────────


async def test_the_same_unit_again_is_told_what_it_was_told_first(store: Store) -> None:
    await fund(store)
    first = await do(store, "p", pay(10), fingerprint=b"x", reply=b"thanks")
    again = await do(store, "p", pay(10), fingerprint=b"x", reply=b"thanks")
    assert isinstance(first, Applied)
    assert again == Replayed(first)
    assert again.first.reply == b"thanks"
    assert await available(store, "a") == 990


async def test_the_same_id_for_something_else_is_a_mismatch(store: Store) -> None:
    await fund(store)
    await do(store, "p", pay(10), fingerprint=b"x")
    assert await do(store, "p", pay(20), fingerprint=b"y") == Mismatch()
    assert await available(store, "a") == 990


async def test_a_replay_within_one_batch_happens_once(store: Store) -> None:
    await fund(store)
    told = await asyncio.gather(*(do(store, "p", pay(10)) for _ in range(50)))
    assert sum(isinstance(outcome, Applied) for outcome in told) == 1
    assert sum(isinstance(outcome, Replayed) for outcome in told) == 49
    assert await available(store, "a") == 990


async def test_an_id_is_remembered_when_the_book_is_opened_again(backend: Backend) -> None:
    async with backend.open() as store:
        await fund(store)
        first = await do(store, "p", pay(10), reply=b"thanks")
    async with backend.open() as store:
        assert await do(store, "p", pay(10)) == Replayed(first)
        assert await store.outcome("p") == first
        assert (await do(store, "q", pay(1))).seq == first.seq + 1
    backend.verify()


async def test_a_refusal_may_succeed_later_unless_it_is_sticky(store: Store) -> None:
    await fund(store, 5)
    refused = Refused(0, Code.EXCEEDS_CREDITS)
    assert await do(store, "loose", pay(10)) == refused
    assert await do(store, "sticky", pay(10), sticky=True) == refused
    await do(store, "more", Transfer("custody", "a", 100, "deposit"))
    assert isinstance(await do(store, "loose", pay(10)), Applied)
    assert await do(store, "sticky", pay(10), sticky=True) == Replayed(refused)
    assert await store.outcome("sticky") == refused
    assert await available(store, "a") == 95


async def test_a_sticky_refusal_of_a_new_input_is_a_mismatch(store: Store) -> None:
    await fund(store, 5)
    await do(store, "k", pay(10), sticky=True, fingerprint=b"1")
    assert await do(store, "k", pay(1), sticky=True, fingerprint=b"2") == Mismatch()


async def test_what_nobody_committed_has_no_outcome(store: Store) -> None:
    await fund(store, 5)
    await do(store, "refused", pay(10))
    assert await store.outcome("refused") is None
    assert await store.outcome("never") is None


# ── precedence ───────────────────────────────────────────────────────────────────────────────────


async def test_a_known_id_comes_before_rows_and_rows_before_steps(store: Store) -> None:
    await fund(store)
    put = Put(JOB, "j", Job(), ABSENT)
    await do(store, "first", puts=(put,))
    guard = Guard(JOB, "j", 7)
    assert isinstance(await do(store, "first", pay(9_999), puts=(put,)), Replayed)
    bad = pay(9_999)
    assert await do(store, "x", bad, puts=(put,), guards=(guard,)) == Taken("test.job", "j")
    assert await do(store, "x", bad, guards=(guard,)) == Stale("test.job", "j")
    assert await do(store, "x", bad) == Refused(0, Code.EXCEEDS_CREDITS)


STEPS = [
    (Transfer("a", "a", -1, "x"), Code.AMOUNT_OUT_OF_RANGE),
    (Transfer("a", "revenue", 2**127, "x"), Code.AMOUNT_OUT_OF_RANGE),
    (Hold("a", "revenue", -1, "x"), Code.AMOUNT_OUT_OF_RANGE),
    (Transfer("nobody", "nobody", 1, "x"), Code.ACCOUNTS_MUST_BE_DIFFERENT),
    (Transfer("nobody", "no one", 1, "x"), Code.DEBIT_ACCOUNT_NOT_FOUND),
    (Transfer("a", "no one", 1, "x"), Code.CREDIT_ACCOUNT_NOT_FOUND),
    (Transfer("a", "dollars", 9_999, "x"), Code.ACCOUNTS_MUST_HAVE_THE_SAME_ASSET),
    (Transfer("custody", "a", 2**127 - 1, "x"), Code.OVERFLOWS_ACCOUNT),
    (Transfer("a", "custody", 1_001, "x"), Code.EXCEEDS_CREDITS),
    (Transfer("revenue", "custody", 1, "x"), Code.EXCEEDS_CREDITS),
    (Transfer("suspense", "custody", 1_001, "x"), Code.EXCEEDS_DEBITS),
    (Open("a", "USD", Kind.ESCROW), Code.EXISTS_WITH_DIFFERENT_ASSET),
    (Open("a", "BTC", Kind.ESCROW), Code.EXISTS_WITH_DIFFERENT_KIND),
    (SetCeiling("nobody", 1), Code.ACCOUNT_NOT_FOUND),
    (SetCeiling("a", 1), Code.CEILING_NOT_ALLOWED),
    (SetCeiling("custody", -1), Code.AMOUNT_OUT_OF_RANGE),
]


@pytest.mark.parametrize(("step", "code"), STEPS, ids=lambda value: str(value)[:60])
async def test_the_first_reason_that_applies_is_the_one_told(
    store: Store, step: Transfer, code: Code
) -> None:
    await fund(store)
    others = (Open("dollars", "USD", Kind.CUSTOMER), Open("suspense", "BTC", Kind.SUSPENSE))
    await do(store, "others", *others)
    assert await do(store, "x", step) == Refused(0, code)


async def test_an_equal_account_may_be_opened_again(store: Store) -> None:
    await fund(store)
    assert isinstance(await do(store, "again", *opens()), Applied)
    assert await available(store, "a") == 1_000


def test_every_code_says_whether_it_may_succeed_on_retry() -> None:
    passing = {code for code in Code if transient(code)}
    assert Code.EXCEEDS_CREDITS in passing
    assert Code.PENDING_TRANSFER_NOT_FOUND in passing
    assert Code.PENDING_TRANSFER_EXPIRED not in passing
    assert Code.AMOUNT_OUT_OF_RANGE not in passing


# ── whole or not at all ──────────────────────────────────────────────────────────────────────────


async def test_linked_steps_succeed_or_fail_together(store: Store) -> None:
    await fund(store)
    told = await do(store, "l", pay(10), Hold("a", "b", 5, "x"), pay(10_000))
    assert told == Refused(2, Code.EXCEEDS_CREDITS)
    assert await balances(store, "a") == (0, 0, 0, 1_000)
    told = await do(store, "l", pay(10), Hold("a", "b", 5, "x"), pay(20))
    assert told.amounts == (10, 5, 20)
    assert await balances(store, "a") == (5, 30, 0, 1_000)


async def test_a_step_sees_what_the_steps_before_it_did(store: Store) -> None:
    told = await do(
        store,
        "chain",
        *opens(),
        Transfer("custody", "a", 10, "x"),
        Transfer("a", "b", 10, "x"),
        Transfer("b", "revenue", 10, "x"),
    )
    assert isinstance(told, Applied)
    assert await balances(store, "b") == (0, 10, 0, 10)


async def test_a_refused_unit_leaves_no_trace_and_its_neighbours_do_not_notice(
    store: Store,
) -> None:
    await fund(store)
    doomed = (
        Unit(
            f"bad:{number}",
            (Open(f"ghost:{number}", "BTC", Kind.CUSTOMER), pay(1), pay(10_000)),
            (Put(JOB, f"ghost:{number}", Job(), ABSENT),),
            events=(Event("ghost", "x"),),
        )
        for number in range(20)
    )
    fine = (Unit(f"good:{number}", (pay(1),)) for number in range(20))
    pairs = zip(doomed, fine, strict=True)
    told = await asyncio.gather(*(store.commit(unit) for pair in pairs for unit in pair))
    assert told[::2] == [Refused(2, Code.EXCEEDS_CREDITS)] * 20
    seqs = [outcome.seq for outcome in told[1::2] if isinstance(outcome, Applied)]
    assert seqs == list(range(2, 22))
    assert await available(store, "a") == 980
    assert await store.account("ghost:0") is None
    assert await store.get(JOB, "ghost:0") is None
    assert await store.events() == []


async def test_units_of_one_batch_are_decided_in_order(store: Store) -> None:
    await fund(store, 100)
    told = await asyncio.gather(*(do(store, f"p:{n}", pay(30)) for n in range(5)))
    assert [type(outcome) for outcome in told] == [Applied] * 3 + [Refused] * 2


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_row_that_had_to_be_absent_is_taken_once(store: Store) -> None:
    puts = [(Put(JOB, "j", Job(count=n), ABSENT),) for n in range(10)]
    told = await asyncio.gather(*(do(store, f"c:{n}", puts=put) for n, put in enumerate(puts)))
    assert isinstance(told[0], Applied)
    assert told[1:] == [Taken("test.job", "j")] * 9
    row = await store.get(JOB, "j")
    assert row is not None
    assert (row.value.count, row.version) == (0, 1)


async def test_a_row_is_written_only_at_the_version_it_was_read_at(store: Store) -> None:
    await do(store, "1", puts=(Put(JOB, "j", Job(count=1), ABSENT),))
    assert isinstance(await do(store, "2", puts=(Put(JOB, "j", Job(count=2), 1),)), Applied)
    assert await do(store, "3", puts=(Put(JOB, "j", Job(count=3), 1),)) == Stale("test.job", "j")
    assert await do(store, "4", puts=(Put(JOB, "k", Job(), 1),)) == Stale("test.job", "k")
    row = await store.get(JOB, "j")
    assert row is not None
    assert (row.value.count, row.version) == (2, 2)


async def test_a_row_that_was_read_must_not_have_changed(store: Store) -> None:
    await do(store, "1", puts=(Put(JOB, "j", Job(), ABSENT),))
    absent = Guard(COUNTER, "j", ABSENT)
    assert isinstance(await do(store, "2", guards=(Guard(JOB, "j", 1), absent)), Applied)
    await do(store, "3", puts=(Put(JOB, "j", Job(), 1), Put(COUNTER, "j", Job(), ABSENT)))
    assert await do(store, "4", guards=(Guard(JOB, "j", 1),)) == Stale("test.job", "j")
    assert await do(store, "5", guards=(absent,)) == Stale("test.counter", "j")


async def test_stale_is_never_stored_even_for_a_sticky_unit(store: Store) -> None:
    stale = (Put(JOB, "j", Job(), 1),)
    assert await do(store, "s", puts=stale, sticky=True) == Stale("test.job", "j")
    assert await store.outcome("s") is None
    await do(store, "1", puts=(Put(JOB, "j", Job(), ABSENT),))
    assert isinstance(await do(store, "s", puts=stale, sticky=True), Applied)


async def test_money_and_rows_of_one_unit_go_together(store: Store) -> None:
    await fund(store, 5)
    put = (Put(JOB, "j", Job(state=State.DONE), ABSENT),)
    assert isinstance(await do(store, "x", pay(10), puts=put), Refused)
    assert await store.get(JOB, "j") is None
    assert await do(store, "y", pay(5), puts=(Put(JOB, "j", Job(), 3),)) == Stale("test.job", "j")
    assert await available(store, "a") == 5


# ── programming errors ───────────────────────────────────────────────────────────────────────────

WRONG = [
    Unit(""),
    Unit("expire:x/0"),
    Unit("twice", puts=(Put(JOB, "j", Job(), 0), Put(JOB, "j", Job(count=2), 0))),
    Unit("event", events=(Event("e", "s", {}, {"amount": 0}),)),
    Unit("timeout", (Hold("a", "b", 1, "x", -1),)),
    Unit("for ever", (Hold("a", "b", 1, "x", TIMEOUT_NS_MAX + 1),)),
]


@pytest.mark.parametrize("unit", WRONG, ids=lambda unit: unit.id or "empty")
async def test_a_unit_that_no_correct_program_makes_is_its_callers_error(
    store: Store, unit: Unit
) -> None:
    with pytest.raises(ValueError, match="unit"):
        await store.commit(unit)


async def test_a_unit_that_cannot_be_stored_fails_alone(store: Store) -> None:
    await fund(store)
    bad = Unit("bad", (pay(1),), (Put(JOB, "j", Job(due_at=2**70), ABSENT),))
    good = [Unit(f"good:{n}", (pay(1),)) for n in range(40)]
    told = await asyncio.gather(
        *(store.commit(unit) for unit in [*good[:20], bad, *good[20:]]), return_exceptions=True
    )
    assert isinstance(told[20], Exception)
    assert all(isinstance(outcome, Applied) for outcome in told[:20] + told[21:])
    assert await available(store, "a") == 960
    assert await store.get(JOB, "j") is None


def test_hold_ids_of_different_units_never_meet() -> None:
    assert hold_id("a", 1) != hold_id("a/1", 0)
