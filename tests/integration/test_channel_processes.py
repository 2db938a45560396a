"""Processes that share a book share its sub-channels: whichever is asked, each voucher is taken
once, each request is charged once, and nothing is served beyond what the collateral covers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.channels.postings import custody_account
from farebox.paywall.model import Admission
from farebox.pricing.request import read_request
from farebox.pricing.usage import Usage
from farebox.wire.subrav.keys import KeyType, SigningKey
from farebox.wire.subrav.model import SignedSubRAV
from tests.integration import channel_house
from tests.integration.channel_house import PRICE_MSAT, Told, sign
from tests.integration.processes_world import SHARED, House, World, shared_world
from tests.integration.whole_house import CHAT

METERED = read_request("POST", "/v1/chat/completions", json.dumps(CHAT).encode())
PATH = "/echo"


@pytest.fixture(params=sorted(SHARED))
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    shared = SHARED[request.param](request, tmp_path)
    async with shared_world(shared, tmp_path) as made:
        yield made


async def payers(
    world: World, *houses: House, collateral: int = 500_000
) -> list[channel_house.House]:
    """One payer with a channel, before the door of each process."""
    made = await world.key(houses[0])
    doors = [
        channel_house.House(
            house.farebox,
            channel_house.Shop(),
            house.http,
            house.url,
            house.clock,
            made.secret,
            made.key.account,
        )
        for house in houses
    ]
    assert (await doors[0].open(collateral)).status_code == 201
    return doors


async def pay_off(
    door: channel_house.House,
    last: Told,
    fragment: str = channel_house.FRAGMENT,
    key: SigningKey = channel_house.KEY,
) -> None:
    """Sign for the last request, with one that is free, if there is nothing at its path."""
    await door.asks("/free", sign(last.proposal, key), fragment=fragment, key=key)
    row = await door.row(fragment)
    assert row is not None
    assert row.pending is None


async def test_any_process_takes_the_voucher_for_what_another_served(world: World) -> None:
    doors = await payers(world, await world.house(), await world.house())
    last = await doors[0].asks(PATH)
    for turn in range(1, 7):
        last = await doors[turn % 2].asks(PATH, sign(last.proposal))
        assert (last.status, last.proposal.nonce) == (200, turn + 1)
    await pay_off(doors[0], last)
    assert await doors[0].held(custody_account(doors[0].channel_id)) == 7 * PRICE_MSAT


async def test_a_copied_authorization_is_served_by_no_other_process(world: World) -> None:
    doors = await payers(world, await world.house(), await world.house())
    copied = doors[0].payment(PATH)
    first = channel_house.told(await doors[0].http.get(PATH, headers=copied))
    assert first.status == 200
    await pay_off(doors[0], first)  # so that the copy would be one more request on credit
    for door in doors:
        again = channel_house.told(await door.http.get(PATH, headers=copied))
        assert (again.status, again.code) == (400, "AUTH_INVALID")
    last = await doors[1].asks(PATH)
    assert last.status == 200
    await pay_off(doors[1], last)


@pytest.mark.parametrize("is_first", [True, False], ids=["first-call", "same-voucher"])
async def test_of_parallel_calls_at_two_processes_one_is_served(
    world: World, is_first: bool
) -> None:
    doors = await payers(world, await world.house(), await world.house())
    voucher: SignedSubRAV | None = None
    served: list[Told] = []
    if not is_first:
        voucher = sign((await doors[0].asks(PATH)).proposal)
    for _ in range(3):
        asked = [doors[at % 2].asks(PATH, voucher) for at in range(6)]
        answers = await asyncio.gather(*asked)
        served = [answer for answer in answers if answer.status == 200]
        assert len(served) == 1
        assert {answer.code for answer in answers} <= {None, "PAYMENT_REQUIRED", "RAV_CONFLICT"}
        voucher = sign(served[0].proposal)
    await pay_off(doors[1], served[0])


async def test_what_a_dead_process_was_serving_is_charged_once_by_whoever_is_asked_next(
    world: World,
) -> None:
    a, b = await world.house(), await world.house()
    doors = await payers(world, a, b)
    first = await doors[0].asks(PATH)
    payment = doors[0].payment("/v1/chat/completions", sign(first.proposal), is_named=False)
    headers = [(name.lower().encode(), value.encode()) for name, value in payment.items()]
    paywall = a.farebox.paywall
    presented = paywall.read(headers, "POST", "/v1/chat/completions")
    assert not hasattr(presented, "status")
    admission = await paywall.authorise(presented, METERED)
    assert isinstance(admission, Admission), admission
    await paywall.checkpoint(admission, Usage(output_tokens=3))
    a.kill()
    busy = await doors[1].asks(PATH)
    assert (busy.status, busy.code) == (409, "RAV_CONFLICT"), "it may still be alive"
    await world.beats(b)
    asked = await doors[1].asks(PATH)
    assert (asked.status, asked.code) == (402, "PAYMENT_REQUIRED")
    owed = asked.proposal.accumulated_amount - PRICE_MSAT
    assert owed == 3 * 1_000, "the last checkpoint"
    last = await doors[1].asks(PATH, sign(asked.proposal))
    assert last.status == 200
    await pay_off(doors[1], last)


async def test_all_processes_together_serve_what_the_collateral_covers(world: World) -> None:
    doors = await payers(world, await world.house(), await world.house(), collateral=1)
    assert (await doors[0].open(3 * PRICE_MSAT - 1)).status_code == 201
    keys = {f"k{at}": SigningKey(KeyType.ED25519, bytes([at + 2]) * 32) for at in range(6)}
    for fragment, key in keys.items():
        assert (await doors[0].open(0, fragment, key)).status_code == 201
    asked = [
        doors[at % 2].asks(PATH, fragment=fragment, key=key)
        for at, (fragment, key) in enumerate(keys.items())
    ]
    answers = dict(zip(keys, await asyncio.gather(*asked), strict=True))
    served = {name: answer for name, answer in answers.items() if answer.status == 200}
    assert len(served) == 3
    refused = {answer.code for name, answer in answers.items() if name not in served}
    assert refused == {"HUB_INSUFFICIENT_FUNDS"}
    for name, answer in served.items():
        await pay_off(doors[0], answer, name, keys[name])


async def test_two_that_claim_and_close_at_once_move_each_unit_once(world: World) -> None:
    a, b = await world.house(), await world.house()
    doors = await payers(world, a, b)
    before = (await world.available(doors[0].account))[0]
    last = await doors[0].asks(PATH)
    for turn in range(1, 4):
        last = await doors[turn % 2].asks(PATH, sign(last.proposal))
    await pay_off(doors[0], last)
    channels = [house.farebox.channels for house in (a, b)]
    desks = [one.desk for one in channels if one is not None and one.desk is not None]
    await asyncio.gather(*(desk.close(doors[0].account) for desk in desks))
    for house in (a, b):
        house.clock.advance(601)
    assert sum(await asyncio.gather(*(desk.close_due() for desk in desks))) >= 1
    after = (await world.available(doors[0].account))[0]
    assert after - before == 500_000 - 4 * PRICE_MSAT
    assert await doors[0].held(custody_account(doors[0].channel_id)) == 0
