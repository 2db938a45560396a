"""The payment processor: what becomes of one request's payment, whatever protocol brought it.

    request + voucher ──► verify ──► price ──► one commit ──► serve ──► one commit ──► answer
                             │          │          │ (fixed prices need only the first)
                             └──────────┴──────────┴──► refused: nothing is served, nothing charged

A request is paid in arrears: its cost is proposed with its answer and signed with the next request.
So a payer owes for one request per sub-channel at most, and whatever was committed outlives any
crash: the proposal before it is told, the charge before the answer's last byte.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import structlog

from farebox.channels.billing import (
    BillingContext,
    BillingContextBuilder,
    BillingRule,
    Cost,
    CostCalculator,
    PerRequest,
    Unpriced,
)
from farebox.channels.book import USED_BEFORE, Charge, Cover, Turn
from farebox.channels.claims import ClaimScheduler
from farebox.channels.model import (
    PaymentErrorCode,
    PaymentProcessingResult,
    PaymentProcessingStats,
    RequestMetadata,
    SubChannel,
    VerificationResult,
    proposed,
)
from farebox.channels.payee import PaymentChannelPayeeClient, payer_key_id
from farebox.channels.pending import PendingSubRAVStore
from farebox.channels.weighing import Accepted, Clear, Owing, Rejected, Replayed, is_handshake
from farebox.errors import InvalidInput
from farebox.money import Rounding, divide
from farebox.wire.subrav.model import ErrorCode, SignedSubRAV, SubRAV

_log = structlog.get_logger("farebox.channels")

_S_PER_MINUTE = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentProcessorConfig:
    """What a processor works with.

    `claim_scheduler`, where given, hears of every voucher. `pending_sub_rav_store` is that of
    `payee_client` and may be left out: proposals are kept with what they charge. `debug` logs what
    became of each payment.
    """

    payee_client: PaymentChannelPayeeClient
    billing_engine: CostCalculator
    service_id: str
    default_asset_id: str = ""
    pending_sub_rav_store: PendingSubRAVStore | None = None
    claim_scheduler: ClaimScheduler | None = None
    debug: bool = False

    def __post_init__(self) -> None:
        if self.pending_sub_rav_store not in (None, self.payee_client.pending):
            raise InvalidInput("proposals are kept with their payee; pass `payee_client.pending`")


@dataclass(slots=True)
class Admission:
    """A request that may be served now, its sub-channel's turn held until `settle` or `release`.

    `turn` is None for a free request, which owes nothing. What ended once (`is_over`) stays so,
    also where the commit failed: the next request of the sub-channel then charges the floor.
    """

    request: RequestMetadata
    context: BillingContext
    result: PaymentProcessingResult
    turn: Turn | None
    cap: int = 0
    is_over: bool = False


@dataclass(slots=True)
class _Counts:
    total: int = 0
    successful: int = 0
    failed: int = 0
    replayed: int = 0
    handshakes: int = 0
    claims: int = 0


class PaymentProcessor:
    """Takes vouchers, prices requests, proposes what to sign next. Knows no protocol."""

    def __init__(self, config: PaymentProcessorConfig) -> None:
        self._config = config
        self._payee = config.payee_client
        self._counts = _Counts()

    # ── a request whose price is known before it is served ──────────────────────────────────────

    async def process_payment(
        self, request_meta: RequestMetadata, signed_sub_rav: SignedSubRAV | None = None
    ) -> PaymentProcessingResult:
        """Take the voucher, charge the request, propose what to sign next: one commit.

        The price is that of `request_meta.usage`; for what only serving it tells, use `admit` and
        `settle`. Serve the request when the result `is_admitted`. Raises StoreError.
        """
        found = await self._identify(request_meta, signed_sub_rav)
        if not isinstance(found, _Found):
            return self._counted(found)
        if not found.rule.payment_required:
            return self._counted(await self._free(found))
        cost = await self._config.billing_engine.calc_cost(found.context, request_meta.usage)
        refused = _over_budget(cost, request_meta.max_amount)
        if isinstance(cost, Unpriced) or refused is not None:
            return self._counted(await self._refuse_after_payment(found, refused or cost))
        turn = await self._turn(found)
        if isinstance(turn, Rejected):
            return self._counted(self._failed(found, turn))
        sub = self._payee.sub_channels
        if not await sub.take_turn(turn.key):
            return self._counted(self._failed(found, _BUSY))
        try:
            standing = await sub.serve(turn, Charge(cost.amount, cost.pico_usd))
        finally:
            sub.give_turn(turn.key)
        result = self._told(found, turn, standing.verdict, standing.row)
        return self._counted(self._claimed(result, turn, standing.row))

    # ── a request whose price only serving it tells ──────────────────────────────────────────────

    async def admit(
        self, request_meta: RequestMetadata, signed_sub_rav: SignedSubRAV | None = None
    ) -> Admission | PaymentProcessingResult:
        """Take the voucher and let the request in, or say why not. Raises StoreError.

        An `Admission` holds its sub-channel's turn: `settle` or `release` must follow. What the
        request may cost at most is covered before it is served.
        """
        found = await self._identify(request_meta, signed_sub_rav)
        if not isinstance(found, _Found):
            return self._counted(found)
        if not found.rule.payment_required:
            result = self._counted(await self._free(found))
            if not result.success:
                return result
            return Admission(
                request_meta, found.context, msgspec.structs.replace(result, is_replay=False), None
            )
        floor = await self._config.billing_engine.calc_cost(found.context, request_meta.usage)
        refused = _over_budget(floor, request_meta.max_amount)
        if isinstance(floor, Unpriced) or refused is not None:
            return self._counted(await self._refuse_after_payment(found, refused or floor))
        turn = await self._turn(found)
        if isinstance(turn, Rejected):
            return self._counted(self._failed(found, turn))
        return await self._begin(found, turn, floor)

    async def is_within(self, admission: Admission, usage: int) -> bool:
        """Whether what a request has used so far costs no more than its payer allowed, and than was
        covered. Deliver nothing more where it does: `settle` would charge less than it costs.
        """
        engine = self._config.billing_engine
        rule = engine.find_rule(admission.context)
        if admission.turn is None or rule is None or isinstance(rule.strategy, PerRequest):
            return True
        cost = await engine.calc_cost(admission.context, usage)
        return isinstance(cost, Unpriced) or cost.amount <= admission.cap

    async def settle(self, admission: Admission, usage: int = 0) -> PaymentProcessingResult:
        """Charge a request that was served, and propose what to sign next, before that is told.

        Never more than its payer allowed, and than was covered. A price by the request is for the
        units that were known before it was served: `usage` tells nothing of it. Ends the turn.
        Raises StoreError.
        """
        if admission.turn is None:
            return admission.result
        engine = self._config.billing_engine
        rule = engine.find_rule(admission.context)
        known = Cost(admission.result.cost, admission.result.cost_pico_usd)
        cost: Cost | Unpriced = known
        if rule is not None and not isinstance(rule.strategy, PerRequest):
            cost = await engine.calc_cost(admission.context, usage)
        if isinstance(cost, Unpriced):  # it had a price when it began: charge what that said
            cost = known
        pico_usd = cost.pico_usd
        if cost.amount > admission.cap:
            pico_usd = divide(pico_usd * admission.cap, cost.amount, Rounding.UP)
        return await self._end(admission, Charge(min(cost.amount, admission.cap), pico_usd))

    async def release(self, admission: Admission) -> PaymentProcessingResult:
        """End a request that was not served: it costs nothing. Raises StoreError."""
        return await self._end(admission, None) if admission.turn else admission.result

    # ── the names of the API reference ───────────────────────────────────────────────────────────

    async def verify_handshake(self, signed_sub_rav: SignedSubRAV) -> VerificationResult:
        """Whether a voucher of nonce 0 and amount 0 shows that its sender holds the key."""
        return await self._payee.verify_handshake(signed_sub_rav)

    async def confirm_deferred_payment(self, signed_sub_rav: SignedSubRAV) -> VerificationResult:
        """Take the voucher for an earlier request, with no request to serve."""
        return await self._payee.confirm_signed_proposal(signed_sub_rav)

    async def generate_proposal(self, context: BillingContext, amount: int) -> SubRAV:
        """Charge `amount` to the sub-channel of a context. Raises InvalidInput with the reason."""
        return await self._payee.generate_proposal(
            context.channel_id or "", context.vm_id_fragment or "", amount
        )

    async def clear_expired_proposals(self, max_age_minutes: int = 30) -> int:
        """Write off proposals that nobody signed for so long; returns how many."""
        return await self._payee.pending.cleanup(max_age_minutes * _S_PER_MINUTE)

    def get_processing_stats(self) -> PaymentProcessingStats:
        """How often what happened, since this processor was made."""
        counts = self._counts
        return PaymentProcessingStats(
            total_requests=counts.total,
            successful_payments=counts.successful,
            failed_payments=counts.failed,
            replayed_payments=counts.replayed,
            handshakes=counts.handshakes,
            auto_claims_triggered=counts.claims,
        )

    async def find_pending_proposal(
        self, channel_id: str, nonce: int, vm_id_fragment: str = ""
    ) -> SubRAV | None:
        """The proposal of this nonce that waits for its signature, on one sub-channel or on any."""
        return await self._payee.pending.find(channel_id, nonce, vm_id_fragment)

    # ── steps ────────────────────────────────────────────────────────────────────────────────────

    async def _identify(
        self, request: RequestMetadata, signed: SignedSubRAV | None
    ) -> _Found | PaymentProcessingResult:
        context = BillingContextBuilder.build(
            self._config.service_id, request, self._config.default_asset_id
        )
        rule = self._config.billing_engine.find_rule(context)
        found = _Found(request, context, rule or _NO_RULE, signed, None)
        if rule is None:
            return self._failed(found, _NO_PRICE)
        if rule.admin_only and not request.is_admin:
            return self._failed(found, _NOT_AN_ADMIN)
        if rule.auth_required and signed is None and not (request.payer_did or request.is_admin):
            return self._failed(found, _NO_CHANNEL if rule.payment_required else _NOBODY)
        channel_id, fragment = request.channel_id, request.vm_id_fragment
        if signed is not None:
            channel_id, fragment = signed.sub_rav.channel_id, signed.sub_rav.vm_id_fragment
        if channel_id is None or fragment is None:
            return found if not rule.payment_required else self._failed(found, _NO_CHANNEL)
        if signed is None and not rule.payment_required:
            return found
        turn = await self._payee.turn(channel_id, fragment, signed, request.once)
        if isinstance(turn, Rejected):
            return self._failed(found, turn)
        if request.payer_did not in (None, turn.channel.payer_did):
            return self._failed(found, _NOT_THE_PAYER)
        if signed is None and request.payer_did is None:
            return self._failed(found, _NO_CHANNEL)
        if context.asset_id != turn.channel.asset_id:
            context = msgspec.structs.replace(context, asset_id=turn.channel.asset_id)
        return _Found(request, context, rule, signed, turn)

    async def _turn(self, found: _Found) -> Turn | Rejected:
        """The turn with its cover. A good voucher is taken even where credit is refused."""
        assert found.turn is not None
        turn = await self._payee.covered(found.turn)
        if isinstance(turn, Rejected) and found.turn.voucher is not None:
            await self._payee.sub_channels.serve(found.turn, None)
        return turn

    async def _free(self, found: _Found) -> PaymentProcessingResult:
        once = found.request.once
        if once and not await self._payee.sub_channels.take_once(once):
            return self._failed(found, USED_BEFORE)
        if found.turn is None:
            return PaymentProcessingResult(success=True, asset_id=found.context.asset_id)
        standing = await self._payee.sub_channels.serve(found.turn, None)
        if isinstance(standing.verdict, Rejected):
            return self._failed(found, standing.verdict, standing.row)
        result = PaymentProcessingResult(
            success=True,
            asset_id=found.context.asset_id,
            signed_sub_rav=found.signed,
            payer_key_id=payer_key_id(found.turn),
            is_handshake=found.is_handshake,
        )
        return self._claimed(result, found.turn, standing.row)

    async def _refuse_after_payment(
        self, found: _Found, why: Rejected | Cost | Unpriced
    ) -> PaymentProcessingResult:
        """Refuse a request that has no price, or too high a one; its voucher is taken."""
        assert not isinstance(why, Cost)
        row = None
        if found.turn is not None and found.turn.voucher is not None:
            standing = await self._payee.sub_channels.serve(found.turn, None)
            if isinstance(standing.verdict, Rejected):
                return self._failed(found, standing.verdict, standing.row)
            row = standing.row
        return self._failed(found, Rejected(why.code, why.message), row)

    async def _begin(
        self, found: _Found, turn: Turn, floor: Cost
    ) -> Admission | PaymentProcessingResult:
        sub = self._payee.sub_channels
        if not await sub.take_turn(turn.key):
            return self._counted(self._failed(found, _BUSY))
        keeps_turn = False
        try:
            cap = floor.amount
            if not isinstance(found.rule.strategy, PerRequest):
                allowed = found.request.max_amount or self._payee.policy.request_max
                room = await self._payee.room(turn)
                # At least 1: where nothing more is covered, nothing may be served for nothing.
                cap = max(cap, 1, min(allowed, self._payee.policy.request_max, room))
            cover = Cover(cap, floor.amount, floor.pico_usd)
            standing = await sub.serve(turn, cover)
            keeps_turn = isinstance(standing.verdict, Accepted | Clear)
        finally:
            if not keeps_turn:
                sub.give_turn(turn.key)
        if not keeps_turn:
            return self._counted(self._told(found, turn, standing.verdict, standing.row))
        result = PaymentProcessingResult(
            success=True,
            cost=floor.amount,
            cost_pico_usd=floor.pico_usd,
            asset_id=found.context.asset_id,
            signed_sub_rav=found.signed,
            is_handshake=found.is_handshake,
            payer_key_id=payer_key_id(turn),
        )
        result = self._counted(self._claimed(result, turn, standing.row))
        return Admission(found.request, found.context, result, turn, cover.cap)

    async def _end(self, admission: Admission, charge: Charge | None) -> PaymentProcessingResult:
        assert admission.turn is not None
        if admission.is_over:
            return admission.result
        admission.is_over = True
        turn = admission.turn
        channel_id, fragment = turn.channel.channel_id, turn.sub_channel.vm_id_fragment
        try:
            row = await self._payee.sub_channels.settle(channel_id, fragment, charge)
        finally:
            self._payee.sub_channels.give_turn(turn.key)
        chain_id = self._payee.contract.chain_id
        pending = row.pending if charge is not None else None
        return msgspec.structs.replace(
            admission.result,
            cost=0 if pending is None else pending.cost,
            cost_pico_usd=0 if pending is None else pending.cost_pico_usd,
            unsigned_sub_rav=None if pending is None else proposed(row, chain_id),
            service_tx_ref=None if pending is None else pending.service_tx_ref,
        )

    def _told(
        self,
        found: _Found,
        turn: Turn,
        verdict: Accepted | Replayed | Clear | Owing | Rejected,
        row: SubChannel | None,
    ) -> PaymentProcessingResult:
        if isinstance(verdict, Owing):
            verdict = _owing(row)
        if isinstance(verdict, Rejected):
            return self._failed(found, verdict, row)
        pending = None if row is None else row.pending
        assert row is not None
        assert pending is not None
        return PaymentProcessingResult(
            success=True,
            cost=pending.cost,
            cost_pico_usd=pending.cost_pico_usd,
            asset_id=row.asset_id,
            unsigned_sub_rav=proposed(row, self._payee.contract.chain_id),
            signed_sub_rav=found.signed,
            is_handshake=found.is_handshake,
            is_replay=isinstance(verdict, Replayed),
            payer_key_id=payer_key_id(turn),
            service_tx_ref=pending.service_tx_ref,
        )

    def _failed(
        self, found: _Found, why: Rejected, row: SubChannel | None = None
    ) -> PaymentProcessingResult:
        shows_pending = why.code in (ErrorCode.PAYMENT_REQUIRED, ErrorCode.RAV_CONFLICT)
        pending = None
        if shows_pending and row is not None:
            pending = proposed(row, self._payee.contract.chain_id)
        return PaymentProcessingResult(
            success=False,
            asset_id=found.context.asset_id,
            unsigned_sub_rav=pending,
            signed_sub_rav=found.signed,
            error=why.message,
            error_code=PaymentErrorCode(why.code),
            error_details=why.details,
        )

    def _claimed(
        self, result: PaymentProcessingResult, turn: Turn, row: SubChannel | None
    ) -> PaymentProcessingResult:
        scheduler = self._config.claim_scheduler
        if scheduler is None or row is None or turn.voucher is None:
            return result
        if not scheduler.notice(row, turn.ceiling):
            return result
        self._counts.claims += 1
        return msgspec.structs.replace(result, auto_claim_triggered=True)

    def _counted(self, result: PaymentProcessingResult) -> PaymentProcessingResult:
        counts = self._counts
        counts.total += 1
        counts.successful += result.success and not result.is_replay
        counts.failed += not result.success
        counts.replayed += result.is_replay
        counts.handshakes += result.success and result.is_handshake
        if self._config.debug:
            _log.info(
                "channel.payment",
                is_admitted=result.is_admitted,
                is_replay=result.is_replay,
                cost=result.cost,
                asset=result.asset_id,
                payer_key=result.payer_key_id,
                error=result.error_code,
                service_tx_ref=result.service_tx_ref,
            )
        return result


class _Found(msgspec.Struct, frozen=True):
    """A request, the rule that prices it, and its sub-channel where it names one."""

    request: RequestMetadata
    context: BillingContext
    rule: BillingRule
    signed: SignedSubRAV | None
    turn: Turn | None

    @property
    def is_handshake(self) -> bool:
        return self.signed is not None and is_handshake(self.signed.sub_rav)


_NO_RULE = BillingRule(id="", strategy=PerRequest(0))
_NO_PRICE = Rejected(ErrorCode.BILLING_CONFIG_ERROR, "No rule prices this request.")
_NO_CHANNEL = Rejected(
    ErrorCode.CHANNEL_CONTEXT_MISSING,
    "The request names no channel: send a voucher, or say who pays.",
)
_NOT_AN_ADMIN = Rejected(ErrorCode.AUTH_ADMIN_FORBIDDEN, "This is for admins only.")
_NOBODY = Rejected(ErrorCode.AUTH_MISSING, "Say who asks.")
_NOT_THE_PAYER = Rejected(
    ErrorCode.AUTH_INVALID, "Who asks is not who pays on this channel; use your own."
)
_BUSY = Rejected(
    ErrorCode.RAV_CONFLICT, "Another request of this sub-channel is being served; try later."
)


def _owing(row: SubChannel | None) -> Rejected:
    assert row is not None
    assert row.pending is not None
    return Rejected(
        ErrorCode.PAYMENT_REQUIRED,
        f"Signature required for pending proposal (channel: {row.channel_id},"
        f" nonce: {row.pending.nonce})",
    )


def _over_budget(cost: Cost | Unpriced, max_amount: int | None) -> Rejected | None:
    if isinstance(cost, Unpriced) or not max_amount or cost.amount <= max_amount:
        return None
    return Rejected(
        ErrorCode.BILLING_MAX_AMOUNT_EXCEEDED,
        f"The request costs {cost.amount}, its maxAmount is {max_amount}; allow more.",
    )
