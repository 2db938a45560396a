"""Crediting and debiting accounts by what the methods report: every rail, one path.

Postings (amounts in msat):

| flow           | opening commit                         | closing commit                         |
|----------------|----------------------------------------|----------------------------------------|
| receive        | Hold custody → account, what we expect | Post what arrived, or Void             |
| receive, amount unknown | -                             | Transfer custody → account what came   |
| refund, payout | Hold account → custody, the most       | Post what left, fees included, or Void |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from farebox.ids import derived_id
from farebox.ledger.model import (
    Applied,
    Code,
    Event,
    Hold,
    Kind,
    Mismatch,
    Open,
    Refused,
    Replayed,
    Stale,
    Step,
    Taken,
    Transfer,
    hold_id,
)
from farebox.ledger.service import Ledger
from farebox.money import BTC
from farebox.payments.deposits import DEPOSIT, Deposit, credited
from farebox.payments.method import (
    AbstractPaymentMethod,
    PaymentCredentials,
    PaymentPlan,
    RefundRequest,
    RefundResult,
    Refusal,
    Reserve,
)
from farebox.payments.model import (
    NO_CHANGES,
    Changes,
    Operation,
    OperationState,
    Rejected,
    Succeeded,
    Unresolved,
    Verdict,
)
from farebox.payments.operations import Operations, closing_unit
from farebox.payments.registry import PaymentMethods
from farebox.signer import Signer

#: What an outgoing payment is for: their own money back, or somebody else's to be paid.
REFUND, PAYOUT = "refund", "payout"
#: Replanning after another refund took the same proofs.
_REFUND_TRIES_MAX = 8
#: How often a credential may be presented anew after rejections for passing reasons.
_RECEIVE_ATTEMPTS_MAX = 64


@dataclass(frozen=True, slots=True)
class Received:
    """The money is on the account, since now or since long ago."""

    operation_id: str
    amount_msat: int


@dataclass(frozen=True, slots=True)
class Pending:
    """Nobody knows yet whether money moved; ask again with the same credential or key."""

    operation_id: str


@dataclass(frozen=True, slots=True)
class Refunded:
    """It left; `reply` is what the method tells the receiver."""

    operation_id: str
    amount_msat: int
    reply: dict[str, str] = field(repr=False)


def receive_id(credentials: PaymentCredentials, attempt: int = 0) -> str:
    """The operation that redeems a credential: one for the same money, however it is written.

    `attempt` counts those before it that were rejected for a passing reason.
    """
    parts = (str(attempt),) if attempt else ()
    return derived_id("rcv", credentials.identity_or_hash, *parts)


#: Makes what joins a crediting commit, given the id that a Hold as its first step will have.
Joining = Callable[[str], Changes]


class _ReceivePlan(msgspec.Struct, frozen=True):
    method: str
    custody: str
    payload: bytes


class _RefundPlan(msgspec.Struct, frozen=True):
    method: str
    payload: bytes


class Payments:
    """Receives and refunds through the registered methods, journalled."""

    def __init__(
        self, ledger: Ledger, operations: Operations, methods: PaymentMethods, signer: Signer
    ) -> None:
        self._ledger = ledger
        self._operations = operations
        self._signer = signer
        self.methods = methods
        operations.register("receive", _Receive(ledger, methods, signer))
        for kind in (REFUND, PAYOUT):
            operations.register(kind, _Refund(methods, signer))

    async def receive(
        self,
        credentials: PaymentCredentials,
        account: str,
        *,
        reserve: Reserve | None = None,
        minimum_msat: int = 0,
        also: Joining = lambda _: NO_CHANGES,
    ) -> Received | Pending | Refusal:
        """Take the money of a credential onto a customer account, once whoever asks how often.

        `also` joins the crediting commit when this very call makes it. `reserve` names the
        request it pays for, so that its change can be cut now. What is
        known to bring less than `minimum_msat` is refused and stays with the payer.
        """
        operation_id, known = await self._last_attempt(credentials)
        if known is not None:
            done = await self._operations.advance(operation_id)
            return _received(done, account)
        method = self.methods[credentials.payment_type]
        plan = await method.plan_payment(credentials, reserve)
        if isinstance(plan, Refusal):
            # It may be refused because the same credential is being taken at this very moment.
            operation_id, known = await self._last_attempt(credentials)
            if known is None:
                return plan
            done = await self._operations.advance(operation_id)
            return _received(done, account)
        if plan.amount_msat is not None and plan.amount_msat < minimum_msat:
            return Refusal(
                "insufficient_payment",
                f"the payment is worth {plan.amount_msat} msat after {plan.fee_msat} msat of "
                f"fees; {minimum_msat} msat are needed",
                {"received_msat": plan.amount_msat, "fee_msat": plan.fee_msat},
            )
        opened = await self._open_receive(operation_id, method, plan, account)
        if isinstance(opened, Refusal):
            return opened
        # Every crediting commit has exactly one step before `also`: a Post, or a Transfer.
        joined = also(hold_id(closing_unit(operation_id), 1))
        done = await self._operations.advance(operation_id, fresh=opened, also=joined)
        return _received(done, account)

    async def _last_attempt(self, credentials: PaymentCredentials) -> tuple[str, Operation | None]:
        """The operation that counts for a credential: its last, or the next that may be opened."""
        for attempt in range(_RECEIVE_ATTEMPTS_MAX):
            operation_id = receive_id(credentials, attempt)
            known = await self._operations.get(operation_id)
            if known is None or not known.may_try_again:
                break
        return operation_id, known

    async def refund(
        self,
        account: str,
        amount_msat: int,
        *,
        method: str,
        operation_id: str,
        destination: str = "",
        metadata: dict[str, str] | None = None,
    ) -> Refunded | Pending | Refusal:
        """Give back up to `amount_msat` from an account, at most once for one `operation_id`."""
        request = RefundRequest(operation_id, amount_msat, destination, metadata or {})
        return await self.send(account, request, method=method)

    async def send(
        self, account: str, request: RefundRequest, *, method: str, kind: str = REFUND
    ) -> Refunded | Pending | Refusal:
        """Let money leave an account, at most once for the request's `operation_id`.

        `kind` is REFUND or PAYOUT: the same journal, another name for what it was for.
        """
        is_fresh = False
        if await self._operations.get(request.operation_id) is None:
            opened = await self._open_refund(account, self.methods[method], request, kind)
            if isinstance(opened, Refusal):
                return opened
            is_fresh = opened
        done = await self._operations.advance(request.operation_id, fresh=is_fresh)
        if done.account != account:
            return Refusal("operation_taken", "this name belongs to another account's payment")
        return self.refunded(done)

    # ── opening ──────────────────────────────────────────────────────────────────────────────────

    async def _open_receive(
        self, operation_id: str, method: AbstractPaymentMethod, plan: PaymentPlan, account: str
    ) -> bool | Refusal:
        """True: opened here. False: somebody else opened it a moment ago."""
        steps: tuple[Step, ...] = (
            Open(plan.custody, BTC.code, Kind.CUSTODY),
            Open(account, BTC.code, Kind.CUSTOMER),
        )
        hold = ""
        if plan.amount_msat is not None:
            hold = hold_id(operation_id, len(steps))
            steps += (Hold(plan.custody, account, plan.amount_msat, "receive"),)
        stored = _ReceivePlan(method.payment_type, plan.custody, plan.payload)
        operation = Operation(
            id=operation_id,
            kind="receive",
            account=account,
            hold=hold,
            plan=self._signer.seal(msgspec.json.encode(stored), operation_id),
        )
        return _opened(await self._operations.open(operation, Changes(steps, plan.puts)))

    async def _open_refund(
        self, account: str, method: AbstractPaymentMethod, request: RefundRequest, kind: str
    ) -> bool | Refusal:
        for _ in range(_REFUND_TRIES_MAX):
            plan = await method.plan_refund(request)
            if isinstance(plan, Refusal):
                is_ours = plan.code != "insufficient_funds" or await self._covers(account, request)
                return plan if is_ours else _NOT_COVERED
            stored = _RefundPlan(method.payment_type, plan.payload)
            operation = Operation(
                id=request.operation_id,
                kind=kind,
                account=account,
                hold=hold_id(request.operation_id, 0),
                plan=self._signer.seal(msgspec.json.encode(stored), request.operation_id),
            )
            steps = (Hold(account, plan.custody, plan.amount_msat, kind),)
            outcome = await self._operations.open(operation, Changes(steps, plan.puts))
            if isinstance(outcome, Refused) and outcome.code is Code.EXCEEDS_DEBITS:
                return _NOT_HELD
            if not isinstance(outcome, Stale | Taken) or outcome.kind == "operation":
                return _opened(outcome)
        return Refusal("busy", "too many refunds at once; try again")

    async def _covers(self, account: str, request: RefundRequest) -> bool:
        """Whether the account has it. If not, that no mint has it is not what is to be told: the
        one is final for the caller, the other sounds as if it could pass."""
        held = await self._ledger.store.account(account)
        return held is not None and held.available >= request.amount_msat

    def refunded(self, done: Operation) -> Refunded | Pending | Refusal:
        """What a `refund` operation has come to, as its receiver is told it, however often."""
        match done.state:
            case OperationState.SUCCEEDED:
                reply = msgspec.json.decode(
                    self._signer.unseal(done.result, done.id), type=dict[str, str]
                )
                return Refunded(done.id, done.amount, reply)
            case OperationState.REJECTED | OperationState.CANCELLED:
                return _refusal(done)
            case _:
                return Pending(done.id)


_NOT_COVERED = Refusal("insufficient_balance", "the balance does not cover this amount")
_NOT_HELD = Refusal(
    "insufficient_funds", "not so much is held on this way to pay; try less, or another method"
)


class _Receive:
    """Carries out `receive` operations."""

    def __init__(self, ledger: Ledger, methods: PaymentMethods, signer: Signer) -> None:
        self._ledger = ledger
        self._methods = methods
        self._signer = signer

    async def attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        signer = self._signer
        plan = msgspec.json.decode(signer.unseal(operation.plan, operation.id), type=_ReceivePlan)
        method = self._methods[plan.method]
        result = await method.receive_payment(plan.payload, asked_before=asked_before)
        if isinstance(result, Rejected | Unresolved):
            return result
        deposit = Deposit(
            source=result.payment_method,
            reference=result.transaction_id,
            account=operation.account,
            custody=plan.custody,
            asset=BTC.code,
            amount_msat=result.amount_msats,
            currency=result.currency,
            amount=result.amount,
            at=self._ledger.clock.now_ns(),
        )
        if await self._ledger.store.get(DEPOSIT, deposit.key) is not None:
            return Rejected("already_credited", "this payment was credited before")
        steps: tuple[Step, ...] = ()
        if not operation.hold:
            steps = (Transfer(plan.custody, operation.account, result.amount_msats, "receive"),)
        put, event = credited(deposit)
        changes = Changes(steps, (put, *result.puts), (event,))
        return Succeeded(result.amount_msats, changes=changes)


class _Refund:
    """Carries out `refund` operations."""

    def __init__(self, methods: PaymentMethods, signer: Signer) -> None:
        self._methods = methods
        self._signer = signer

    async def attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        signer = self._signer
        plan = msgspec.json.decode(signer.unseal(operation.plan, operation.id), type=_RefundPlan)
        method = self._methods[plan.method]
        result: RefundResult | Rejected | Unresolved = await method.refund_payment(
            plan.payload, asked_before=asked_before
        )
        if isinstance(result, Rejected | Unresolved):
            return result
        data = {"method": plan.method, "reference": result.transaction_id}
        event = Event(
            f"{operation.kind}.completed",
            operation.account,
            data | {"amount_msat": result.amount_msat},
        )
        sealed = signer.seal(msgspec.json.encode(result.reply), operation.id)
        return Succeeded(result.amount_msat, sealed, Changes((), result.puts, (event,)))


def _opened(outcome: object) -> bool | Refusal:
    match outcome:
        case Applied():
            return True
        case Replayed() | Mismatch() | Taken(kind="operation"):
            return False  # opened by another call of the same intent: its plan stands
        case Refused(code=Code.EXCEEDS_CEILING):
            return Refusal("custody_full", "we hold as much at this place as we are ready to")
        case Refused(code=Code.EXCEEDS_CREDITS | Code.EXCEEDS_DEBITS):
            return _NOT_COVERED
        case Refused(code=code):
            return Refusal(code.value, f"the books refuse it: {code.value}")
        case _:
            return Refusal("busy", "the same money is being moved by another request; try again")


def _received(done: Operation, account: str) -> Received | Pending | Refusal:
    match done.state:
        case OperationState.SUCCEEDED if done.account == account:
            return Received(done.id, done.amount)
        case OperationState.SUCCEEDED:
            return Refusal("already_credited", "this payment was credited to another account")
        case OperationState.REJECTED | OperationState.CANCELLED:
            return _refusal(done)
        case _:
            return Pending(done.id)


def _refusal(done: Operation) -> Refusal:
    code, _, message = done.error.partition(": ")
    return Refusal(code, message)
