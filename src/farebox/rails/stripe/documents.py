"""What we read of Stripe's objects (https://docs.stripe.com/api), and nothing else of them."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import msgspec


class Listed(Protocol):
    """Anything that comes in lists, and is named there."""

    @property
    def id(self) -> str:
        """Stripe's name for it."""
        ...


L = TypeVar("L", bound=Listed)


class Page(msgspec.Struct, Generic[L], frozen=True):
    """A part of a list, the newest first."""

    data: list[L]


class BalanceTransaction(msgspec.Struct, frozen=True):
    """A movement of our balance there. `amount` is signed, `fee` is what Stripe kept.

    `currency` is that of the balance, which need not be the payment's.
    """

    amount: int = 0
    fee: int = 0
    currency: str = ""

    def is_in(self, currency: str) -> bool:
        """Whether it was moved in a currency; one that is not told is the payment's."""
        return self.currency in ("", currency)


class Part(msgspec.Struct, frozen=True):
    """An amount in a currency, written in lower case; below zero we owe it."""

    amount: int
    currency: str


class Balance(msgspec.Struct, frozen=True):
    """What lies on our account there."""

    available: list[Part] = []
    pending: list[Part] = []


class Charge(msgspec.Struct, frozen=True):
    """What a payment intent took."""

    id: str
    amount: int
    captured: bool
    created: int = 0
    amount_captured: int | None = None
    amount_refunded: int = 0
    disputed: bool = False
    balance_transaction: BalanceTransaction | str | None = None

    @property
    def taken(self) -> int:
        """What was captured; an old API version has no amount of its own for it."""
        if not self.captured:
            return 0
        return self.amount if self.amount_captured is None else self.amount_captured


class NextAction(msgspec.Struct, frozen=True):
    """What the payer has to do."""

    type: str
    redirect_to_url: dict[str, str | None] | None = None


class PaymentIntent(msgspec.Struct, frozen=True):
    """One payment, from its beginning to its end."""

    id: str
    status: str
    currency: str
    amount: int
    created: int = 0
    client_secret: str | None = None
    metadata: dict[str, str] = {}
    next_action: NextAction | None = None
    latest_charge: Charge | str | None = None
    last_payment_error: dict[str, object] | None = None

    def __repr__(self) -> str:
        return f"PaymentIntent({self.id}, {self.status})"


class Session(msgspec.Struct, frozen=True):
    """A Checkout page."""

    id: str
    status: str
    currency: str | None
    expires_at: int
    url: str | None = None
    client_reference_id: str | None = None
    payment_intent: PaymentIntent | str | None = None


class Refund(msgspec.Struct, frozen=True):
    """A refund of a payment."""

    id: str
    amount: int
    status: str | None
    metadata: dict[str, str] | None = None


class Dispute(msgspec.Struct, frozen=True):
    """A payer's bank takes a payment back, and what that did to our balance."""

    id: str
    status: str
    amount: int = 0
    balance_transactions: list[BalanceTransaction] = []


class _Subject(msgspec.Struct, frozen=True):
    object: str
    id: str = ""
    payment_intent: str | None = None


class _Data(msgspec.Struct, frozen=True):
    object: msgspec.Raw


class Event(msgspec.Struct, frozen=True):
    """Something that has happened."""

    id: str
    data: _Data
    created: int = 0

    @property
    def reference(self) -> str:
        """The payment or page that it is about; "" for none: there are events of other kinds."""
        try:
            subject = msgspec.json.decode(self.data.object, type=_Subject)
        except msgspec.DecodeError:
            return ""
        if subject.object in ("payment_intent", "checkout.session"):
            return subject.id
        return subject.payment_intent or ""


class _Card(msgspec.Struct, frozen=True):
    brand: str = "card"
    last4: str = ""
    exp_month: int = 0
    exp_year: int = 0


class Method(msgspec.Struct, frozen=True):
    """A payer's card, by Stripe's name for it."""

    id: str
    type: str
    card: _Card | None = None


class Named(msgspec.Struct, frozen=True):
    """Anything of which the id is all we need."""

    id: str
