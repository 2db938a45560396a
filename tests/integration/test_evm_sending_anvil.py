"""What is sent on a real chain is sent once and followed to its end, whatever the chain does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.ledger.model import ABSENT, Put, Unit
from farebox.rails.evm.fees import GWEI, Fees
from farebox.rails.evm.outbox import (
    INTENT,
    SENDER,
    STUCK_BLOCKS,
    IntentState,
    Sender,
    Slot,
    SlotState,
    lane_of,
)
from tests.integration.evm_desk import CONFIRMATIONS, ETHER, Desk, desk_of, somebody
from tests.peers.anvil import Anvil

pytestmark = pytest.mark.peer


@pytest.fixture
async def desk(anvil: Anvil, tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk_of(anvil, tmp_path) as found:
        yield found
        await found.audited()


@pytest.fixture
async def waiting(desk: Desk) -> AsyncIterator[Desk]:
    """No block is made but when a test asks for one."""
    with desk.anvil.paused():
        yield desk


def spent(desk: Desk) -> int:
    return 100 * ETHER - desk.anvil.balance(desk.sender)


async def drop(desk: Desk) -> None:
    """The network forgets what waits."""
    await asyncio.to_thread(desk.anvil.rpc, "anvil_dropAllTransactions")


async def base_fee(desk: Desk, wei: int) -> None:
    await asyncio.to_thread(desk.anvil.rpc, "anvil_setNextBlockBaseFeePerGas", hex(wei))


async def test_it_is_done_only_once_confirmed_and_its_gas_is_an_expense(desk: Desk) -> None:
    to = somebody()
    slot = await desk.sent(to, 5_000)
    assert desk.anvil.balance(to) == 5_000
    for _ in range(CONFIRMATIONS - 1):
        slot = await desk.sending.push(slot.key)
        assert slot.state is SlotState.MINED
        await desk.mine()
    slot = await desk.sending.push(slot.key)
    assert slot.state is SlotState.DONE
    assert slot.mined is not None
    assert slot.mined.ok
    assert await desk.gas_booked() == slot.mined.cost == spent(desk) - 5_000
    row = await desk.ledger.store.get(INTENT, slot.purpose)
    assert row is not None
    assert (row.value.state, row.value.slot) == (IntentState.SENT, slot.key)


async def test_what_was_signed_and_never_sent_is_sent_later(waiting: Desk) -> None:
    to = somebody()
    slot = await waiting.sent(to, 7)
    await drop(waiting)
    await waiting.mine()
    assert waiting.anvil.balance(to) == 0
    await waiting.sending.push(slot.key)  # as after a crash before the broadcast, or a drop
    await waiting.finish()
    assert waiting.anvil.balance(to) == 7


async def test_a_stuck_one_is_replaced_and_pays_once(waiting: Desk) -> None:
    to = somebody()
    slot = await waiting.sent(to, 11)
    await drop(waiting)
    await waiting.mine(STUCK_BLOCKS)
    better = await waiting.sending.push(slot.key)
    assert len(better.attempts) == 2
    assert can_replace(better.attempts[0].fees, better.attempts[1].fees)
    assert better.nonce == slot.nonce
    await waiting.finish()
    assert waiting.anvil.balance(to) == 11
    ended = await waiting.sending.slot(slot.key)
    assert ended is not None
    assert ended.mined is not None
    assert ended.mined.hash == better.newest.hash


async def test_an_earlier_attempt_may_win(waiting: Desk) -> None:
    to = somebody()
    slot = await waiting.sent(to, 13)
    await drop(waiting)
    await waiting.mine(STUCK_BLOCKS)
    better = await waiting.sending.push(slot.key)
    await drop(waiting)  # and somebody else has kept the first
    await waiting.sending.chain.broadcast(slot.newest.raw)
    await waiting.mine()
    await waiting.finish()
    assert waiting.anvil.balance(to) == 13
    ended = await waiting.sending.slot(slot.key)
    assert ended is not None
    assert ended.mined is not None
    assert ended.mined.hash == slot.newest.hash != better.newest.hash


async def test_one_that_offers_less_than_the_base_fee_is_replaced_at_once(waiting: Desk) -> None:
    slot = await waiting.sent(somebody())
    await drop(waiting)
    await base_fee(waiting, slot.newest.max_fee * 2)
    await waiting.mine()
    better = await waiting.sending.push(slot.key)
    assert better.newest.max_fee > slot.newest.max_fee * 2
    await waiting.finish()


async def test_a_cancelled_one_pays_nobody(waiting: Desk) -> None:
    to = somebody()
    slot = await waiting.sent(to, 17)
    cancelling = await waiting.sending.cancel(slot.key)
    assert cancelling.newest.is_cancel
    assert can_replace(slot.newest.fees, cancelling.newest.fees)
    await waiting.finish()
    ended = await waiting.sending.slot(slot.key)
    assert ended is not None
    assert ended.is_cancelled
    assert waiting.anvil.balance(to) == 0
    assert await waiting.gas_booked() == spent(waiting)


async def test_cancelling_what_is_mined_changes_nothing(desk: Desk) -> None:
    to = somebody()
    slot = await desk.sent(to, 19)
    await desk.sending.cancel(slot.key)
    await desk.finish()
    ended = await desk.sending.slot(slot.key)
    assert ended is not None
    assert not ended.is_cancelled
    assert desk.anvil.balance(to) == 19


async def test_a_reorganisation_sends_it_anew(desk: Desk) -> None:
    to = somebody()
    slot = await desk.sent(to, 23)
    assert (await desk.sending.push(slot.key)).state is SlotState.MINED
    await asyncio.to_thread(desk.anvil.reorganise, 1)
    assert desk.anvil.balance(to) == 0
    assert (await desk.sending.push(slot.key)).state is SlotState.SENT
    await desk.finish()
    assert desk.anvil.balance(to) == 23
    assert await desk.gas_booked() == spent(desk) - 23


async def test_on_a_paused_chain_it_waits(waiting: Desk) -> None:
    slot = await waiting.sent(somebody())
    for _ in range(5):
        assert await waiting.sending.push(slot.key) == slot
    await waiting.finish()


async def test_over_the_cap_nothing_is_signed(anvil: Anvil, tmp_path: Path) -> None:
    async with desk_of(anvil, tmp_path, fee_cap=GWEI // 1_000) as desk:
        held = await desk.held(somebody())
        assert "the cap" in held.reason
        assert await desk.sending.open_slots() == []
        assert spent(desk) == 0


async def test_over_the_cap_no_replacement_is_offered(anvil: Anvil, tmp_path: Path) -> None:
    async with desk_of(anvil, tmp_path, fee_cap=500 * GWEI) as desk:
        with anvil.paused():
            to = somebody()
            slot = await desk.sent(to, 29)
            await drop(desk)
            await base_fee(desk, 600 * GWEI)
            await desk.mine(STUCK_BLOCKS)
            assert await desk.sending.push(slot.key) == slot
            await base_fee(desk, 1 * GWEI)
            await desk.mine()
            await base_fee(desk, 1 * GWEI)
            await desk.finish()
        assert anvil.balance(to) == 29


async def test_sixteen_at_most_are_on_their_way(anvil: Anvil, tmp_path: Path) -> None:
    async with desk_of(anvil, tmp_path, in_flight_max=3) as desk:
        with anvil.paused():
            to = somebody()
            for _ in range(3):
                await desk.sent(to, 1)
            await desk.held(to)
            await desk.finish()
            await desk.sent(to, 1)
            await desk.finish()
        assert anvil.balance(to) == 4


async def test_many_at_once_take_nonces_without_a_hole(desk: Desk) -> None:
    to = somebody()
    slots = await asyncio.gather(*(desk.sent(to, 1) for _ in range(8)))
    assert sorted(one.nonce for one in slots) == list(range(8))
    await desk.finish()
    assert desk.anvil.balance(to) == 8


async def test_two_processes_send_an_intent_once(waiting: Desk) -> None:
    to = somebody()
    key = await waiting.intend(to, 31)
    other = waiting.another()
    ends = await asyncio.gather(
        *(one.send(waiting.parcel(key, to, 31)) for one in (waiting.sending, other) * 2)
    )
    assert [isinstance(end, Slot) for end in ends].count(True) == 1
    await asyncio.gather(waiting.sending.tick(), other.tick())
    await waiting.mine(STUCK_BLOCKS)
    await asyncio.gather(waiting.sending.tick(), other.tick())
    await waiting.finish()
    assert waiting.anvil.balance(to) == 31


async def test_a_hole_is_filled(waiting: Desk) -> None:
    lane = lane_of("anvil", waiting.sender)
    skipped = Put(SENDER, lane, Sender(2), ABSENT)
    await waiting.ledger.store.commit(Unit("skip", puts=(skipped,)))
    to = somebody()
    slot = await waiting.sent(to, 37)
    assert slot.nonce == 2
    assert await waiting.sending.fill_holes() == 2
    await waiting.finish()
    assert waiting.anvil.balance(to) == 37


async def test_a_nonce_that_somebody_else_used_is_lost_not_tried_again(
    anvil: Anvil, tmp_path: Path
) -> None:
    async with desk_of(anvil, tmp_path, used_for_good=4) as desk:
        with anvil.paused():
            to, other = somebody(), somebody()
            slot = await desk.sent(to, 41)
            await drop(desk)
            await asyncio.to_thread(anvil.rpc, "anvil_impersonateAccount", desk.sender)
            await asyncio.to_thread(anvil.send, other, 1, sender=desk.sender)
            await desk.mine()
            assert (await desk.sending.push(slot.key)).is_open
            await desk.mine(5)
            lost = await desk.sending.push(slot.key)
        assert lost.state is SlotState.LOST
        assert anvil.balance(to) == 0
        events = await desk.ledger.store.events(subject=slot.lane)
        assert events[-1].data["state"] == "lost"


async def test_a_nonce_that_was_used_elsewhere_is_not_taken_again(desk: Desk) -> None:
    await desk.sent(somebody())
    await desk.finish()
    await asyncio.to_thread(desk.anvil.rpc, "anvil_impersonateAccount", desk.sender)
    await asyncio.to_thread(desk.anvil.send, somebody(), 1, sender=desk.sender)
    await desk.sending.tick()
    to = somebody()
    slot = await desk.sent(to, 43)
    assert slot.nonce == 2
    await desk.finish()
    assert desk.anvil.balance(to) == 43


def can_replace(old: Fees, new: Fees) -> bool:
    """Whether nodes would let one take the place of the other: a tenth more in both fields."""
    return new.max_fee * 10 >= old.max_fee * 11 and new.tip * 10 >= old.tip * 11


def next_base_fee(base: int, used: int, limit: int) -> int:
    """The base fee that follows a block: EIP-1559's own integer arithmetic."""
    target = limit // 2
    if target in (0, used):
        return base
    step = base * abs(used - target) // target // 8
    return base + max(step, 1) if used > target else base - step


async def test_the_next_base_fee_is_known_exactly(desk: Desk) -> None:
    for _ in range(3):
        await desk.sent(somebody())
        for _ in range(20):  # a block may come between the two questions
            block = await asyncio.to_thread(desk.anvil.rpc, "eth_getBlockByNumber", "latest", False)
            base, used, limit = (
                int(block[name], 16) for name in ("baseFeePerGas", "gasUsed", "gasLimit")
            )
            history = await desk.sending.chain.history()
            if history.base_fee == next_base_fee(base, used, limit):
                break
        assert history.base_fee == next_base_fee(base, used, limit)


async def test_a_key_is_in_no_repr_and_no_row(desk: Desk) -> None:
    key = next(iter(desk.keys._accounts.values())).key.hex()
    slot = await desk.sent(somebody())
    told = f"{desk.keys!r} {desk.sending!r} {slot!r} {desk.sending.__dict__!r}"
    assert key not in told.lower()
    await desk.finish()
    assert all(key.encode() not in one.read_bytes() for one in desk.path.parent.iterdir())
