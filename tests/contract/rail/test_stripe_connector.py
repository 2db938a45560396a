"""The Stripe connector against localstripe, which keeps state, and stripe-mock, which is strict."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
import pytest
import stripe

from farebox.clock import NS_PER_S, SystemClock
from farebox.errors import RailUnavailable
from farebox.ids import new_id
from farebox.payments.cards.connector import Connector
from farebox.payments.cards.model import (
    Authorised,
    Captured,
    CardOrder,
    CheckoutOrder,
    Decline,
    Declined,
    Forged,
    GivenBack,
    Notice,
    Phase,
    RequiresAction,
    StoredToken,
    Unknown,
    Voided,
)
from farebox.rails.stripe import StripeConfig, StripeConnector, check_signature, open_client
from farebox.rails.stripe.answers import decline_of
from farebox.rails.web.breaker import Breaker
from farebox.testing.asgi import Receive, Scope, Send, respond, serving
from tests.contract.rail.fake_stripe import Document, FakeStripe
from tests.integration.whole_house import listening
from tests.peers.stripe import Localstripe, StripeMock

SECRET = "whsec_of_the_test"
GOOD, DECLINED, CHALLENGED = "4242424242424242", "4000000000000341", "4000002500003155"
NOW_S = SystemClock().now_ns() // NS_PER_S


@asynccontextmanager
async def connected(url: str, api_key: str) -> AsyncIterator[Connector]:
    config = StripeConfig(api_key=api_key, webhook_secret=SECRET, url=url, timeout_s=60)
    async with aiohttp.ClientSession() as session:
        breaker = Breaker(SystemClock(), who="Stripe")
        yield StripeConnector(config, open_client(config, session), breaker, SystemClock())


@pytest.fixture
async def card_desk(localstripe: Localstripe) -> AsyncIterator[Connector]:
    with listening() as heard:
        async with connected(localstripe.url, localstripe.api_key) as connector:
            yield connector
        assert localstripe.api_key not in heard.getvalue()
        assert SECRET not in heard.getvalue()


async def order_on(
    connector: Connector, localstripe: Localstripe, number: str, *, capture: bool = True
) -> CardOrder:
    token = await asyncio.to_thread(localstripe.card, number)
    stored = await connector.store(token, new_id("acc"))
    assert isinstance(stored, StoredToken)
    assert number not in repr(stored)
    assert stored.label == f"visa …{number[-4:]}"
    return CardOrder(new_id("ord"), 1_250, "USD", stored.customer, stored.token, capture)


@pytest.mark.peer
class TestAtLocalstripe:
    async def test_a_stored_card_is_charged_and_partly_refunded_at_localstripe(
        self, card_desk: Connector, localstripe: Localstripe
    ) -> None:
        order = await order_on(card_desk, localstripe, GOOD)
        taken = await card_desk.authorise(order, asked_before=False)
        assert isinstance(taken, Captured)
        back = await card_desk.refund(taken.external, 250, "USD", "op_1", asked_before=False)
        assert isinstance(back, GivenBack)
        stands = await card_desk.sync(taken.reference)
        assert stands is not None
        assert (stands.order, stands.phase, stands.currency) == (order.order, Phase.CAPTURED, "USD")
        assert (stands.captured, stands.refunds) == (1_250, (GivenBack(back.id, 250, "op_1"),))

    async def test_a_refund_whose_answer_was_lost_is_found_not_repeated_at_localstripe(
        self, card_desk: Connector, localstripe: Localstripe
    ) -> None:
        taken = await card_desk.authorise(
            await order_on(card_desk, localstripe, GOOD), asked_before=False
        )
        assert isinstance(taken, Captured)
        first = await card_desk.refund(taken.external, 300, "USD", "op_2", asked_before=False)
        again = await card_desk.refund(taken.external, 300, "USD", "op_2", asked_before=True)
        assert again == first
        stands = await card_desk.sync(taken.reference)
        assert stands is not None
        assert len(stands.refunds) == 1

    async def test_a_reserved_amount_is_captured_or_voided_at_localstripe(
        self, card_desk: Connector, localstripe: Localstripe
    ) -> None:
        for end in (Captured, Voided):
            order = await order_on(card_desk, localstripe, GOOD, capture=False)
            reserved = await card_desk.authorise(order, asked_before=False)
            assert isinstance(reserved, Authorised)
            told: Captured | Voided | Declined | Unknown
            if end is Captured:
                told = await card_desk.capture(reserved.reference, 0, "USD", new_id("key"))
            else:
                told = await card_desk.void(reserved.reference, new_id("key"))
            assert isinstance(told, end)
            stands = await card_desk.sync(reserved.reference)
            assert stands is not None
            assert stands.phase is (Phase.CAPTURED if end is Captured else Phase.ENDED)

    async def test_a_declined_card_and_one_that_must_be_proven_are_told_apart_at_localstripe(
        self, card_desk: Connector, localstripe: Localstripe
    ) -> None:
        no = await card_desk.authorise(
            await order_on(card_desk, localstripe, DECLINED), asked_before=False
        )
        assert isinstance(no, Declined)
        assert no.decline is Decline.HARD  # localstripe names no finer code
        wanted = await card_desk.authorise(
            await order_on(card_desk, localstripe, CHALLENGED), asked_before=False
        )
        assert isinstance(wanted, RequiresAction)
        assert wanted.client_secret
        assert wanted.client_secret not in repr(wanted)
        proven = {"client_secret": wanted.client_secret, "success": "true"}
        path = f"/v1/payment_intents/{wanted.reference}/_authenticate"
        await asyncio.to_thread(localstripe.call, path, proven)
        stands = await card_desk.sync(wanted.reference)
        assert stands is not None
        assert stands.phase is Phase.CAPTURED

    async def test_a_webhook_names_the_payment_it_is_about_at_localstripe(
        self, card_desk: Connector, localstripe: Localstripe
    ) -> None:
        told: asyncio.Queue[tuple[Mapping[str, str], bytes]] = asyncio.Queue()

        async def door(scope: Scope, receive: Receive, send: Send) -> None:
            headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
            body = b""
            while (message := await receive()).get("more_body") or message.get("body"):
                body += message.get("body", b"")
                if not message.get("more_body"):
                    break
            await respond(send, 200, b"{}")
            told.put_nowait((headers, body))

        async with serving(door) as url:
            await asyncio.to_thread(localstripe.send_webhooks, f"{url}/hook", SECRET)
            order = await order_on(card_desk, localstripe, GOOD)
            taken = await card_desk.authorise(order, asked_before=False)
            assert isinstance(taken, Captured)
            for _ in range(20):
                headers, body = await asyncio.wait_for(told.get(), 60)
                notice = await card_desk.hear(headers, body)
                if isinstance(notice, Notice) and taken.reference in notice.references:
                    break
            else:
                raise AssertionError("nothing was told of the payment")
        assert isinstance(await card_desk.hear(headers, body + b" "), Forged)


@pytest.mark.peer
async def test_every_request_is_as_stripes_openapi_wants_it_stripe_mock(
    stripe_mock: StripeMock,
) -> None:
    """A parameter that Stripe does not know, or a missing one, is 400 there."""
    async with connected(stripe_mock.url, stripe_mock.api_key) as connector:
        ends_at_s = NOW_S + 3_600
        page = await connector.check_out(CheckoutOrder("ord_1", 500, "EUR", ends_at_s))
        assert page.text.startswith("https://")
        assert isinstance(await connector.store("pm_1", "acc_1"), StoredToken)
        order = CardOrder("ord_2", 500, "USD", "cus_1", "pm_1")
        for told in (
            await connector.authorise(order, asked_before=True),
            await connector.capture("pi_1", 100, "USD", "key_1"),
            await connector.void("pi_1", "key_2"),
            await connector.refund("pi_1", 100, "USD", "key_3", asked_before=True),
        ):
            assert not isinstance(told, Declined | Unknown) or told == Declined(
                Decline.HARD, "card_declined", "the card was declined: card_declined"
            ), told
        assert await connector.sync("cs_1") is not None
        assert await connector.sync("pi_1") is not None
        await connector.notices("")
        await connector.notices("evt_1")
        await connector.forget("pm_1")
        assert await connector.probe() == ""
        assert all(code.isupper() for code in await connector.balances())


async def test_a_stripe_that_cannot_be_reached_has_carried_out_nothing(dead_port: int) -> None:
    async with connected(f"http://127.0.0.1:{dead_port}", "sk_test_1") as connector:
        told = await connector.authorise(
            CardOrder("ord_1", 500, "USD", "cus_1", "pm_1"), asked_before=False
        )
        assert isinstance(told, Declined)
        assert told.decline is Decline.TECHNICAL
        with pytest.raises(RailUnavailable):
            await connector.sync("pi_1")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"{}"),
        (409, b"{}"),
        (200, b"{"),
        (200, b'{"id": "pi_1"}'),
        # To a copy that a proxy has sent: the first may have been carried out.
        (429, b'{"error": {"code": "rate_limit"}}'),
        (403, b"<html>"),  # what stands before Stripe
    ],
)
async def test_an_answer_that_says_nothing_is_unknown_never_a_no(status: int, body: bytes) -> None:
    async def muddled(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, status, body)

    async with serving(muddled) as url, connected(url, "sk_test_1") as connector:
        order = CardOrder("ord_1", 500, "USD", "cus_1", "pm_1")
        assert isinstance(await connector.authorise(order, asked_before=False), Unknown)
        assert isinstance(await connector.authorise(order, asked_before=True), Unknown)


def test_a_signature_is_believed_only_when_it_is_stripes_own_and_fresh() -> None:
    """The SDK makes the signatures: the oracle."""
    body = b'{"id": "evt_1"}'
    header = stripe.WebhookSignature.generate_signature_header(body.decode(), SECRET, NOW_S)

    def told(header: str, body: bytes, now_s: int = NOW_S) -> Forged | None:
        return check_signature(header, body, SECRET, now_s=now_s, tolerance_s=300)

    assert told(header, body) is None
    assert told(f"{header},v1=00,v0=00", body) is None  # a second secret, an old scheme
    assert told(header, body, NOW_S + 300) is None
    for forged in (
        told(header, body, NOW_S + 301),
        told(header, body, NOW_S - 301),
        told(header, body + b" "),
        told(header.replace(f"t={NOW_S}", f"t={NOW_S + 1}"), body),
        told(header.replace("v1=", "v0="), body),
        told("", body),
        told(f"t={NOW_S}", body),
        told("t=é,v1=é", body),
        check_signature(header, body, "", now_s=NOW_S, tolerance_s=300),
    ):
        assert isinstance(forged, Forged)


def test_a_decline_code_that_nobody_has_listed_leaves_nothing_to_be_tried() -> None:
    assert decline_of("insufficient_funds") is Decline.SOFT
    assert decline_of("processing_error") is Decline.TECHNICAL
    assert decline_of("stolen_card") is Decline.HARD
    assert decline_of("a_code_of_tomorrow") is Decline.HARD


def test_no_key_is_in_a_repr() -> None:
    shown = repr(StripeConfig(api_key="sk_live_1", webhook_secret=SECRET))
    assert "sk_live_1" not in shown
    assert SECRET not in shown


@pytest.fixture
async def shop() -> AsyncIterator[FakeStripe]:
    fake = FakeStripe()
    async with serving(fake) as fake.url:
        yield fake


async def test_a_payer_who_was_quicker_than_the_end_of_waiting_has_paid(shop: FakeStripe) -> None:
    async with connected(shop.url, shop.api_key) as connector:
        stored = await connector.store("pm_3ds", "payer_1")
        assert isinstance(stored, StoredToken)
        order = CardOrder("ord_1", 1_250, "USD", stored.customer, stored.token)
        acts = await connector.authorise(order, asked_before=False)
        assert isinstance(acts, RequiresAction)
        shop.prove(acts.reference)
        assert isinstance(await connector.void(acts.reference, "ord_1-void"), Unknown)
        assert isinstance(await connector.authorise(order, asked_before=True), Captured)


async def test_no_refund_is_forgotten_behind_a_hundred_others(shop: FakeStripe) -> None:
    paid = shop._intent({"amount": "1000", "currency": "usd"})
    shop._succeed(paid)
    for _ in range(230):
        shop.give_back(paid["id"], 1)
    async with connected(shop.url, shop.api_key) as connector:
        stands = await connector.sync(paid["id"])
        assert stands is not None
        assert sum(one.amount for one in stands.refunds) == 230


async def test_events_of_other_kinds_are_in_nobodys_way(shop: FakeStripe) -> None:
    async with connected(shop.url, shop.api_key) as connector:
        _, cursor = await connector.notices("")
        shop._happened("payment_intent.created", {"object": "payment_intent", "id": "pi_1"})
        shop._happened("invoice.upcoming", {"object": "invoice", "id": None, "payment_intent": {}})
        shop._happened("payment_intent.created", {"object": "payment_intent", "id": "pi_2"})
        told, _ = await connector.notices(cursor)
        assert [name for one in told for name in one.references] == ["pi_1", "pi_2"]


def paid(name: str, at_s: int) -> Document:
    """An event that was made at a time, whenever it is listed."""
    about = {"object": "payment_intent", "id": name}
    return {"id": f"evt_of_{name}", "created": at_s, "data": {"object": about}}


async def all_told(connector: Connector, cursor: str) -> list[str]:
    """What is told from a cursor on, until nothing is left."""
    told: list[str] = []
    while True:
        page, beyond = await connector.notices(cursor)
        told += [name for one in page for name in one.references]
        if beyond == cursor:
            return told
        cursor = beyond


@pytest.mark.parametrize("cursor", ["", "evt_as_cursors_once_were", "0 "])
@pytest.mark.parametrize("apart_s", [1, 60])
async def test_events_are_told_once_and_in_order_however_many_have_come(
    shop: FakeStripe, cursor: str, apart_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farebox.rails.stripe.connector._EVENTS_MAX", 120)
    monkeypatch.setattr("farebox.rails.stripe.connector._LATE_MAX", 50)
    async with connected(shop.url, shop.api_key) as connector:
        _, first = await connector.notices("")
        wanted = [f"pi_{number}" for number in range(350)]
        shop.events += [paid(name, NOW_S + at * apart_s) for at, name in enumerate(wanted)]
        assert await all_told(connector, cursor or first) == wanted


async def test_an_event_that_is_listed_after_newer_ones_is_told_once(shop: FakeStripe) -> None:
    async with connected(shop.url, shop.api_key) as connector:
        shop.events.append(paid("pi_first", NOW_S - 700))
        _, cursor = await connector.notices("")
        for name, at_s in (("pi_new", NOW_S), ("pi_late", NOW_S - 500), ("pi_later", NOW_S - 500)):
            shop.events.append(paid(name, at_s))
            told, cursor = await connector.notices(cursor)
            assert [one.references for one in told] == [(name,)]
        assert await connector.notices(cursor) == ([], cursor)


async def test_more_events_than_can_be_read_are_never_left_out_in_silence(
    shop: FakeStripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farebox.rails.stripe.connector._PAGES_MAX", 2)
    async with connected(shop.url, shop.api_key) as connector:
        _, cursor = await connector.notices("")
        shop.events += [paid(f"pi_{number}", NOW_S) for number in range(201)]
        with pytest.raises(RailUnavailable):
            await connector.notices(cursor)


async def test_a_charge_is_found_behind_a_hundred_others_of_its_payer(shop: FakeStripe) -> None:
    async with connected(shop.url, shop.api_key) as connector:
        stored = await connector.store("pm_good", "payer_1")
        assert isinstance(stored, StoredToken)
        order = CardOrder("ord_1", 1_250, "USD", stored.customer, stored.token)
        taken = await connector.authorise(order, asked_before=False)
        for _ in range(120):
            shop._intent({"amount": "100", "currency": "usd", "customer": stored.customer})
        shop.answered.clear()  # its key is forgotten by now
        assert await connector.authorise(order, asked_before=True) == taken
