"""Payments out of a chain's senders: ETH or a token to an address, planned with every check.

| boundary                 | what can fail            | recovery                                |
|--------------------------|--------------------------|-----------------------------------------|
| plan → opening commit    | anything                 | nothing happened                        |
| opening commit → nonce   | we stop; gas is too dear | the intent waits; it may be cancelled   |
|                          | no sender has so much    | it is brought together (`gathering.py`) |
| nonce → confirmed        | see `outbox.py`          | followed, never tried a second time     |
| reverted, or cancelled   | -                        | a definite no: the hold is released     |
| an item of a batch fails | -                        | as reverted, for this one alone         |
| a whole batch reverts    | -                        | each of its items is sent alone         |

| payment out | postings                                                                     |
|-------------|------------------------------------------------------------------------------|
| before      | Hold customer → custody, the amount and the fee that was quoted              |
| after       | Post; custody → revenue, the fee: what gas took is an expense (`outbox.py`)  |
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from farebox.clock import NS_PER_S
from farebox.errors import InvalidCredential, RailRejected
from farebox.ledger.model import ABSENT, Applied, Kind, Open, Put, Transfer, Unit
from farebox.ledger.records import Row
from farebox.ledger.service import Ledger, State
from farebox.money import Rounding, divide
from farebox.payments import (
    RefundPlan,
    RefundQuote,
    RefundRequest,
    RefundResult,
    Refusal,
    Rejected,
    Unresolved,
)
from farebox.payments.exchange import REVENUE, Exchange, balance_of
from farebox.payments.method import no_rate
from farebox.payments.model import Changes
from farebox.payments.rail import Limits
from farebox.rails.evm.contracts import answered, artifact, calldata, topic
from farebox.rails.evm.fees import Fees
from farebox.rails.evm.gas import PLAIN_GAS, Gas, L1Fee
from farebox.rails.evm.links import Link, read_link
from farebox.rails.evm.outbox import (
    INTENT,
    Call,
    Intent,
    IntentState,
    Mined,
    Slot,
    SlotState,
    custody_of,
)
from farebox.rails.evm.reads import Receipt, held, says_no, transfer_of
from farebox.rails.evm.sending import Held, Parcel, Sending

#: JSON-RPC's code for a call that reverts.
_REVERTED = 3
#: An account of a person that lends it code (EIP-7702) is none of a contract.
_DELEGATED = bytes.fromhex("ef0100")
_TRANSFER = topic("Transfer(address,address,uint256)")
_FAILED = topic("Failed(uint256)")
_TOKEN_GAS = 65_000


@dataclass(frozen=True, slots=True)
class PaidAsset:
    """An asset that is paid out; `token` is its contract, empty for the chain's coin."""

    asset: str
    token: str
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class PayoutTerms:
    """What the operator decides about payments out of one chain.

    With `allowed` only these addresses are paid. `fee_margin_percent` is added to what gas costs
    now. With `batch_wait_s` payments wait for others to be paid together with.
    """

    assets: tuple[PaidAsset, ...]
    allowed: frozenset[str] = frozenset()
    pays_contracts: bool = False
    fee_margin_percent: int = 25
    l1: L1Fee = L1Fee.NONE
    batch_wait_s: int = 0


class Job(msgspec.Struct, frozen=True):
    """All that paying needs, now or after a crash."""

    operation_id: str
    asset: str
    token: str
    to: str
    amount: int
    fee: int


class Payouts:
    """Plans and carries out payments from one chain's senders."""

    def __init__(
        self,
        terms: PayoutTerms,
        sending: Sending,
        ledger: Ledger,
        exchange: Exchange,
    ) -> None:
        self.terms = terms
        self._sending = sending
        self._chain = sending.chain
        self._gas = Gas(sending, terms.l1)
        self._ledger = ledger
        self._exchange = exchange

    # ── before ───────────────────────────────────────────────────────────────────────────────────

    async def quote(self, request: RefundRequest) -> RefundQuote | Refusal:
        """What it would come to; nothing is stored. Raises RailUnavailable, RailRejected."""
        job = await self._planned(request)
        return job if isinstance(job, Refusal) else RefundQuote(job.amount, job.fee, job.fee)

    async def plan(self, request: RefundRequest) -> RefundPlan | Refusal:
        """Check everything, fix amount and fee. Raises RailUnavailable, RailRejected."""
        job = await self._planned(request)
        if isinstance(job, Refusal):
            return job
        chain = self._sending.terms.chain
        intent = Intent(
            chain=chain,
            to=job.to,
            amount=job.amount,
            token=job.token,
            created_at=self._ledger.clock.now_ns(),
        )
        put = Put(INTENT, job.operation_id, intent, ABSENT)
        custody = custody_of(chain, job.asset)
        return RefundPlan(msgspec.json.encode(job), custody, job.amount + job.fee, (put,))

    async def _planned(self, request: RefundRequest) -> Job | Refusal:
        of = next((one for one in self.terms.assets if one.asset == request.asset), None)
        if of is None:
            known = ", ".join(one.asset for one in self.terms.assets)
            return Refusal("asset_unknown", f"paid out here: {known}")
        try:
            link = read_link(request.destination, self._sending.terms.chain_id)
        except InvalidCredential as error:
            return Refusal("destination_invalid", str(error))
        if no := _differs(link, of, request) or await self._unfit(link.to):
            return no
        to = link.to
        fee = await self._fee(of, to, request.amount)
        if isinstance(fee, Refusal):
            return fee
        if request.fee_max is not None and fee > request.fee_max:
            return Refusal("fee_over_limit", f"the fee would be {fee}, over your {request.fee_max}")
        amount = request.amount if request.is_exact else request.amount - fee
        if amount <= 0:
            return Refusal("amount_too_small", f"the amount does not cover the fee of {fee}")
        unit = f"units of {of.asset}"
        no = of.limits.why_not(amount, "payment out", unit) or await self._try(of, to, amount)
        if no is not None:
            return no
        return Job(request.operation_id, of.asset, of.token, to, amount, fee)

    async def _unfit(self, to: str) -> Refusal | None:
        """Why an address is not to be paid."""
        if self.terms.allowed:
            if to.lower() in {one.lower() for one in self.terms.allowed}:
                return None
            return Refusal("destination_not_allowed", "the operator pays certain addresses only")
        ours = {*self._sending.keys.addresses, *(one.token for one in self.terms.assets)}
        if int(to, 16) == 0 or to.lower() in {one.lower() for one in ours}:
            return Refusal("destination_invalid", "what is sent to this address is lost")
        code = await self._chain.code(to)
        if code and not code.startswith(_DELEGATED) and not self.terms.pays_contracts:
            return Refusal("destination_is_contract", "a contract is at this address")
        return None

    def fee_at_cap(self, asset: str) -> int | None:
        """The most that the gas of an ordinary payment may cost; None where there is no rate."""
        terms = self._sending.terms
        gas = PLAIN_GAS if asset == terms.native else _TOKEN_GAS
        cost = gas * terms.fee_cap * (100 + self.terms.fee_margin_percent) // 100
        return self._exchange.worth(cost, terms.native, asset, Rounding.UP)

    async def _fee(self, of: PaidAsset, to: str, amount: int) -> int | Refusal:
        """What gas costs now and the operator's margin, in the asset that is paid."""
        sender = self._sending.keys.addresses[0]
        call = transfer_of(of.token, to, amount)
        try:
            gas = await self._gas.limit(sender, call)
        except RailRejected as error:
            if error.code == _REVERTED and await held(self._chain, sender, of.token) >= amount:
                return Refusal("destination_refused", "the token refuses this transfer")
            gas = PLAIN_GAS if not of.token else _TOKEN_GAS
        history = await self._chain.history()
        offered = await self._sending.offer()
        tip = offered.tip if isinstance(offered, Fees) else 0
        price = min(history.base_fee + tip, self._sending.terms.fee_cap)
        cost = divide(gas * price * (100 + self.terms.fee_margin_percent), 100, Rounding.UP)
        cost += await self._gas.l1_fee(sender, call)
        native = self._sending.terms.native
        if of.asset == native:
            return cost
        fee = self._exchange.worth(cost, native, of.asset, Rounding.UP)
        return no_rate(native) if fee is None else fee

    async def _try(self, of: PaidAsset, to: str, amount: int) -> Refusal | None:
        """What a token's transfer would do, run at the node in the place of a sender of ours."""
        if not of.token:
            return None
        sender = await self._payer(of.token, amount)
        if sender is None:
            return Refusal("insufficient_funds", "no sender holds so much now; try again later")
        data = calldata("tryTransfer(address,address,uint256)", of.token, to, amount)
        code = {sender: artifact("Probe").runtime}
        try:
            told = await self._chain.run(sender, Call(sender, 0, data), code=code)
        except RailRejected as error:
            if error.code == _REVERTED:
                return Refusal("destination_refused", "the token refuses this transfer")
            return None  # a node that cannot try: the receipt is checked instead
        if answered(("uint256", "uint256"), told) != (amount, amount):
            return Refusal("token_takes_fee", "the token keeps a part of what is transferred")
        return None

    async def _payer(self, token: str, amount: int) -> str | None:
        """The least busy sender that has the amount, beside what it is sending already."""
        senders = [
            (len(await self._sending.open_slots(sender)), sender)
            for sender in self._sending.keys.addresses
            if await self._sending.free(sender, token) >= amount
        ]
        return min(senders)[1] if senders else None

    # ── carrying it out ──────────────────────────────────────────────────────────────────────────

    async def pay(self, payload: bytes) -> RefundResult | Rejected | Unresolved:
        """Pay as planned, or find out how far it is. Safe to be called any number of times.

        Raises RailUnavailable.
        """
        job = msgspec.json.decode(payload, type=Job)
        intent = await self._intent(job.operation_id)
        match intent.value.state:
            case IntentState.WAITING:
                return await self._begin(job, intent.value)
            case IntentState.CANCELLED:
                return Rejected("cancelled", "it was cancelled before anything was sent")
            case _:
                return await self._follow(job, intent)

    async def cancel(self, operation_id: str) -> bool:
        """Have a payment not happen, where that is still possible; whether it is being tried.

        What waits is cancelled at once, what was sent alone is overtaken by a self-send if that
        is mined first. Raises RailUnavailable.
        """
        if await self._give_up(operation_id):
            return True
        intent = (await self._intent(operation_id)).value
        if intent.state is not IntentState.SENT or intent.index >= 0:
            return False
        return (await self._sending.cancel(intent.slot)).is_open

    async def give_up(self, payload: bytes) -> tuple[Put, ...]:
        """What takes one out of what waits; nothing where it was signed: that may be out."""
        job = msgspec.json.decode(payload, type=Job)
        row = await self._intent(job.operation_id)
        if row.value.state is not IntentState.WAITING:
            return ()
        cancelled = msgspec.structs.replace(row.value, state=IntentState.CANCELLED)
        return (Put(INTENT, job.operation_id, cancelled, row.version),)

    async def _begin(self, job: Job, intent: Intent) -> RefundResult | Rejected | Unresolved:
        wait_ns = self.terms.batch_wait_s * NS_PER_S
        if not intent.alone and self._ledger.clock.now_ns() < intent.created_at + wait_ns:
            return Unresolved("waits for others to be paid together with")
        sender = await self._payer(job.token, job.amount)
        if sender is None:
            return Unresolved("held: no sender has so much")
        call = transfer_of(job.token, job.to, job.amount)
        try:
            gas = await self._gas.limit(sender, call)
            if job.token and says_no(await self._chain.run(sender, call)):
                raise RailRejected("the token answers no", code=_REVERTED)
        except RailRejected as error:
            if error.code == _REVERTED and await self._give_up(job.operation_id):
                return Rejected("reverted", "the recipient or the token refuses it")
            return Unresolved(f"held: {error}")
        if gas != PLAIN_GAS:
            gas += gas // 4
        call = msgspec.structs.replace(call, gas=gas)
        spends = job.amount if job.token else 0
        parcel = Parcel(
            sender, call, job.operation_id, (job.operation_id,), token=job.token, spends=spends
        )
        sent = await self._sending.send(parcel)
        if isinstance(sent, Held):
            return Unresolved(sent.reason)
        return await self._follow(job, await self._intent(job.operation_id))

    async def _follow(self, job: Job, intent: Row[Intent]) -> RefundResult | Rejected | Unresolved:
        if not intent.value.slot:
            return Unresolved("it is being sent by another process")
        slot = await self._sending.push(intent.value.slot)
        if slot.state is SlotState.LOST:
            return Unresolved("its nonce was used by a transaction that is not ours", alarm=True)
        if slot.state is not SlotState.DONE:
            return Unresolved(f"{slot.state} as {slot.newest.hash}")
        assert slot.mined is not None
        if slot.batch and (slot.is_cancelled or not slot.mined.ok):
            await self._again_alone(job.operation_id)
            return Unresolved("its batch was not carried out; it is sent alone")
        ended = msgspec.structs.replace(intent.value, state=IntentState.DONE)
        puts = (Put(INTENT, job.operation_id, ended, intent.version),)
        if slot.is_cancelled:
            return Rejected("cancelled", "it was cancelled", Changes(puts=puts))
        if not slot.mined.ok:
            return Rejected("reverted", "the transaction was reverted", Changes(puts=puts))
        receipt = await self._chain.receipt(slot.mined.hash)
        if receipt is None:
            return Unresolved("the node does not show the receipt now")
        if slot.batch and intent.value.index in failed_items(receipt, slot):
            reason = "the recipient or the token refuses it"
            return Rejected("reverted", reason, Changes(puts=puts))
        if job.token and not _has_arrived(receipt, job):
            return Unresolved("the token has moved another amount", alarm=True)
        return self._paid(job, slot.mined, puts)

    def _paid(self, job: Job, mined: Mined, puts: tuple[Put, ...]) -> RefundResult:
        terms = self._sending.terms
        reply = {
            "recipient": job.to,
            "chain": terms.chain,
            "asset": job.asset,
            "amount": str(job.amount),
            "fee": str(job.fee),
            "transaction": mined.hash,
        }
        custody, revenue = custody_of(terms.chain, job.asset), balance_of(REVENUE, job.asset)
        steps = (
            Open(revenue, job.asset, Kind.REVENUE),
            Transfer(custody, revenue, job.fee, "fee"),
        )
        return RefundResult(job.amount + job.fee, mined.hash, reply, puts, steps)

    async def _intent(self, operation_id: str) -> Row[Intent]:
        row = await self._ledger.store.get(INTENT, operation_id)
        assert row is not None, "it was stored with the operation"
        return row

    async def _give_up(self, operation_id: str) -> bool:
        """Cancel what waits; whether it was so."""
        return await self._change(operation_id, IntentState.WAITING, state=IntentState.CANCELLED)

    async def _again_alone(self, operation_id: str) -> bool:
        fresh = {"state": IntentState.WAITING, "slot": "", "index": -1, "alone": True}
        return await self._change(operation_id, IntentState.SENT, **fresh)

    async def _change(self, operation_id: str, at: IntentState, **changes: object) -> bool:
        def decide(state: State, _: int) -> Unit | None:
            intent = state.value(INTENT, operation_id)
            if intent is None or intent.state is not at:
                return None
            version = state.version(INTENT, operation_id)
            put = Put(INTENT, operation_id, msgspec.structs.replace(intent, **changes), version)
            return Unit(f"intent:{operation_id}:{version}", puts=(put,))

        outcome = await self._ledger.transact([(INTENT, operation_id)], decide)
        return isinstance(outcome, Applied)


def _differs(link: Link, of: PaidAsset, request: RefundRequest) -> Refusal | None:
    """Why a link does not ask for what is to be paid."""
    names_coin = link.amount is not None and not link.token
    if (link.token or names_coin) and link.token.lower() != of.token.lower():
        return Refusal("destination_invalid", f"the link asks for something else than {of.asset}")
    if request.is_exact and link.amount not in (None, request.amount):
        return Refusal("destination_invalid", f"the link asks for {link.amount} units")
    return None


def failed_items(receipt: Receipt, slot: Slot) -> frozenset[int]:
    """The places in a batch that were not paid, by what the disperse contract told."""
    return frozenset(
        int(log.topics[1], 16)
        for log in receipt.logs
        if log.address.lower() == slot.call.to.lower() and log.topics[:1] == (_FAILED,)
    )


def _has_arrived(receipt: Receipt, job: Job) -> bool:
    """Whether the token says that the recipient got the amount."""
    to = f"0x{job.to[2:].lower():0>64}"
    return any(
        log.address.lower() == job.token.lower()
        and log.topics[:1] == (_TRANSFER,)
        and log.topics[2:3] == (to,)
        and int.from_bytes(log.data) == job.amount
        for log in receipt.logs
    )
