"""Many units in one call: one transaction, and an outcome for each."""

from __future__ import annotations

import asyncio
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from farebox.clock import ManualClock
from farebox.errors import OutcomeUnknown, StoreError
from farebox.ledger.model import (
    ABSENT,
    Applied,
    Balancing,
    Code,
    Event,
    Kind,
    Mismatch,
    Open,
    Outcome,
    Put,
    Refused,
    Replayed,
    Stale,
    Transfer,
    Unit,
    transient,
)
from farebox.ledger.service import Ledger
from farebox.ledger.store import UNITS_MAX, Store
from tests.contract.store.books import JOB, Backend, Job, available, balances, fund

PAGE = (Path(__file__).parents[3] / "docs" / "ledger.md").read_text()


def pay(amount: int) -> Transfer:
    return Transfer("a", "b", amount, "payout")


def payouts(count: int, amount: int = 1) -> dict[str, Transfer]:
    return {f"payout:{number}": pay(amount) for number in range(count)}


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return Ledger(store, ManualClock())


async def test_a_thousand_transfers_are_one_commit_in_their_order(
    store: Store, ledger: Ledger
) -> None:
    await fund(store)
    asked = payouts(UNITS_MAX)
    told = await ledger.post_many(asked)
    assert list(told) == list(asked)
    applied = [outcome for outcome in told.values() if isinstance(outcome, Applied)]
    assert [outcome.seq for outcome in applied] == list(range(2, UNITS_MAX + 2))
    assert len({outcome.at for outcome in applied}) == 1
    assert await balances(store, "b") == (0, 0, 0, UNITS_MAX)


async def test_each_is_made_or_refused_for_itself(store: Store, ledger: Ledger) -> None:
    await fund(store, 100)
    told = await ledger.post_many(
        {
            "1": pay(60),
            "too much": pay(60),
            "2": pay(40),
            "to nobody": Transfer("b", "nobody", 1, "payout"),
            "what came just now": Transfer("b", "revenue", 100, "payout"),
            "nothing is left": pay(1),
        }
    )
    assert [type(outcome) for outcome in told.values()] == [
        Applied,
        Refused,
        Applied,
        Refused,
        Applied,
        Refused,
    ]
    assert told["too much"] == Refused(0, Code.EXCEEDS_CREDITS)
    assert told["to nobody"] == Refused(0, Code.CREDIT_ACCOUNT_NOT_FOUND)
    assert await available(store, "revenue") == 100
    assert await store.outcome("too much") is None


async def test_the_same_call_again_moves_only_what_was_refused(
    store: Store, ledger: Ledger
) -> None:
    await fund(store, 150)
    asked = payouts(5, 50)
    first = await ledger.post_many(asked)
    assert [type(outcome) for outcome in first.values()] == [Applied] * 3 + [Refused] * 2
    await store.commit(Unit("more", (Transfer("custody", "a", 1_000, "deposit"),)))
    again = await ledger.post_many(asked)
    made = [told for told in first.values() if isinstance(told, Applied)]
    assert list(again.values())[:3] == [Replayed(told) for told in made]
    assert [type(outcome) for outcome in list(again.values())[3:]] == [Applied] * 2
    assert await available(store, "b") == 250


@pytest.mark.parametrize(
    "other",
    [
        Transfer("a", "b", 2**126, "payout"),
        Transfer("a", "b", 5, "refund"),
        Transfer("a", "revenue", 5, "payout"),
        Transfer("b", "a", 5, "payout"),
        Transfer("a", "b", 5, "payout", Balancing.DEBIT),
    ],
)
async def test_an_id_is_good_for_one_transfer_only(
    store: Store, ledger: Ledger, other: Transfer
) -> None:
    await fund(store)
    await ledger.post_many({"p": pay(5)})
    assert await ledger.post_many({"p": other, "q": pay(5)}) == {
        "p": Mismatch(),
        "q": await store.outcome("q"),
    }
    assert await available(store, "b") == 10


async def test_units_of_any_kind_go_together_and_an_id_twice_is_a_replay(store: Store) -> None:
    await fund(store)
    put = Put(JOB, "j", Job(), ABSENT)
    units = [
        Unit("row", (pay(1),), (put,), events=(Event("paid", "a", {}, {"amount": 0}),)),
        Unit("row", (pay(1),), (put,)),
        Unit("stale", (pay(1),), (Put(JOB, "j", Job(), 7),)),
        Unit("no", (pay(1), pay(10_000)), (Put(JOB, "k", Job(), ABSENT),), sticky=True),
    ]
    told = await store.commit_many(units)
    assert list(told[1:]) == [
        Replayed(told[0]) if isinstance(told[0], Applied) else None,
        Stale("test.job", "j"),
        Refused(1, Code.EXCEEDS_CREDITS),
    ]
    assert await store.outcome("no") == told[3]
    assert await store.get(JOB, "k") is None
    assert [event.data for event in await store.events()] == [{"amount": 1}]
    assert await available(store, "a") == 999


async def test_calls_large_and_small_do_not_mix_up_their_answers(store: Store) -> None:
    """More than one transaction holds, so that calls must be parted between some of them."""
    await fund(store, 10**7)
    sizes = [1, 700, 2, 400, UNITS_MAX, 1, 1, 999, 5]

    async def call(number: int, size: int) -> Sequence[Outcome]:
        units = [Unit(f"{number}:{n}", (pay(n + 1),)) for n in range(size)]
        if size == 1:
            return [await store.commit(units[0])]
        return await store.commit_many(units)

    told = await asyncio.gather(*(call(number, size) for number, size in enumerate(sizes)))
    for size, outcomes in zip(sizes, told, strict=True):
        applied = [outcome for outcome in outcomes if isinstance(outcome, Applied)]
        assert [outcome.amounts for outcome in applied] == [(n + 1,) for n in range(size)]
        assert len({outcome.at for outcome in applied}) == 1
    seqs = [
        outcome.seq for outcomes in told for outcome in outcomes if isinstance(outcome, Applied)
    ]
    assert seqs == list(range(2, sum(sizes) + 2))


@pytest.mark.parametrize("count", [0, UNITS_MAX + 1])
async def test_more_than_one_commit_holds_is_refused_before_anything_is_done(
    store: Store, ledger: Ledger, count: int
) -> None:
    await fund(store)
    with pytest.raises(ValueError, match=f"1 to {UNITS_MAX}"):
        await ledger.post_many(payouts(count))
    assert await available(store, "b") == 0


async def test_one_unit_that_no_correct_program_makes_stops_the_whole_call(
    store: Store, ledger: Ledger
) -> None:
    await fund(store)
    with pytest.raises(ValueError, match="reserved"):
        await ledger.post_many({"good": pay(1), "expire:x": pay(1)})
    assert await store.outcome("good") is None


async def test_a_call_that_cannot_be_stored_fails_whole_and_alone(store: Store) -> None:
    await fund(store)
    bad = [Unit("bad:1", (pay(1),)), Unit("bad:2", puts=(Put(JOB, "j", Job(due_at=2**70), 0),))]
    good = [[Unit(f"good:{n}:{m}", (pay(1),)) for m in range(10)] for n in range(4)]
    told: list[Any] = await asyncio.gather(
        *(store.commit_many(units) for units in [*good[:2], bad, *good[2:]]),
        return_exceptions=True,
    )
    assert isinstance(told[2], StoreError)
    assert not isinstance(told[2], OutcomeUnknown)
    assert {type(outcome) for outcomes in told[:2] + told[3:] for outcome in outcomes} == {Applied}
    assert await store.outcome("bad:1") is None
    assert await available(store, "b") == 40


async def test_a_crash_leaves_all_of_a_call_or_nothing(backend: Backend) -> None:
    async with backend.open() as store:
        await fund(store)
        told = asyncio.create_task(Ledger(store, ManualClock()).post_many(payouts(300)))
        await asyncio.sleep(0)
        backend.crash()
        await asyncio.gather(told, return_exceptions=True)
    async with backend.open() as store:
        assert await available(store, "b") in {0, 300}
        again = await Ledger(store, ManualClock()).post_many(payouts(300))
        assert len({type(outcome) for outcome in again.values()}) == 1
        assert await available(store, "b") == 300
    backend.verify()


async def test_the_payouts_of_the_page_are_paid_as_far_as_there_is_money(
    store: Store, ledger: Ledger
) -> None:
    names = ("customer:shop", "customer:ann", "customer:bob")
    await store.commit(
        Unit(
            "open",
            (
                Open("custody", "BTC", Kind.CUSTODY),
                *(Open(name, "BTC", Kind.CUSTOMER) for name in names),
                Transfer("custody", "customer:shop", 70_000, "deposit"),
            ),
        )
    )
    example = re.findall(r"(?s)```python\n(.*?)```", PAGE)
    assert len(example) == 1
    work: dict[str, Any] = {
        "ledger": ledger,
        "paid": [],
        "later": [],
        "wrong": [],
        "transient": transient,
        "Transfer": Transfer,
        "Applied": Applied,
        "Replayed": Replayed,
        "Refused": Refused,
    }
    exec(f"async def example():\n{textwrap.indent(example[0], '    ')}", work)
    await work["example"]()
    await work["example"]()  # as after an answer that was lost
    assert work["paid"] == ["payout:may:ann", "payout:may:cid"] * 2
    assert work["later"] == ["payout:may:bob"] * 2
    assert work["wrong"] == []
    assert await available(store, "customer:shop") == 0
