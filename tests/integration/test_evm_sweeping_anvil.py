"""What lies at deposit addresses comes to the treasury, whatever happens on the way; the books say
the same before and after but for the gas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.payments.deposits import DepositRequest
from farebox.rails.evm.records import ADDRESS, Purse
from tests.integration.evm_counter import Counter, counter_of
from tests.integration.evm_desk import ETHER
from tests.peers.anvil import Anvil
from tests.waiting import eventually

pytestmark = pytest.mark.peer
#: Worth its gas, at a wei for a unit.
MUCH = 10**19


@pytest.fixture
async def counter(anvil: Anvil, tmp_path: Path) -> AsyncIterator[Counter]:
    async with counter_of(anvil, tmp_path, GRD="GuardedToken") as found:
        yield found
        await found.assert_right()


async def credited(counter: Counter, asset: str, amount: int = MUCH) -> DepositRequest:
    """A deposit that has arrived for good."""
    before = await counter.credited(asset)
    request = await counter.asked(asset)
    await counter.pay(request, amount)
    await counter.desk.mine(8)
    await counter.look()
    assert await counter.credited(asset) == before + amount
    return request


async def rounds(counter: Counter, times: int = 8) -> None:
    """The chain goes on, and so do we."""
    for _ in range(times):
        await counter.upkeep.run()
        await counter.desk.mine()


def lies_at(counter: Counter, request: DepositRequest) -> int:
    return int(counter.tokens[request.asset].call("balanceOf", request.reference))


async def test_a_token_is_swept_with_coin_that_it_is_sent_for_that(counter: Counter) -> None:
    request = await credited(counter, "TOK")
    await rounds(counter)
    assert lies_at(counter, request) == 0
    assert counter.token.call("balanceOf", counter.desk.sender) == MUCH
    await counter.look()
    assert await counter.credited() == MUCH
    assert await counter.states(request) == ["credited"]  # the coin that was sent is no payment


async def test_coin_is_swept_but_for_its_gas(counter: Counter) -> None:
    request = await credited(counter, "ETH", ETHER)
    await rounds(counter)
    assert counter.desk.anvil.balance(request.reference) < ETHER // 100
    assert await counter.credited("ETH") == ETHER


async def test_what_is_not_worth_its_gas_stays(counter: Counter) -> None:
    await credited(counter, "TOK", 1_000)
    await credited(counter, "ETH", 10**13)  # less than its gas, and more than an eighth of it
    await credited(counter, "ETH", 1_000)
    await rounds(counter)
    later = await counter.desk.ledger.store.find(ADDRESS, {"chain": "anvil", "purse": Purse.HOLDS})
    assert len(later) == 2
    assert await counter.desk.gas_booked() == 0


async def test_a_process_that_stops_on_the_way_is_followed_by_the_next(counter: Counter) -> None:
    request = await credited(counter, "TOK")
    while counter.desk.anvil.balance(request.reference) == 0:
        await rounds(counter, 1)
    with counter.desk.anvil.paused():
        while not any(
            one.sender == request.reference for one in await counter.desk.sending.open_slots()
        ):
            await rounds(counter, 1)
        await asyncio.to_thread(counter.desk.anvil.rpc, "anvil_dropAllTransactions")
    await rounds(counter.again())
    assert lies_at(counter, request) == 0


async def test_a_stopped_token_is_swept_once_it_goes_on(counter: Counter) -> None:
    token = counter.tokens["GRD"]
    for name in ("setPaused", "setLies"):
        request = await counter.asked("GRD")
        await counter.pay(request, MUCH)
        await asyncio.to_thread(token.send, name, True)
        await counter.desk.mine(8)
        await counter.look()
        before = await counter.desk.gas_booked()
        await rounds(counter, 4)
        assert lies_at(counter, request) == MUCH
        assert await counter.desk.gas_booked() == before
        await asyncio.to_thread(token.send, name, False)
        await rounds(counter.again())
        assert lies_at(counter, request) == 0


async def test_a_reorganisation_does_not_lose_what_was_swept(counter: Counter) -> None:
    request = await credited(counter, "TOK")
    while lies_at(counter, request):
        await rounds(counter, 1)
    await asyncio.to_thread(counter.desk.anvil.reorganise, 2)
    assert lies_at(counter, request) == MUCH

    async def one_more_round() -> bool:
        await rounds(counter, 1)
        return not lies_at(counter, request) and not await counter.desk.sending.open_slots()

    await eventually(one_more_round)


async def test_coin_that_left_the_chain_does_not_stand_in_the_way_of_what_comes_later(
    counter: Counter,
) -> None:
    request = await credited(counter, "ETH", ETHER)
    with counter.desk.anvil.paused():
        await counter.upkeep.run()  # the sweep waits
        await asyncio.to_thread(counter.desk.anvil.reorganise, 9)
        await counter.look()
    assert await counter.credited("ETH") == 0
    await counter.upkeep.run()
    await counter.pay(request, ETHER // 2)
    await rounds(counter)
    assert counter.desk.anvil.balance(request.reference) < ETHER // 100
    await counter.look()
    assert await counter.credited("ETH") == ETHER // 2


async def test_without_its_key_nothing_is_swept(anvil: Anvil, tmp_path: Path) -> None:
    async with counter_of(anvil, tmp_path, sweeps=False) as counter:
        request = await credited(counter, "TOK")
        await rounds(counter, 3)
        assert lies_at(counter, request) == MUCH
        assert not await counter.desk.sending.open_slots()
