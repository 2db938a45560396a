"""A clock that jumps, either way, moves no money and keeps none from moving.

The house's clock is set while something is under way: a request, a payment, a refund, a quote, a
key that expires, a mint that is left alone. Leaving the house proves that no unit was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from farebox.clock import NS_PER_S, ManualClock
from farebox.ledger.model import Hold, Kind, Open, Transfer, Unit
from farebox.stores.sqlite import SqliteStore
from farebox.testing.mint import AnswersLate, DropAfter, DropBefore, ExecutesLate, Fail
from farebox.wire.cashu.token import encode_token
from tests.integration.whole_house import FUNDED_SAT, PRICE_SAT, Door, WholeHouse, whole_house
from tests.waiting import WAIT_S, eventually

HOUR_S = 3_600
DAY_S = 24 * HOUR_S
JUMPS = [-400 * DAY_S, -HOUR_S, 400 * DAY_S]
CHAT_MSAT = 20_000
FUNDED_MSAT = FUNDED_SAT * 1_000
#: A mint that failed is asked again within this, whatever the clock did.
_SOON_S = 400


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[WholeHouse]:
    async with whole_house(tmp_path, limits={"ecash.mint_timeout_s": WAIT_S}) as made:
        yield made


@pytest.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[WholeHouse]:
    """A house that waits for no mint."""
    async with whole_house(tmp_path, limits={"ecash.mint_timeout_s": 0.5}) as made:
        yield made


async def recovers(house: WholeHouse) -> None:
    """What is open is looked at at once after a jump, or after as long as it ever waits."""
    await house.farebox.recover()
    for _ in range(10):
        if not await house.farebox.operations.unfinished():
            return
        house.clock.advance(_SOON_S)
        await house.farebox.recover()
    raise AssertionError(await house.farebox.operations.unfinished())


@pytest.mark.parametrize("seconds", JUMPS)
async def test_a_request_that_is_under_way_is_charged_as_ever(
    house: WholeHouse, seconds: int
) -> None:
    token = house.token()
    asked = [
        asyncio.create_task(house.chat("slow=0.03", stream=stream, pay=pay))
        for stream in (False, True)
        for pay in ({}, {"X-Cashu": token if stream else house.token()})
    ]
    await eventually(lambda: len(house.upstream.seen) == len(asked))
    house.clock.jump(seconds)
    await house.farebox.recover()
    await house.farebox.store.expire_due()
    answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [200] * 4
    assert await house.balance() == FUNDED_MSAT - 2 * CHAT_MSAT
    link = answers[3].links["payment-change"]["url"]
    told = await house.http.get(httpx.URL(link).path, headers={"X-Cashu": token})
    assert told.json()["charged_msat"] == CHAT_MSAT
    await house.still_pays(told.json()["token"])


@pytest.mark.parametrize("seconds", JUMPS)
@pytest.mark.parametrize("fault", [DropAfter(), ExecutesLate(0.8)], ids=str)
async def test_a_payment_whose_answer_was_lost_is_found_though_nobody_asks_for_it(
    hasty: WholeHouse, fault: DropAfter | ExecutesLate, seconds: int
) -> None:
    hasty.mint.faults.next("swap", fault)
    made = await hasty.present(Door.CREATE, hasty.token())
    assert made.status_code == 202
    hasty.clock.jump(seconds)
    await recovers(hasty)
    assert await hasty.balance(made.json()["api_key"]) == 64_000
    await asyncio.sleep(0.4)  # what was late has come, and found it done


@pytest.mark.parametrize("seconds", JUMPS)
async def test_a_refund_whose_answer_was_lost_leaves_once_and_is_told(
    house: WholeHouse, seconds: int
) -> None:
    house.mint.faults.next("swap", DropAfter())
    headers = {**house.auth(), "Idempotency-Key": "mine"}
    body = {"amount_msat": 33_000}
    asked = await house.http.post("/refund", json=body, headers=headers)
    assert asked.status_code == 202, asked.text
    house.clock.jump(seconds)
    await recovers(house)
    told = await house.http.get("/v1/wallet/refunds", headers=house.auth())
    refunds = [one for one in told.json()["refunds"] if one["state"] == "succeeded"]
    assert [one["amount_msat"] for one in refunds] == [33_000]
    assert await house.balance() == FUNDED_MSAT - 33_000
    await house.still_pays(refunds[0]["token"])


@pytest.mark.parametrize("seconds", [-400 * DAY_S, -HOUR_S])
async def test_what_was_refused_while_another_attempt_may_be_under_way_is_closed_in_time(
    house: WholeHouse, seconds: int
) -> None:
    """The payer has spent his token elsewhere, and our own attempt's answer was lost."""
    money = house.money()
    house.mint.faults.next("swap", DropBefore())
    made = await house.present(Door.CREATE, encode_token(money))
    assert made.status_code == 202
    await house.spend(money)
    house.clock.jump(seconds)
    await recovers(house)
    assert await house.balance(made.json()["api_key"]) == 0


@pytest.mark.parametrize("seconds", JUMPS)
async def test_a_quote_that_was_given_is_kept_or_given_anew(
    house: WholeHouse, seconds: int
) -> None:
    told = (await house.http.get("/echo")).json()
    house.clock.jump(seconds)
    token = house.token()
    paid = await house.present(Door.EMBEDDED, token)
    assert paid.status_code == 200
    assert told["amount"] == PRICE_SAT
    await house.still_pays(paid.headers["x-cashu"])


@pytest.mark.parametrize("seconds", JUMPS)
async def test_a_key_that_expires_keeps_its_money_for_its_owner(
    house: WholeHouse, seconds: int
) -> None:
    expires_at_s = house.clock.now_ns() // NS_PER_S + 2 * DAY_S
    body = {"initial_balance_token": house.token(), "key_expiry_time": expires_at_s}
    made = await house.http.post("/create", json=body)
    key = made.json()["api_key"]
    asked = asyncio.create_task(house.chat("slow=0.1", pay=house.auth(key)))
    await eventually(lambda: house.upstream.seen)
    house.clock.jump(seconds)
    assert (await asked).status_code == 200
    again = await house.chat(pay=house.auth(key))
    assert again.status_code == (401 if seconds > 2 * DAY_S else 200)
    refund = await house.http.post("/refund", headers=house.auth(key))
    assert refund.status_code == 200, refund.text
    await house.still_pays(refund.json()["token"])


@pytest.mark.parametrize("seconds", JUMPS)
async def test_a_mint_that_was_left_alone_is_asked_again_soon(
    house: WholeHouse, seconds: int
) -> None:
    house.mint.faults.always("swap", Fail(503))
    tokens = [house.token() for _ in range(6)]
    for token in tokens:
        assert (await house.present(Door.EMBEDDED, token)).status_code == 503
    house.mint.faults.clear()
    house.clock.jump(seconds)
    house.clock.advance(11)
    for token in tokens:
        await house.still_pays(token)


@pytest.mark.parametrize("seconds", [-DAY_S, HOUR_S])
async def test_a_named_call_is_the_same_call_after_the_jump(
    house: WholeHouse, seconds: int
) -> None:
    headers = {**house.auth(), "Idempotency-Key": "mine"}
    first = await house.http.post("/refund", json={"amount_msat": 33_000}, headers=headers)
    house.clock.jump(seconds)
    again = await house.http.post("/refund", json={"amount_msat": 33_000}, headers=headers)
    assert again.json() == first.json()
    assert await house.balance() == FUNDED_MSAT - 33_000


@pytest.mark.parametrize("seconds", JUMPS)
async def test_a_slow_mint_is_waited_for_across_a_jump(house: WholeHouse, seconds: int) -> None:
    token = house.token()
    house.mint.faults.next("swap", AnswersLate(0.2))
    asked = asyncio.create_task(house.present(Door.EMBEDDED, token))
    await eventually(lambda: house.mint.calls["swap"])
    house.clock.jump(seconds)
    paid = await asked
    assert paid.status_code == 200, paid.text
    await house.still_pays(paid.headers["x-cashu"])


async def test_a_hold_that_times_out_does_so_though_the_clock_was_far_ahead_before(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    store = SqliteStore(tmp_path / "book.db", (), clock=clock)
    try:
        steps = (
            Open("custody", "BTC", Kind.CUSTODY),
            Open("a", "BTC", Kind.CUSTOMER),
            Open("revenue", "BTC", Kind.REVENUE),
            Transfer("custody", "a", 1_000, "deposit"),
        )
        clock.jump(400 * DAY_S)
        await store.commit(Unit("fund", steps))
        clock.jump(-400 * DAY_S)
        await store.commit(Unit("hold", (Hold("a", "revenue", 1, "x", timeout_ns=NS_PER_S),)))
        clock.advance(HOUR_S)
        assert await store.expire_due() == 1
    finally:
        await store.close()
