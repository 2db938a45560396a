"""PayPal behind the same gateway, against a contract fake: no server of PayPal's can be had."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.testing.asgi import serving
from tests.contract.rail.fake_paypal import FakePaypal, fee_of
from tests.contract.rail.fake_stripe import FakeStripe
from tests.integration.card_house import (
    CENT_MSAT,
    EARNED_MSAT,
    PRICE_MSAT,
    CardHouse,
    card_house,
    have_earned,
)

CUSTODY, PAYABLE = "custody:paypal:main:USD", "payable:paypal:main:USD"
PAID, CHARGED = 1_000, 1_065
DISPUTE_FEE = 2_000


@pytest.fixture
async def pal() -> AsyncIterator[FakePaypal]:
    fake = FakePaypal()
    async with serving(fake) as fake.url:
        yield fake


@pytest.fixture
async def house(tmp_path: Path, pal: FakePaypal) -> AsyncIterator[CardHouse]:
    async with card_house(tmp_path, {"paypal": told(pal)}, (pal.client_secret,)) as opened:
        pal.hook = f"{opened.url}/v1/webhooks/paypal"
        await have_earned(opened)
        yield opened
        assert pal.access_token not in opened.log.getvalue()


def told(pal: FakePaypal) -> dict[str, object]:
    """How a house is told of its account."""
    return {
        "url": pal.url,
        "client_id": pal.client_id,
        "client_secret": pal.client_secret,
        "webhook_id": pal.webhook_id,
    }


async def paid_in(house: CardHouse, pal: FakePaypal) -> tuple[str, str]:
    """A new account's key, and the order that is on it."""
    asked = await house.asked("paypal", PAID)
    order = pal.approve(asked["pay"])
    assert await pal.tell() == 200  # approved: we capture, and it is credited
    assert await pal.tell() == 200  # captured
    return await house.opened(asked), order


async def test_an_approved_order_is_captured_credited_spent_and_partly_given_back(
    house: CardHouse, pal: FakePaypal
) -> None:
    key, order = await paid_in(house, pal)
    assert await house.balance_msat(key) == PAID * CENT_MSAT
    assert await house.held(CUSTODY) == CHARGED - fee_of(CHARGED)
    earned = CHARGED - PAID - fee_of(CHARGED)
    assert await house.held("revenue") == EARNED_MSAT + earned * CENT_MSAT
    spent = await house.http.get("/echo", headers={"Authorization": f"Bearer {key}"})
    assert spent.status_code == 200
    back = {"method": "paypal", "asset": "USD", "amount": 300}
    pal.lose["post /v2/payments/captures/*/refund"] = 1
    assert (await house.post("/v1/refunds", back, key, "back")).status_code == 202
    await house.settled()
    assert (await house.post("/v1/refunds", back, key, "back")).status_code == 200
    refunds = pal.orders[order]["purchase_units"][0]["payments"]["refunds"]
    assert [one["amount"]["value"] for one in refunds] == ["3.00"]
    assert await house.balance_msat(key) == 700 * CENT_MSAT - PRICE_MSAT


async def test_an_approval_that_no_webhook_tells_of_is_captured_once(
    house: CardHouse, pal: FakePaypal
) -> None:
    asked = await house.asked("paypal", PAID)
    pal.lose["post /v2/checkout/orders/*/capture"] = 1
    order = pal.approve(asked["pay"])
    await house.until_credited(asked)
    assert len(pal.orders[order]["purchase_units"][0]["payments"]["captures"]) == 1
    key = await house.opened(asked)
    assert await house.balance_msat(key) == PAID * CENT_MSAT


async def test_a_card_that_declines_is_not_tried_each_time_that_somebody_asks(
    house: CardHouse, pal: FakePaypal
) -> None:
    asked = await house.asked("paypal", PAID)
    pal.poor, pal.keeps_approval = 10**6, True
    order = pal.approve(asked["pay"])
    assert await pal.tell() == 200
    rail = house.farebox.cards.rails["paypal"]
    for _ in range(20):
        assert await rail.look(order) == []
    # By the webhook, the list of events, and the poller if it was before both.
    assert pal.calls["post /v2/checkout/orders/*/capture"] <= 3
    pal.poor = 0
    pal.approve(asked["pay"])  # with another card
    assert await pal.tell() == 200
    await house.until_credited(asked)


async def test_what_paypal_did_not_send_is_refused(house: CardHouse, pal: FakePaypal) -> None:
    asked = await house.asked("paypal", PAID)
    pal.approve(asked["pay"])
    assert await pal.tell(signature="forged") == 400
    forged = {"id": "WH-1", "event_type": "CHECKOUT.ORDER.APPROVED", "resource": {"id": "X"}}
    assert await pal.tell(forged) == 400


async def test_a_dispute_and_its_end_are_booked_once(house: CardHouse, pal: FakePaypal) -> None:
    key, order = await paid_in(house, pal)
    name = pal.dispute(order, CHARGED, DISPUTE_FEE)
    for event in [*pal.events, *pal.events]:
        assert await pal.tell(event) == 200
    assert await house.balance_msat(key) == 0
    assert await house.held(PAYABLE) == fee_of(CHARGED) + DISPUTE_FEE
    pal.win(name)
    for _ in range(2):
        assert await pal.tell() == 200
    assert await house.balance_msat(key) == PAID * CENT_MSAT


async def test_a_dispute_over_several_payments_is_booked_to_each_by_what_was_paid(
    house: CardHouse, pal: FakePaypal
) -> None:
    key, order = await paid_in(house, pal)
    another, second = await paid_in(house, pal)
    disputed, fee = 1_731, 2_001  # nothing that can be halved
    name = pal.dispute(order, disputed, fee, second)
    assert await pal.tell() == 200
    left = [await house.balance_msat(one) // CENT_MSAT for one in (key, another)]
    assert sorted(left) == [134, 135]
    owed = disputed + fee - 2 * (CHARGED - fee_of(CHARGED))
    assert await house.held(PAYABLE) == owed
    pal.win(name)
    assert await pal.tell() == 200
    for one in (key, another):
        assert await house.balance_msat(one) == PAID * CENT_MSAT


async def test_a_refund_on_paypals_site_leaves_the_account(
    house: CardHouse, pal: FakePaypal
) -> None:
    key, order = await paid_in(house, pal)
    pal.give_back(order, 400)
    assert await pal.tell() == 200
    assert await house.balance_msat(key) == 600 * CENT_MSAT


async def test_a_vaulted_account_is_charged_once_though_the_answer_is_lost(
    house: CardHouse, pal: FakePaypal
) -> None:
    key, _ = await paid_in(house, pal)
    body = {"provider": "paypal", "token": "setup-good"}
    made = await house.post("/v1/payment-methods", body, key)
    assert (made.status_code, made.json()["label"]) == (201, "PayPal pa…@example.com"), made.text
    pal.lose["post /v2/checkout/orders"] = 1
    charge = {"asset": "USD", "amount": PAID}
    first = await house.post("/v1/payment-methods/charge", charge, key, "charge")
    assert first.status_code == 202, first.text
    await house.settled()
    done = await house.post("/v1/payment-methods/charge", charge, key, "charge")
    assert done.json()["amount_msat"] == PAID * CENT_MSAT, done.text
    assert len(pal.captures) == 2
    assert await house.balance_msat(key) == 2 * PAID * CENT_MSAT
    headers = {"Authorization": f"Bearer {key}"}
    path = f"/v1/payment-methods/{made.json()['payment_method']}"
    assert (await house.http.delete(path, headers=headers)).status_code == 200
    assert pal.vault == {}


@pytest.mark.parametrize("is_fine", [True, False])
async def test_a_charge_that_is_looked_into_for_days_comes_to_its_end_once(
    is_fine: bool, house: CardHouse, pal: FakePaypal
) -> None:
    key, _ = await paid_in(house, pal)
    body = {"provider": "paypal", "token": "setup-good"}
    assert (await house.post("/v1/payment-methods", body, key)).status_code == 201
    charge, pal.reviews = {"asset": "USD", "amount": PAID}, True
    first = await house.post("/v1/payment-methods/charge", charge, key, "charge")
    assert first.status_code == 202, first.text
    house.clock.ahead_s += 30 * 3_600  # PayPal has forgotten the request id long ago
    await house.farebox.recover()
    pal.review(is_fine=is_fine)
    await house.settled()
    done = await house.post("/v1/payment-methods/charge", charge, key, "charge")
    assert done.status_code == (200 if is_fine else 402), done.text
    assert await house.balance_msat(key) == (1 + is_fine) * PAID * CENT_MSAT
    assert pal.calls["post /v2/checkout/orders"] == 2


async def test_what_one_provider_cannot_charge_the_other_may_and_never_both(
    tmp_path: Path, pal: FakePaypal
) -> None:
    shop = FakeStripe()
    async with serving(shop) as shop.url:
        stripe = {"url": shop.url, "key": shop.api_key, "webhook_secret": shop.webhook_secret}
        rails = {"stripe": stripe, "paypal": told(pal)}
        async with card_house(tmp_path, rails, (shop.api_key, pal.client_secret)) as house:
            pal.hook = f"{house.url}/v1/webhooks/paypal"
            await have_earned(house)
            key, _ = await paid_in(house, pal)
            for provider, token in (("stripe", "pm_flaky"), ("paypal", "setup-good")):
                body = {"provider": provider, "token": token}
                assert (await house.post("/v1/payment-methods", body, key)).status_code == 201
            charge = {"asset": "USD", "amount": PAID}
            done = await house.post("/v1/payment-methods/charge", charge, key)
            assert done.status_code == 200, done.text
            assert len(pal.captures) == 2
            # An unknown answer is no decline: the other provider is left alone.
            shop.lose["post /v1/payment_intents"] = 10**6
            assert (await house.post("/v1/payment-methods/charge", charge, key)).status_code == 202
            assert len(pal.captures) == 2
            shop.lose.clear()
            await house.settled()
            assert len(pal.captures) == 3  # once Stripe has said no
            assert await house.balance_msat(key) == 3 * PAID * CENT_MSAT
