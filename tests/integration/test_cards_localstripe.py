"""Card money in and back through localstripe, a stateful stand-in for Stripe by others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.card_house import CENT_MSAT, PRICE_MSAT, CardHouse, card_house
from tests.peers.stripe import Localstripe

pytestmark = pytest.mark.peer

SECRET = "whsec_of_the_card_house"
GOOD = "4242424242424242"
CUSTODY = "custody:stripe:main:USD"


@pytest.fixture
async def house(tmp_path: Path, localstripe: Localstripe) -> AsyncIterator[CardHouse]:
    settings = {
        "url": localstripe.url,
        "key": localstripe.api_key,
        "webhook_secret": SECRET,
        # localstripe knows no Checkout: payers pay on a page of ours.
        "pay_url": "https://shop.test/pay",
    }
    async with card_house(tmp_path, {"stripe": settings}, (localstripe.api_key, SECRET)) as opened:
        hook = f"{opened.url}/v1/webhooks/stripe"
        await asyncio.to_thread(localstripe.send_webhooks, hook, SECRET)
        yield opened


async def paid_in(house: CardHouse, localstripe: Localstripe, cents: int) -> tuple[str, str]:
    """A new account's key, and the payment that is on it."""
    asked = await house.asked("stripe", cents)
    intent = asked["pay"].partition("_secret_")[0]
    await asyncio.to_thread(localstripe.pay, intent, GOOD)
    await house.until_credited(asked)
    return await house.opened(asked), intent


async def test_card_money_is_credited_by_its_webhook_spent_and_partly_given_back_localstripe(
    house: CardHouse, localstripe: Localstripe
) -> None:
    key, intent = await paid_in(house, localstripe, 1_000)
    assert await house.balance_msat(key) == 1_000 * CENT_MSAT
    spent = await house.http.get("/echo", headers={"Authorization": f"Bearer {key}"})
    assert spent.status_code == 200

    part = {"method": "stripe", "asset": "USD", "amount": 300}
    quote = (await house.post("/v1/refunds", part | {"dry_run": True}, key)).json()
    assert (quote["amount"], quote["fee_max"], quote["most_msat"]) == ("300", "0", 3_000_000)
    refunded = await house.post("/v1/refunds", part, key, "refund")
    assert refunded.status_code == 200, refunded.text
    again = await house.post("/v1/refunds", part, key, "refund")
    assert again.json() == refunded.json()
    there = await asyncio.to_thread(localstripe.refunds, intent)
    assert [one["amount"] for one in there] == [300]
    assert await house.balance_msat(key) == 700 * CENT_MSAT - PRICE_MSAT
    # Charged 10.00 and 0.65 for paying by card; localstripe keeps nothing.
    assert await house.held(CUSTODY) == 1_065 - 300
