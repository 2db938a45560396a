"""What is left when a key ends goes to its refund address, once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.clock import NS_PER_S, ManualClock
from farebox.identity import KeyTerms
from farebox.worker import KeyExpiry
from tests.integration.api_world import PlayMoney, World, methods_of, world_of


@pytest.fixture
def play() -> PlayMoney:
    return PlayMoney()


@pytest.fixture
async def world(tmp_path: Path, play: PlayMoney) -> AsyncIterator[World]:
    async with world_of(tmp_path / "book.db", methods_of(play), ManualClock()) as made:
        yield made


def expiry_of(world: World) -> KeyExpiry:
    return KeyExpiry(world.ledger, world.operations, world.payments, world.keys)


async def ending(world: World, refund_address: str = "") -> str:
    expires_at = world.clock.now_ns() // NS_PER_S + 60
    return await world.created(key_expiry_time=expires_at, refund_address=refund_address)


async def states(world: World) -> list[str]:
    return sorted(key.state.value for _, key in await world.keys.page())


async def test_the_balance_goes_to_the_refund_address_once(world: World, play: PlayMoney) -> None:
    key = await ending(world, refund_address="me@example.com")
    assert await expiry_of(world).run() == 0
    world.clock.advance(60)
    assert await expiry_of(world).run() == 1
    assert await expiry_of(world).run() == 0
    assert list(play.sent.values()) == [5_000]
    assert await world.balance(key) == 0
    assert await states(world) == ["expired"]


async def test_a_refund_without_an_answer_is_found_again(world: World, play: PlayMoney) -> None:
    await ending(world, refund_address="me@example.com")
    world.clock.advance(60)
    play.is_silent = True
    assert await expiry_of(world).run() == 0
    assert await states(world) == ["active"]
    play.is_silent = False
    assert await expiry_of(world).run() == 1
    assert list(play.sent.values()) == [5_000]
    assert await world.held_and_owed() == (0, 0)


@pytest.mark.parametrize("address", ["", "nobody@example.com"])
async def test_without_a_place_to_go_it_stays_for_the_owner(
    world: World, play: PlayMoney, address: str
) -> None:
    key = await ending(world, refund_address=address)
    world.clock.advance(60)
    assert await expiry_of(world).run() == 1
    assert not play.sent
    answer = await world.post("/refund", {"lightning_address": "me@example.com"}, bearer=key)
    assert answer.json()["amount_msat"] == 5_000


async def test_money_that_another_key_may_spend_stays(world: World, play: PlayMoney) -> None:
    await ending(world, refund_address="me@example.com")
    (_, key), *_ = await world.keys.page()
    await world.keys.create(key.account, KeyTerms())
    world.clock.advance(60)
    assert await expiry_of(world).run() == 1
    assert not play.sent
