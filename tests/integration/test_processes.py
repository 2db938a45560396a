"""What several processes on one book owe each other: nothing is done twice, nothing left lying."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.ledger.model import Applied, Hold, hold_id
from farebox.ledger.processes import BEAT_EVERY_S, LAPSE_BEATS
from farebox.payments.model import (
    Changes,
    Operation,
    OperationState,
    Rejected,
    Succeeded,
    Unresolved,
    Verdict,
)
from farebox.paywall.model import REQUEST, Admission, Ended, KeyPresented, Request, RequestState
from farebox.pricing.request import read_request
from farebox.pricing.usage import Usage
from farebox.worker import Duty
from tests.integration.processes_world import SHARED, House, World, shared_world
from tests.integration.whole_house import CHAT
from tests.waiting import WAIT_S

FACTS = read_request("POST", "/v1/echo", None)
METERED = read_request("POST", "/v1/chat/completions", json.dumps(CHAT).encode())
PRICE_MSAT = 10_000
FUNDED_MSAT = 1_000_000


@pytest.fixture(params=sorted(SHARED))
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    shared = SHARED[request.param](request, tmp_path)
    async with shared_world(shared, tmp_path) as made:
        yield made


async def admitted(house: House, secret: str, *, metered: bool = False) -> Admission:
    facts = METERED if metered else FACTS
    admission = await house.farebox.paywall.authorise(KeyPresented(secret), facts)
    assert isinstance(admission, Admission)
    return admission


async def stored(world: World, admission: Admission) -> Request:
    row = await world.store.get(REQUEST, admission.request_id)
    assert row is not None
    return row.value


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_of_a_living_process_is_left_to_it(world: World) -> None:
    a, b = await world.house(), await world.house()
    key = await world.key(a)
    admission = await admitted(a, key.secret)
    await world.beats(a, b)
    b.clock.advance(86_400)  # another machine's clock is no reason
    await world.beats(a, b)
    b.clock.advance(-2 * 86_400)
    assert await b.farebox.paywall.recover() == 0
    await a.farebox.paywall.settle(admission, Usage(), Ended.COMPLETE)
    assert await world.available(key.key.account) == (FUNDED_MSAT - PRICE_MSAT, 0)


async def test_a_killed_processs_request_is_settled_once_it_has_lapsed(world: World) -> None:
    a, b = await world.house(), await world.house()
    key = await world.key(a)
    admission = await admitted(a, key.secret, metered=True)
    await a.farebox.paywall.checkpoint(admission, Usage(output_tokens=7))
    a.kill()
    await world.beats(b, times=LAPSE_BEATS)
    assert await b.farebox.paywall.recover() == 0, "not yet"
    await world.beats(b, times=1)
    assert await b.farebox.paywall.recover() == 1
    assert (await stored(world, admission)).ended == Ended.CRASHED
    assert await world.available(key.key.account) == (FUNDED_MSAT - 7_000, 0)


async def test_who_stops_in_good_order_leaves_nobody_waiting(world: World) -> None:
    a, b = await world.house(), await world.house()
    key = await world.key(a)
    await admitted(a, key.secret)
    await a.farebox.processes.stop()
    assert await b.farebox.paywall.recover() == 1
    assert await world.available(key.key.account) == (FUNDED_MSAT, 0)


async def test_of_many_who_recover_at_once_one_settles(world: World) -> None:
    a, b, c = await world.house(), await world.house(), await world.house()
    key = await world.key(a)
    for _ in range(10):
        admission = await admitted(a, key.secret, metered=True)
        await a.farebox.paywall.checkpoint(admission, Usage(output_tokens=3))
    a.kill()
    await world.beats(b, c)
    await asyncio.gather(*(house.farebox.paywall.recover() for house in (b, c, b, c)))
    assert await world.available(key.key.account) == (FUNDED_MSAT - 10 * 3_000, 0)


async def test_a_process_that_was_paused_too_long_loses_cleanly(world: World) -> None:
    a, b = await world.house(), await world.house()
    key = await world.key(a)
    admission = await admitted(a, key.secret, metered=True)
    await a.farebox.paywall.checkpoint(admission, Usage(output_tokens=5))
    a.line.hold()
    late = asyncio.create_task(
        a.farebox.paywall.settle(admission, Usage(output_tokens=20), Ended.COMPLETE)
    )
    await world.beats(b)
    assert await b.farebox.paywall.recover() == 1
    a.line.go_on()
    told = await late
    assert told.charged_msat == 5_000, "the receipt says what the books say"
    assert await world.available(key.key.account) == (FUNDED_MSAT - 5_000, 0)
    again = await admitted(a, key.secret)  # and it goes on working
    await world.beats(a, b)
    await a.farebox.paywall.settle(again, Usage(), Ended.COMPLETE)
    assert await world.available(key.key.account) == (FUNDED_MSAT - 5_000 - PRICE_MSAT, 0)


async def test_one_that_was_taken_for_dead_admits_nothing_under_its_old_name(world: World) -> None:
    """Frozen, it goes on with a request before its next beat: nobody serves it for free."""
    a, b = await world.house(), await world.house()
    key = await world.key(a)
    await world.beats(a, b)
    await world.beats(b, times=LAPSE_BEATS + 1)
    a.clock.advance(LAPSE_BEATS * BEAT_EVERY_S)
    admission = await admitted(a, key.secret)
    assert await b.farebox.paywall.recover() == 0
    await a.farebox.paywall.settle(admission, Usage(), Ended.COMPLETE)
    assert await world.available(key.key.account) == (FUNDED_MSAT - PRICE_MSAT, 0)


async def test_a_stream_whose_request_was_settled_elsewhere_is_cut(world: World) -> None:
    a, b = await world.house(), await world.house()
    key = await world.key(a)
    admission = await admitted(a, key.secret, metered=True)
    assert await a.farebox.paywall.checkpoint(admission, Usage(output_tokens=1))
    await world.beats(b)
    await b.farebox.paywall.recover()
    assert not await a.farebox.paywall.checkpoint(admission, Usage(output_tokens=2))


# ── operations ───────────────────────────────────────────────────────────────────────────────────


class Rail:
    """What each process calls: counts who is in a call, and answers when it is let."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.asked: list[bool] = []
        self.entered = asyncio.Event()
        self.answers = asyncio.Event()

    async def attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        del operation
        self.asked.append(asked_before)
        self.entered.set()
        async with asyncio.timeout(WAIT_S):  # a test that fails must not hang
            await self.answers.wait()
        return self.verdict


async def opened(world: World, house: House, account: str, operation_id: str = "op") -> None:
    operation = Operation(
        id=operation_id, kind="test", account=account, hold=hold_id(operation_id, 0), plan=b"plan"
    )
    changes = Changes((Hold(account, "custody:test", 100_000, "pay"),))
    assert isinstance(await house.farebox.operations.open(operation, changes), Applied)


async def two(world: World, at_a: Verdict, at_b: Verdict) -> tuple[House, House, Rail, Rail, str]:
    """Two processes with rails of their own, and an operation that one of them has opened."""
    a, b = await world.house(), await world.house()
    rails = Rail(at_a), Rail(at_b)
    for house, rail in zip((a, b), rails, strict=True):
        house.farebox.operations.register("test", rail)
    account = (await world.key(a)).key.account
    await opened(world, a, account)
    return a, b, *rails, account


async def test_an_operation_is_carried_out_by_one_process_however_long_it_takes(
    world: World,
) -> None:
    a, b, slow, other, account = await two(world, Succeeded(60_000), Succeeded(1))
    running = asyncio.create_task(a.farebox.operations.advance("op", fresh=True))
    await slow.entered.wait()
    await world.beats(a, b, times=3 * LAPSE_BEATS)
    b.clock.advance(3_600)
    stands = await b.farebox.operations.advance("op")
    assert stands.state is OperationState.OPEN
    assert await b.farebox.operations.recover() == 0
    assert other.asked == []
    slow.answers.set()
    assert (await running).amount == 60_000
    assert await world.available(account) == (FUNDED_MSAT - 60_000, 0)


async def test_a_killed_processs_operation_is_taken_over_and_asked_about(world: World) -> None:
    a, b, slow, other, account = await two(world, Succeeded(60_000), Succeeded(70_000))
    other.answers.set()
    running = asyncio.create_task(a.farebox.operations.advance("op", fresh=True))
    await slow.entered.wait()
    a.kill()
    await world.beats(b, times=LAPSE_BEATS)
    assert await b.farebox.operations.recover() == 0
    await world.beats(b, times=1)
    assert await b.farebox.operations.recover() == 1
    assert other.asked == [True]
    assert await world.available(account) == (FUNDED_MSAT - 70_000, 0)
    running.cancel()


async def test_who_was_overtaken_closes_nothing_and_hears_the_truth(world: World) -> None:
    a, b, slow, other, account = await two(world, Succeeded(60_000), Succeeded(70_000))
    other.answers.set()
    running = asyncio.create_task(a.farebox.operations.advance("op", fresh=True))
    await slow.entered.wait()
    await world.beats(b)
    await b.farebox.operations.recover()
    slow.answers.set()
    told = await running
    assert (told.state, told.amount) == (OperationState.SUCCEEDED, 70_000)
    assert await world.available(account) == (FUNDED_MSAT - 70_000, 0)


async def test_who_was_overtaken_cannot_close_what_the_other_still_asks_about(
    world: World,
) -> None:
    a, b, slow, other, account = await two(world, Rejected("no", "never"), Unresolved("?"))
    other.answers.set()
    running = asyncio.create_task(a.farebox.operations.advance("op", fresh=True))
    await slow.entered.wait()
    await world.beats(b)
    await b.farebox.operations.recover()
    slow.answers.set()
    assert (await running).state is OperationState.OPEN
    assert await world.available(account) == (FUNDED_MSAT - 100_000, 100_000)
    other.verdict = Succeeded(100_000)  # the word of the one that has the lease counts
    b.clock.advance(5)
    await b.farebox.operations.recover()
    assert await world.available(account) == (FUNDED_MSAT - 100_000, 0)


async def test_an_opener_that_was_overtaken_before_its_call_asks_first(world: World) -> None:
    a, b, first, other, _ = await two(world, Succeeded(100_000), Unresolved("?"))
    first.answers.set()
    other.answers.set()
    await world.beats(b)
    await b.farebox.operations.recover()
    await a.farebox.operations.advance("op", fresh=True)
    assert (other.asked, first.asked) == ([True], [True])


async def test_two_answers_that_contradict_each_other_call_a_person(world: World) -> None:
    a, b, slow, other, _ = await two(world, Succeeded(60_000), Rejected("no", "never"))
    other.answers.set()
    running = asyncio.create_task(a.farebox.operations.advance("op", fresh=True))
    await slow.entered.wait()
    await world.beats(b)
    await b.farebox.operations.recover()
    slow.answers.set()
    assert (await running).state is OperationState.REJECTED
    events = await world.store.events()
    assert "operation.contradicted" in [event.name for event in events]


async def test_of_two_that_take_over_at_once_one_makes_the_call(world: World) -> None:
    a, b, _, at_b, account = await two(world, Unresolved("?"), Succeeded(70_000))
    c = await world.house()
    at_c = Rail(Succeeded(80_000))
    c.farebox.operations.register("test", at_c)
    at_b.answers.set()
    at_c.answers.set()
    a.kill()
    await world.beats(b, c)
    await asyncio.gather(*(house.farebox.operations.recover() for house in (b, c)))
    assert len(at_b.asked) + len(at_c.asked) == 1
    assert await world.available(account) in ((930_000, 0), (920_000, 0))


# ── jobs ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_duty_is_done_by_one_process_and_taken_over_when_it_ends(world: World) -> None:
    a, b = await world.house(), await world.house()
    done: list[str] = []

    def duty(house: House, name: str) -> Duty:
        async def job() -> None:
            done.append(name)

        return Duty("test", job, house.farebox.ledger, house.farebox.processes)

    at_a, at_b = duty(a, "a"), duty(b, "b")
    assert [await at_a.run(), await at_b.run(), await at_b.run(), await at_a.run()] == [
        True,
        False,
        False,
        True,
    ]
    a.kill()
    await world.beats(b)
    assert await at_b.run()
    assert done == ["a", "a", "b"]


async def test_who_was_taken_for_dead_leaves_a_duty_to_who_has_it_now(world: World) -> None:
    a, b = await world.house(), await world.house()
    left = asyncio.Event()

    async def leave() -> None:
        left.set()

    async def job() -> None:
        left.clear()

    duties = [
        Duty("test", job, house.farebox.ledger, house.farebox.processes, leave) for house in (a, b)
    ]
    assert await duties[0].run()
    await world.beats(b)  # a stands still
    assert await duties[1].run()
    await world.beats(a, times=1)
    assert not await duties[0].run()
    assert left.is_set()


async def test_a_process_that_starts_after_a_kill_takes_over_as_well(world: World) -> None:
    a = await world.house()
    key = await world.key(a)
    admission = await admitted(a, key.secret)
    assert (await stored(world, admission)).state is RequestState.AUTHORISED
    a.kill()
    b = await world.house()  # starts when the other is dead, and no beat of it was ever seen
    await world.beats(b)
    assert await b.farebox.paywall.recover() == 1
