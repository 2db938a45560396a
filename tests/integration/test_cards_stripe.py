"""What becomes of card money after it was paid: disputes, refunds by others, debt, ripening.

Against our own strict fake of Stripe: neither localstripe nor stripe-mock knows any of this.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from msgspec.structs import replace

from farebox.cli import checks
from farebox.cli.desk import carry_out
from farebox.cli.requests import Balance, MoveCapital, Withdraw
from farebox.clock import NS_PER_S
from farebox.errors import InvalidInput
from farebox.money import format_decimal
from farebox.operating import Verdict
from farebox.payments.capital import Flow
from farebox.payments.cards.model import CardPayment, Notice
from farebox.settings import Settings, load_settings
from farebox.testing.asgi import serving
from farebox.testing.mint import PlayMint
from farebox.wire.cashu.token import encode_token
from farebox.worker import KeyExpiry
from tests.contract.rail.fake_stripe import FakeStripe, fee_of
from tests.integration.card_house import (
    CENT_MSAT,
    EARNED_MSAT,
    PRICE_MSAT,
    CardHouse,
    card_house,
    have_earned,
)

CUSTODY, PAYABLE = "custody:stripe:main:USD", "payable:stripe:main:USD"
#: 10.00 and the card fee of the settings: 0.30 and 3.5 %.
PAID, CHARGED = 1_000, 1_065
DISPUTE_FEE = 1_500


@asynccontextmanager
async def stripe_house(
    tmp_path: Path,
    shop: FakeStripe,
    *,
    others: Mapping[str, object] | None = None,
    earned: bool = True,
    **terms: object,
) -> AsyncIterator[CardHouse]:
    settings = {
        "url": shop.url,
        "key": shop.api_key,
        "webhook_secret": shop.webhook_secret,
        **terms,
    }
    secrets = (shop.api_key, shop.webhook_secret)
    rails = {"stripe": settings, **(others or {})}
    async with card_house(tmp_path, rails, secrets) as house:
        shop.hook = f"{house.url}/v1/webhooks/stripe"
        if earned:
            await have_earned(house)
        yield house


@pytest.fixture
async def shop() -> AsyncIterator[FakeStripe]:
    fake = FakeStripe()
    async with serving(fake) as fake.url:
        yield fake


@pytest.fixture
async def house(tmp_path: Path, shop: FakeStripe) -> AsyncIterator[CardHouse]:
    async with stripe_house(tmp_path, shop) as opened:
        yield opened


async def paid_in(house: CardHouse, shop: FakeStripe, cents: int = PAID) -> tuple[str, str]:
    """A new account's key, and the payment that is on it."""
    asked = await house.asked("stripe", cents)
    payment = shop.pay(asked["pay"])
    assert await shop.tell() == 200
    return await house.opened(asked), payment


async def spend(house: CardHouse, key: str, times: int = 1) -> None:
    """Buy something."""
    for _ in range(times):
        told = await house.http.get("/echo", headers={"Authorization": f"Bearer {key}"})
        assert told.status_code == 200, told.text


async def test_a_checkout_page_is_paid_and_what_stripe_keeps_is_booked(
    house: CardHouse, shop: FakeStripe
) -> None:
    key, _ = await paid_in(house, shop)
    assert await house.balance_msat(key) == PAID * CENT_MSAT
    assert await house.held(CUSTODY) == CHARGED - fee_of(CHARGED)
    earned = CHARGED - PAID - fee_of(CHARGED)
    assert await house.held("revenue") == EARNED_MSAT + earned * CENT_MSAT


async def test_what_happened_before_events_could_be_read_is_booked(
    tmp_path: Path, shop: FakeStripe
) -> None:
    """The first cursor stands behind it: no event will ever tell of it."""
    shop.refuses["get /v1/events"] = 1_000
    async with stripe_house(tmp_path, shop) as house:
        asked = await house.asked("stripe", PAID)
        payment = shop.pay(asked["pay"])
        await house.opened(asked)
        shop.give_back(payment, 100)
        shop.refuses.clear()
        async for seen in house.farebox.deposits.rails()["stripe"].watch(""):
            if seen.cursor:
                break
        assert await house.held(CUSTODY) == CHARGED - fee_of(CHARGED) - 100


async def test_a_notice_heard_twice_or_twenty_times_changes_nothing(
    house: CardHouse, shop: FakeStripe
) -> None:
    key, payment = await paid_in(house, shop)
    shop.dispute(payment, CHARGED, DISPUTE_FEE)
    for event in [*shop.events, *shop.events, *shop.events[::-1]]:
        assert await shop.tell(event) == 200
    house.farebox.cards._heard.clear()  # as after a restart
    for event in shop.events:
        assert await shop.tell(event) == 200
    assert await house.balance_msat(key) == 0
    assert await house.held(CUSTODY) == 0
    assert await house.held(PAYABLE) == fee_of(CHARGED) + DISPUTE_FEE


async def test_a_notice_that_is_not_stripes_is_refused_and_nothing_is_asked(
    house: CardHouse, shop: FakeStripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    rail = house.farebox.cards.rails["stripe"]

    async def quiet(cursor: str) -> tuple[list[Notice], str]:
        return [], cursor or "now"

    monkeypatch.setattr(rail.connector, "notices", quiet)  # it is asked for what happened, too
    asked = await house.asked("stripe", PAID)
    shop.pay(asked["pay"])
    followed: list[str] = []
    monkeypatch.setattr(type(rail), "about", lambda _, reference: followed.append(reference))
    assert await shop.tell(secret="whsec_of_somebody_else") == 400
    assert followed == []


async def test_what_stripe_says_that_it_owes_us_is_what_the_books_say(
    house: CardHouse, shop: FakeStripe
) -> None:
    async def told() -> tuple[int, int]:
        rail = house.farebox.cards.rails["stripe"]
        said = {one.custody: one.amount for one in await rail.holdings()}
        return said[CUSTODY], await house.held(CUSTODY)

    assert await told() == (0, 0)
    key, payment = await paid_in(house, shop)
    body = {"method": "stripe", "asset": "USD", "amount": 250}
    assert (await house.post("/v1/refunds", body, key)).status_code == 200
    assert await told() == (CHARGED - fee_of(CHARGED) - 250,) * 2
    shop.dispute(payment, CHARGED - 250, DISPUTE_FEE)
    assert await shop.tell() == 200
    assert await told() == (0, 0)  # what we owe Stripe is no money that lies there


async def test_a_dispute_takes_what_is_left_and_the_rest_is_owed_until_money_comes(
    house: CardHouse, shop: FakeStripe
) -> None:
    key, payment = await paid_in(house, shop)
    await spend(house, key)
    shop.dispute(payment, CHARGED, DISPUTE_FEE)
    assert await shop.tell() == 200
    assert await house.balance_msat(key) == 0
    info = await house.get("/info", key)
    account = next(
        one.id for one in await house.farebox.store.accounts() if one.id.startswith("receivable:")
    )
    assert info is not None
    assert await house.held(account) == PRICE_MSAT
    # Stripe took back more than lay there: the house owes it, and customers are covered.
    assert await house.held(PAYABLE) == fee_of(CHARGED) + DISPUTE_FEE

    asked = await house.asked("stripe", 5_000, key)
    shop.pay(asked["pay"])
    assert await shop.tell() == 200
    assert await house.balance_msat(key) == 5_000 * CENT_MSAT - PRICE_MSAT
    assert await house.held(account) == 0
    assert await house.held(PAYABLE) == 0


async def test_a_dispute_that_is_won_comes_back_whole(house: CardHouse, shop: FakeStripe) -> None:
    key, payment = await paid_in(house, shop)
    dispute = shop.dispute(payment, CHARGED, DISPUTE_FEE)
    assert await shop.tell() == 200
    assert await house.balance_msat(key) == 0
    shop.win(dispute)
    assert await shop.tell() == 200
    assert await house.balance_msat(key) == PAID * CENT_MSAT


async def test_a_refund_in_the_dashboard_leaves_the_account_once(
    house: CardHouse, shop: FakeStripe
) -> None:
    key, payment = await paid_in(house, shop)
    shop.give_back(payment, 400)
    for _ in range(2):
        assert await shop.tell() == 200
    assert await house.balance_msat(key) == 600 * CENT_MSAT
    body = {"method": "stripe", "asset": "USD", "amount": 1_000}
    refunded = await house.post("/v1/refunds", body, key)
    assert refunded.status_code == 200, refunded.text
    assert refunded.json()["amount_msat"] == 600 * CENT_MSAT, refunded.text
    assert await shop.tell() == 200
    assert await house.balance_msat(key) == 0
    assert sum(one["amount"] for one in shop.refunds.values()) == 1_000


async def test_the_oldest_of_many_payments_can_be_given_back_after_all_others(
    house: CardHouse, shop: FakeStripe
) -> None:
    key, _ = await paid_in(house, shop, 500)
    for _ in range(10):
        asked = await house.asked("stripe", 500, key)
        shop.pay(asked["pay"])
        assert await shop.tell() == 200
    for _ in range(11):
        told = await house.post("/v1/refunds", {"method": "stripe"}, key)
        assert told.status_code == 200, told.text
        assert await shop.tell() == 200  # until it is booked, it counts as unripe
    assert await house.balance_msat(key) == 0


async def test_an_older_payment_that_covers_a_refund_is_found_behind_newer_ones_that_do_not(
    house: CardHouse, shop: FakeStripe
) -> None:
    key, oldest = await paid_in(house, shop, 500)
    back = {"method": "stripe", "asset": "USD"}
    for number in range(10):
        asked = await house.asked("stripe", 500, key)
        newer = shop.intents[shop.pay(asked["pay"])]
        newer["latest_charge"]["created"] += number + 1
        assert await shop.tell() == 200
        told = await house.post("/v1/refunds", back | {"amount": 400}, key)
        assert told.status_code == 200, told.text
        assert await shop.tell() == 200
    told = await house.post("/v1/refunds", back | {"amount": 500}, key)
    assert told.json()["amount_msat"] == 500 * CENT_MSAT, told.text
    assert [one["amount"] for one in shop.refunds.values() if one["payment_intent"] == oldest] == [
        500
    ]


async def test_a_refund_that_the_bank_undoes_comes_back_once_and_may_go_again(
    house: CardHouse, shop: FakeStripe
) -> None:
    key, _ = await paid_in(house, shop)
    body = {"method": "stripe", "asset": "USD", "amount": PAID}
    assert (await house.post("/v1/refunds", body, key)).status_code == 200
    assert await shop.tell() == 200
    assert await house.balance_msat(key) == 0
    shop.undo(next(iter(shop.refunds)))
    for event in [*shop.events, *shop.events]:
        assert await shop.tell(event) == 200
    house.farebox.cards._heard.clear()
    assert await shop.tell() == 200
    assert await house.balance_msat(key) == PAID * CENT_MSAT
    assert await house.held(CUSTODY) == CHARGED - fee_of(CHARGED)
    assert (await house.post("/v1/refunds", body, key)).status_code == 200
    assert await house.balance_msat(key) == 0


async def test_what_was_told_before_something_newer_was_booked_takes_nothing_back(
    house: CardHouse, shop: FakeStripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, payment = await paid_in(house, shop)
    rail = house.farebox.cards.rails["stripe"]
    sync, told, go_on = rail.connector.sync, asyncio.Event(), asyncio.Event()

    async def slow(reference: str) -> CardPayment | None:
        stands = await sync(reference)
        if not told.is_set():
            told.set()
            await go_on.wait()
        return stands

    with monkeypatch.context() as patch:
        patch.setattr(rail.connector, "sync", slow)
        older = asyncio.create_task(rail.book(payment, payment))
        await told.wait()
        shop.dispute(payment, CHARGED, DISPUTE_FEE)
        assert await shop.tell() == 200
        assert await house.balance_msat(key) == 0
        go_on.set()
        await older
    assert await house.balance_msat(key) == 0
    assert await house.held(PAYABLE) == fee_of(CHARGED) + DISPUTE_FEE


async def test_a_refund_whose_answer_is_lost_is_made_once(
    house: CardHouse, shop: FakeStripe
) -> None:
    key, _ = await paid_in(house, shop)
    shop.lose["post /v1/refunds"] = 1
    body = {"method": "stripe", "asset": "USD", "amount": 250}
    told = await house.post("/v1/refunds", body, key, "the-refund")
    assert told.status_code == 202, told.text
    await house.settled()
    told = await house.post("/v1/refunds", body, key, "the-refund")
    assert told.status_code == 200, told.text
    assert [one["amount"] for one in shop.refunds.values()] == [250]
    assert await house.balance_msat(key) == 750 * CENT_MSAT


async def test_what_was_missed_while_no_webhook_came_is_found_in_the_events(
    house: CardHouse, shop: FakeStripe
) -> None:
    asked = await house.asked("stripe", PAID)
    payment = shop.pay(asked["pay"])
    await house.until_credited(asked)
    shop.dispute(payment, CHARGED, DISPUTE_FEE)
    await house.until(lambda: house.held(PAYABLE), fee_of(CHARGED) + DISPUTE_FEE)


async def test_card_money_leaves_another_way_only_when_it_is_ripe(
    tmp_path: Path, shop: FakeStripe
) -> None:
    mint = PlayMint()
    async with serving(mint) as mint.url:
        terms = {"mint": [{"url": mint.url}]}
        async with stripe_house(tmp_path, shop, others=terms, maturity_days=1) as house:
            key, _ = await paid_in(house, shop)
            others = {"initial_balance_token": encode_token(mint.issue(16_384, "sat"))}
            assert (await house.post("/create", others)).status_code == 200
            token = encode_token(mint.issue(4_096, "sat"))
            ripe_msat = int(
                (await house.post("/topup", {"cashu_token": token}, key)).json()["msats"]
            )
            too_much = {"method": "cashu", "amount_msat": ripe_msat + 1_000}
            refused = await house.post("/v1/refunds", too_much, key)
            assert refused.json()["code"] == "funds_not_ripe", refused.text
            some = {"method": "cashu", "amount_msat": 1_000_000}
            assert (await house.post("/v1/refunds", some, key)).status_code == 200
            # What is spent is ripe money first; back to the card it may go at any time.
            await spend(house, key, 2)
            left_msat = ripe_msat - 1_000_000 - 2 * PRICE_MSAT
            more = {"method": "cashu", "amount_msat": left_msat + 1_000}
            refused = await house.post("/v1/refunds", more, key)
            assert refused.json()["code"] == "funds_not_ripe", refused.text
            back = {"method": "stripe", "asset": "USD", "amount": 900}
            assert (await house.post("/v1/refunds", back, key)).status_code == 200
            # Then less of it is unripe, before Stripe has told of it and after.
            assert (await house.post("/v1/refunds", some, key)).status_code == 200
            house.clock.ahead_s += 90_000
            rest = {"method": "cashu", "amount_msat": 1_000_000}
            assert (await house.post("/v1/refunds", rest, key)).status_code == 200


async def test_card_money_goes_back_to_its_payers_though_some_was_spent(
    tmp_path: Path, shop: FakeStripe
) -> None:
    async with stripe_house(tmp_path, shop, maturity_days=30) as house:
        key, _ = await paid_in(house, shop)
        asked = await house.asked("stripe", PAID, key)
        shop.pay(asked["pay"])
        assert await shop.tell() == 200
        await spend(house, key)
        left = 2 * PAID - PRICE_MSAT // CENT_MSAT
        for cents in (PAID, left - PAID):
            body = {"method": "stripe", "asset": "USD", "amount": cents}
            told = await house.post("/v1/refunds", body, key)
            assert told.status_code == 200, told.text
        assert await house.balance_msat(key) == 0
        assert sorted(one["amount"] for one in shop.refunds.values()) == [left - PAID, PAID]


async def ending_key(house: CardHouse, shop: FakeStripe, *more: tuple[int, str]) -> str:
    """A key that was paid 10.00 and then more, and is past its end."""
    asked = await house.asked("stripe", PAID)
    shop.pay(asked["pay"])
    assert await shop.tell() == 200
    ends_at_s = house.clock.now_ns() // NS_PER_S + 60
    body = {"initial_balance_token": asked["uri"], "claim_secret": asked["claim_secret"]}
    terms = {"key_expiry_time": ends_at_s, "refund_address": "me@example.com"}
    key = str((await house.post("/create", body | terms)).json()["api_key"])
    for cents, asset in more:
        another = await house.asked("stripe", cents, key, asset)
        shop.pay(another["pay"])
        assert await shop.tell() == 200
    house.clock.ahead_s += 120  # and the rate is fresh enough
    return key


async def until_given_back(house: CardHouse, shop: FakeStripe, cents: int) -> None:
    """Let keys end until so much went back."""
    farebox = house.farebox
    expiry = KeyExpiry(farebox.ledger, farebox.operations, farebox.payments, farebox.keys)

    async def given() -> int:
        await expiry.run()
        return sum(one["amount"] for one in shop.refunds.values())

    await house.until(given, cents)


async def test_what_is_left_of_card_payments_when_a_key_ends_goes_back_to_their_cards(
    house: CardHouse, shop: FakeStripe
) -> None:
    key = await ending_key(house, shop, (2 * PAID, "USD"))
    by_hand = {"method": "stripe", "asset": "USD", "amount": 100}
    told = await house.post("/v1/refunds", by_hand, key)  # no address of another kind is in its way
    assert told.status_code == 200, told.text
    await until_given_back(house, shop, 3 * PAID)
    assert len(shop.refunds) == 3
    assert await house.balance_msat(key) == 0


async def test_when_a_key_ends_each_currency_goes_back_to_the_cards_that_paid_it(
    tmp_path: Path, shop: FakeStripe
) -> None:
    euro = {"rate": [{"asset": "EUR", "priced_in": "USD", "price": "1.25"}]}
    async with stripe_house(tmp_path, shop, others=euro, currencies=["USD", "EUR"]) as house:
        key = await ending_key(house, shop, (PAID, "EUR"), (2 * PAID, "EUR"))
        await until_given_back(house, shop, 4 * PAID)
        given = Counter[str]()
        for one in shop.refunds.values():
            given[shop.intents[one["payment_intent"]]["currency"]] += one["amount"]
        assert given == {"usd": PAID, "eur": 3 * PAID}
        assert await house.balance_msat(key) == 0


async def test_a_loss_that_nothing_has_earned_is_told_by_verify(
    tmp_path: Path, shop: FakeStripe
) -> None:
    async def lose() -> None:
        async with stripe_house(tmp_path, shop, earned=False) as house:
            _, payment = await paid_in(house, shop)
            shop.dispute(payment, CHARGED, DISPUTE_FEE)
            assert await shop.tell() == 200

    with pytest.raises(AssertionError, match="custody of BTC: expected at least 15610000, found 0"):
        await lose()


async def test_what_was_lost_is_not_withdrawn_as_if_it_were_earned(
    tmp_path: Path, shop: FakeStripe
) -> None:
    async with stripe_house(tmp_path, shop, earned=False) as house:
        _, payment = await paid_in(house, shop)
        shop.dispute(payment, CHARGED, DISPUTE_FEE)
        assert await shop.tell() == 200
        await have_earned(house)
        left_msat = EARNED_MSAT - (fee_of(CHARGED) + DISPUTE_FEE) * CENT_MSAT
        facts = await carry_out(house.farebox, Balance())
        assert (facts["covered"], facts["withdrawable_msat"]) == (True, left_msat)
        with pytest.raises(InvalidInput, match="34,390 sat are beyond what customers own"):
            await carry_out(house.farebox, Withdraw("wd", left_msat + 1, "", "", "stripe"))


async def test_what_stripe_converts_is_credited_as_it_was_paid_and_told(
    house: CardHouse, shop: FakeStripe
) -> None:
    shop.settles = "eur"
    key, _ = await paid_in(house, shop)
    assert await house.balance_msat(key) == PAID * CENT_MSAT
    settled = CHARGED * 92 // 100
    kept = -(-fee_of(settled) * CHARGED // settled)
    assert await house.held(CUSTODY) == CHARGED - kept
    assert "stripe.converted" in house.log.getvalue()


async def test_what_was_charged_in_another_currency_is_credited_to_nobody_and_told(
    house: CardHouse, shop: FakeStripe
) -> None:
    asked = await house.asked("stripe", PAID)
    page = next(iter(shop.sessions.values()))
    assert page["currency"] == "usd"
    page["currency"] = "jpy"
    shop.pay(asked["pay"])
    assert await shop.tell() == 200
    assert "cards.another_currency" in house.log.getvalue()
    assert await house.held("custody:stripe:main:JPY") == 0
    assert await house.held(CUSTODY) == 0


async def test_capital_that_the_operator_pays_in_covers_a_loss(
    tmp_path: Path, shop: FakeStripe
) -> None:
    async with stripe_house(tmp_path, shop, earned=False) as house:
        _, payment = await paid_in(house, shop)
        shop.dispute(payment, CHARGED, DISPUTE_FEE)
        assert await shop.tell() == 200
        assert not (await carry_out(house.farebox, Balance()))["covered"]
        lost = fee_of(CHARGED) + DISPUTE_FEE
        assert await house.held(PAYABLE) == lost

        paid = MoveCapital("topped-up", Flow.IN, "20", "stripe", "USD")
        for _ in range(2):
            told = await carry_out(house.farebox, paid)
            assert (told["counted"], told["capital"]) == (2_000 * CENT_MSAT,) * 2
        assert (await house.held(PAYABLE), await house.held(CUSTODY)) == (0, 2_000 - lost)
        facts = await carry_out(house.farebox, Balance())
        assert (facts["covered"], facts["capital_msat"]) == (True, 2_000 * CENT_MSAT)

        # What bears the loss stays; only what is beyond that may go again.
        with pytest.raises(InvalidInput, match="has borne a loss"):
            await carry_out(house.farebox, replace(paid, id="a", flow=Flow.OUT))
        with pytest.raises(InvalidInput, match="moved something else"):
            await carry_out(house.farebox, replace(paid, amount="21"))
        rest = format_decimal(2_000 - lost, 2)
        order = MoveCapital("the-rest", Flow.OUT, rest, "stripe", "USD")
        for _ in range(2):
            assert (await carry_out(house.farebox, order))["capital"] == lost * CENT_MSAT
        assert await house.held(CUSTODY) == 0
        with pytest.raises(InvalidInput, match="stripe"):
            await carry_out(house.farebox, MoveCapital("b", Flow.IN, "1 sat", "nowhere"))


async def test_doctor_says_whether_stripe_lets_us_in(tmp_path: Path, shop: FakeStripe) -> None:
    def told(key: str, **more: object) -> Settings:
        stripe = {"url": shop.url, "key": key, **more}
        overrides = {"data_dir": str(tmp_path), "stripe": stripe}
        return load_settings(None, {}, {**overrides, "gateway.public_url": "https://pay.test"})

    async with aiohttp.ClientSession() as session:
        well = await checks.cards("stripe", told(shop.api_key, webhook_secret="w"), session)
        deaf = await checks.cards("stripe", told(shop.api_key), session)
        out = await checks.cards("stripe", told("sk_of_nobody"), session)
    assert [one.verdict for one in well] == [Verdict.FINE, Verdict.FINE]
    assert well[1].found == "is https://pay.test/v1/webhooks/stripe"
    assert [one.verdict for one in deaf] == [Verdict.FINE, Verdict.WARNING]
    assert [one.verdict for one in out] == [Verdict.FAILURE]
    shop.settles = "eur"
    async with aiohttp.ClientSession() as session:
        *_, converts = await checks.cards("stripe", told(shop.api_key), session)
    assert (converts.verdict, converts.found) == (Verdict.WARNING, "its balance knows no USD")
