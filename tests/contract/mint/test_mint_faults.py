"""A mint that fails at each step: what the port says then, and what the wallet makes of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from farebox.clock import ManualClock
from farebox.ecash.codes import NutError
from farebox.ecash.mint import MeltQuoteState, ProofState
from farebox.ecash.plan import SwapPlan
from farebox.ecash.saga import Done, Rejected, Unknown, advance_swap
from farebox.errors import RailRejected, RailUnavailable
from farebox.rails.cashu import HttpMint, MintLimits, open_session
from farebox.rails.web.breaker import FAILURES_TO_OPEN, PAUSE_S, Breaker
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
from farebox.wire.cashu.amounts import split
from farebox.wire.cashu.model import Proof
from tests.contract.mint.conftest import Purse, messages, total, ys
from tests.slowness import LATE_S, calls_wait, impatient
from tests.waiting import eventually

#: A machine that stands still for a moment is no fault of the mint.
CALM = MintLimits(connect_s=60, call_s=60, melt_s=60)
SWAP = "/v1/swap"
NOT_CARRIED_OUT: list[Fault] = [DropBefore(), Fail(500), Fail(503), Fail(429), Fail(404)]
CARRIED_OUT: list[Fault] = [DropAfter(), AnswersLate(LATE_S), Garbage(), Garbage("{}")]


@dataclass
class Scene:
    play: PlayMint
    mint: HttpMint
    clock: ManualClock

    def purse(self) -> Purse:
        return Purse(self.mint, "sat")

    def token(self, amount: int) -> tuple[Proof, ...]:
        return self.play.issue(amount).proofs

    async def plan(self, inputs: tuple[Proof, ...]) -> SwapPlan:
        keyset = (await self.mint.keysets())[0]
        whole = await self.mint.keys(keyset.id)
        amounts = tuple(split(total(inputs), whole.keys))
        return SwapPlan(
            mint=self.mint.url,
            unit="sat",
            keyset_id=keyset.id,
            first_counter=0,
            inputs=inputs,
            amounts=amounts,
        )


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    play, clock = PlayMint(), ManualClock()
    async with serving(play) as url, open_session() as session:
        play.url = url
        yield Scene(play, HttpMint(url, session, clock, limits=CALM), clock)


@pytest.mark.parametrize("fault", NOT_CARRIED_OUT)
async def test_a_call_that_never_arrived_is_unknown_and_spends_nothing(
    scene: Scene, fault: Fault
) -> None:
    inputs = scene.token(64)
    outputs = await scene.purse().outputs_for(64)
    scene.play.faults.next("swap", fault)

    with pytest.raises(RailUnavailable):
        await scene.mint.swap(inputs, messages(outputs))

    assert set(await scene.mint.check_state(ys(inputs))) == {ProofState.UNSPENT}
    assert await scene.mint.restore(messages(outputs)) == {}


@pytest.mark.parametrize("fault", CARRIED_OUT)
async def test_a_call_whose_answer_was_lost_is_unknown_and_can_be_restored(
    scene: Scene, fault: Fault
) -> None:
    inputs = scene.token(64)
    outputs = await scene.purse().outputs_for(64)
    scene.play.faults.next("swap", fault)

    with impatient(SWAP), pytest.raises(RailUnavailable):
        await scene.mint.swap(inputs, messages(outputs))

    assert set(await scene.mint.check_state(ys(inputs))) == {ProofState.SPENT}
    assert len(await scene.mint.restore(messages(outputs))) == len(outputs)


async def test_a_call_may_be_carried_out_after_its_caller_gave_up(scene: Scene) -> None:
    inputs = scene.token(64)
    outputs = await scene.purse().outputs_for(64)

    with calls_wait(scene.play, SWAP):
        with impatient(SWAP), pytest.raises(RailUnavailable):
            await scene.mint.swap(inputs, messages(outputs))

        assert set(await scene.mint.check_state(ys(inputs))) == {ProofState.UNSPENT}
    await eventually(
        lambda: scene.mint.check_state(ys(inputs)),
        lambda states: set(states) == {ProofState.SPENT},
    )


@pytest.mark.parametrize("code", [int(code) for code in NutError])
async def test_every_error_code_reaches_the_wallet(scene: Scene, code: int) -> None:
    outputs = await scene.purse().outputs_for(64)
    scene.play.faults.next("swap", Refuse(code))

    with pytest.raises(RailRejected) as refused:
        await scene.mint.swap(scene.token(64), messages(outputs))

    assert refused.value.code == code


@pytest.mark.parametrize("fault", [*NOT_CARRIED_OUT, *CARRIED_OUT, ExecutesLate(LATE_S)])
async def test_the_wallet_ends_with_its_money_whatever_was_lost(scene: Scene, fault: Fault) -> None:
    inputs = scene.token(100)
    plan, keys = await scene.plan(inputs), scene.purse().keys
    owed = scene.play.audit().outstanding
    scene.play.faults.next("swap", fault)

    with impatient(SWAP):
        first = await advance_swap(plan, scene.mint, keys, asked_before=False)
    assert isinstance(first, Unknown)
    for _ in range(3):
        last = await advance_swap(plan, scene.mint, keys, asked_before=True)
        if isinstance(last, Done):
            break

    assert isinstance(last, Done)
    assert total(last.proofs) == 100
    assert set(await scene.mint.check_state(ys(last.proofs))) == {ProofState.UNSPENT}
    assert scene.play.audit().outstanding == owed


async def test_a_good_swap_is_one_call(scene: Scene) -> None:
    plan = await scene.plan(scene.token(100))
    before = scene.play.calls.total()

    done = await advance_swap(plan, scene.mint, scene.purse().keys, asked_before=False)

    assert isinstance(done, Done)
    assert scene.play.calls.total() - before == scene.play.calls["swap"] == 1


async def test_of_many_who_spend_one_token_one_wins(scene: Scene) -> None:
    inputs = scene.token(64)
    plan = await scene.plan(inputs)
    wallets = [scene.purse().keys for _ in range(16)]

    ends = await asyncio.gather(
        *(advance_swap(plan, scene.mint, keys, asked_before=False) for keys in wallets)
    )

    assert sum(isinstance(end, Done) for end in ends) == 1
    assert sum(isinstance(end, Rejected) for end in ends) == 15
    assert scene.play.audit().outstanding == {"sat": 64}


async def test_a_pending_melt_holds_its_inputs_until_it_is_settled(scene: Scene) -> None:
    for paid in (True, False):
        inputs = scene.token(128)
        invoice = PlayLightning().invoice(64_000, os.urandom(32))
        quote = await scene.mint.melt_quote(invoice, "sat")
        scene.play.faults.next("melt", StaysPending())

        answer = await scene.mint.melt(quote.quote, inputs, [])
        assert answer.state is MeltQuoteState.PENDING
        assert set(await scene.mint.check_state(ys(inputs))) == {ProofState.PENDING}
        with pytest.raises(RailRejected) as refused:
            await scene.mint.swap(inputs, messages(await scene.purse().outputs_for(128)))
        assert refused.value.code == NutError.PROOFS_PENDING

        scene.play.settle(quote.quote, paid=paid)
        ends = MeltQuoteState.PAID if paid else MeltQuoteState.UNPAID
        assert (await scene.mint.melt_quote_state(quote.quote)).state is ends
        state = ProofState.SPENT if paid else ProofState.UNSPENT
        assert set(await scene.mint.check_state(ys(inputs))) == {state}


async def test_proofs_can_be_made_to_look_pending(scene: Scene) -> None:
    inputs = scene.token(3)
    scene.play.faults.next("checkstate", StaysPending())

    assert set(await scene.mint.check_state(ys(inputs))) == {ProofState.PENDING}
    assert set(await scene.mint.check_state(ys(inputs))) == {ProofState.UNSPENT}


async def test_a_rotated_keyset_is_found_after_the_refusal(scene: Scene) -> None:
    inputs = scene.token(64)
    outputs = await scene.purse().outputs_for(64)
    new_id = scene.play.rotate()
    scene.clock.advance(2)

    with pytest.raises(RailRejected) as refused:
        await scene.mint.swap(inputs, messages(outputs))
    outputs = await scene.purse().outputs_for(64)
    await scene.mint.swap(inputs, messages(outputs))

    assert refused.value.code == NutError.KEYSET_INACTIVE
    assert {output.message.keyset_id for output in outputs} == {new_id}


async def test_bad_tokens_do_not_make_us_ask_for_keysets_again_and_again(scene: Scene) -> None:
    await scene.mint.keysets()
    for _ in range(5):
        with pytest.raises(RailRejected):
            await scene.mint.keys("00ffffffffffffff")

    assert scene.play.calls["keysets"] == 1


async def test_keysets_grow_old(scene: Scene) -> None:
    await scene.mint.keysets()
    await scene.mint.keysets()
    scene.clock.advance(301)
    await scene.mint.keysets()

    assert scene.play.calls["keysets"] == 2


async def test_a_mint_that_is_down_fails_fast_and_harms_no_other(scene: Scene) -> None:
    await scene.mint.keysets()
    scene.play.faults.always("checkstate", DropBefore())
    for _ in range(FAILURES_TO_OPEN):
        with pytest.raises(RailUnavailable):
            await scene.mint.check_state([])
    before = scene.play.calls.total()

    with pytest.raises(RailUnavailable):
        await scene.mint.check_state([])

    assert scene.play.calls.total() == before
    async with serving(PlayMint()) as url, open_session() as session:
        other = HttpMint(url, session, scene.clock, breaker=Breaker(scene.clock))
        assert await other.check_state([]) == ()
    scene.play.faults.clear()
    scene.clock.advance(PAUSE_S)
    assert await scene.mint.check_state([]) == ()
