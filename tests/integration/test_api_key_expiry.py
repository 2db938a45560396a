"""What is left when a key ends goes to its refund address, once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.clock import NS_PER_S, ManualClock
from farebox.identity import KeyTerms, NewKey, new_account
from farebox.ledger.model import ABSENT, Put, Unit
from farebox.payments import RefundRequest, Refusal
from farebox.payments.maturity import MATURING, Lot, Maturing
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


async def test_a_key_that_the_operator_made_is_refunded_as_well(
    world: World, play: PlayMoney
) -> None:
    """Nobody has paid when it is made: how its money goes back is seen from what came since."""
    expires_at = world.clock.now_ns() + 60 * NS_PER_S
    terms = KeyTerms(expires_at=expires_at, refund_address="me@example.com")
    made = await world.keys.create(new_account(), terms)
    assert isinstance(made, NewKey)
    await world.post("/topup", {"cashu_token": "play:later:700"}, bearer=made.secret)
    back = await world.post(
        "/refund", {"amount_msat": 300, "destination": "a@b.example"}, bearer=made.secret
    )
    assert back.json()["amount_msat"] == 300
    world.clock.advance(60)
    assert await expiry_of(world).run() == 1
    assert list(play.sent.values()) == [300, 400]


async def test_money_that_another_key_may_spend_stays(world: World, play: PlayMoney) -> None:
    await ending(world, refund_address="me@example.com")
    (_, key), *_ = await world.keys.page()
    await world.keys.create(key.account, KeyTerms())
    world.clock.advance(60)
    assert await expiry_of(world).run() == 1
    assert not play.sent


async def test_money_that_is_not_ripe_is_refunded_once_it_is(world: World, play: PlayMoney) -> None:
    key = await ending(world, refund_address="me@example.com")
    (_, row), *_ = await world.keys.page()
    ripe_at = world.clock.now_ns() + 600 * NS_PER_S
    lots = Maturing((Lot("card:1", 2_000, ripe_at - 1), Lot("card:2", 1_000, ripe_at)))
    await world.store.commit(Unit("paid-by-card", puts=(Put(MATURING, row.account, lots, ABSENT),)))
    world.clock.advance(60)
    expiry = expiry_of(world)
    for _ in range(3):
        assert await expiry.run() == 0
    assert (await world.balance(key), await states(world)) == (5_000, ["active"])
    assert play.plans == 1, "nobody is asked again before it is ripe"
    world.clock.advance(540)
    assert await expiry.run() == 1
    assert (list(play.sent.values()), await world.balance(key)) == ([5_000], 0)


@pytest.mark.parametrize("code", ["rate_unavailable", "rail_unavailable", "busy"])
async def test_what_cannot_be_refunded_for_now_is_refunded_later(
    code: str, world: World, play: PlayMoney, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ending(world, refund_address="me@example.com")
    world.clock.advance(60)

    async def not_now(_: RefundRequest) -> Refusal:
        return Refusal(code, "not now")

    with monkeypatch.context() as patch:
        patch.setattr(play, "plan_refund", not_now)
        assert await expiry_of(world).run() == 0
    assert await expiry_of(world).run() == 1
    assert list(play.sent.values()) == [5_000]


async def test_keys_that_wait_keep_no_other_from_its_turn(
    world: World, play: PlayMoney, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farebox.worker.expiry._PAGE", 1)
    monkeypatch.setattr("farebox.worker.expiry._PAGES_MAX", 1)
    for name in ("first", "second", "third"):
        expires_at = world.clock.now_ns() // NS_PER_S + 60
        await world.created(
            f"play:{name}:5000", key_expiry_time=expires_at, refund_address="me@e.x"
        )
    keys = sorted(await world.keys.page())
    lots = Maturing((Lot("card:1", 1, world.clock.now_ns() + 600 * NS_PER_S),))
    put = Put(MATURING, keys[0][1].account, lots, ABSENT)
    await world.store.commit(Unit("paid-by-card", puts=(put,)))
    world.clock.advance(60)
    expiry = expiry_of(world)
    for _ in range(4):
        await expiry.run()
    assert len(play.sent) == 2
