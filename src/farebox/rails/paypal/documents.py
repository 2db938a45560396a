"""What we read of PayPal's objects (orders v2, payments v2, disputes v1, webhooks v1, vault v3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import takewhile

import msgspec

from farebox.errors import InvalidAmount, RailUnavailable
from farebox.money import format_decimal, parse_decimal

#: Decimals of the currencies that are used here.
_SCALE = 2
#: Reasons of a movement that PayPal keeps for itself.
_FEES = ("DISPUTE_FEE", "DISPUTE_SETTLEMENT_FEE", "CHARGEBACK_FEE")
_SIGNS = {"DEBIT": 1, "CREDIT": -1}


class Money(msgspec.Struct, frozen=True):
    """An amount as PayPal writes it."""

    currency_code: str
    value: str

    @property
    def amount(self) -> int:
        """In the currency's smallest unit. Raises RailUnavailable: an answer that is none."""
        try:
            return parse_decimal(self.value, _SCALE)
        except InvalidAmount:
            raise RailUnavailable("PayPal told an amount that is none") from None


def unix_s(written: str) -> int:
    """A time as PayPal writes it (RFC 3339), in Unix seconds; 0 for what is none."""
    try:
        return int(datetime.fromisoformat(written).timestamp())
    except ValueError:
        return 0


def money(amount: int, currency: str) -> dict[str, str]:
    """An amount as PayPal reads it."""
    whole, _, rest = format_decimal(amount, _SCALE).partition(".")
    return {"currency_code": currency, "value": f"{whole}.{rest.ljust(_SCALE, '0')}"}


class Breakdown(msgspec.Struct, frozen=True):
    """What of a capture, or of a refund, is whose."""

    paypal_fee: Money | None = None

    @property
    def fee(self) -> int:
        """What PayPal kept, or gave again."""
        return self.paypal_fee.amount if self.paypal_fee else 0


class Capture(msgspec.Struct, frozen=True):
    """Money that was taken."""

    id: str
    status: str
    amount: Money
    create_time: str = ""
    seller_receivable_breakdown: Breakdown | None = None

    @property
    def is_taken(self) -> bool:
        """Whether it is ours, however much of it was given back since."""
        return self.status in ("COMPLETED", "PARTIALLY_REFUNDED", "REFUNDED")

    @property
    def fee(self) -> int:
        """What PayPal kept."""
        told = self.seller_receivable_breakdown
        return told.fee if told else 0

    @property
    def at_s(self) -> int:
        """When it was taken, Unix seconds; 0 where that is not told."""
        return unix_s(self.create_time)


class Refund(msgspec.Struct, frozen=True):
    """Money that was given back."""

    id: str
    status: str
    amount: Money | None = None
    custom_id: str = ""
    seller_payable_breakdown: Breakdown | None = None

    @property
    def fee_again(self) -> int:
        """What PayPal gave us again of the fee for the payment."""
        told = self.seller_payable_breakdown
        return told.fee if told and not self.is_undone else 0

    @property
    def is_undone(self) -> bool:
        """Whether it was not carried out after all."""
        return self.status in ("CANCELLED", "FAILED")


class Payments(msgspec.Struct, frozen=True):
    """What an order has moved."""

    captures: list[Capture] = []
    refunds: list[Refund] = []


class PurchaseUnit(msgspec.Struct, frozen=True):
    """What an order is for. `custom_id` is our name for it."""

    amount: Money | None = None
    custom_id: str = ""
    payments: Payments = Payments()


class Link(msgspec.Struct, frozen=True):
    """Where to go next."""

    rel: str
    href: str


class Order(msgspec.Struct, frozen=True):
    """One payment, from its beginning to its end."""

    id: str
    status: str
    purchase_units: list[PurchaseUnit] = []
    links: list[Link] = []

    @property
    def unit(self) -> PurchaseUnit:
        """Orders of ours have one."""
        return self.purchase_units[0] if self.purchase_units else PurchaseUnit()

    @property
    def capture(self) -> Capture | None:
        """The last one that was tried."""
        return self.unit.payments.captures[-1] if self.unit.payments.captures else None

    @property
    def approval(self) -> str:
        """Where the payer agrees; "" where there is nothing to agree to."""
        return next((one.href for one in self.links if one.rel in ("payer-action", "approve")), "")


class RelatedIds(msgspec.Struct, frozen=True):
    """Names of what belongs together."""

    order_id: str = ""


class Supplementary(msgspec.Struct, frozen=True):
    """More about a capture."""

    related_ids: RelatedIds = RelatedIds()


class LoneCapture(msgspec.Struct, frozen=True):
    """A capture asked for by its own name."""

    id: str
    supplementary_data: Supplementary = Supplementary()


class Movement(msgspec.Struct, frozen=True):
    """Money that a dispute has moved."""

    affected_party: str = ""
    type: str = ""
    reason: str = ""
    amount: Money | None = None

    @property
    def taken(self) -> int:
        """Below zero it was given."""
        return _SIGNS.get(self.type, 0) * self.amount.amount if self.amount else 0


class Disputed(msgspec.Struct, frozen=True):
    """A payment that a dispute is about, by the name of its capture."""

    seller_transaction_id: str = ""
    gross_amount: Money | None = None


class Dispute(msgspec.Struct, frozen=True):
    """A payer, or their bank, wants money back: of one payment, or of several at once."""

    dispute_id: str
    money_movements: list[Movement] = []
    disputed_transactions: list[Disputed] = []

    def taken(self, capture_id: str) -> int:
        """What it has taken from us of a payment, less what it gave back."""
        return self._part(capture_id, (one for one in self._ours if one.reason not in _FEES))

    def fees(self, capture_id: str) -> int:
        """What it has cost us for a payment."""
        return self._part(capture_id, (one for one in self._ours if one.reason in _FEES))

    @property
    def _ours(self) -> Iterator[Movement]:
        return (one for one in self.money_movements if one.affected_party == "SELLER")

    def _part(self, capture_id: str, moved: Iterable[Movement]) -> int:
        """What is moved is told for all of its payments together: each has a part by what was paid
        with it, and the parts come to the whole."""
        total = sum(one.taken for one in moved)
        paid: Counter[str] = Counter()
        for one in self.disputed_transactions:
            paid[one.seller_transaction_id] += one.gross_amount.amount if one.gross_amount else 1
        if capture_id not in paid:
            return total  # it is told by no name of ours
        before = sum(paid[one] for one in takewhile(lambda one: one != capture_id, paid))
        whole = paid.total() or 1
        return total * (before + paid[capture_id]) // whole - total * before // whole


class DisputeName(msgspec.Struct, frozen=True):
    """One of a list."""

    dispute_id: str


class Disputes(msgspec.Struct, frozen=True):
    """A page of disputes."""

    items: list[DisputeName] = []


class _Resource(msgspec.Struct, frozen=True):
    id: str = ""
    supplementary_data: Supplementary = Supplementary()
    links: list[Link] = []
    disputed_transactions: list[Disputed] = []


class Event(msgspec.Struct, frozen=True):
    """Something that has happened."""

    id: str
    event_type: str = ""
    create_time: str = ""
    resource: msgspec.Raw = msgspec.Raw(b"{}")

    @property
    def references(self) -> tuple[str, ...]:
        """The orders that it is about, or "/" and the names of captures; none: there are events of
        other kinds."""
        try:
            resource = msgspec.json.decode(self.resource, type=_Resource)
        except msgspec.DecodeError:
            return ()
        if self.event_type.startswith("CHECKOUT.ORDER."):
            return (resource.id,) if resource.id else ()
        if order := resource.supplementary_data.related_ids.order_id:
            return (order,)
        if self.event_type.startswith("CUSTOMER.DISPUTE."):
            names = [one.seller_transaction_id for one in resource.disputed_transactions]
        else:
            ups = [one.href for one in resource.links if "/payments/captures/" in one.href]
            names = [ups[0].rpartition("/")[2]] if ups else []
        return tuple(f"/{name}" for name in names if name)


class Events(msgspec.Struct, frozen=True):
    """A page of events, the newest first."""

    events: list[Event] = []


class _Customer(msgspec.Struct, frozen=True):
    id: str = ""


class _Wallet(msgspec.Struct, frozen=True):
    email_address: str = ""


class _Card(msgspec.Struct, frozen=True):
    brand: str = "card"
    last_digits: str = ""
    expiry: str = ""


class _Source(msgspec.Struct, frozen=True):
    paypal: _Wallet | None = None
    card: _Card | None = None


class VaultToken(msgspec.Struct, frozen=True):
    """A payer's card or account, by PayPal's name for it."""

    id: str
    customer: _Customer = _Customer()
    payment_source: _Source = _Source()


class Verified(msgspec.Struct, frozen=True):
    """Whether PayPal sent a webhook."""

    verification_status: str


class AccessToken(msgspec.Struct, frozen=True):
    """What lets us in for a while."""

    access_token: str
    expires_in: int

    def __repr__(self) -> str:
        return f"AccessToken(…, {self.expires_in} s)"


class _Detail(msgspec.Struct, frozen=True):
    issue: str = ""


class ErrorJson(msgspec.Struct, frozen=True):
    """Why a call was refused."""

    name: str = ""
    details: list[_Detail] = []
    links: list[Link] = []

    @property
    def issue(self) -> str:
        """The finest name there is for it."""
        return next((one.issue for one in self.details if one.issue), self.name)
