"""Receiving: a token becomes proofs of ours, by one swap at its mint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from farebox.ecash import receive as weighing
from farebox.ecash import saga
from farebox.ecash.codes import NutError
from farebox.ecash.plan import SwapPlan
from farebox.errors import InvalidCredential, RailRejected, RailUnavailable
from farebox.ledger.model import Put
from farebox.money import Rounding, divide
from farebox.payments import PaymentPlan, PaymentResult, Refusal, Rejected, Reserve, Unresolved
from farebox.payments.model import Changes
from farebox.rails.cashu.anew import Replanning, Standing
from farebox.rails.cashu.config import MSAT_PER_UNIT, custody_account
from farebox.rails.cashu.inventory import Inventory, added
from farebox.rails.cashu.locked import Locked
from farebox.rails.cashu.mints import MintPlace, Mints
from farebox.rails.cashu.payloads import ReceiveSwap, to_bytes
from farebox.rails.cashu.records import LockedUse, ProofUse
from farebox.wire.cashu.model import Keyset, Proof, Token
from farebox.wire.cashu.token import UnknownKeyset

PAYMENT_TYPE = "cashu"

_CODES = {
    weighing.RefusalReason.UNIT_WRONG: "unit_not_accepted",
    weighing.RefusalReason.KEYSET_UNKNOWN: "unknown_keyset",
    weighing.RefusalReason.KEYSET_EXPIRED: "keyset_expired",
    weighing.RefusalReason.AMOUNT_UNKNOWN: "unknown_keyset",
    weighing.RefusalReason.NO_OUTPUT_KEYSET: "mint_unavailable",
    weighing.RefusalReason.DLEQ_MISSING: "dleq_missing",
    weighing.RefusalReason.DLEQ_WRONG: "dleq_invalid",
    weighing.RefusalReason.LOCKED: "locked",
    weighing.RefusalReason.TOO_LITTLE: "amount_too_small",
}
#: What a mint's definite refusal of a token is called outside.
_REJECTIONS = {
    NutError.PROOFS_SPENT: ("token_spent", "the token was spent before"),
    NutError.PROOFS_INVALID: ("token_invalid", "the mint does not recognise the token"),
    NutError.KEYSET_UNKNOWN: ("unknown_keyset", "the mint has no such keyset"),
    NutError.KEYSET_EXPIRED: ("keyset_expired", "the token's keyset has expired"),
}


@dataclass(frozen=True, slots=True)
class Offer:
    """A token at a place that takes it, its keyset ids whole, with the keysets it needs."""

    place: MintPlace
    token: Token
    keysets: Mapping[str, Keyset]


class Receiving:
    """Plans and carries out receive swaps."""

    def __init__(
        self,
        mints: Mints,
        inventory: Inventory,
        locked: Locked,
        replanning: Replanning,
    ) -> None:
        self._mints = mints
        self._inventory = inventory
        self._locked = locked
        self._replanning = replanning

    async def plan(
        self, token: Token, reference: str, reserve: Reserve | None
    ) -> PaymentPlan | Refusal:
        """Weigh a token of a trusted mint; nothing moves. Raises InvalidCredential."""
        offer = await self.offer(token)
        if isinstance(offer, Refusal):
            return offer
        unit_msat = MSAT_PER_UNIT[token.unit]
        terms = weighing.Terms(
            unit=token.unit,
            maximum=divide(reserve.amount_msat, unit_msat, Rounding.UP) if reserve else 0,
            fixed_price=reserve is not None and reserve.is_fixed,
            require_dleq=offer.place.terms.require_dleq,
            unlock_key=self._locked.private_key,
        )
        weighed = weighing.plan_receive(offer.token, offer.keysets, terms, offer.place.now_s())
        if isinstance(weighed, weighing.Refusal):
            return refused(weighed, reserve)
        offline = await self._locked.plan(
            offer.place, offer.token.proofs, offer.keysets, weighed, reference
        )
        if offline is not None:
            return offline
        if offer.place.is_left_alone:
            return _unavailable(offer.place)
        claims = await self._locked.claims(weighed.inputs, token.mint, token.unit, reference)
        if isinstance(claims, Refusal):
            return claims
        count = len(weighed.amounts)
        first = await self._inventory.take_counters(weighed.keyset_id, count)
        payload = ReceiveSwap(
            reference=reference,
            owner=reserve.owner if reserve else "",
            swap=weighed.swap_plan(first),
            fee_ppk=offer.keysets[weighed.keyset_id].input_fee_ppk,
        )
        return PaymentPlan(
            to_bytes(payload),
            custody_account(token.mint, token.unit),
            amount_msat=weighed.net * unit_msat,
            fee_msat=weighed.fee * unit_msat,
            puts=claims,
        )

    async def offer(self, token: Token) -> Offer | Refusal:
        """Whether the token's mint is one of ours and answers. Raises InvalidCredential."""
        place = self._mints.known(token.mint)
        if place is None or not place.terms.trusted:
            accepted = [trusted.url for trusted in self._mints.trusted()]
            message = "tokens of this mint are not accepted here"
            return Refusal("mint_not_accepted", message, {"mints": accepted})
        if token.unit not in place.terms.units or token.unit not in MSAT_PER_UNIT:
            message = f"tokens in {token.unit} of this mint are not accepted here"
            return Refusal("unit_not_accepted", message, {"units": list(place.terms.units)})
        return await weighable(place, token)

    async def receive(
        self, job: ReceiveSwap, *, asked_before: bool
    ) -> PaymentResult | Rejected | Unresolved:
        """Make one step towards the proofs of the token."""
        place, keys = self._mints.any(job.swap.mint), self._inventory.keys

        async def step(plan: SwapPlan, asked: bool) -> saga.Done | saga.Rejected | saga.Unknown:
            return await saga.advance_swap(plan, place.mint, keys, asked_before=asked)

        planned = Standing(job.swap, job.fee_ppk)
        standing, end = await self._replanning.advance(
            job.reference, planned, place, step, asked_before=asked_before
        )
        match end:
            case saga.Done(proofs):
                result = self._result(job, standing, proofs, use_of(job.owner, asked_before))
                return replace(result, puts=(*result.puts, *await self._ends(job, LockedUse.GONE)))
            case saga.Rejected(code=code):
                spent = code == NutError.PROOFS_SPENT
                puts = await self._ends(job, LockedUse.GONE if spent else LockedUse.FREE)
                return replace(rejected(end), changes=Changes(puts=puts))
            case saga.Unknown(reason, alarm):
                return Unresolved(reason, alarm)

    async def _ends(self, job: ReceiveSwap, use: LockedUse) -> tuple[Put, ...]:
        if all(proof.witness is None for proof in job.swap.inputs):
            return ()
        return await self._locked.ends(job.reference, use)

    def _result(
        self,
        job: ReceiveSwap,
        standing: Standing[SwapPlan],
        proofs: tuple[Proof, ...],
        use: ProofUse,
    ) -> PaymentResult:
        plan, fee_ppk = standing.plan, standing.fee_ppk
        rows = (
            added(plan.mint, plan.unit, counter, proof, fee_ppk, use=use, owner=job.owner)
            for counter, proof in enumerate(proofs, plan.first_counter)
        )
        amount = sum(plan.amounts)
        return PaymentResult(
            amount * MSAT_PER_UNIT[plan.unit],
            plan.unit,
            PAYMENT_TYPE,
            job.reference,
            amount=amount,
            puts=tuple(rows),
        )


def use_of(owner: str, asked_before: bool) -> ProofUse:
    """Whether received proofs wait for the request they came with.

    Not where the answer was lost on the way: that request was not admitted, and perhaps never
    comes again. The proofs still name it, but a refund may take them.
    """
    return ProofUse.RESERVED if owner and not asked_before else ProofUse.AVAILABLE


async def reachable(place: MintPlace, token: Token) -> Offer | Refusal:
    """The token with all that is needed to weigh it, or why that is not to be had now."""
    return _unavailable(place) if place.is_left_alone else await weighable(place, token)


async def weighable(place: MintPlace, token: Token) -> Offer | Refusal:
    """The same, of a mint that may be left alone: what is remembered of it may suffice."""
    try:
        resolved = await place.resolve(token)
        if isinstance(resolved, UnknownKeyset):
            return Refusal("unknown_keyset", "the mint has no such keyset")
        wanted = {proof.keyset_id for proof in resolved.proofs}
        keysets = await place.keysets(token.unit, wanted)
    except (RailUnavailable, RailRejected):
        return _unavailable(place)
    except InvalidCredential as error:
        return Refusal("unknown_keyset", str(error))
    return Offer(place, resolved, keysets)


def refused(weighed: weighing.Refusal, reserve: Reserve | None) -> Refusal:
    """Why a token is not taken, in the port's codes."""
    if weighed.reason is weighing.RefusalReason.TOO_LITTLE and reserve:
        needed = {"needed_msat": reserve.amount_msat}
        return Refusal("insufficient_payment", weighed.message, needed)
    return Refusal(_CODES[weighed.reason], weighed.message)


def _unavailable(place: MintPlace) -> Refusal:
    message = "the token's mint does not answer now; nothing was taken, try again later"
    return Refusal("mint_unavailable", message, {"mint": place.url})


def rejected(end: saga.Rejected) -> Rejected:
    """What a mint's definite refusal of a token is called outside."""
    for error, (name, message) in _REJECTIONS.items():
        if end.code == error:
            return Rejected(name, message, vague=end.vague)
    # For all we know the token is good: a mint that changed its fee, or one short of liquidity.
    return Rejected("token_rejected", end.reason, again=True, vague=end.vague)
