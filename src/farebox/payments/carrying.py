"""Carrying out what `service.py` opens: the two handlers of the journal that every rail shares."""

from __future__ import annotations

import msgspec

from farebox.errors import InvalidInput
from farebox.ledger.model import Event, Step, Transfer
from farebox.ledger.service import Ledger
from farebox.money import BTC
from farebox.payments.deposits import DEPOSIT, Deposit, credited
from farebox.payments.exchange import Quoted, bought, buying, ours, sold
from farebox.payments.method import RefundResult
from farebox.payments.model import (
    Changes,
    Operation,
    Rejected,
    Succeeded,
    Unresolved,
    Verdict,
)
from farebox.payments.registry import PaymentMethods
from farebox.signer import Signer


class ReceivePlan(msgspec.Struct, frozen=True):
    """What a `receive` operation keeps, sealed."""

    method: str
    custody: str
    payload: bytes
    asset: str = BTC.code
    quoted: Quoted | None = None


class SendPlan(msgspec.Struct, frozen=True):
    """What a `refund` or `payout` operation keeps, sealed."""

    method: str
    payload: bytes
    quoted: Quoted | None = None


class Receiving:
    """Carries out `receive` operations."""

    def __init__(self, ledger: Ledger, methods: PaymentMethods, signer: Signer) -> None:
        self._ledger = ledger
        self._methods = methods
        self._signer = signer

    async def attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        """Do what the operation plans, or find out what became of it."""
        signer = self._signer
        plan = msgspec.json.decode(signer.unseal(operation.plan, operation.id), type=ReceivePlan)
        method = self._methods[plan.method]
        result = await method.receive_payment(plan.payload, asked_before=asked_before)
        if isinstance(result, Rejected | Unresolved):
            return result
        amount_msat = result.amount_msats
        if plan.quoted is not None:
            amount_msat = bought(plan.quoted, result.amount).account
        deposit = Deposit(
            source=result.payment_method,
            reference=result.transaction_id,
            account=operation.account,
            custody=plan.custody,
            asset=plan.asset,
            amount_msat=amount_msat,
            currency=result.currency,
            amount=result.amount,
            at=self._ledger.clock.now_ns(),
            quoted=plan.quoted,
        )
        if await self._ledger.store.get(DEPOSIT, deposit.key) is not None:
            return Rejected("already_credited", "this payment was credited before")
        steps: tuple[Step, ...] = ()
        if plan.quoted is not None:
            steps = buying(plan.quoted, plan.custody, result.amount, operation.account, "receive")
        elif not operation.hold:
            steps = (Transfer(plan.custody, deposit.balance, deposit.credit, "receive"),)
        put, event = credited(deposit)
        changes = Changes(steps, (put, *result.puts), (event,))
        return Succeeded(deposit.amount_msat, changes=changes)


class Sending:
    """Carries out `refund` and `payout` operations."""

    def __init__(self, methods: PaymentMethods, signer: Signer) -> None:
        self._methods = methods
        self._signer = signer

    async def attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        """Do what the operation plans, or find out what became of it."""
        signer, plan = self._signer, self._plan(operation)
        method = self._methods[plan.method]
        result: RefundResult | Rejected | Unresolved = await method.refund_payment(
            plan.payload, asked_before=asked_before
        )
        if isinstance(result, Rejected | Unresolved):
            return result
        data = {"method": plan.method, "reference": result.transaction_id}
        cost, far, steps, reply = result.amount, None, result.steps, dict(result.reply)
        if plan.quoted is not None:
            split = sold(plan.quoted, result.amount)
            cost, far, steps = split.account, result.amount, (*ours(split), *steps)
            reply |= {"asset": plan.quoted.asset, "amount": str(result.amount)}
        moved = {"amount_msat": cost} if operation.asset == BTC.code else {"amount": str(cost)}
        event = Event(
            f"{operation.kind}.completed",
            operation.account,
            data | {"asset": operation.asset} | moved,
        )
        sealed = signer.seal(msgspec.json.encode(reply), operation.id)
        return Succeeded(cost, sealed, Changes(steps, result.puts, (event,)), far)

    async def given_up(self, operation: Operation) -> Rejected:
        """An operator's word that it never left: from then on nothing of ours makes it.

        Raises InvalidInput where its method is not here to be told so.
        """
        plan = self._plan(operation)
        try:
            method = self._methods[plan.method]
        except KeyError:
            raise InvalidInput(f"{plan.method} is not in the settings, and may pay later") from None
        puts = await method.give_up_refund(plan.payload)
        reason = "the operator found that it never happened"
        return Rejected("operator", reason, Changes(puts=puts))

    def _plan(self, operation: Operation) -> SendPlan:
        raw = self._signer.unseal(operation.plan, operation.id)
        return msgspec.json.decode(raw, type=SendPlan)
