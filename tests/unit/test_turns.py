"""A bounded number at once, a bounded number waiting."""

from __future__ import annotations

import asyncio

import pytest

from farebox.turns import Turns, TurnsByKey


async def test_turns_are_given_in_order_and_none_is_lost() -> None:
    turns = Turns(1, 2, 60)
    assert await turns.take()
    order: list[int] = []

    async def wait(number: int) -> None:
        assert await turns.take()
        order.append(number)
        turns.give_back()

    waiting = [asyncio.create_task(wait(number)) for number in (1, 2)]
    await asyncio.sleep(0)
    assert not await turns.take()  # the queue is full
    turns.give_back()
    await asyncio.gather(*waiting)
    assert (order, turns.running) == ([1, 2], 0)


async def test_who_waits_too_long_goes_without() -> None:
    turns = Turns(1, 1, 0.01)
    assert await turns.take()
    assert not await turns.take()
    turns.give_back()
    assert await turns.take()


async def test_a_turn_given_to_someone_who_left_goes_to_the_next() -> None:
    turns = Turns(1, 1, 60)
    assert await turns.take()
    leaving = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    turns.give_back()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert turns.running == 0


async def test_each_key_has_one_turn_in_order_and_keys_wait_for_none_other() -> None:
    turns = TurnsByKey(2, 60)
    assert await turns.take("a")
    assert await turns.take("b")
    order: list[int] = []

    async def wait(number: int) -> None:
        assert await turns.take("a")
        order.append(number)
        turns.give_back("a")

    waiting = [asyncio.create_task(wait(number)) for number in (1, 2)]
    await asyncio.sleep(0)
    assert not await turns.take("a")  # the queue is full
    turns.give_back("b")
    assert not order
    turns.give_back("a")
    await asyncio.gather(*waiting)
    assert order == [1, 2]
    assert await turns.take("a")


async def test_a_key_whose_turn_comes_too_late_stays_with_who_has_it() -> None:
    turns = TurnsByKey(1, 0.01)
    assert await turns.take("a")
    assert not await turns.take("a")
    turns.give_back("a")
    assert await turns.take("a")


async def test_a_keys_turn_given_to_someone_who_left_goes_to_the_next() -> None:
    turns = TurnsByKey(1, 60)
    assert await turns.take("a")
    leaving = asyncio.create_task(turns.take("a"))
    await asyncio.sleep(0)
    turns.give_back("a")
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await asyncio.wait_for(turns.take("a"), 60)
