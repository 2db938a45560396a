"""The rail port: what a way to pay must do to be paid by deposit, beyond `AbstractPaymentMethod`.

A deposit is asked for first and arrives by itself later: an invoice, an address, a payment link.
What arrives is public knowledge, so a *credential* of such a method (an invoice, a transaction)
proves nothing: it credits the account that the deposit was asked for, or whoever holds the
deposit's claim secret. The rail only says what it saw; `requests.py` credits, exactly once.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from farebox.ids import derived_id
from farebox.money import BTC, Asset
from farebox.payments.deposits import DepositState
from farebox.payments.method import (
    AbstractPaymentMethod,
    PaymentCredentials,
    PaymentPlan,
    PaymentResult,
    Refusal,
    Reserve,
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
    a method share one. `amount` is in the asset's own unit, `expires_at` in UTC nanoseconds.
    """

    reference: str
    text: str
    uri: str
    custody: str
    amount: int | None
    expires_at: int


@dataclass(frozen=True, slots=True)
class Sighting:
    """Value seen at a reference. `amount` is in the asset's own unit (bitcoin: msat).

    `external` and `index` name it on the network, the same however often it is seen; an address
    may be paid several times. A CONFIRMED one is credited, a REVERSED one taken back. `at` is when
    it happened there, UTC nanoseconds; 0 where the network does not tell.

    `asset` and `custody` are those of what arrived, which need not be what was asked for; no
    custody is the request's. `seen_in` is where it was seen, where that may vanish: a block's
    hash. Once taken back from there it counts only when it is seen in another. Until `matures_at`
    it may be spent and not be paid out (`maturity.py`).
    """

    reference: str
    external: str
    amount: int
    state: DepositState
    index: int = 0
    at: int = 0
    asset: str = BTC.code
    custody: str = ""
    seen_in: str = ""
    matures_at: int = 0


@dataclass(frozen=True, slots=True)
class Watched:
    """Something seen by a subscription, and the cursor to resume behind it."""

    sighting: Sighting
    cursor: str


@dataclass(frozen=True, slots=True)
class Limits:
    """The least and most of one payment, in the asset's own unit (bitcoin: msat)."""

    least: int
    most: int

    def why_not(self, amount: int, what: str, unit: str = "msat") -> Refusal | None:
        """The refusal of an amount outside, naming what would be allowed."""
        if self.least <= amount <= self.most:
            return None
        bounds = {"least": str(self.least), "most": str(self.most)}
        message = f"a {what} is from {self.least} to {self.most} {unit} here"
        return Refusal("amount_out_of_bounds", message, bounds)


@dataclass(frozen=True, slots=True)
class AssetTerms:
    """What a method does with an asset; None: nothing in that direction."""

    asset: Asset
    deposits: Limits | None
    payouts: Limits | None

    @property
    def unit(self) -> str:
        """What its amounts are counted in, for people."""
        is_btc = self.asset.code == BTC.code
        return "msat" if is_btc else f"10^-{self.asset.scale} {self.asset.code}"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a method says of itself: limits, fees in words, and how long it usually takes."""

    assets: tuple[AssetTerms, ...]
    fees: str
    expected_s: int
    destinations: tuple[str, ...] = field(default=())

    def of(self, asset: str) -> AssetTerms | None:
        """The terms of one asset, by its code."""
        return next((one for one in self.assets if one.asset.code == asset), None)


@dataclass(frozen=True, slots=True)
class Holding:
    """What the network says lies at a place, in the asset's own unit; ours and the operator's."""

    custody: str
    asset: str
    amount: int


class DepositMethod(AbstractPaymentMethod):
    """A rail. All of its calls outside may raise RailUnavailable and RailRejected."""

    #: How long after its expiry a deposit is still looked for, seconds.
    grace_s: int = 86_400
    #: Whether it pays Lightning invoices, and so what a withdraw link draws.
    pays_invoices: bool = False
    #: What its credentials are, and what of one was asked for here, in the words of a refusal.
    credential_noun: str = "a credential"
    asked_for: str = "it"

    @property
    @abc.abstractmethod
    def place(self) -> str:
        """Where value is held; the watch's cursor is kept under this name."""

    def custody(self, asset: str) -> str:
        """The ledger account of what it holds of an asset. Here: one place, one asset."""
        return self.place

    def payable(self, asset: str) -> str:
        """The ledger account of what we owe to it; here and mostly "": it lends us nothing."""
        return ""

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

    @property
    def behind(self) -> int | None:
        """How many blocks are known here that were not looked through for payments yet, as of the
        last look; None: nobody looks here, or it goes otherwise."""
        return None

    @abc.abstractmethod
    def fee_max(self, amount: int, asset: str) -> int:
        """The most that paying out an amount may cost, in the asset's own unit."""

    @abc.abstractmethod
    async def probe(self) -> None:
        """Ask the network whether it is there, for `standing`. Raises RailUnavailable."""

    async def holdings(self) -> Sequence[Holding]:
        """What there is to pay out of, asked now. Here: it is not told."""
        return ()

    @abc.abstractmethod
    def terms(self) -> Terms:
        """Its limits and fees."""

    @abc.abstractmethod
    def reference_of(self, credential: str) -> str:
        """The reference that a credential names. Raises InvalidCredential."""

    async def parse_credential(self, credential: str) -> PaymentCredentials:
        """Read which deposit it names. Raises InvalidCredential."""
        reference = self.reference_of(credential)
        identity = derived_id(self.payment_type, reference)
        return PaymentCredentials(credential, self.payment_type, {"reference": reference}, identity)

    async def plan_payment(
        self, credentials: PaymentCredentials, reserve: Reserve | None
    ) -> PaymentPlan | Refusal:
        """Refused: whoever has seen a public credential could hand it in."""
        return Refusal(
            "credential_public",
            f"{self.credential_noun} pays for nothing by itself: the account that asked for "
            f"{self.asked_for} can spend it, and its claim_secret with POST /create opens an "
            "account of its own",
        )

    async def receive_payment(
        self, payload: bytes, *, asked_before: bool
    ) -> PaymentResult | Rejected | Unresolved:
        """Never: a public credential is not taken, its deposit is claimed."""
        return Rejected("credential_public", "this is public knowledge and pays for nothing")
