"""What card providers say, in words of no provider: payments as they stand, answers to calls.

Amounts are in the currency's smallest unit as the provider counts it: cents for USD and EUR.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from farebox.money import Asset

#: The currencies of card money, as assets of the books. USD here counts cents: prices count
#: millionths (`money.USD`), which no card can be charged.
CURRENCIES = {asset.code: asset for asset in (Asset("USD", 2), Asset("EUR", 2))}


class Decline(enum.StrEnum):
    """What a definite no leaves to be tried."""

    HARD = "hard"  # nobody may try again with this card or account
    SOFT = "soft"  # the issuer may say yes another time, or the payer's other card may pay
    TECHNICAL = "technical"  # the provider could not; another may


class Phase(enum.StrEnum):
    """How far a payment has come at its provider."""

    OPEN = "open"  # nothing has been paid
    ACTION = "action"  # the payer has to do something first (3-D Secure, approval)
    APPROVED = "approved"  # the payer has agreed; taking the money is left to us
    AUTHORISED = "authorised"  # reserved at the payer's bank
    CAPTURED = "captured"  # taken
    ENDED = "ended"  # voided, expired or failed: nothing was and nothing will be taken


@dataclass(frozen=True, slots=True)
class GivenBack:
    """A refund of a payment. `key` is the operation of ours that asked for it, else ""."""

    id: str
    amount: int
    key: str = ""


@dataclass(frozen=True, slots=True)
class CardPayment:
    """A payment as its provider knows it now; the same however often and by whom it is asked.

    `order` is our name for it, `reference` the provider's name for what the payer was shown,
    `external` its name for the payment itself. `refunds` are those that were not undone, `undone`
    the others: their money came back to us, as from a card that is closed. `disputed` is what the
    provider has withdrawn over disputes less what it gave back, `fees` all that it kept for itself.
    """

    order: str
    reference: str
    external: str
    phase: Phase
    currency: str
    captured: int = 0
    at_s: int = 0
    refunds: tuple[GivenBack, ...] = ()
    undone: tuple[GivenBack, ...] = ()
    disputed: int = 0
    fees: int = 0


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Authorised:
    """Reserved at the payer's bank: capture or void it before it lapses."""

    reference: str
    amount: int


@dataclass(frozen=True, slots=True)
class Captured:
    """Taken. `external` names the payment."""

    reference: str
    external: str
    amount: int


@dataclass(frozen=True, slots=True)
class RequiresAction:
    """The payer has to prove it is them. `url` is where to, or `client_secret` what the provider's
    script in the payer's browser finishes it with."""

    reference: str
    url: str = ""
    client_secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Declined:
    """A definite no: nothing was and will be taken by this call. `code` is stable."""

    decline: Decline
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody knows yet. It is asked with the same key before anything else is tried.

    `reference` is the provider's name for what is under way, where it has told one.
    """

    reason: str
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Voided:
    """Released; nothing was taken."""

    reference: str


Outcome = Authorised | Captured | RequiresAction | Declined | Unknown | Voided


# ── what is asked for ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class CardOrder:
    """Take, or with `capture` False reserve, `amount` of a stored method's owner.

    `order` is our name for it and the idempotency key: unique, and stored before the call.
    `made_at_s` is since when it may have been used, Unix seconds: providers forget keys.
    `reference` is what an earlier answer called it, where one did: that is not forgotten.
    """

    order: str
    amount: int
    currency: str
    customer: str
    token: str
    capture: bool = True
    made_at_s: int = 0
    reference: str = ""


@dataclass(frozen=True, slots=True)
class CheckoutOrder:
    """Something to be paid in the payer's browser: `amount`, and `fee` for paying by card."""

    order: str
    amount: int
    currency: str
    expires_at_s: int
    fee: int = 0


@dataclass(frozen=True, slots=True)
class Checkout:
    """What a payer is shown: a page, or a secret for the provider's own script."""

    reference: str
    text: str
    uri: str
    expires_at_s: int


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A provider's name for a card or account of the payer, and what may be shown of it."""

    token: str
    customer: str
    label: str
    expires: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """A provider says that something has happened to payments. What, it is asked for."""

    id: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forged:
    """A webhook that is not the provider's, or too old."""

    reason: str
