"""The rail port: what a way to pay must do to be paid by deposit, beyond `AbstractPaymentMethod`.

A deposit is asked for first and arrives by itself later: an invoice, an address, a payment link.
What arrives is public knowledge, so a *credential* of such a method (an invoice, a transaction)
proves nothing: it credits the account that the deposit was asked for, or whoever holds the
deposit's claim secret. The rail only says what it saw; `requests.py` credits, exactly once.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from farebox.payments.deposits import DepositState
from farebox.payments.method import (
    AbstractPaymentMethod,
    PaymentResult,
    Refusal,
)
from farebox.payments.model import Rejected, Unresolved


@dataclass(frozen=True, slots=True)
class DepositOrder:
    """What is to be asked for. `amount` is in the asset's own unit; None leaves it to the payer."""

    request_id: str
    amount: int | None
    asset: str


@dataclass(frozen=True, slots=True)
class Payable:
    """What a payer is shown: `text` to copy, `uri` for a link or QR code.

    `reference` is what sightings will name it by (a payment hash, an address); no two deposits of
    a method share one. `expires_at` is UTC nanoseconds.
    """

    reference: str
    text: str
    uri: str
    custody: str
    amount_msat: int | None
    expires_at: int


@dataclass(frozen=True, slots=True)
class Sighting:
    """Value seen at a reference. `amount` is in the asset's unit, `amount_msat` its worth.

    `external` and `index` name it on the network, the same however often it is seen; an address
    may be paid several times. A CONFIRMED one is credited. `at` is when it happened there, UTC
    nanoseconds; 0 where the network does not tell.
    """

    reference: str
    external: str
    amount: int
    amount_msat: int
    state: DepositState
    index: int = 0
    at: int = 0


@dataclass(frozen=True, slots=True)
class Watched:
    """Something seen by a subscription, and the cursor to resume behind it."""

    sighting: Sighting
    cursor: str


@dataclass(frozen=True, slots=True)
class Limits:
    """The least and most of one payment, in msat."""

    least_msat: int
    most_msat: int

    def why_not(self, amount_msat: int, what: str) -> Refusal | None:
        """The refusal of an amount outside, naming what would be allowed."""
        if self.least_msat <= amount_msat <= self.most_msat:
            return None
        bounds = {"least_msat": self.least_msat, "most_msat": self.most_msat}
        message = f"a {what} is from {self.least_msat} to {self.most_msat} msat here"
        return Refusal("amount_out_of_bounds", message, bounds)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a method says of itself: limits, fees in words, and how long it usually takes."""

    assets: tuple[str, ...]
    deposits: Limits | None
    payouts: Limits | None
    fees: str
    expected_s: int
    destinations: tuple[str, ...] = field(default=())


class DepositMethod(AbstractPaymentMethod):
    """A rail. All of its calls outside may raise RailUnavailable and RailRejected."""

    #: How long after its expiry a deposit is still looked for, seconds.
    grace_s: int = 86_400

    @property
    @abc.abstractmethod
    def place(self) -> str:
        """The custody account of what arrives; the watch's cursor is kept under this name."""

    @abc.abstractmethod
    async def ask(self, order: DepositOrder) -> Payable | Refusal:
        """Make something to be paid. Nothing is owed; what is never shown harms nobody."""

    @abc.abstractmethod
    async def look(self, reference: str) -> list[Sighting]:
        """What has arrived for a reference, asked of the network now."""

    @abc.abstractmethod
    def watch(self, cursor: str) -> AsyncGenerator[Watched, None]:
        """What arrives from `cursor` on, without end; "" is now. Raises when the line breaks.

        It may tell what was told before, and of what nobody here has asked for.
        """

    @abc.abstractmethod
    def fee_max_msat(self, amount_msat: int) -> int:
        """The most that paying out an amount may cost."""

    @abc.abstractmethod
    async def probe(self) -> None:
        """Ask the network whether it is there, for `standing`. Raises RailUnavailable."""

    @abc.abstractmethod
    def terms(self) -> Terms:
        """Its limits and fees."""

    @abc.abstractmethod
    def reference_of(self, credential: str) -> str:
        """The reference that a credential names. Raises InvalidCredential."""

    async def receive_payment(
        self, payload: bytes, *, asked_before: bool
    ) -> PaymentResult | Rejected | Unresolved:
        """Never: a public credential is not taken, its deposit is claimed."""
        return Rejected("credential_public", "this is public knowledge and pays for nothing")
