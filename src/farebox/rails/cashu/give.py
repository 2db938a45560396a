"""Refunds as tokens: proofs that are there, or what a swap makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from farebox.ecash import saga
from farebox.ecash.codes import NutError
from farebox.ecash.plan import SwapPlan
from farebox.ecash.receive import output_keyset
from farebox.errors import RailRejected, RailUnavailable
from farebox.ledger.model import Put
from farebox.payments import (
    RefundPlan,
    RefundRequest,
    RefundResult,
    Refusal,
    Rejected,
    Unresolved,
)
from farebox.payments.model import Changes
from farebox.rails.cashu import choose
from farebox.rails.cashu.choose import Inputs, Place, Purse
from farebox.rails.cashu.config import MSAT_PER_UNIT
from farebox.rails.cashu.inventory import Held, Inventory, added
from farebox.rails.cashu.mints import Mints
from farebox.rails.cashu.payloads import Give, SwapAndGive, to_bytes
from farebox.rails.cashu.records import ProofUse
from farebox.wire.cashu.amounts import choose_exact, split
from farebox.wire.cashu.model import Keyset, Proof, Token
from farebox.wire.cashu.token import encode_token

_SKIPPED_COUNTERS = 1 << 14


class Giving:
    """Plans and carries out refunds as tokens."""

    def __init__(self, mints: Mints, inventory: Inventory, purse: Purse) -> None:
        self._mints = mints
        self._inventory = inventory
        self._purse = purse

    async def plan(self, request: RefundRequest, places: Sequence[Place]) -> RefundPlan | Refusal:
        """A token of as much of the amount as whole units make, from the first place that can.

        Where a swap is needed, what the mint takes for it comes off the token.
        """
        refusal = Refusal("insufficient_funds", "no mint holds this much; ask for less at a time")
        if places:
            most_msat = max(place.held_msat for place in places)
            refusal = Refusal(refusal.code, refusal.message, {"amount_msat_max": most_msat})
        for place in places:
            amount = request.amount // place.unit_msat
            if amount == 0:
                message = f"less than one {place.unit} cannot be given as a token"
                refusal = Refusal("amount_too_small", message)
                continue
            if amount * place.unit_msat > place.held_msat:
                continue
            planned = await self._plan_at(place, amount, request.operation_id)
            if isinstance(planned, RefundPlan):
                return planned
            refusal = planned or refusal
        return refusal

    async def _plan_at(
        self, place: Place, amount: int, operation_id: str
    ) -> RefundPlan | Refusal | None:
        """None where this place has not enough."""
        try:
            keysets: Mapping[str, Keyset] = await place.mint.keysets(place.unit)
        except (RailUnavailable, RailRejected):
            keysets = {}  # exact proofs need no mint
        async for look in self._purse.looks(place):
            held = choose.alive(look, keysets, place.mint.now_s())
            exact = choose.exact(held, amount)
            if exact is not None:
                return self._give(place, amount, operation_id, exact)
            inputs = choose.cover(held, amount, keysets, fee_included=True)
            if inputs is not None:
                target = output_keyset(keysets.values(), place.unit, place.mint.now_s())
                return await self._swap(place, amount, operation_id, inputs, target)
        if not keysets:
            message = "the mint does not answer now; try again later"
            return Refusal("mint_unavailable", message, {"mint": place.mint.url})
        return None

    def _give(
        self, place: Place, amount: int, operation_id: str, held: Sequence[Held]
    ) -> RefundPlan:
        self._purse.claim(held)
        payload = Give(
            operation_id=operation_id, mint=place.mint.url, unit=place.unit, amount=amount
        )
        puts = tuple(one.becomes(ProofUse.RESERVED, operation_id) for one in held)
        return RefundPlan(to_bytes(payload), place.custody, amount * place.unit_msat, puts)

    async def _swap(
        self,
        place: Place,
        amount: int,
        operation_id: str,
        inputs: Inputs,
        target: Keyset | None,
    ) -> RefundPlan | Refusal:
        give = amount - inputs.fee
        if target is None or give < 1:
            code = "amount_too_small" if target else "mint_unavailable"
            return Refusal(code, "what the mint takes for the swap leaves nothing to give")
        self._purse.claim(inputs.held)
        kept = split(inputs.amount - amount, target.keys.keys())
        amounts = tuple(sorted([*split(give, target.keys.keys()), *kept]))
        first = await self._inventory.take_counters(target.id, len(amounts))
        swap = SwapPlan(
            mint=place.mint.url,
            unit=place.unit,
            keyset_id=target.id,
            first_counter=first,
            inputs=self._inventory.proofs(inputs.held),
            amounts=amounts,
        )
        payload = SwapAndGive(
            operation_id=operation_id,
            swap=swap,
            fee_ppk=target.input_fee_ppk,
            amount=amount,
            give=give,
        )
        puts = tuple(one.becomes(ProofUse.RESERVED, operation_id) for one in inputs.held)
        return RefundPlan(to_bytes(payload), place.custody, amount * place.unit_msat, puts)

    async def give(self, job: Give) -> RefundResult | Unresolved:
        """Hand out what is reserved: no call."""
        held = await reserved(self._inventory, job.operation_id)
        proofs = self._inventory.proofs(held)
        if sum(proof.amount for proof in proofs) != job.amount:
            return Unresolved("the proofs reserved for this refund are not all there", alarm=True)
        puts = tuple(one.becomes(ProofUse.GIVEN, job.operation_id) for one in held)
        token = Token(job.mint, job.unit, proofs)
        return _result(token, job.amount, job.operation_id, puts)

    async def swap(
        self, job: SwapAndGive, *, asked_before: bool
    ) -> RefundResult | Rejected | Unresolved:
        """Make one step towards the swap, and hand out the part of it that is to be given."""
        plan = job.swap
        mint, keys = self._mints.any(plan.mint).mint, self._inventory.keys
        end = await saga.advance_swap(plan, mint, keys, asked_before=asked_before)
        held = await reserved(self._inventory, job.operation_id)
        match end:
            case saga.Done(proofs):
                return self._swapped(job, held, proofs)
            case saga.Rejected():
                return await freed(self._inventory, plan.keyset_id, held, end)
            case saga.Unknown(reason, alarm):
                return Unresolved(reason, alarm)

    def _swapped(
        self, job: SwapAndGive, held: Sequence[Held], proofs: tuple[Proof, ...]
    ) -> RefundResult:
        plan = job.swap
        chosen = set(choose_exact(plan.amounts, job.give) or ())
        puts = [one.becomes(ProofUse.SPENT, job.operation_id) for one in held]
        for index, proof in enumerate(proofs):
            given = index in chosen
            row = added(
                plan.mint,
                plan.unit,
                plan.first_counter + index,
                proof,
                job.fee_ppk,
                use=ProofUse.GIVEN if given else ProofUse.AVAILABLE,
                owner=job.operation_id if given else "",
            )
            puts.append(row)
        token = Token(plan.mint, plan.unit, tuple(proofs[index] for index in sorted(chosen)))
        return _result(token, job.amount, job.operation_id, tuple(puts))


async def reserved(inventory: Inventory, operation_id: str) -> list[Held]:
    """The proofs that an operation was opened with."""
    held = await inventory.owned(operation_id)
    return [one for one in held if one.stored.use is ProofUse.RESERVED]


async def freed(
    inventory: Inventory, keyset_id: str, held: Sequence[Held], end: saga.Rejected
) -> Rejected | Unresolved:
    """A call that was definitely not carried out: its inputs are free again.

    Unless somebody else has spent them: then a person must look, since nobody else has the seed.
    Where our outputs were signed in an earlier life of this book, the next try has others.
    """
    if end.code == NutError.PROOFS_SPENT:
        return Unresolved("proofs of ours were spent by somebody else", alarm=True)
    if end.code == NutError.OUTPUTS_SIGNED:
        await inventory.skip_counters(keyset_id, _SKIPPED_COUNTERS)
    puts = tuple(one.becomes(ProofUse.AVAILABLE) for one in held)
    return Rejected("mint_refused", end.reason, Changes(puts=puts), vague=end.vague)


def amounts_told(unit: str, amount: int, unit_msat: int) -> dict[str, str]:
    """An amount for a reply: always in msat, in sat where that is the unit."""
    told = {"msats": str(amount * unit_msat)}
    return {"sats": str(amount)} | told if unit == "sat" else told


def _result(token: Token, taken: int, operation_id: str, puts: tuple[Put, ...]) -> RefundResult:
    unit_msat = MSAT_PER_UNIT[token.unit]
    reply = {"token": encode_token(token), "mint": token.mint}
    reply |= amounts_told(token.unit, token.amount, unit_msat)
    return RefundResult(taken * unit_msat, operation_id, reply, puts)
