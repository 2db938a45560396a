"""The payment-method port: what a way to pay must be able to do.

A method reports *what arrived* or *what left*; crediting and debiting, exactly once, is the
core's work (`service.py`), so a method cannot get it wrong. Methods may be asked twice: a call
that may already have left comes again with `asked_before=True`, and must then find out what became
of it instead of doing it again.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

from farebox.ids import derived_id
from farebox.ledger.model import Put, Step
from farebox.money import BTC
from farebox.payments.exchange import Quoted
from farebox.payments.model import Rejected, Unresolved


@dataclass(frozen=True, slots=True)
class PaymentCredentials:
    """A credential that was read and found well-formed. Nothing has moved yet.

    `identity` is the same for two texts of the same money; `account` derives from it.
    """

    raw_credential: str = field(repr=False)
    payment_type: str
    metadata: Mapping[str, object] = field(default_factory=dict)
    identity: str = ""

    @property
    def identity_or_hash(self) -> str:
        """`identity`, or where the method gives none a hash of the credential itself."""
        return self.identity or derived_id("cred", self.payment_type, self.raw_credential)


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a method works now, from memory; `reason` when it does not."""

    works: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reserve:
    """What a payment is for: request `owner`, which costs at most `amount_msat`.

    `is_fixed`: it costs exactly that or nothing, so that no change between the two is needed.
    """

    owner: str
    amount_msat: int
    is_fixed: bool = False


@dataclass(frozen=True, slots=True)
class PaymentPlan:
    """What must be stored before money is asked for.

    `amount_msat` is what will be credited if it works (None: known only afterwards); `payload` is
    all that `receive_payment` needs, now or after a crash, and is sealed by the core. `custody`
    is the ledger account of the place that will hold the money. `puts` join the opening commit.
    Of another `asset` than bitcoin `amount` is what will arrive, and the core says what it is
    worth.
    """

    payload: bytes = field(repr=False)
    custody: str
    amount_msat: int | None = None
    fee_msat: int = 0
    puts: tuple[Put, ...] = ()
    asset: str = BTC.code
    amount: int = 0


@dataclass(frozen=True, slots=True)
class PaymentResult:
    """What arrived: in msat, and in the asset's own unit. `puts` join the crediting commit.

    Of another asset than bitcoin only `amount` counts: it is credited at the rate of the plan.
    """

    amount_msats: int
    currency: str
    payment_method: str
    transaction_id: str
    amount: int = 0
    puts: tuple[Put, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A definite no before anything moved. `code` is stable, `message` is one clear sentence."""

    code: str
    message: str
    details: Mapping[str, object] = field(default_factory=dict)


def no_rate(asset: str) -> Refusal:
    """The refusal where a conversion has no rate: nothing is guessed."""
    return Refusal("rate_unavailable", f"there is no rate for {asset} now; try again later")


@dataclass(frozen=True, slots=True)
class RefundRequest:
    """Give back at most `amount` of an asset, fees included, to `destination`.

    Amounts are in the asset's own unit (bitcoin: msat). `destination` is empty for the method's
    own kind of money (a new token), else an address; `metadata` is what `get_refund_metadata` said
    of it. `account` is whose money it is. `is_exact`: the receiver gets `amount` to the unit and
    the fees come on top.
    `fee_max` is the most that may go in fees; None leaves it to the operator's settings. `quoted`
    is the rate that the core converts at, if any. `puts` join the opening commit: whoever asks has
    decided by these rows.
    """

    operation_id: str
    amount: int
    destination: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    is_exact: bool = False
    fee_max: int | None = None
    asset: str = BTC.code
    quoted: Quoted | None = None
    account: str = ""
    puts: tuple[Put, ...] = ()


@dataclass(frozen=True, slots=True)
class RefundQuote:
    """What a payment out would come to: `amount` arrives, at most `fee_max` on top.

    In the request's asset. `fee_estimate` is what the network would take now; None where nobody
    can say.
    """

    amount: int
    fee_max: int
    fee_estimate: int | None = None


@dataclass(frozen=True, slots=True)
class RefundPlan:
    """What must be stored before money leaves; `amount` is the most that will be taken.

    In the request's asset, of which `custody` holds what leaves. `returns` is the key of the
    deposit that it gives back, if it does: that may go before it is ripe.
    """

    payload: bytes = field(repr=False)
    custody: str
    amount: int
    puts: tuple[Put, ...] = ()
    returns: str = ""


@dataclass(frozen=True, slots=True)
class RefundResult:
    """What left: `amount` is taken, in the request's asset, fees included.

    `reply` is what the caller is told, the same for ever (it may hold a token: sealed at rest).
    `puts` and `steps` join the closing commit, after its own: a fee that stays with us goes from
    custody to revenue, what the network took of another asset from there to an expense.
    """

    amount: int
    transaction_id: str
    reply: Mapping[str, str] = field(repr=False)
    puts: tuple[Put, ...] = field(default=(), repr=False)
    steps: tuple[Step, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """Change made of what was received for one request: no call outside is needed.

    `amount_msat` goes back as money (the rest stays as credit); `puts` join the settling commit,
    `reference` finds the change again with `render_change`.
    """

    amount_msat: int
    custody: str
    reference: bytes
    puts: tuple[Put, ...] = ()


class AbstractPaymentMethod(abc.ABC):
    """A way to pay. Register an instance with `register_payment_method`."""

    #: Stable short name; also the `payment_type` of its credentials.
    payment_type: str = ""
    #: How its credentials begin, for the error that lists what is accepted.
    credential_hint: str = ""
    #: Whether it only gives back to who has paid: an account's refund address is none of its.
    gives_back_only: bool = False

    @abc.abstractmethod
    def can_handle(self, credential: str) -> bool:
        """Whether this looks like one of ours. Cheap, no I/O, never raises."""

    @abc.abstractmethod
    async def parse_credential(self, credential: str) -> PaymentCredentials:
        """Read and check the credential; nothing moves. Raises InvalidCredential."""

    async def plan_payment(
        self, credentials: PaymentCredentials, reserve: Reserve | None
    ) -> PaymentPlan | Refusal:
        """Prepare to receive: for a request, so that its change can be cut now, or for none.

        Here: the credential itself is all that is needed, and the amount shows afterwards.
        """
        return PaymentPlan(credentials.raw_credential.encode(), f"custody:{self.payment_type}")

    @abc.abstractmethod
    async def receive_payment(
        self, payload: bytes, *, asked_before: bool
    ) -> PaymentResult | Rejected | Unresolved:
        """Take the money that `payload` plans for, or find out what became of an earlier try."""

    async def plan_refund(self, request: RefundRequest) -> RefundPlan | Refusal:
        """Prepare to give back. Here: refused, for methods that cannot."""
        return Refusal("refund_not_supported", f"{self.payment_type} cannot refund")

    def can_pay_to(self, address: str) -> bool:
        """Whether this reads as an address that it could still pay in a year: a Lightning address,
        not an invoice. Cheap, no I/O, never raises. Here: it cannot tell."""
        return True

    def standing(self) -> Standing:
        """Whether it works now, from memory. Here: it does."""
        return Standing(works=True)

    async def quote_refund(self, request: RefundRequest) -> RefundQuote | Refusal:
        """What `plan_refund` would come to; nothing is stored and nothing moves. Here: not told."""
        return Refusal("quote_not_supported", f"{self.payment_type} cannot tell before")

    async def refund_payment(
        self, payload: bytes, *, asked_before: bool
    ) -> RefundResult | Rejected | Unresolved:
        """Give back as planned, or find out what became of an earlier try."""
        return Rejected("refund_not_supported", f"{self.payment_type} cannot refund")

    async def give_up_refund(self, payload: bytes) -> tuple[Put, ...]:
        """What joins the commit by which an operator closes a payment out that never left, so that
        nothing of ours makes it afterwards. Here: nothing, it is only made when it is asked for."""
        return ()

    def get_refund_metadata(self, credentials: PaymentCredentials) -> Mapping[str, str]:
        """What to remember of a payment so that it can be refunded the way it came."""
        return {}

    async def plan_change(self, owner: str, amount_msat: int) -> PlannedChange | None:
        """Change out of what was received for request `owner`; None: keep it as credit.

        Called once for every request that a payment was reserved for, also with 0, so that what
        was reserved is free again.
        """
        return None

    async def render_change(self, reference: bytes) -> str | None:
        """The change as the payer takes it, the same each time; None once it was spent."""
        return None
