"""Stored methods, and charging them: declined and tried elsewhere, never charged twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from farebox.testing.asgi import serving
from tests.contract.rail.fake_stripe import FakeStripe, fee_of
from tests.integration.card_house import CENT_MSAT, CardHouse
from tests.integration.test_cards_stripe import CHARGED, CUSTODY, PAID, paid_in, stripe_house


@pytest.fixture
async def shop() -> AsyncIterator[FakeStripe]:
    fake = FakeStripe()
    async with serving(fake) as fake.url:
        yield fake


@pytest.fixture
async def house(tmp_path: Path, shop: FakeStripe) -> AsyncIterator[CardHouse]:
    async with stripe_house(tmp_path, shop) as opened:
        yield opened


async def keep(house: CardHouse, key: str, *tokens: str) -> list[str]:
    """Store methods for an account; gives our names for them."""
    names = []
    for token in tokens:
        body = {"provider": "stripe", "token": token}
        made = await house.post("/v1/payment-methods", body, key)
        assert made.status_code == 201, made.text
        assert token not in made.text
        names.append(str(made.json()["payment_method"]))
    return names


async def charge(house: CardHouse, key: str, name: str = "", method: str = "") -> httpx.Response:
    """Top up by 10.00."""
    body = {"asset": "USD", "amount": PAID, "payment_method": method}
    return await house.post("/v1/payment-methods/charge", body, key, name)


def taken(shop: FakeStripe) -> list[Any]:
    """The payments that took money of a stored card."""
    found = shop.intents.values()
    return [one for one in found if one["customer"] and one["status"] == "succeeded"]


async def test_a_stored_method_is_shown_chosen_charged_and_removed(
    house: CardHouse, shop: FakeStripe
) -> None:
    key, _ = await paid_in(house, shop)
    thief, _ = await paid_in(house, shop)
    first, second = await keep(house, key, "pm_good", "pm_other")
    assert await keep(house, key, "pm_good") == [first]  # added again: the same
    told = (await house.get("/v1/payment-methods", key))["payment_methods"]
    assert [(one["payment_method"], one["default"]) for one in told] == [
        (first, True),
        (second, False),
    ]
    assert told[0]["label"] == "visa …4242"
    stolen = await house.post(f"/v1/payment-methods/{second}/default", {}, thief)
    assert stolen.status_code == 404
    assert (await charge(house, thief, method=first)).json()["code"] == "method_unknown"
    assert (await house.post(f"/v1/payment-methods/{second}/default", {}, key)).status_code == 200
    told = (await house.get("/v1/payment-methods", key))["payment_methods"]
    assert [one["payment_method"] for one in told] == [second, first]

    before = await house.held(CUSTODY)
    done = await charge(house, key, "the-charge")
    assert done.json()["amount_msat"] == PAID * CENT_MSAT, done.text
    assert (await charge(house, key, "the-charge")).json() == done.json()
    assert len(taken(shop)) == 1
    assert await house.balance_msat(key) == 2 * PAID * CENT_MSAT
    assert await house.held(CUSTODY) == before + CHARGED - fee_of(CHARGED)
    assert await shop.tell() == 200  # its notice has nothing to add
    assert await house.held(CUSTODY) == before + CHARGED - fee_of(CHARGED)
    back = {"method": "stripe", "asset": "USD", "amount": PAID}
    assert (await house.post("/v1/refunds", back, key)).status_code == 200

    headers = {"Authorization": f"Bearer {key}"}
    for name, status in ((second, 200), (second, 404)):
        gone = await house.http.delete(f"/v1/payment-methods/{name}", headers=headers)
        assert gone.status_code == status
    assert "pm_other" not in shop.attached
    told = (await house.get("/v1/payment-methods", key))["payment_methods"]
    assert [(one["payment_method"], one["default"]) for one in told] == [(first, True)]


async def test_of_methods_that_are_added_at_once_the_oldest_is_the_default(
    house: CardHouse, shop: FakeStripe
) -> None:
    key, _ = await paid_in(house, shop)
    added = await asyncio.gather(*(keep(house, key, one) for one in ("pm_good", "pm_other")))
    told = (await house.get("/v1/payment-methods", key))["payment_methods"]
    assert [one["default"] for one in told] == [True, False]
    assert {one["payment_method"] for one in told} == {name for names in added for name in names}
    chosen, other = told[1]["payment_method"], told[0]["payment_method"]
    assert (await house.post(f"/v1/payment-methods/{chosen}/default", {}, key)).status_code == 200
    headers = {"Authorization": f"Bearer {key}"}
    gone = await house.http.delete(f"/v1/payment-methods/{chosen}", headers=headers)
    assert gone.status_code == 200
    told = (await house.get("/v1/payment-methods", key))["payment_methods"]
    assert [(one["payment_method"], one["default"]) for one in told] == [(other, True)]
    again = await keep(house, key, "pm_good", "pm_other")
    told = (await house.get("/v1/payment-methods", key))["payment_methods"]
    assert told[0]["payment_method"] == other  # what was dropped is not chosen any more
    assert {one["payment_method"] for one in told} == set(again)


@pytest.mark.parametrize(
    ("cards", "ends", "calls"),
    [
        (("pm_poor", "pm_good"), 200, 2),  # soft: the payer's other card may pay
        (("pm_flaky", "pm_good"), 200, 2),  # technical: another may
        (("pm_stolen", "pm_good"), 402, 1),  # hard: nothing else is tried
        (("pm_poor", "pm_flaky"), 402, 2),
    ],
)
async def test_a_second_method_is_tried_only_where_the_answer_leaves_that(
    house: CardHouse, shop: FakeStripe, cards: tuple[str, str], ends: int, calls: int
) -> None:
    key, _ = await paid_in(house, shop)
    await keep(house, key, *cards)
    told = await charge(house, key)
    assert told.status_code == ends, told.text
    assert shop.calls["post /v1/payment_intents"] == calls
    assert len(taken(shop)) == (ends == 200)
    assert await house.balance_msat(key) == (1 + (ends == 200)) * PAID * CENT_MSAT


async def test_a_method_that_was_named_is_charged_and_no_other(
    house: CardHouse, shop: FakeStripe
) -> None:
    key, _ = await paid_in(house, shop)
    poor, _ = await keep(house, key, "pm_poor", "pm_good")
    told = await charge(house, key, method=poor)
    assert (told.status_code, told.json()["reason"]) == (402, "insufficient_funds")
    assert taken(shop) == []


@pytest.mark.parametrize("cards", [("pm_good", "pm_other"), ("pm_poor", "pm_good", "pm_other")])
async def test_a_charge_whose_answer_is_lost_is_asked_for_and_nothing_else_is_charged(
    house: CardHouse, shop: FakeStripe, cards: tuple[str, ...]
) -> None:
    key, _ = await paid_in(house, shop)
    await keep(house, key, *cards)
    await house.farebox.worker.stop()  # it would ask by itself
    shop.lose["post /v1/payment_intents"] = len(cards)
    told = await charge(house, key, "the-charge")
    assert (told.status_code, told.json()["state"]) == (202, "pending")
    assert len(taken(shop)) == (cards[0] == "pm_good")
    await house.settled()
    told = await charge(house, key, "the-charge")
    assert told.status_code == 200, told.text
    assert len(taken(shop)) == 1
    assert await house.balance_msat(key) == 2 * PAID * CENT_MSAT


async def test_a_charge_that_a_proxy_has_sent_twice_is_asked_for_and_nothing_else_is_charged(
    house: CardHouse, shop: FakeStripe
) -> None:
    """The first copy is carried out, and what we are told is that the second came too fast."""
    key, _ = await paid_in(house, shop)
    await keep(house, key, "pm_good", "pm_other")
    await house.farebox.worker.stop()  # it would ask by itself
    shop.sent_twice["post /v1/payment_intents"] = 1
    assert (await charge(house, key, "the-charge")).status_code == 202
    await house.settled()
    assert (await charge(house, key, "the-charge")).status_code == 200
    assert len(taken(shop)) == 1
    assert await house.balance_msat(key) == 2 * PAID * CENT_MSAT


async def test_what_has_declined_is_never_asked_again_once_another_may_have_been_charged(
    house: CardHouse, shop: FakeStripe
) -> None:
    key, _ = await paid_in(house, shop)
    await keep(house, key, "pm_good", "pm_other")
    # The first could be charged a moment later; by then the second has been, unheard.
    shop.refuses["post /v1/payment_intents"] = 1
    shop.lose["post /v1/payment_intents"] = 1
    assert (await charge(house, key, "the-charge")).status_code == 202
    await house.settled()
    assert (await charge(house, key, "the-charge")).status_code == 200
    assert len(taken(shop)) == 1
    assert await house.balance_msat(key) == 2 * PAID * CENT_MSAT


async def test_a_payer_proves_that_it_is_them_or_is_charged_nothing(
    house: CardHouse, shop: FakeStripe
) -> None:
    key, _ = await paid_in(house, shop)
    await keep(house, key, "pm_3ds", "pm_good")
    told = (await charge(house, key, "proven")).json()
    assert told["state"] == "requires_action"
    assert told["url"].startswith("https://hooks.stripe.test/3ds/pi_")
    secret = told["client_secret"]
    shop.prove(told["url"].rpartition("/")[2])
    assert (await charge(house, key, "proven")).json()["state"] == "succeeded"
    assert await house.balance_msat(key) == 2 * PAID * CENT_MSAT

    assert (await charge(house, key, "never")).json()["state"] == "requires_action"
    house.clock.ahead_s += 3_700
    never = await charge(house, key, "never")
    assert (never.status_code, never.json()["reason"]) == (402, "action_not_taken")
    assert len(taken(shop)) == 1
    assert await house.balance_msat(key) == 2 * PAID * CENT_MSAT
    assert secret not in house.log.getvalue()
