"""Crediting and debiting accounts by what the methods report: every rail, one path.

Postings (amounts in msat):

| flow           | opening commit                         | closing commit                         |
|----------------|----------------------------------------|----------------------------------------|
| receive        | Hold custody → account, what we expect | Post what arrived, or Void             |
| receive, amount unknown | -                             | Transfer custody → account what came   |
| refund, payout | Hold account → custody, the most       | Post what left, fees included, or Void |

What comes or leaves in an asset that is converted goes through the exchange accounts instead, at
a rate that the operation keeps: see `exchange.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec

from farebox.ids import derived_id
from farebox.ledger.model import (
    ABSENT,
    Applied,
    Code,
    Guard,
    Hold,
    Kind,
    Mismatch,
    Open,
    Put,
    Refused,
    Replayed,
    Stale,
    Step,
    Taken,
    hold_id,
)
from farebox.ledger.service import Ledger
from farebox.money import BTC
from farebox.payments.carrying import ReceivePlan, Receiving, Sending, SendPlan
from farebox.payments.deposits import DEPOSIT
from farebox.payments.exchange import (
    ONLY_BITCOIN,
    Exchange,
    Quoted,
    affordable,
    balance_of,
    bought,
    buying,
    exchange_account,
    legs,
    sold,
)
from farebox.payments.maturity import MATURING, kept_back, staying_msat
from farebox.payments.method import (
    AbstractPaymentMethod,
    PaymentCredentials,
    PaymentPlan,
    RefundPlan,
    RefundRequest,
    Refusal,
    Reserve,
    no_rate,
)
from farebox.payments.model import (
    NO_CHANGES,
    Changes,
    Operation,
    OperationState,
)
from farebox.payments.operations import Operations, closing_unit
from farebox.payments.rail import DepositMethod
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
    """It left; `reply` is what the method tells the receiver. `amount` of `asset` was taken."""

    operation_id: str
    amount: int
    reply: dict[str, str] = field(repr=False)
    asset: str = BTC.code


def receive_id(credentials: PaymentCredentials, attempt: int = 0) -> str:
    """The operation that redeems a credential: one for the same money, however it is written.

    `attempt` counts those before it that were rejected for a passing reason.
    """
    parts = (str(attempt),) if attempt else ()
    return derived_id("rcv", credentials.identity_or_hash, *parts)


#: Makes what joins a crediting commit, given the id that a Hold as its first step will have.
Joining = Callable[[str], Changes]


class Payments:
    """Receives and refunds through the registered methods, journalled."""

    def __init__(
        self,
        ledger: Ledger,
        operations: Operations,
        methods: PaymentMethods,
        signer: Signer,
        exchange: Exchange = ONLY_BITCOIN,
    ) -> None:
        self._ledger = ledger
        self._operations = operations
        self._signer = signer
        self.methods = methods
        self.exchange = exchange
        operations.register("receive", Receiving(ledger, methods, signer))
        self.sending = Sending(methods, signer)
        for kind in (REFUND, PAYOUT):
            operations.register(kind, self.sending)

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
        quoted = None
        if self.exchange.converts(plan.asset):
            quoted = self.exchange.quote(plan.asset)
            if quoted is None:
                return no_rate(plan.asset)
        worth_msat = bought(quoted, plan.amount).account if quoted else plan.amount_msat
        if worth_msat is not None and worth_msat < minimum_msat:
            return Refusal(
                "insufficient_payment",
                f"the payment is worth {worth_msat} msat after {plan.fee_msat} msat of "
                f"fees; {minimum_msat} msat are needed",
                {"received_msat": worth_msat, "fee_msat": plan.fee_msat},
            )
        opened = await self._open_receive(operation_id, method, plan, account, quoted)
        if isinstance(opened, Refusal):
            return opened
        # A crediting commit has one step before `also`, a Post or a Transfer, or a conversion's.
        before = len(buying(quoted, plan.custody, 0, account, "")) if quoted else 1
        joined = also(hold_id(closing_unit(operation_id), before))
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

    def ordered(self, request: RefundRequest, *, in_msat: bool = True) -> RefundRequest | Refusal:
        """The request with the rate that it is converted at, where its asset is converted.

        `in_msat`: its amount and most fee are the account's, and are turned into that asset.
        """
        if not self.exchange.converts(request.asset):
            return request
        quoted = self.exchange.quote(request.asset)
        if quoted is None:
            return no_rate(request.asset)
        if not in_msat:
            return replace(request, quoted=quoted)
        fee_max = None if request.fee_max is None else affordable(quoted, request.fee_max)
        return replace(
            request, amount=affordable(quoted, request.amount), fee_max=fee_max, quoted=quoted
        )

    def assets_out(self, method: str, wanted: str = "") -> tuple[str, ...]:
        """What a method pays out in: `wanted` first where it does, then bitcoin, then the rest."""
        rail = self.methods[method]
        if not isinstance(rail, DepositMethod):
            return (BTC.code,)
        codes = [one.asset.code for one in rail.terms().assets if one.payouts is not None]
        first = [code for code in (wanted.upper(), BTC.code) if code in codes]
        return tuple(dict.fromkeys((*first, *codes)))

    def asset_out(self, method: str, wanted: str = "") -> str:
        """The first of those; bitcoin where it pays out nothing, which is refused then."""
        return (*self.assets_out(method, wanted), BTC.code)[0]

    def assets_for_msat(self, method: str, wanted: str = "") -> tuple[str, ...]:
        """The same of those that an account's msat can leave in: what is held is no part of it."""
        return tuple(
            one for one in self.assets_out(method, wanted) if one not in self.exchange.held
        )

    def gives_back_only(self, method: str) -> bool:
        """Whether a method pays nobody but who has paid by it; one that is not here does not."""
        return any(one.gives_back_only for one in self.methods if one.payment_type == method)

    def no_way_to(self, address: str) -> Refusal | None:
        """Why nobody here could pay to a refund address: to be said before a key is made with it.

        By its look alone: whether somebody is there shows when it is paid.
        """
        methods = [one for one in self.methods if not one.gives_back_only]
        if not address or any(one.can_pay_to(address) for one in methods):
            return None
        return Refusal(
            "refund_address_invalid",
            f"nothing here can pay to {address[:_SHOWN_CHARS]!r}: name a Lightning address or an "
            "LNURL (an invoice lapses), or an address of a chain that GET /v1/methods names",
        )

    async def way_back(self, account: str, first: str = "", address: str = "") -> str:
        """The method that gives an account's money back, to its refund `address` if it has one.

        `first` is what its key remembers, which is nothing where the operator made the key and what
        is no longer there where he took the method out: then it is one that the account was paid
        by, or any.
        """
        paid = await self._ledger.store.find(DEPOSIT, {"account": account}, limit=_PAID_BY_MAX)
        order = [first, *(row.value.source for _, row in paid)]
        order = [name for name in order if name in self.methods]
        order += [one.payment_type for one in self.methods]
        fits = (
            name
            for name in order
            if not address
            or self.methods[name].gives_back_only
            or self.methods[name].can_pay_to(address)
        )
        return next(fits, order[0] if order else "")

    async def refund(
        self,
        account: str,
        amount_msat: int,
        *,
        method: str,
        operation_id: str,
        destination: str = "",
        metadata: dict[str, str] | None = None,
        asset: str = "",
        puts: tuple[Put, ...] = (),
    ) -> Refunded | Pending | Refusal:
        """Give back up to `amount_msat` from an account, at most once for one `operation_id`.

        In `asset`; "" is what `metadata` wants, or what the method pays out in first. Of one that
        is named and held the amount is in its own unit. `puts` join the opening commit; where one
        of those rows has moved it is refused as OVERTAKEN.
        """
        terms = metadata or {}
        fitting = self.assets_for_msat(method, terms.get("refund_currency", ""))
        request = RefundRequest(
            operation_id,
            amount_msat,
            destination,
            terms,
            asset=asset or (*fitting, BTC.code)[0],
            puts=puts,
        )
        return await self.send(account, request, method=method)

    async def send(
        self,
        account: str,
        request: RefundRequest,
        *,
        method: str,
        kind: str = REFUND,
        in_msat: bool = True,
    ) -> Refunded | Pending | Refusal:
        """Let money leave an account, at most once for the request's `operation_id`.

        `kind` is REFUND or PAYOUT: the same journal, another name for what it was for. `in_msat` as
        for `ordered`.
        """
        is_fresh = False
        request = replace(request, account=account)
        if await self._operations.get(request.operation_id) is None:
            ordered = self.ordered(request, in_msat=in_msat)
            if isinstance(ordered, Refusal):
                return ordered
            opened = await self._open_refund(account, self.methods[method], ordered, kind)
            if isinstance(opened, Refusal):
                return opened
            is_fresh = opened
        done = await self._operations.advance(request.operation_id, fresh=is_fresh)
        if done.account != account:
            return Refusal("operation_taken", "this name belongs to another account's payment")
        return self.refunded(done)

    # ── opening ──────────────────────────────────────────────────────────────────────────────────

    async def _open_receive(
        self,
        operation_id: str,
        method: AbstractPaymentMethod,
        plan: PaymentPlan,
        account: str,
        quoted: Quoted | None,
    ) -> bool | Refusal:
        """True: opened here. False: somebody else opened it a moment ago."""
        of = BTC.code if quoted else plan.asset
        steps: tuple[Step, ...] = (
            Open(plan.custody, plan.asset, Kind.CUSTODY),
            Open(balance_of(account, of), of, Kind.CUSTOMER),
        )
        hold = ""
        if plan.amount_msat is not None and plan.asset == BTC.code:
            hold = hold_id(operation_id, len(steps))
            steps += (Hold(plan.custody, account, plan.amount_msat, "receive"),)
        stored = ReceivePlan(method.payment_type, plan.custody, plan.payload, plan.asset, quoted)
        operation = Operation(
            id=operation_id,
            kind="receive",
            account=account,
            method=method.payment_type,
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
            stored = SendPlan(method.payment_type, plan.payload, request.quoted)
            holds = _holds(account, request, plan, kind)
            at = [number for number, step in enumerate(holds) if isinstance(step, Hold)]
            operation = Operation(
                id=request.operation_id,
                kind=kind,
                account=account,
                method=method.payment_type,
                hold=hold_id(request.operation_id, at[0]),
                far_hold=hold_id(request.operation_id, at[1]) if at[1:] else "",
                asset=BTC.code if request.quoted else request.asset,
                plan=self._signer.seal(msgspec.json.encode(stored), request.operation_id),
            )
            row = await self._ledger.store.get(MATURING, account)
            held = await self._ledger.store.account(account) if row else None
            kept_msat = staying_msat(
                row.value if row else None,
                self._ledger.clock.now_ns(),
                leaving_msat=sum(
                    one.amount for one in holds if isinstance(one, Hold) and one.debit == account
                ),
                available_msat=max(0, held.available) if held else 0,
                returning=plan.returns,
            )
            kept = kept_back(kept_msat, account, operation.id, len(holds))
            guard = Guard(MATURING, account, row.version if row else ABSENT)
            changes = Changes((*holds, *kept), (*plan.puts, *request.puts), guards=(guard,))
            outcome = await self._operations.open(operation, changes)
            if isinstance(outcome, Stale | Taken) and any(
                outcome.kind == one.record.kind for one in request.puts
            ):
                return OVERTAKEN
            if isinstance(outcome, Refused) and outcome.step >= len(holds):
                return _UNRIPE
            if isinstance(outcome, Refused) and outcome.code is Code.EXCEEDS_DEBITS:
                return _NOT_HELD
            if not isinstance(outcome, Stale | Taken) or outcome.kind == "operation":
                return _opened(outcome)
        return Refusal("busy", "too many refunds at once; try again")

    async def _covers(self, account: str, request: RefundRequest) -> bool:
        """Whether the account has it. If not, that no mint has it is not what is to be told: the
        one is final for the caller, the other sounds as if it could pass."""
        needed = request.amount
        if request.quoted is not None:
            needed = sold(request.quoted, request.amount).account
            held = await self._ledger.store.account(account)
        else:
            held = await self._ledger.store.account(balance_of(account, request.asset))
        return held is not None and held.available >= needed

    def refunded(self, done: Operation) -> Refunded | Pending | Refusal:
        """What a `refund` operation has come to, as its receiver is told it, however often."""
        match done.state:
            case OperationState.SUCCEEDED:
                reply = msgspec.json.decode(
                    self._signer.unseal(done.result, done.id), type=dict[str, str]
                )
                return Refunded(done.id, done.amount, reply, done.asset)
            case OperationState.REJECTED | OperationState.CANCELLED:
                return _refusal(done)
            case _:
                return Pending(done.id)


OVERTAKEN = Refusal("overtaken", "what it was decided by has changed; try again")
_NOT_COVERED = Refusal("insufficient_balance", "the balance does not cover this amount")
#: Of a wrong address in a sentence, of an account's deposits that are looked at.
_SHOWN_CHARS, _PAID_BY_MAX = 80, 20
_UNRIPE = Refusal(
    "funds_not_ripe",
    "card money can be spent here at once, and leaves by another way only once its payer can no "
    "longer take it back; less may leave, or it goes back to the card",
)
_NOT_HELD = Refusal(
    "insufficient_funds", "not so much is held on this way to pay; try less, or another method"
)


def _holds(account: str, request: RefundRequest, plan: RefundPlan, kind: str) -> tuple[Step, ...]:
    """The account's hold comes first; the other is on what leaves, where that was converted."""
    quoted = request.quoted
    if quoted is None:
        return (Hold(balance_of(account, request.asset), plan.custody, plan.amount, kind),)
    cost, btc = sold(quoted, plan.amount).account, exchange_account(BTC.code)
    return (
        *legs(quoted.asset),
        Hold(account, btc, cost, kind),
        Hold(exchange_account(quoted.asset), plan.custody, plan.amount, kind),
    )


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
