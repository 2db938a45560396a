"""Paying invoices: planned with every check, carried out at most once for each payment hash.

| boundary               | what can fail               | recovery                           |
|------------------------|-----------------------------|------------------------------------|
| plan → opening commit  | anything                    | nothing happened                   |
| opening commit → call  | we stop                     | the node is asked, then paid       |
| call → closing commit  | answer lost, time-out, stop | the node is asked by payment hash  |
| a failure, asked later | an earlier call still comes | believed once it can't come any more |

The payment hash is stored before the call, under a row that only one operation can have: two
accounts that hand in the same invoice don't both take its one payment for theirs.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec

from farebox.clock import NS_PER_S
from farebox.errors import InvalidCredential, RailRejected, RailUnavailable
from farebox.ledger.model import ABSENT, Put
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger
from farebox.money import MSAT_PER_SAT
from farebox.payments import (
    RefundPlan,
    RefundQuote,
    RefundRequest,
    RefundResult,
    Refusal,
    Rejected,
    Unresolved,
)
from farebox.payments.deposits import DEPOSIT_REQUEST, request_key
from farebox.payments.model import Changes
from farebox.rails.lightning.config import LightningConfig
from farebox.rails.lightning.node import LightningNode, Payment, PaymentState, PayOrder
from farebox.rails.web.lnurl import Fixed, Lnurl, PayEndpoint
from farebox.wire.bolt11 import decode_invoice

#: An invoice must live so long beyond the time that paying it may take.
_EXPIRY_SLACK_S = 10


class Outgoing(enum.StrEnum):
    """What is known of a payment hash that we were to pay."""

    OPEN = "open"
    PAID = "paid"
    FAILED = "failed"  # may be tried anew, by another operation


class OutgoingPayment(msgspec.Struct, frozen=True):
    """Whose a payment hash is. The key is the hash."""

    operation_id: str
    state: Outgoing = Outgoing.OPEN


OUTGOING = RecordType("lightning_payment", OutgoingPayment)


class Job(msgspec.Struct, frozen=True):
    """All that paying needs, now or after a crash."""

    operation_id: str
    invoice: str
    payment_hash: str
    amount_msat: int
    fee_max_msat: int
    recipient: str


@dataclass(frozen=True, slots=True)
class _Priced:
    amount_msat: int
    fee_max_msat: int


class Paying:
    """Plans and carries out payments to invoices, Lightning addresses and LNURLs."""

    def __init__(
        self, config: LightningConfig, node: LightningNode, lnurl: Lnurl, ledger: Ledger
    ) -> None:
        self._config = config
        self._node = node
        self._lnurl = lnurl
        self._ledger = ledger

    async def plan(self, request: RefundRequest) -> RefundPlan | Refusal:
        """Check the destination, fix amount and most fee. Raises RailUnavailable, RailRejected."""
        found = await self._resolved(request)
        if isinstance(found, Refusal):
            return found
        priced = self._priced(request, found)
        if isinstance(priced, Refusal):
            return priced
        text = found.text if isinstance(found, Fixed) else ""
        if isinstance(found, PayEndpoint):
            try:
                text = await self._lnurl.invoice(found, priced.amount_msat)
            except (RailUnavailable, RailRejected) as error:
                return Refusal("destination_unavailable", str(error))
        if no := self._unfit(text):
            return no
        payment_hash = decode_invoice(text).payment_hash.hex()
        if await self._is_ours(payment_hash):
            return Refusal("destination_invalid", "this invoice is a deposit's of this house")
        put = await self._reserved(payment_hash, request.operation_id)
        if isinstance(put, Refusal):
            return put
        if no := await self._too_dear(text, priced):
            return no
        job = Job(
            operation_id=request.operation_id,
            invoice=text,
            payment_hash=payment_hash,
            amount_msat=priced.amount_msat,
            fee_max_msat=priced.fee_max_msat,
            recipient=request.destination,
        )
        most_msat = priced.amount_msat + priced.fee_max_msat
        return RefundPlan(msgspec.json.encode(job), self._config.custody, most_msat, (put,))

    async def quote(self, request: RefundRequest) -> RefundQuote | Refusal:
        """What `plan` would come to. Nothing is stored, and no invoice is asked for."""
        found = await self._resolved(request)
        if isinstance(found, Refusal):
            return found
        priced = self._priced(request, found)
        if isinstance(priced, Refusal):
            return priced
        estimate_msat = None
        if isinstance(found, Fixed):
            if no := self._unfit(found.text):
                return no
            estimate_msat = await self._node.fee_estimate_msat(found.text, found.amount_msat)
        return RefundQuote(priced.amount_msat, priced.fee_max_msat, estimate_msat)

    async def pay(
        self, payload: bytes, *, asked_before: bool
    ) -> RefundResult | Rejected | Unresolved:
        """Pay as planned, or find out what became of an earlier call."""
        job = msgspec.json.decode(payload, type=Job)
        told = Payment(PaymentState.UNKNOWN)
        if asked_before:
            told = await self._node.payment(job.payment_hash)
        if told.state is PaymentState.UNKNOWN:
            order = PayOrder(
                invoice=job.invoice,
                payment_hash=job.payment_hash,
                amount_msat=job.amount_msat,
                fee_max_msat=job.fee_max_msat,
                timeout_s=self._config.pay_timeout_s,
            )
            told = await self._node.pay(order)
        match told.state:
            case PaymentState.PAID:
                return await self._paid(job, told)
            case PaymentState.FAILED:
                put = await self._ended(job, Outgoing.FAILED)
                reason = told.reason or "the node could not pay it"
                return Rejected("payment_failed", reason, Changes(puts=put), vague=True)
            case _:
                return Unresolved("the payment is in flight")

    # ── checks ───────────────────────────────────────────────────────────────────────────────────

    async def _resolved(self, request: RefundRequest) -> Fixed | PayEndpoint | Refusal:
        if not request.destination:
            return Refusal(
                "destination_required",
                "Lightning has no way back to a payer: name a Lightning address or an invoice, or "
                "ask for a withdraw link with `lnurl`",
            )
        allowed = self._config.allowed
        if (
            allowed
            and request.destination.strip().lower().removeprefix("lightning:") not in allowed
        ):
            return Refusal("destination_not_allowed", "the operator pays certain addresses only")
        try:
            return await self._lnurl.resolve(request.destination)
        except InvalidCredential as error:
            return Refusal("destination_invalid", str(error))
        except (RailUnavailable, RailRejected) as error:
            return Refusal("destination_unavailable", str(error))

    def _priced(self, request: RefundRequest, found: Fixed | PayEndpoint) -> _Priced | Refusal:
        """What arrives and the most it may cost, within what was asked for."""
        most_msat = request.amount
        if isinstance(found, Fixed):
            amount_msat = found.amount_msat
            if request.is_exact and most_msat != amount_msat:
                return Refusal("amount_differs", f"the invoice asks for {amount_msat} msat")
        elif request.is_exact:
            amount_msat = most_msat
        else:
            room_msat = most_msat - self._fee_max_msat(request, most_msat)
            amount_msat = min(room_msat, found.max_msat)
            amount_msat -= amount_msat % MSAT_PER_SAT  # many receivers count in whole satoshi
        if isinstance(found, PayEndpoint) and not found.min_msat <= amount_msat <= found.max_msat:
            bounds = f"from {found.min_msat} to {found.max_msat} msat"
            return Refusal("amount_out_of_bounds", f"the destination takes {bounds}")
        if amount_msat % self._node.unit_msat:
            return Refusal("amount_out_of_bounds", "this node pays whole satoshi only")
        fee_max_msat = self._fee_max_msat(request, amount_msat)
        if not request.is_exact:
            fee_max_msat = min(fee_max_msat, most_msat - amount_msat)
        if fee_max_msat < 0 or amount_msat <= 0:
            return Refusal(
                "amount_too_small",
                "the amount does not cover what the destination asks for and the fees of paying it",
            )
        return self._config.payouts.why_not(amount_msat, "payment out") or _Priced(
            amount_msat, fee_max_msat
        )

    def _fee_max_msat(self, request: RefundRequest, amount_msat: int) -> int:
        limit_msat = self._config.fee_limit_msat(amount_msat)
        return limit_msat if request.fee_max is None else min(request.fee_max, limit_msat)

    def _unfit(self, text: str) -> Refusal | None:
        """Why an invoice is not to be paid."""
        invoice = decode_invoice(text)
        if invoice.network != self._config.network:
            found = f"it is for ln{invoice.network}…, this node pays ln{self._config.network}…"
            return Refusal("destination_invalid", f"the invoice is of another network: {found}")
        needed_s = self._config.pay_timeout_s + _EXPIRY_SLACK_S
        if invoice.expires_at_s < self._ledger.clock.now_ns() // NS_PER_S + needed_s:
            return Refusal(
                "invoice_expired", "the invoice has expired, or is about to; get a new one"
            )
        return None

    async def _is_ours(self, payment_hash: str) -> bool:
        """Whether it would pay ourselves: of that a wallet tells one half, if it does it at all."""
        of = request_key("lightning", payment_hash)
        return await self._ledger.store.get(DEPOSIT_REQUEST, of) is not None

    async def _reserved(self, payment_hash: str, operation_id: str) -> Put | Refusal:
        """The row that makes the hash ours, unless somebody has it or the node has paid it."""
        used = Refusal("invoice_used", "this invoice is being paid or was paid; get a new one")
        row = await self._ledger.store.get(OUTGOING, payment_hash)
        if row is not None and row.value.state is not Outgoing.FAILED:
            return used
        known = await self._node.payment(payment_hash)
        if known.state in (PaymentState.PAID, PaymentState.IN_FLIGHT):
            return used
        version = ABSENT if row is None else row.version
        return Put(OUTGOING, payment_hash, OutgoingPayment(operation_id), version)

    async def _too_dear(self, text: str, priced: _Priced) -> Refusal | None:
        """A node that keeps to no limit is asked first what it would take."""
        if self._node.caps_fees:
            return None
        fee_msat = await self._node.fee_estimate_msat(text, priced.amount_msat)
        if fee_msat is not None and fee_msat <= priced.fee_max_msat:
            return None
        return Refusal(
            "fee_over_limit",
            f"the node may take {fee_msat} msat in fees, over the limit of {priced.fee_max_msat}",
        )

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    async def _paid(self, job: Job, told: Payment) -> RefundResult | Unresolved:
        if told.fee_msat > job.fee_max_msat:
            found = f"the node took {told.fee_msat} msat in fees of at most {job.fee_max_msat}"
            return Unresolved(found, alarm=True)
        reply = {
            "recipient": job.recipient,
            "sats": str(job.amount_msat // MSAT_PER_SAT),
            "msats": str(job.amount_msat),
            "fee_msat": str(told.fee_msat),
            "payment_hash": job.payment_hash,
            "preimage": told.preimage,
        }
        puts = await self._ended(job, Outgoing.PAID)
        return RefundResult(job.amount_msat + told.fee_msat, job.payment_hash, reply, puts)

    async def _ended(self, job: Job, state: Outgoing) -> tuple[Put, ...]:
        row = await self._ledger.store.get(OUTGOING, job.payment_hash)
        if row is None or row.value.operation_id != job.operation_id:
            return ()  # another has it by now: only after this one had failed
        ended = OutgoingPayment(job.operation_id, state)
        return (Put(OUTGOING, job.payment_hash, ended, row.version),)
