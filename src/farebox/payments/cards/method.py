"""Card money as a way to pay: asked for by a payment link, given back to where it came from.

    open ──► action ──► (approved) ──► captured ──► credited ──► given back, disputed
                                          │
    the payer, at the provider            └── everything behind is ours to book (`booking.py`)

| boundary                    | what can fail        | recovery                                    |
|-----------------------------|----------------------|---------------------------------------------|
| link made → request stored  | we stop              | nobody was shown it: nothing can be paid    |
| approved there → captured   | we stop, answer lost | poller and events: captured there once      |
| captured there → credited   | a webhook is lost    | the poller asks; events are read by a cursor|
| asked for → first cursor    | no answer, we stop   | all that was asked for is asked about first |
| credited → booked (fees …)  | we stop              | the event is read again: its cursor comes   |
|                             |                      | after the booking                           |

A notice, by webhook or from the list of events, says only that something has happened to a payment.
What, the provider is asked, and all that follows is the difference to what is booked: the same
notice twice, late or out of order changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

import structlog

from farebox.clock import NS_PER_S
from farebox.errors import InvalidCredential, RailError, RailRejected, RailUnavailable
from farebox.ledger.model import Put
from farebox.ledger.service import Ledger
from farebox.payments.cards.booking import Booking
from farebox.payments.cards.connector import Connector
from farebox.payments.cards.model import (
    CURRENCIES,
    Captured,
    CardPayment,
    CheckoutOrder,
    Decline,
    Declined,
    Forged,
    Notice,
    Phase,
)
from farebox.payments.cards.refunds import Refunds
from farebox.payments.cards.terms import CardTerms
from farebox.payments.deposits import DEPOSIT_REQUEST, DepositRequest, DepositState, Watch
from farebox.payments.method import (
    RefundPlan,
    RefundQuote,
    RefundRequest,
    RefundResult,
    Refusal,
    Standing,
)
from farebox.payments.model import Rejected, Unresolved
from farebox.payments.rail import (
    AssetTerms,
    DepositMethod,
    DepositOrder,
    Holding,
    Payable,
    Sighting,
    Terms,
    Watched,
)

_log = structlog.get_logger("farebox.cards")

#: How often a provider's list of events is read where it has nothing new.
_EVENTS_EVERY_S = 10
#: An approved order whose card declined is taken anew once its payer has done something, or after
#: so long: not as often as somebody asks for the deposit. So many are remembered.
_DECLINED_S, _DECLINED_MAX = 1_800, 4_096


class CardMethod(DepositMethod):
    """One provider's account: Stripe's, PayPal's."""

    credential_noun = "a payment link"
    gives_back_only = True

    def __init__(self, terms: CardTerms, connector: Connector, ledger: Ledger) -> None:
        self.payment_type = connector.provider
        self.credential_hint = f"a {connector.provider} payment that was asked for here"
        self.card_terms = terms
        self.connector = connector
        self._ledger = ledger
        self._booking = Booking(terms, ledger)
        self._refunds = Refunds(terms, connector, ledger)
        self._fault = "the provider was not asked yet"
        #: Orders that were declined, and when, by what has passed here.
        self._declined: dict[str, int] = {}

    # ── credentials ──────────────────────────────────────────────────────────────────────────────

    def can_handle(self, credential: str) -> bool:
        """Whether it names a payment of this provider."""
        return bool(self.connector.reference_in(credential))

    def reference_of(self, credential: str) -> str:
        """The provider's name for what was to be paid."""
        reference = self.connector.reference_in(credential)
        if not reference:
            raise InvalidCredential(f"this names no payment of {self.payment_type}")
        return reference

    @property
    def place(self) -> str:
        """This account at the provider."""
        return self.card_terms.place

    def custody(self, asset: str) -> str:
        """What the provider owes us in a currency."""
        return self.card_terms.custody(asset)

    def payable(self, asset: str) -> str:
        """What it took back beyond that."""
        return self.card_terms.payable(asset)

    # ── in ───────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, order: DepositOrder) -> Payable | Refusal:
        """A payment link for the amount, and what is charged for paying by card."""
        if order.amount is None:
            return Refusal("amount_required", "a payment by card is asked for with its amount")
        terms = self.card_terms
        made = await self.connector.check_out(
            CheckoutOrder(
                order=order.request_id,
                amount=order.amount,
                currency=order.asset,
                expires_at_s=self._now_s() + terms.expiry_s,
                fee=terms.fee(order.amount),
            )
        )
        return Payable(
            reference=made.reference,
            text=made.text,
            uri=made.uri,
            custody=self.custody(order.asset),
            amount=order.amount,
            expires_at=made.expires_at_s * NS_PER_S,
        )

    async def look(self, reference: str) -> list[Sighting]:
        """What was captured of it, once it was."""
        payment = await self._synced(reference, is_told=False)
        return [] if payment is None else await self._sightings(payment)

    async def watch(self, cursor: str) -> AsyncGenerator[Watched, None]:
        """The provider's events from a cursor on; what they mean is booked between two of them."""
        if not cursor:
            _, cursor = await self.connector.notices("")
            # What has happened until here is in no event behind it.
            async for reference in self._asked_for():
                async for sighting in self.about(reference):
                    yield Watched(sighting, "")
            yield Watched(_NOTHING, cursor)  # so that nothing is missed from here on
        while True:
            notices, after = await self.connector.notices(cursor)
            silent: RailUnavailable | None = None
            for reference in dict.fromkeys(name for one in notices for name in one.references):
                try:
                    async for sighting in self.about(reference):
                        yield Watched(sighting, "")
                except RailUnavailable as error:  # in the way of no other; all are read again
                    silent = silent or error
            if silent is not None:
                raise silent
            if after == cursor:
                await asyncio.sleep(_EVENTS_EVERY_S)
                continue
            cursor = after
            yield Watched(_NOTHING, cursor)

    async def about(self, reference: str) -> AsyncGenerator[Sighting, None]:
        """What a notice about a payment comes to: sightings to be credited, then what is booked.

        Whoever iterates credits each before it takes the next. Raises RailUnavailable.
        """
        try:
            payment = await self._synced(reference, is_told=True)
        except RailRejected as error:  # of another program on the same account, perhaps
            _log.warning("cards.notice_ignored", provider=self.payment_type, reason=str(error))
            return
        if payment is None or not payment.order:
            return
        for sighting in await self._sightings(payment):
            yield sighting
        await self.book(payment.external, payment.reference)

    async def book(self, external: str, reference: str) -> None:
        """Book what the provider tells of a payment now. Raises RailError, StoreBusy."""
        if external:
            await self._booking.book(external, lambda: self.connector.sync(reference))

    async def hear(self, headers: Mapping[str, str], body: bytes) -> Notice | Forged | None:
        """A webhook, checked. Raises RailUnavailable."""
        return await self.connector.hear(headers, body)

    async def _synced(self, reference: str, *, is_told: bool) -> CardPayment | None:
        """How it stands, captured where the payer's approval leaves that to us.

        `is_told`: something has happened to it.
        """
        payment = await self.connector.sync(reference)
        if payment is None or payment.phase is not Phase.APPROVED or not payment.order:
            return payment
        if await self._request_of(payment) is None:
            return payment
        order, now_ns = payment.reference, self._ledger.clock.elapsed_ns()
        declined_ns = self._declined.pop(order, None)
        if (
            declined_ns is not None
            and not is_told
            and now_ns - declined_ns < _DECLINED_S * NS_PER_S
        ):
            self._declined[order] = declined_ns
            return payment
        told = await self.connector.capture(order, 0, payment.currency, payment.order)
        if isinstance(told, Captured):
            return await self.connector.sync(order)
        _log.warning("cards.not_captured", provider=self.payment_type, order=payment.order)
        if isinstance(told, Declined) and told.decline is not Decline.TECHNICAL:
            self._declined[order] = now_ns
            if len(self._declined) > _DECLINED_MAX:
                del self._declined[next(iter(self._declined))]
        return payment

    async def _sightings(self, payment: CardPayment) -> list[Sighting]:
        request = await self._request_of(payment)
        if request is None or payment.phase is not Phase.CAPTURED:
            return []
        if payment.currency != request.asset:
            # What of it is the fee nobody can say: it stays at the provider, for the operator.
            _log.error(
                "cards.another_currency",
                provider=self.payment_type,
                payment=payment.external,
                asked=request.asset,
                charged=payment.currency,
            )
            return []
        return [
            Sighting(
                reference=request.reference,
                external=payment.external,
                amount=min(request.amount or 0, payment.captured),  # what is beyond is the fee
                state=DepositState.CONFIRMED,
                at=payment.at_s * NS_PER_S,
                asset=payment.currency,
                custody=self.custody(payment.currency),
                matures_at=self.card_terms.matures_at(payment.at_s),
            )
        ]

    async def _asked_for(self) -> AsyncGenerator[str, None]:
        """All that this provider's payers were ever shown."""
        for watch in Watch:
            where, after = {"method": self.payment_type, "watch": watch}, ""
            while page := await self._ledger.store.find(DEPOSIT_REQUEST, where, after=after):
                for _, row in page:
                    yield row.value.reference
                after = page[-1][0]

    async def _request_of(self, payment: CardPayment) -> DepositRequest | None:
        found = await self._ledger.store.find(DEPOSIT_REQUEST, {"id": payment.order}, limit=1)
        request = found[0][1].value if found else None
        return request if request and request.method == self.payment_type else None

    # ── out ──────────────────────────────────────────────────────────────────────────────────────

    async def quote_refund(self, request: RefundRequest) -> RefundQuote | Refusal:
        """What of the account's payments could be given back; there is no fee on top."""
        return await self._refunds.quote(request)

    def fee_max(self, amount: int, asset: str) -> int:
        """Nothing: the provider keeps what it took for the payment."""
        return 0

    async def plan_refund(self, request: RefundRequest) -> RefundPlan | Refusal:
        """To a payment of this account, a part or all of it."""
        try:
            return await self._refunds.plan(request)
        except RailError as error:
            return Refusal("rail_unavailable", str(error))

    async def refund_payment(
        self, payload: bytes, *, asked_before: bool
    ) -> RefundResult | Rejected | Unresolved:
        """Give back as planned, or find out what became of an earlier try."""
        return await self._refunds.give(payload, asked_before=asked_before)

    async def give_up_refund(self, payload: bytes) -> tuple[Put, ...]:
        """What is noted of it, where an operator found that it was never made."""
        return await self._refunds.give_up(payload)

    # ── standing ─────────────────────────────────────────────────────────────────────────────────

    async def probe(self) -> None:
        """Ask the provider whether it lets us in. Raises RailUnavailable."""
        try:
            self._fault = await self.connector.probe()
        except RailUnavailable as error:
            self._fault = str(error)
            raise

    async def holdings(self) -> Sequence[Holding]:
        """What the provider says that it owes us; where we owe it, nothing lies there."""
        told = await self.connector.balances()
        return tuple(
            Holding(self.custody(code), code, max(0, told[code]))
            for code in self.card_terms.currencies
            if code in told
        )

    def standing(self) -> Standing:
        """By the last probe."""
        return Standing(not self._fault, self._fault)

    def terms(self) -> Terms:
        """The operator's limits and fees."""
        terms = self.card_terms
        assets = tuple(
            AssetTerms(CURRENCIES[code], limits, type(limits)(1, limits.most))
            for code, limits in terms.currencies.items()
        )
        return Terms(
            assets=assets,
            fees=(
                f"in: {terms.fee_fixed} of the smallest unit and {terms.fee_ppm} millionths of the "
                "amount, on top of it; out: none, and what was paid for paying in stays paid"
            ),
            expected_s=60,
            destinations=("the card or account that paid", "a deposit's id"),
        )

    def _now_s(self) -> int:
        return self._ledger.clock.now_ns() // NS_PER_S


#: A cursor goes with something that was seen: this is nobody's.
_NOTHING = Sighting("", "", 0, DepositState.DETECTED)
