"""The PayPal connector against a contract fake, and what it makes of answers that say nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest

from farebox.clock import NS_PER_S, Clock, SystemClock, iso
from farebox.errors import RailUnavailable
from farebox.payments.cards.connector import Connector
from farebox.payments.cards.model import (
    Captured,
    CardOrder,
    CheckoutOrder,
    Decline,
    Declined,
    Phase,
    RequiresAction,
    StoredToken,
    Unknown,
    Voided,
)
from farebox.rails.paypal import PaypalConfig, PaypalConnector, PaypalLine
from farebox.rails.paypal.documents import AccessToken, money
from farebox.rails.paypal.line import decline_of
from farebox.rails.web.breaker import Breaker
from farebox.testing.asgi import Receive, Scope, Send, respond, serving
from tests.contract.rail.fake_paypal import FakePaypal, fee_of
from tests.crash.victim import AheadClock
from tests.integration.whole_house import listening


def now_s() -> int:
    """The time of the fake as well: not when this file was read, which may be long ago."""
    return SystemClock().now_ns() // NS_PER_S


@asynccontextmanager
async def connected(
    url: str, secret: str = "secret-of-the-test", clock: Clock | None = None
) -> AsyncIterator[Connector]:
    config = PaypalConfig(
        client_id="client-of-the-test", client_secret=secret, url=url, timeout_s=60
    )
    clock = clock or SystemClock()
    async with aiohttp.ClientSession() as session:
        line = PaypalLine(config, session, Breaker(clock, who="PayPal"), clock)
        yield PaypalConnector(config, line, clock)


@pytest.fixture
async def pal() -> AsyncIterator[FakePaypal]:
    fake = FakePaypal()
    async with serving(fake) as fake.url:
        yield fake


async def order_of(connector: Connector, token: str) -> CardOrder:
    stored = await connector.store(token, "payer_1")
    assert isinstance(stored, StoredToken)
    return CardOrder("ord_1", 1_250, "USD", stored.customer, stored.token, made_at_s=now_s())


async def test_a_page_is_approved_and_captured_once(pal: FakePaypal) -> None:
    with listening() as heard:
        async with connected(pal.url, pal.client_secret) as connector:
            page = await connector.check_out(CheckoutOrder("dep_1", 1_000, "USD", now_s(), fee=65))
            assert connector.reference_in(page.uri) == page.reference
            early = await connector.capture(page.reference, 0, "USD", "dep_1")
            assert isinstance(early, Declined)
            pal.approve(page.uri)
            stands = await connector.sync(page.reference)
            assert stands is not None
            assert (stands.phase, stands.order) == (Phase.APPROVED, "dep_1")
            taken = [await connector.capture(page.reference, 0, "USD", "dep_1") for _ in range(3)]
            assert all(isinstance(one, Captured) and one.amount == 1_065 for one in taken)
            assert len(pal.captures) == 1
        assert pal.client_secret not in heard.getvalue()
        assert pal.access_token not in heard.getvalue()


async def test_a_capture_whose_answer_is_lost_takes_once_and_is_found(pal: FakePaypal) -> None:
    async with connected(pal.url, pal.client_secret) as connector:
        page = await connector.check_out(CheckoutOrder("dep_1", 1_000, "USD", now_s()))
        pal.approve(page.uri)
        pal.lose["post /v2/checkout/orders/*/capture"] = 1
        told = [await connector.capture(page.reference, 0, "USD", "dep_1") for _ in range(2)]
        assert [type(one) for one in told] == [Unknown, Captured]
        both = (connector.capture(page.reference, 0, "USD", "dep_1") for _ in range(2))
        assert [type(one) for one in await asyncio.gather(*both)] == [Captured, Captured]
        assert len(pal.captures) == 1


async def test_a_payer_whose_card_declines_pays_with_another(pal: FakePaypal) -> None:
    async with connected(pal.url, pal.client_secret) as connector:
        page = await connector.check_out(CheckoutOrder("dep_1", 1_000, "USD", now_s()))
        pal.approve(page.uri)
        pal.poor = 1
        declined = await connector.capture(page.reference, 0, "USD", "dep_1")
        assert isinstance(declined, Declined)
        pal.approve(page.uri)
        assert isinstance(await connector.capture(page.reference, 0, "USD", "dep_1"), Captured)
        assert len(pal.captures) == 1


async def test_a_token_that_has_ended_is_renewed(pal: FakePaypal) -> None:
    async with connected(pal.url, pal.client_secret) as connector:
        assert await connector.probe() == ""
        pal.access_token = "another"
        assert await connector.probe() == ""
    async with connected(pal.url, "not the secret") as connector:
        assert await connector.probe() == "PayPal does not let us in"


async def test_a_vaulted_account_that_declines_and_one_that_must_act_are_told_apart(
    pal: FakePaypal,
) -> None:
    async with connected(pal.url, pal.client_secret) as connector:
        poor = await connector.authorise(
            await order_of(connector, "setup-poor"), asked_before=False
        )
        assert isinstance(poor, Declined)
        assert poor.decline is Decline.SOFT
        order = replace(await order_of(connector, "setup-3ds"), order="ord_2")
        acts = await connector.authorise(order, asked_before=False)
        assert isinstance(acts, RequiresAction)
        pal.approve(acts.url)
        assert isinstance(await connector.authorise(order, asked_before=True), Captured)
        assert isinstance(await connector.void(acts.reference, "key"), Unknown)  # it was taken
        left = replace(order, order="ord_3")
        acts = await connector.authorise(left, asked_before=False)
        assert isinstance(acts, RequiresAction)
        assert isinstance(await connector.void(acts.reference, "key"), Voided)


async def test_events_are_told_once_however_many_have_come(pal: FakePaypal) -> None:
    async with connected(pal.url, pal.client_secret) as connector:
        _, cursor = await connector.notices("")
        for number in range(700):
            at = iso((now_s() + 60) * NS_PER_S + number // 3 * 1_000_000)  # three at a time
            resource = {"id": f"ORDER{number:08}"}
            event = {"id": f"WH-{number}", "event_type": "CHECKOUT.ORDER.APPROVED"}
            pal.events.append(event | {"create_time": at, "resource": resource})
        told, cursor = await connector.notices(cursor)
        assert [name for one in told for name in one.references] == [
            f"ORDER{number:08}" for number in range(700)
        ]
        assert await connector.notices(cursor) == ([], cursor)
        late = {
            "id": "WH-late",
            "resource": {"id": "LATE"},
            "create_time": pal.events[-1]["create_time"],
        }
        pal.events.append(late | {"event_type": "CHECKOUT.ORDER.APPROVED"})
        told, _ = await connector.notices(cursor)
        assert [name for one in told for name in one.references] == ["LATE"]


def approved(order: str, at_s: int) -> dict[str, object]:
    """An event that was made at a time, whenever it is listed."""
    event = {"id": f"WH-of-{order}", "event_type": "CHECKOUT.ORDER.APPROVED"}
    return event | {"create_time": iso(at_s * NS_PER_S), "resource": {"id": order}}


async def test_an_event_that_is_listed_after_newer_ones_is_told_once(pal: FakePaypal) -> None:
    now = now_s()
    async with connected(pal.url, pal.client_secret) as connector:
        pal.events.append(approved("FIRST", now - 700))
        _, cursor = await connector.notices("")
        pal.events.append(approved("NEW", now))
        told, cursor = await connector.notices(cursor)
        assert [name for one in told for name in one.references] == ["NEW"]
        pal.events.append(approved("LATE", now - 500))
        told, cursor = await connector.notices(cursor)
        assert [name for one in told for name in one.references] == ["LATE"]
        pal.events.append(approved("LATER", now - 500))
        told, cursor = await connector.notices(cursor)
        assert [name for one in told for name in one.references] == ["LATER"]
        assert await connector.notices(cursor) == ([], cursor)


async def test_events_of_other_kinds_are_in_nobodys_way(pal: FakePaypal) -> None:
    now = now_s()
    async with connected(pal.url, pal.client_secret) as connector:
        _, cursor = await connector.notices("")
        strange = approved("X", now) | {"id": "WH-strange", "resource": {"id": 7, "links": "none"}}
        pal.events += [approved("BEFORE", now), strange, approved("AFTER", now)]
        told, _ = await connector.notices(cursor)
        assert [name for one in told for name in one.references] == ["BEFORE", "AFTER"]


async def test_a_fee_that_a_refund_gives_again_is_told(pal: FakePaypal) -> None:
    async with connected(pal.url, pal.client_secret) as connector:
        page = await connector.check_out(CheckoutOrder("dep_1", 1_000, "USD", now_s()))
        pal.approve(page.uri)
        taken = await connector.capture(page.reference, 0, "USD", "dep_1")
        assert isinstance(taken, Captured)
        await connector.refund(taken.external, 300, "USD", "op", asked_before=False)
        (refund,) = pal.orders[page.reference]["purchase_units"][0]["payments"]["refunds"]
        for status, kept in (("COMPLETED", fee_of(1_000) - 11), ("FAILED", fee_of(1_000))):
            back = {"paypal_fee": {"currency_code": "USD", "value": "0.11"}}
            refund |= {"status": status, "seller_payable_breakdown": back}
            stands = await connector.sync(page.reference)
            assert stands is not None
            assert stands.fees == kept


async def test_pages_that_are_not_full_and_a_cursor_that_stays_small_lose_nothing(
    pal: FakePaypal,
) -> None:
    now, pal.page_most = now_s(), 70
    async with connected(pal.url, pal.client_secret) as connector:
        _, cursor = await connector.notices("")
        for turn in range(3):
            names = [f"ORDER{turn}N{number:06}" for number in range(1_100)]
            pal.events += [
                approved(name, now + turn * 60 + at // 20) for at, name in enumerate(names)
            ]
            told, cursor = await connector.notices(cursor)
            assert [name for one in told for name in one.references] == names
            assert len(cursor) < 30_000
        assert await connector.notices(cursor) == ([], cursor)


@pytest.mark.parametrize("is_first", [True, False])
async def test_no_event_is_missed_by_a_clock_that_is_ahead(pal: FakePaypal, is_first: bool) -> None:
    if not is_first:
        pal.happened("CHECKOUT.ORDER.APPROVED", {"id": "BEFORE"})
    clock = AheadClock()
    clock.ahead_s = 600
    async with connected(pal.url, pal.client_secret, clock) as connector:
        _, cursor = await connector.notices("")
        pal.happened("CHECKOUT.ORDER.APPROVED", {"id": "SINCE"})
        told, _ = await connector.notices(cursor)
        assert [name for one in told for name in one.references] == ["SINCE"]


async def test_a_request_id_that_paypal_may_have_forgotten_is_not_used_again(
    pal: FakePaypal,
) -> None:
    async with connected(pal.url, pal.client_secret) as connector:
        order = replace(await order_of(connector, "setup-good"), made_at_s=now_s() - 6 * 3_600)
        assert isinstance(await connector.authorise(order, asked_before=True), Unknown)
        assert pal.calls["post /v2/checkout/orders"] == 0


async def test_a_paypal_that_cannot_be_reached_has_carried_out_nothing(dead_port: int) -> None:
    async with connected(f"http://127.0.0.1:{dead_port}") as connector:
        order = CardOrder("ord_1", 500, "USD", "cus_1", "paypal:1", made_at_s=now_s())
        told = await connector.authorise(order, asked_before=False)
        assert isinstance(told, Declined)
        assert told.decline is Decline.TECHNICAL
        assert isinstance(await connector.authorise(order, asked_before=True), Unknown)
        with pytest.raises(RailUnavailable):
            await connector.sync("ORDER00000000001")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"{}"),
        (409, b"{}"),
        (200, b"{"),
        (201, b'{"id": 1}'),
        (422, b'{"details": [{"issue": "ORDER_COMPLETION_IN_PROGRESS"}]}'),
        # To a copy that a proxy has sent: the first may have been carried out.
        (429, b'{"name": "RATE_LIMIT_REACHED"}'),
        (403, b"<html>"),  # what stands before PayPal
    ],
)
async def test_an_answer_that_says_nothing_is_unknown_never_a_no(status: int, body: bytes) -> None:
    async def muddled(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/v1/oauth2/token":
            return await respond(send, 200, b'{"access_token": "a", "expires_in": 900}')
        return await respond(send, status, body)

    async with serving(muddled) as url, connected(url) as connector:
        order = CardOrder("ord_1", 500, "USD", "cus_1", "paypal:1", made_at_s=now_s())
        for asked_before in (False, True):
            told = await connector.authorise(order, asked_before=asked_before)
            assert isinstance(told, Unknown)
        given = await connector.refund("A/B", 100, "USD", "key", asked_before=False)
        assert isinstance(given, Unknown)


async def test_a_capture_that_is_refused_once_it_was_asked_for_is_no_end_of_the_charge(
    pal: FakePaypal,
) -> None:
    """An earlier call may be under way: the next card must not be charged beside it."""
    async with connected(pal.url, pal.client_secret) as connector:
        order = await order_of(connector, "setup-3ds")
        acts = await connector.authorise(order, asked_before=False)
        assert isinstance(acts, RequiresAction)
        pal.orders[acts.reference]["status"] = "APPROVED"
        pal.refuses["post /v2/checkout/orders/*/capture"] = 1
        told = await connector.authorise(
            replace(order, reference=acts.reference), asked_before=True
        )
        assert told == Unknown("PayPal takes no such call now", acts.reference)


def test_an_issue_that_nobody_has_listed_leaves_nothing_to_be_tried() -> None:
    assert decline_of("INSTRUMENT_DECLINED") is Decline.SOFT
    assert decline_of("PAYEE_ACCOUNT_RESTRICTED") is Decline.TECHNICAL
    assert decline_of("CARD_EXPIRED") is Decline.HARD
    assert decline_of("AN_ISSUE_OF_TOMORROW") is Decline.HARD


def test_amounts_are_written_with_two_decimals() -> None:
    values = [money(amount, "EUR")["value"] for amount in (1, 10, 1_234, 100_000)]
    assert values == ["0.01", "0.10", "12.34", "1000.00"]


def test_no_secret_is_in_a_repr() -> None:
    assert "s3cret" not in repr(PaypalConfig(client_id="a", client_secret="s3cret"))
    assert "s3cret" not in repr(AccessToken("s3cret", 900))
