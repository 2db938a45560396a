"""Stripe behind the connector port: Checkout, payment intents, refunds, disputes, events.

| boundary                | what can fail      | recovery                                         |
|-------------------------|--------------------|--------------------------------------------------|
| stored → call           | we stop            | the customer's payments are searched, then again |
| call → stored           | the answer is lost | the same; the same key is carried out once       |
| paid there → known here | a webhook is lost  | events are listed from a cursor                  |
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, TypeVar
from urllib.parse import urlencode

import aiohttp
import msgspec
import stripe
import structlog

from farebox.clock import NS_PER_S, Clock
from farebox.errors import RailError, RailRejected, RailUnavailable
from farebox.payments.cards.model import (
    Authorised,
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
from farebox.rails.stripe.answers import decline_of, meaning
from farebox.rails.stripe.config import StripeConfig
from farebox.rails.stripe.documents import (
    Balance,
    Charge,
    Dispute,
    Event,
    L,
    Method,
    Named,
    Page,
    PaymentIntent,
    Refund,
    Session,
)
from farebox.rails.stripe.moved import Moved, moved
from farebox.rails.stripe.webhook import check_signature
from farebox.rails.web.breaker import Breaker, BreakerState

T = TypeVar("T")

_log = structlog.get_logger("farebox.cards")

#: Where our name for an order or a refund stands in Stripe's metadata.
_MARK = "farebox"
_PAGE, _PAGES_MAX = 100, 1_000
#: Of more events than this the oldest are told first, and the others from there on.
_EVENTS_MAX = 10_000
#: An event may be listed after newer ones: so far back they are read again, or so many.
_LATE_S, _LATE_MAX = 600, 500
_NAMED = re.compile(r"(?<![A-Za-z0-9])((?:cs|pi)_(?:test_|live_)?[A-Za-z0-9]{8,128})")
_UNDONE = ("failed", "canceled")
_PHASES = {
    "requires_action": Phase.ACTION,
    "requires_capture": Phase.AUTHORISED,
    "succeeded": Phase.CAPTURED,
    "canceled": Phase.ENDED,
}


def open_client(config: StripeConfig, session: aiohttp.ClientSession) -> stripe.StripeClient:
    """The SDK's client on a session of ours; it never retries by itself."""
    timeout: Any = aiohttp.ClientTimeout(total=config.timeout_s)
    return stripe.StripeClient(
        config.api_key,
        base_addresses={"api": config.url},
        max_network_retries=0,
        http_client=stripe.AIOHTTPClient(timeout=timeout, session=session),
    )


class StripeConnector:
    """One Stripe account."""

    provider = "stripe"

    def __init__(
        self, config: StripeConfig, client: stripe.StripeClient, breaker: Breaker, clock: Clock
    ) -> None:
        self._config = config
        self._client = client
        self._breaker = breaker
        self._clock = clock
        #: From which currency to which Stripe converts, against what the settings should see to.
        self._converted: set[tuple[str, str]] = set()

    def reference_in(self, credential: str) -> str:
        """A page's id, or a payment's, bare or in its link or client secret."""
        found = _NAMED.search(credential)
        return found.group(1) if found else ""

    async def check_out(self, order: CheckoutOrder) -> Checkout:
        """A Checkout page, or a payment for a page of ours. Raises RailUnavailable, RailRejected.

        The fee for paying by card is a line of its own. What is charged is what was asked for, in
        this currency, whatever is set in Stripe's dashboard.
        """
        if self._config.pay_url:
            return await self._intent(order)
        lines = ((self._config.title, order.amount), ("Card fee", order.fee))
        items = [
            {
                "quantity": 1,
                "price_data": {
                    "currency": order.currency.lower(),
                    "unit_amount": amount,
                    "product_data": {"name": name},
                },
            }
            for name, amount in lines
            if amount
        ]
        made = await self._sure(
            Session,
            "post",
            "/v1/checkout/sessions",
            idempotency_key=order.order,
            mode="payment",
            adaptive_pricing={"enabled": False},
            line_items=items,
            client_reference_id=order.order,
            payment_intent_data={"metadata": {_MARK: order.order}},
            success_url=self._config.return_url,
            cancel_url=self._config.return_url,
            expires_at=order.expires_at_s,
        )
        if not made.url:
            raise RailUnavailable("Stripe made no page to pay on")
        return Checkout(made.id, made.url, made.url, made.expires_at)

    async def _intent(self, order: CheckoutOrder) -> Checkout:
        made = await self._sure(
            PaymentIntent,
            "post",
            "/v1/payment_intents",
            idempotency_key=order.order,
            amount=order.amount + order.fee,
            currency=order.currency.lower(),
            payment_method_types=["card"],
            capture_method="automatic",
            metadata={_MARK: order.order},
        )
        secret = made.client_secret or ""
        query = urlencode({"payment_intent": made.id, "payment_intent_client_secret": secret})
        return Checkout(made.id, secret, f"{self._config.pay_url}?{query}", order.expires_at_s)

    async def sync(self, reference: str) -> CardPayment | None:
        """By a page or a payment. Raises RailUnavailable, RailRejected."""
        if reference.startswith("pi_"):
            return await self._payment(reference, reference, "")
        page = await self._sure(Session, "get", f"/v1/checkout/sessions/{reference}")
        order = page.client_reference_id or ""
        if isinstance(page.payment_intent, str):
            return await self._payment(page.payment_intent, page.id, order)
        phase = Phase.ENDED if page.status == "expired" else Phase.OPEN
        return CardPayment(order, page.id, "", phase, (page.currency or "").upper())

    # ── stored methods ───────────────────────────────────────────────────────────────────────────

    async def store(self, token: str, owner: str) -> StoredToken | Declined:
        """A payment method (pm_…), attached to the owner's customer.

        Raises RailUnavailable, RailRejected.
        """
        customer = await self._sure(
            Named, "post", "/v1/customers", idempotency_key=owner, metadata={_MARK: owner}
        )
        path = f"/v1/payment_methods/{token}/attach"
        told = await self._ask("post", path, customer=customer.id)
        if isinstance(told, Declined):
            return told
        method = _decoded(_known(told), Method)
        card = method.card
        label = f"{card.brand} …{card.last4}" if card else method.type
        expires = f"{card.exp_year:04}-{card.exp_month:02}" if card else ""
        return StoredToken(method.id, customer.id, label, expires)

    async def forget(self, token: str) -> None:
        """Detach it. Raises RailUnavailable."""
        told = await self._ask("post", f"/v1/payment_methods/{token}/detach")
        if not isinstance(told, Declined) or told.decline is Decline.TECHNICAL:
            _known(told)  # a definite no: it is not there any more

    # ── moving money ─────────────────────────────────────────────────────────────────────────────

    async def authorise(self, order: CardOrder, *, asked_before: bool) -> Outcome:
        """One payment intent, confirmed at once."""
        if asked_before:
            found = await self._found(order)
            if found is not None:
                return found
        told = await self._ask(
            "post",
            "/v1/payment_intents",
            idempotency_key=order.order,
            amount=order.amount,
            currency=order.currency.lower(),
            customer=order.customer,
            payment_method=order.token,
            payment_method_types=["card"],
            capture_method="automatic" if order.capture else "manual",
            confirm=True,
            metadata={_MARK: order.order},
        )
        outcome = _outcome(_read(told, PaymentIntent))
        match outcome:
            case Declined(Decline.TECHNICAL) if asked_before:
                # This call did not get through; of the earlier one that says nothing.
                return Unknown(outcome.message)
            case _:
                return outcome

    async def capture(
        self, reference: str, amount: int, currency: str, key: str
    ) -> Captured | Declined | Unknown:
        """Capture a payment intent; 0 is all of it."""
        path = f"/v1/payment_intents/{reference}/capture"
        part = {"amount_to_capture": amount} if amount else {}
        told = _read(await self._ask("post", path, idempotency_key=key, **part), PaymentIntent)
        if isinstance(told, PaymentIntent):
            return Captured(told.id, told.id, amount or told.amount)
        return told

    async def void(self, reference: str, key: str) -> Voided | Unknown:
        """Cancel a payment intent. A no is no end of it: its payer may have been quicker."""
        path = f"/v1/payment_intents/{reference}/cancel"
        told = _read(await self._ask("post", path, idempotency_key=key), PaymentIntent)
        return Voided(told.id) if isinstance(told, PaymentIntent) else Unknown(_words(told))

    async def refund(
        self, external: str, amount: int, currency: str, key: str, *, asked_before: bool
    ) -> GivenBack | Declined | Unknown:
        """Refund a part, marked with its key, by which it is found again."""
        if asked_before:
            try:
                told = await self._refunds(external)
            except RailError:
                return Unknown("Stripe does not tell which refunds it has made")
            mine = [one for one in told if (one.metadata or {}).get(_MARK) == key]
            if mine:
                return _given_back(mine[0], key)
        made = await self._ask(
            "post",
            "/v1/refunds",
            idempotency_key=key,
            payment_intent=external,
            amount=amount,
            metadata={_MARK: key},
        )
        refund = _read(made, Refund)
        return _given_back(refund, key) if isinstance(refund, Refund) else refund

    # ── hearing of it ────────────────────────────────────────────────────────────────────────────

    async def hear(self, headers: Mapping[str, str], body: bytes) -> Notice | Forged | None:
        """Check the signature, read whom it is about."""
        config = self._config
        forged = check_signature(
            headers.get("stripe-signature", ""),
            body,
            config.webhook_secret,
            now_s=self._clock.now_ns() // NS_PER_S,
            tolerance_s=config.webhook_tolerance_s,
        )
        if forged is not None:
            return forged
        try:
            event = msgspec.json.decode(body, type=Event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return Notice(event.id, (event.reference,)) if event.reference else None

    async def notices(self, cursor: str) -> tuple[list[Notice], str]:
        """Events from a time on but those already told, oldest first.

        The cursor is that time, some minutes before the newest event, and the names of all that
        were told since then. What is no such cursor is one from the beginning: Stripe keeps events
        for thirty days. Raises RailUnavailable, RailRejected.
        """
        if not cursor:
            newest = (await self._sure(Page[Event], "get", "/v1/events", limit=1)).data
            return [], f"{newest[0].created} {newest[0].id}" if newest else "0 "
        time, _, names = cursor.partition(" ")
        since, told = int(time) if time.isdecimal() else 0, frozenset(names.split(","))
        # Of too many the oldest, and the others from there on.
        kept: deque[Event] = deque(maxlen=_EVENTS_MAX)
        async for one in self._listed(Page[Event], "/v1/events", created={"gte": since}):
            kept.append(one)
        events = list(kept)[::-1]
        new = [one for one in events if one.id not in told]
        if not new:
            return [], cursor
        since = max(since, events[-1].created - _LATE_S, events[-_LATE_MAX:][0].created)
        known = ",".join(one.id for one in events if one.created >= since)
        notices = [Notice(one.id, (one.reference,)) for one in new if one.reference]
        return notices, f"{since} {known}"

    async def balances(self) -> Mapping[str, int]:
        """With what is not yet available. What went to a bank account is not in it.

        Raises RailUnavailable, RailRejected.
        """
        told = await self._sure(Balance, "get", "/v1/balance")
        found: Counter[str] = Counter()
        for part in (*told.available, *told.pending):
            found[part.currency.upper()] += part.amount
        return found

    async def probe(self) -> str:
        """Whether Stripe lets us in."""
        told = await self._ask("get", "/v1/balance")
        return "" if isinstance(told, bytes) else _words(told)

    # ── asking ───────────────────────────────────────────────────────────────────────────────────

    async def _payment(self, external: str, reference: str, order: str) -> CardPayment:
        path = f"/v1/payment_intents/{external}"
        expand = ["latest_charge.balance_transaction"]
        intent = await self._sure(PaymentIntent, "get", path, expand=expand)
        charge = intent.latest_charge if isinstance(intent.latest_charge, Charge) else None
        refunds: list[Refund] = []
        disputes: list[Dispute] = []
        if charge is not None and charge.captured:  # what is undone is in no sum of the charge
            refunds = await self._refunds(external)
        if charge is not None and charge.disputed:
            listed = self._listed(Page[Dispute], "/v1/disputes", payment_intent=external)
            disputes = [one async for one in listed]
        total = moved(charge, intent.currency, disputes) if charge is not None else Moved()
        if total.settled and (intent.currency, total.settled) not in self._converted:
            self._converted.add((intent.currency, total.settled))
            _log.error("stripe.converted", charged=intent.currency, settled=total.settled)
        return CardPayment(
            order=order or intent.metadata.get(_MARK, ""),
            reference=reference,
            external=intent.id,
            phase=_PHASES.get(intent.status, Phase.OPEN),
            currency=intent.currency.upper(),
            captured=charge.taken if charge is not None else 0,
            at_s=charge.created if charge is not None else intent.created,
            refunds=tuple(_marked(one) for one in refunds if one.status not in _UNDONE),
            undone=tuple(_marked(one) for one in refunds if one.status in _UNDONE),
            disputed=total.disputed,
            fees=total.fees,
        )

    async def _found(self, order: CardOrder) -> Outcome | None:
        """What became of an order whose answer was lost; None: no trace of it."""
        listed = self._listed(Page[PaymentIntent], "/v1/payment_intents", customer=order.customer)
        try:
            async with aclosing(listed):
                async for one in listed:
                    if one.metadata.get(_MARK) == order.order:
                        return _outcome(one)
        except RailError:
            return Unknown("Stripe does not tell which payments it has")
        return None

    async def _refunds(self, external: str) -> list[Refund]:
        """All of a payment: one that is left out would count as undone. Raises RailUnavailable,
        RailRejected."""
        listed = self._listed(Page[Refund], "/v1/refunds", payment_intent=external)
        return [one async for one in listed]

    async def _listed(
        self, shape: type[Page[L]], path: str, **which: object
    ) -> AsyncGenerator[L, None]:
        """All of a list, the newest first. Raises RailUnavailable, also where it has no end;
        RailRejected."""
        behind: dict[str, object] = {}
        for _ in range(_PAGES_MAX):
            page = await self._sure(shape, "get", path, limit=_PAGE, **which, **behind)
            for one in page.data:
                yield one
            if len(page.data) < _PAGE:
                return
            behind = {"starting_after": page.data[-1].id}
        raise RailUnavailable(f"Stripe lists more at {path} than can be read")

    async def _sure(self, shape: type[T], method: str, path: str, **params: object) -> T:
        return _decoded(_known(await self._ask(method, path, **params)), shape)

    async def _ask(self, method: str, path: str, **params: object) -> bytes | Declined | Unknown:
        """One call. An `idempotency_key` among the parameters goes into its header."""
        if self._breaker.state is BreakerState.OPEN:
            message = "Stripe did not answer lately; it is left alone for a while"
            return Declined(Decline.TECHNICAL, "left_alone", message)
        try:
            with self._breaker.attempt():
                return await self._exchange(method, path, params)
        except RailUnavailable as error:
            return Unknown(str(error))

    async def _exchange(
        self, method: str, path: str, params: Mapping[str, object]
    ) -> bytes | Declined:
        try:
            response = await self._client.raw_request_async(method, path, **params)
        except stripe.StripeError as error:
            told = meaning(error)
            if isinstance(told, Unknown):
                raise RailUnavailable(told.reason) from None
            return told
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise RailUnavailable(f"Stripe gave no answer: {type(error).__name__}") from None
        return str(response.body).encode()


def _decoded(raw: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RailUnavailable("Stripe's answer is not what the call answers with") from None


def _read(told: bytes | Declined | Unknown, shape: type[T]) -> T | Declined | Unknown:
    """An answer as `shape`; one that cannot be read says nothing."""
    if not isinstance(told, bytes):
        return told
    try:
        return _decoded(told, shape)
    except RailUnavailable as error:
        return Unknown(str(error))


def _known(told: bytes | Declined | Unknown) -> bytes:
    """The answer to a call that moves nothing. Raises RailUnavailable, RailRejected."""
    match told:
        case bytes():
            return told
        case Declined(Decline.TECHNICAL) | Unknown():
            raise RailUnavailable(_words(told))
        case _:
            raise RailRejected(_words(told))


def _words(told: Declined | Unknown) -> str:
    return told.message if isinstance(told, Declined) else told.reason


def _outcome(told: PaymentIntent | Declined | Unknown) -> Outcome:
    """What a payment's status means for the order that made it."""
    if not isinstance(told, PaymentIntent):
        return told
    match told.status:
        case "succeeded":
            return Captured(told.id, told.id, told.amount)
        case "requires_capture":
            return Authorised(told.id, told.amount)
        case "requires_action":
            to = (told.next_action.redirect_to_url or {}) if told.next_action else {}
            return RequiresAction(told.id, to.get("url") or "", told.client_secret or "")
        case "canceled":
            return Voided(told.id)
        case "requires_payment_method":
            said = told.last_payment_error or {}
            code = str(said.get("decline_code") or said.get("code") or "card_declined")
            return Declined(decline_of(code), code, f"the card was declined: {code}")
        case _:
            return Unknown(f"the payment is {told.status}")


def _marked(refund: Refund) -> GivenBack:
    return GivenBack(refund.id, refund.amount, (refund.metadata or {}).get(_MARK, ""))


def _given_back(refund: Refund, key: str) -> GivenBack | Declined:
    if refund.status in _UNDONE:
        return Declined(Decline.HARD, "refund_failed", "the refund was not carried out")
    return GivenBack(refund.id, refund.amount, key)
