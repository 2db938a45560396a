"""PayPal behind the connector port: orders, captures, refunds, the vault, disputes, events.

| boundary                | what can fail      | recovery                                        |
|-------------------------|--------------------|-------------------------------------------------|
| stored → call           | we stop            | called again with the same request id           |
| call → stored           | the answer is lost | the same: PayPal carries it out once            |
| capture → answer        | the answer is lost | called again: an order is captured once         |
| the same id, hours late | PayPal forgets ids | not called again: a person looks (`Unknown`)    |
| paid there → known here | a webhook is lost  | events are listed from a time on                |

A payment is named `ORDER/CAPTURE`, since refunds go to a capture and all else is told of an order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

import msgspec

from farebox.clock import NS_PER_S, Clock, iso
from farebox.errors import RailRejected, RailUnavailable
from farebox.payments.cards.model import (
    Captured,
    CardOrder,
    CardPayment,
    Checkout,
    CheckoutOrder,
    Decline,
    Declined,
    Forged,
    GivenBack,
    Notice,
    Outcome,
    Phase,
    RequiresAction,
    StoredToken,
    Unknown,
    Voided,
)
from farebox.rails.paypal.config import PaypalConfig
from farebox.rails.paypal.documents import (
    Dispute,
    Disputes,
    Event,
    Events,
    LoneCapture,
    Order,
    Refund,
    VaultToken,
    Verified,
    money,
    unix_s,
)
from farebox.rails.paypal.line import PaypalLine

#: PayPal keeps the ids of orders for six hours, so a call is not repeated with one that is older.
_REPEATED_MAX_S = 5 * 3_600
_PAGE, _PAGES_MAX = 300, 2_000
#: Of more events than this the oldest are told first, and the others from there on.
_EVENTS_MAX = 15_000
#: An event may be listed after newer ones: so far back they are read again, or so many.
_LATE_S, _LATE_MAX = 600, 1_000
#: PayPal keeps events for thirty days.
_EVENTS_KEPT_S = 29 * 86_400
_DISPUTES_MAX = 50
_NAMED = re.compile(r"(?:^paypal:|[?&]token=)([A-Z0-9]{10,36})(?![A-Za-z0-9])")
_WEBHOOK_HEADERS = {
    "auth_algo": "paypal-auth-algo",
    "cert_url": "paypal-cert-url",
    "transmission_id": "paypal-transmission-id",
    "transmission_sig": "paypal-transmission-sig",
    "transmission_time": "paypal-transmission-time",
}
_PHASES = {
    "APPROVED": Phase.APPROVED,
    "PAYER_ACTION_REQUIRED": Phase.OPEN,
    "CREATED": Phase.OPEN,
    "SAVED": Phase.OPEN,
    "VOIDED": Phase.ENDED,
}


class PaypalConnector:
    """One PayPal account."""

    provider = "paypal"

    def __init__(self, config: PaypalConfig, line: PaypalLine, clock: Clock) -> None:
        self._config = config
        self._line = line
        self._clock = clock

    def reference_in(self, credential: str) -> str:
        """An order's id, as `paypal:ID` or in the link to approve it."""
        found = _NAMED.search(credential)
        return found.group(1) if found else ""

    async def check_out(self, order: CheckoutOrder) -> Checkout:
        """An order to be approved. Raises RailUnavailable, RailRejected."""
        context = {
            "user_action": "PAY_NOW",
            "shipping_preference": "NO_SHIPPING",
            "return_url": self._config.return_url,
            "cancel_url": self._config.return_url,
        }
        made = await self._line.sure(
            "post",
            "/v2/checkout/orders",
            Order,
            {
                "intent": "CAPTURE",
                "purchase_units": [
                    self._unit(order.order, order.amount, order.fee, order.currency)
                ],
                "payment_source": {"paypal": {"experience_context": context}},
            },
            request_id=f"order-{order.order}",
        )
        if not made.approval:
            raise RailRejected("PayPal made no page to approve the order on")
        return Checkout(made.id, made.approval, made.approval, order.expires_at_s)

    async def sync(self, reference: str) -> CardPayment | None:
        """By an order, a capture (`/ID`) or both. Raises RailUnavailable, RailRejected."""
        order_id, _, capture_id = reference.partition("/")
        if not order_id:
            path = f"/v2/payments/captures/{quote(capture_id, safe='')}"
            lone = await self._line.sure("get", path, LoneCapture)
            order_id = lone.supplementary_data.related_ids.order_id
            if not order_id:
                return None
        return await self._payment(await self._order(order_id))

    # ── stored methods ───────────────────────────────────────────────────────────────────────────

    async def store(self, token: str, owner: str) -> StoredToken | Declined:
        """A setup token that the payer has approved becomes one that can be charged.

        Raises RailUnavailable, RailRejected.
        """
        told = await self._line.ask(
            "post",
            "/v3/vault/payment-tokens",
            VaultToken,
            {"payment_source": {"token": {"id": token, "type": "SETUP_TOKEN"}}},
            request_id=f"vault-{owner}-{token}",
        )
        match told:
            case Declined(Decline.TECHNICAL) | Unknown():
                raise RailUnavailable("PayPal keeps nothing now; try again later")
            case Declined():
                return told
            case VaultToken():
                return _stored(told)

    async def forget(self, token: str) -> None:
        """Delete it from the vault. Raises RailUnavailable."""
        path = f"/v3/vault/payment-tokens/{quote(token.partition(':')[2], safe='')}"
        try:
            await self._line.sure("delete", path, dict)
        except RailRejected:
            return  # it is not there any more

    # ── moving money ─────────────────────────────────────────────────────────────────────────────

    async def authorise(self, order: CardOrder, *, asked_before: bool) -> Outcome:
        """An order that is paid by a vaulted method at once; one that has a name is asked about."""
        name = order.reference
        if not name:
            now_s = self._clock.now_ns() // NS_PER_S
            if asked_before and now_s - order.made_at_s > _REPEATED_MAX_S:
                return Unknown("PayPal may have forgotten the request id: look for it there")
            told = await self._charged(order)
            if isinstance(told, Declined) and told.decline is Decline.TECHNICAL and asked_before:
                return Unknown(told.message)  # of the earlier call this says nothing
            if not isinstance(told, Order):
                return told
            if told.capture is not None and told.capture.is_taken:
                return _outcome(told)
            name = told.id
        # What is answered to a repeated call is what the first was answered: ask anew.
        again = await self._line.ask("get", f"/v2/checkout/orders/{quote(name, safe='')}", Order)
        outcome: Outcome
        match again:
            case Declined():
                return Unknown(again.message, name)
            case Unknown():
                outcome = again
            case Order() if again.status == "APPROVED":
                outcome = await self.capture(name, 0, order.currency, order.order)
                if isinstance(outcome, Declined) and outcome.decline is Decline.TECHNICAL:
                    outcome = Unknown(outcome.message)  # an earlier one may be under way
            case Order():
                outcome = _outcome(again)
        return Unknown(outcome.reason, name) if isinstance(outcome, Unknown) else outcome

    async def _charged(self, order: CardOrder) -> Order | Declined | Unknown:
        kind, _, vaulted = order.token.partition(":")
        return await self._line.ask(
            "post",
            "/v2/checkout/orders",
            Order,
            {
                "intent": "CAPTURE",
                "purchase_units": [self._unit(order.order, order.amount, 0, order.currency)],
                "payment_source": {kind: {"vault_id": vaulted}},
            },
            request_id=f"order-{order.order}",
        )

    async def capture(
        self, reference: str, amount: int, currency: str, key: str
    ) -> Captured | Declined | Unknown:
        """Take an approved order, all of it.

        No request id: an order with the intent CAPTURE is captured once, whoever asks how often
        (ORDER_ALREADY_CAPTURED, Orders v2). With one, a card's no would be remembered for six hours
        and be the answer also when the payer has agreed again, with another card.
        """
        path = f"/v2/checkout/orders/{quote(reference, safe='')}/capture"
        told = await self._line.ask("post", path, Order, {})
        if isinstance(told, Declined) and told.code == "order_already_captured":
            told = await self._line.ask("get", path.removesuffix("/capture"), Order)
        if not isinstance(told, Order):
            return told
        outcome = _outcome(told)
        return outcome if isinstance(outcome, Captured | Declined) else Unknown("not captured yet")

    async def void(self, reference: str, key: str) -> Voided | Unknown:
        """Nothing to call: an order that is not captured takes nothing, and ends by itself."""
        told = await self._line.ask(
            "get", f"/v2/checkout/orders/{quote(reference, safe='')}", Order
        )
        if isinstance(told, Declined):
            return Unknown(told.message)
        if isinstance(told, Unknown):
            return told
        is_taken = told.capture is not None and told.capture.is_taken
        return Unknown("it was taken meanwhile") if is_taken else Voided(reference)

    async def refund(
        self, external: str, amount: int, currency: str, key: str, *, asked_before: bool
    ) -> GivenBack | Declined | Unknown:
        """Give a part of a capture back, marked with its key."""
        capture_id = external.partition("/")[2]
        path = f"/v2/payments/captures/{quote(capture_id, safe='')}/refund"
        body = {"amount": money(amount, currency), "custom_id": key}
        if asked_before:
            payment = await self._line.ask(
                "get", f"/v2/checkout/orders/{external.partition('/')[0]}", Order
            )
            if not isinstance(payment, Order):
                return Unknown("PayPal does not tell which refunds it has made")
            mine = [one for one in payment.unit.payments.refunds if one.custom_id == key]
            if mine:
                return _given_back(mine[0], amount, key)
        told = await self._line.ask("post", path, Refund, body, request_id=f"refund-{key}")
        return _given_back(told, amount, key) if isinstance(told, Refund) else told

    # ── hearing of it ────────────────────────────────────────────────────────────────────────────

    async def hear(self, headers: Mapping[str, str], body: bytes) -> Notice | Forged | None:
        """Have PayPal say whether it sent this. Raises RailUnavailable, RailRejected."""
        fields = {name: headers.get(header, "") for name, header in _WEBHOOK_HEADERS.items()}
        if not self._config.webhook_id or not all(fields.values()):
            return Forged("there is no signature that can be read")
        try:
            event = msgspec.json.decode(body, type=Event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Forged("this is no event")
        # The very bytes that came: a signature is over them, not over what they mean.
        asked = {
            **fields,
            "webhook_id": self._config.webhook_id,
            "webhook_event": msgspec.Raw(body),
        }
        try:
            told = await self._line.sure(
                "post", "/v1/notifications/verify-webhook-signature", Verified, asked
            )
        except RailRejected:
            return Forged("PayPal does not know it")
        if told.verification_status != "SUCCESS":
            return Forged("PayPal did not send it")
        return Notice(event.id, event.references) if event.references else None

    async def notices(self, cursor: str) -> tuple[list[Notice], str]:
        """Events from a time on but those already told, oldest first.

        The cursor is that time, some minutes before the newest event, and the names of all that
        were told since then. Raises RailUnavailable, RailRejected.
        """
        if not cursor:
            return [], await self._newest()
        since, _, names = cursor.partition(" ")
        told = frozenset(names.split(","))
        events = await self._events_since(since)
        new = [one for one in events if one.id not in told]
        if not new:
            return [], cursor
        late = iso(max(0, unix_s(events[-1].create_time) - _LATE_S) * NS_PER_S)
        since = max(since, late, events[-_LATE_MAX:][0].create_time)
        known = ",".join(one.id for one in events if one.create_time >= since)
        notices = [Notice(one.id, one.references) for one in new if one.references]
        return notices, f"{since} {known}"

    async def _newest(self) -> str:
        """The newest event, by PayPal's clock: what happens while ours is ahead is behind it."""
        path, query = "/v1/notifications/webhooks-events", {"page_size": "1"}
        page = await self._line.sure("get", path, Events, query=query)
        if page.events:
            return f"{page.events[0].create_time} {page.events[0].id}"
        return f"{iso(self._clock.now_ns() - _EVENTS_KEPT_S * NS_PER_S)} "

    async def _events_since(self, since: str) -> list[Event]:
        """Oldest first. A page has the newest, and perhaps fewer than it might: the older ones are
        asked for by an end, until there are none."""
        since = max(since, iso(self._clock.now_ns() - _EVENTS_KEPT_S * NS_PER_S))
        found: dict[str, Event] = {}
        query = {"start_time": since, "page_size": str(_PAGE)}
        for _ in range(_PAGES_MAX):
            path = "/v1/notifications/webhooks-events"
            page = await self._line.sure("get", path, Events, query=query)
            older = {one.id: one for one in page.events if one.id not in found}
            if not older:
                break
            found |= older
            for name in list(found)[:-_EVENTS_MAX]:
                del found[name]
            query["end_time"] = min(one.create_time for one in page.events)
        oldest_first = list(found.values())
        oldest_first.reverse()  # of one moment, the one told last happened first
        return sorted(oldest_first, key=lambda one: one.create_time)

    async def balances(self) -> Mapping[str, int]:
        """Nothing: what PayPal tells of balances is up to three hours old, which is no balance to
        hold the books of this minute against."""
        return {}

    async def probe(self) -> str:
        """Whether PayPal lets us in."""
        query = {"page_size": "1"}
        told = await self._line.ask("get", "/v1/notifications/webhooks-events", Events, query=query)
        match told:
            case Declined():
                return told.message
            case Unknown():
                return told.reason
            case Events():
                return ""

    # ── asking ───────────────────────────────────────────────────────────────────────────────────

    async def _order(self, order_id: str) -> Order:
        return await self._line.sure(
            "get", f"/v2/checkout/orders/{quote(order_id, safe='')}", Order
        )

    async def _payment(self, order: Order) -> CardPayment:
        capture = order.capture
        currency = order.unit.amount.currency_code if order.unit.amount else ""
        if capture is None or not capture.is_taken:
            phase = _PHASES.get(order.status, Phase.OPEN)
            return CardPayment(order.unit.custom_id, order.id, "", phase, currency)
        refunds = order.unit.payments.refunds
        disputes = await self._disputes(capture.id)
        return CardPayment(
            order=order.unit.custom_id,
            reference=order.id,
            external=f"{order.id}/{capture.id}",
            phase=Phase.CAPTURED,
            currency=capture.amount.currency_code,
            captured=capture.amount.amount,
            at_s=capture.at_s or self._clock.now_ns() // NS_PER_S,
            refunds=tuple(_marked(one) for one in refunds if not one.is_undone),
            undone=tuple(_marked(one) for one in refunds if one.is_undone),
            disputed=sum(one.taken(capture.id) for one in disputes),
            fees=capture.fee
            + sum(one.fees(capture.id) for one in disputes)
            - sum(one.fee_again for one in refunds),
        )

    async def _disputes(self, capture_id: str) -> list[Dispute]:
        """Each is asked for: the list doesn't say what they have moved."""
        query = {"disputed_transaction_id": capture_id, "page_size": str(_DISPUTES_MAX)}
        page = await self._line.sure("get", "/v1/customer/disputes", Disputes, query=query)
        paths = [f"/v1/customer/disputes/{quote(one.dispute_id, safe='')}" for one in page.items]
        return [await self._line.sure("get", path, Dispute) for path in paths]

    def _unit(self, order: str, amount: int, fee: int, currency: str) -> dict[str, object]:
        parts = {"item_total": money(amount, currency), "handling": money(fee, currency)}
        return {
            "custom_id": order,
            "description": self._config.title,
            "amount": money(amount + fee, currency) | ({"breakdown": parts} if fee else {}),
        }


def _outcome(order: Order) -> Outcome:
    capture = order.capture
    if capture is not None and capture.is_taken:
        return Captured(order.id, f"{order.id}/{capture.id}", capture.amount.amount)
    if capture is not None and capture.status in ("DECLINED", "FAILED"):
        return Declined(Decline.SOFT, "capture_declined", "PayPal could not take the money")
    if order.status == "PAYER_ACTION_REQUIRED":
        return RequiresAction(order.id, order.approval)
    if order.status == "VOIDED":
        return Voided(order.id)
    return Unknown(f"the order is {order.status.lower()}")


def _stored(told: VaultToken) -> StoredToken:
    source = told.payment_source
    if source.card is not None:
        label = f"{source.card.brand.lower()} …{source.card.last_digits}"
        return StoredToken(f"card:{told.id}", told.customer.id, label, source.card.expiry)
    address = source.paypal.email_address if source.paypal else ""
    name, _, host = address.partition("@")
    label = f"PayPal {name[:2]}…@{host}" if host else "PayPal"
    return StoredToken(f"paypal:{told.id}", told.customer.id, label)


def _marked(refund: Refund) -> GivenBack:
    return GivenBack(refund.id, refund.amount.amount if refund.amount else 0, refund.custom_id)


def _given_back(refund: Refund, amount: int, key: str) -> GivenBack | Declined:
    if refund.is_undone:
        return Declined(Decline.HARD, "refund_failed", "the refund was not carried out")
    return GivenBack(refund.id, amount, key)
