"""What keeps the proofs in order, a bounded piece of it at each call. The worker schedules.

Postings of a consolidation, an operation of its own:

| opening commit                                    | closing commit                    |
|---------------------------------------------------|-----------------------------------|
| Hold revenue → custody, the mint's fee, if any     | Post it, or Void                  |
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from farebox.ecash import saga, selection
from farebox.ecash.mint import ProofState
from farebox.ecash.plan import SwapPlan
from farebox.ecash.receive import output_keyset
from farebox.errors import RailRejected, RailUnavailable
from farebox.ids import new_id
from farebox.ledger.model import Applied, Hold, Put, Unit, hold_id
from farebox.ledger.service import Ledger
from farebox.payments.model import (
    Changes,
    Operation,
    OperationState,
    Succeeded,
    Unresolved,
    Verdict,
)
from farebox.payments.operations import Operations
from farebox.rails.cashu import choose, leftover
from farebox.rails.cashu.config import MSAT_PER_UNIT, custody_account
from farebox.rails.cashu.give import freed, reserved
from farebox.rails.cashu.inventory import Held, Inventory, added, outline, total
from farebox.rails.cashu.method import CashuMethod
from farebox.rails.cashu.mints import MintPlace
from farebox.rails.cashu.records import ProofUse
from farebox.signer import Signer
from farebox.wire.cashu.amounts import input_fee, split
from farebox.wire.cashu.model import Keyset

_log = structlog.get_logger("farebox.cashu")

KIND = "cashu.consolidate"
_REVENUE = "revenue"
#: Proofs of each amount that stay, so that refunds find exact ones.
_KEEP_EACH = 3
_INPUTS_MAX = 200
#: Tidiness may cost a hundredth of what is tidied; saving proofs from an expiry may cost more.
_FEE_DIVISOR = 100
#: Proofs of a keyset that expires within this time are moved to another one.
_EXPIRES_SOON_S = 30 * 24 * 3600
_ASKED_AT_ONCE = 100
_NEVER_HAPPENED = (OperationState.REJECTED, OperationState.CANCELLED)
_OVER = (*_NEVER_HAPPENED, OperationState.SUCCEEDED, OperationState.REVERSED)
_QUESTIONS_MAX = 10


@dataclass(frozen=True, slots=True)
class Kept:
    """What one round of upkeep did."""

    consolidated: int
    seen_spent: int
    released: int


class Upkeep:
    """Consolidates leftovers, leaves keysets that end, notices what was spent or left behind."""

    def __init__(
        self, method: CashuMethod, ledger: Ledger, operations: Operations, signer: Signer
    ) -> None:
        self._mints = method.mints
        self._inventory: Inventory = method.inventory
        self._ledger = ledger
        self._operations = operations
        self._signer = signer
        self._seen: dict[tuple[str, str, ProofUse], str] = {}
        operations.register(KIND, self)
        asking = leftover.LeftoverHandler(method.mints, method.inventory, ledger, signer)
        operations.register(leftover.KIND, asking)

    async def run(self) -> Kept:
        """One round: at most one consolidation and some questions for each mint and unit."""
        consolidated = seen_spent = released = 0
        for place in self._mints.listed():
            for unit in place.terms.units:
                if unit not in MSAT_PER_UNIT or place.is_left_alone:
                    continue
                try:
                    consolidated += await self.consolidate(place, unit)
                    seen_spent += await self.check_given(place, unit)
                    released += await self.release(place, unit)
                except (RailUnavailable, RailRejected) as error:
                    _log.info("cashu.upkeep_put_off", mint=place.url, reason=str(error))
        return Kept(consolidated, seen_spent, released)

    # ── consolidation ────────────────────────────────────────────────────────────────────────────

    async def consolidate(self, place: MintPlace, unit: str) -> bool:
        """Swap many small or ageing proofs into few, where that is worth the mint's fee.

        Raises RailUnavailable, RailRejected.
        """
        keysets = _retiring(await place.keysets(unit), place.now_s())
        target = output_keyset(keysets.values(), unit, place.now_s())
        if target is None:
            return False
        page = await self._inventory.available(place.url, unit)
        held = {
            one.key: one
            for one in choose.alive(page, keysets, place.now_s())
            if one.stored.keyset_id in keysets
        }
        swap = selection.consolidate(
            [outline(one) for one in held.values()],
            keysets,
            target,
            keep_each=_KEEP_EACH,
            inputs_max=_INPUTS_MAX,
        )
        if swap is None or not self._is_worth_it(swap, keysets):
            return False
        inputs = [held[proof.secret] for proof in swap.inputs]
        operation_id = await self._open(place, unit, inputs, swap, target)
        if operation_id is None:
            return False
        done = await self._operations.advance(operation_id, fresh=True)
        return done.state is OperationState.SUCCEEDED

    async def renew(self, place: MintPlace, unit: str, held: Sequence[Held]) -> bool:
        """Swap proofs for as much in fresh ones: whoever else has their secrets has nothing then.

        False where revenue does not cover the mint's fee, or they are worth no more than it.
        Raises RailUnavailable, RailRejected.
        """
        keysets = await place.keysets(unit, {one.stored.keyset_id for one in held})
        inputs = [one for one in held if one.stored.keyset_id in keysets]
        target = output_keyset(keysets.values(), unit, place.now_s())
        fee = input_fee([outline(one) for one in inputs], keysets)
        net = total(inputs) - fee
        if target is None or net <= 0:
            return False
        kept = sorted(one.stored.amount for one in inputs)
        same = not fee and set(kept) <= target.keys.keys()
        amounts = tuple(kept) if same else tuple(split(net, target.keys.keys()))
        swap = selection.SwapFirst(tuple(map(outline, inputs)), fee, amounts)
        operation_id = await self._open(place, unit, inputs, swap, target)
        if operation_id is None:
            return False
        done = await self._operations.advance(operation_id, fresh=True)
        return done.state is OperationState.SUCCEEDED

    def _is_worth_it(self, swap: selection.SwapFirst, keysets: Mapping[str, Keyset]) -> bool:
        if any(not keysets[proof.keyset_id].active for proof in swap.inputs):
            return True
        value = sum(proof.amount for proof in swap.inputs)
        is_many = len(swap.inputs) >= self._mints.config.consolidate_proofs
        return is_many and swap.fee * _FEE_DIVISOR <= value

    async def _open(
        self,
        place: MintPlace,
        unit: str,
        inputs: Sequence[Held],
        swap: selection.SwapFirst,
        target: Keyset,
    ) -> str | None:
        """The opening commit; None where the proofs are gone or revenue does not cover the fee."""
        operation_id = new_id("con")
        plan = SwapPlan(
            mint=place.url,
            unit=unit,
            keyset_id=target.id,
            first_counter=await self._inventory.take_counters(target.id, len(swap.amounts)),
            inputs=tuple(self._inventory.proof(one.stored) for one in inputs),
            amounts=swap.amounts,
        )
        fee_msat = swap.fee * MSAT_PER_UNIT[unit]
        steps = (Hold(_REVENUE, custody_account(place.url, unit), fee_msat, "mint_fee"),)
        operation = Operation(
            id=operation_id,
            kind=KIND,
            account=_REVENUE,
            hold=hold_id(operation_id, 0) if fee_msat else "",
            plan=self._signer.seal(plan.to_bytes(), operation_id),
        )
        puts = tuple(one.becomes(ProofUse.RESERVED, operation_id) for one in inputs)
        changes = Changes(steps if fee_msat else (), puts)
        outcome = await self._operations.open(operation, changes)
        return operation_id if isinstance(outcome, Applied) else None

    async def attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        """Make one step towards the end of a consolidation."""
        plan = SwapPlan.from_bytes(self._signer.unseal(operation.plan, operation.id))
        place = self._mints.any(plan.mint)
        # Asked for before the swap: afterwards nothing may stand in the way of the closing commit.
        try:
            fee_ppk = (await place.mint.keys(plan.keyset_id)).input_fee_ppk
        except RailRejected as error:  # a question refused, which says nothing about the swap
            return Unresolved(str(error))
        end = await saga.advance_swap(
            plan, place.mint, self._inventory.keys, asked_before=asked_before
        )
        held = await reserved(self._inventory, operation.id)
        match end:
            case saga.Done(proofs):
                puts = [one.becomes(ProofUse.SPENT, operation.id) for one in held]
                puts += [
                    added(plan.mint, plan.unit, counter, proof, fee_ppk)
                    for counter, proof in enumerate(proofs, plan.first_counter)
                ]
                fee = sum(proof.amount for proof in plan.inputs) - sum(plan.amounts)
                changes = Changes(puts=tuple(puts))
                return Succeeded(fee * MSAT_PER_UNIT[plan.unit], changes=changes)
            case saga.Rejected():
                return await freed(self._inventory, plan.keyset_id, held, end)
            case saga.Unknown(reason, alarm):
                return Unresolved(reason, alarm)

    # ── proofs that nobody reports back ──────────────────────────────────────────────────────────

    async def check_given(self, place: MintPlace, unit: str) -> int:
        """Ask the mint which proofs we handed out are spent, and wipe what makes them money.

        Goes on where the last call stopped. Raises RailUnavailable, RailRejected.
        """
        seen_spent = 0
        async for given in self._batches(place, unit, ProofUse.GIVEN):
            spent = await self._in_state(place, given, ProofState.SPENT)
            puts = [one.becomes(ProofUse.SPENT, one.stored.owner) for one in spent]
            seen_spent += await self._store(puts)
        return seen_spent

    async def release(self, place: MintPlace, unit: str) -> int:
        """Free proofs reserved for operations that a person has closed, if they are still ours.

        An operation that closes by itself frees or spends its proofs in its closing commit.
        Raises RailUnavailable, RailRejected.
        """
        released = 0
        async for held in self._batches(place, unit, ProofUse.RESERVED):
            closed = await self._closed({one.stored.owner for one in held})
            left = [one for one in held if one.stored.owner in closed]
            unspent = await self._in_state(place, left, ProofState.UNSPENT)
            spent = await self._in_state(place, left, ProofState.SPENT)
            # Closed as done, and yet unspent: nobody knows what was done. Left to the operator.
            rejected = [one for one in unspent if closed[one.stored.owner] in _NEVER_HAPPENED]
            puts = [one.becomes(ProofUse.AVAILABLE) for one in rejected]
            puts += [one.becomes(ProofUse.SPENT, one.stored.owner) for one in spent]
            released += await self._store(puts)
        return released

    async def _batches(
        self, place: MintPlace, unit: str, use: ProofUse
    ) -> AsyncIterator[list[Held]]:
        """Some batches of proofs, from where the last call stopped."""
        for _ in range(_QUESTIONS_MAX):
            after = self._seen.get((place.url, unit, use), "")
            batch = await self._inventory.used(place.url, unit, use, after, _ASKED_AT_ONCE)
            if batch:
                yield batch
            if len(batch) < _ASKED_AT_ONCE:
                self._seen.pop((place.url, unit, use), None)
                return
            self._seen[place.url, unit, use] = batch[-1].key

    async def _in_state(
        self, place: MintPlace, held: Sequence[Held], wanted: ProofState
    ) -> list[Held]:
        if not held:
            return []
        states = await place.mint.check_state([bytes.fromhex(one.key) for one in held])
        return [one for one, state in zip(held, states, strict=True) if state is wanted]

    async def _closed(self, owners: Collection[str]) -> dict[str, OperationState]:
        """The owners that are operations and over, with how they ended."""
        closed = {}
        for owner in owners:
            operation = await self._operations.get(owner)
            if operation is not None and operation.state in _OVER:
                closed[owner] = operation.state
        return closed

    async def _store(self, puts: Sequence[Put]) -> int:
        if not puts:
            return 0
        outcome = await self._ledger.store.commit(Unit(new_id("keep"), puts=tuple(puts)))
        return len(puts) if isinstance(outcome, Applied) else 0


def _retiring(keysets: Mapping[str, Keyset], now_s: int) -> dict[str, Keyset]:
    """Keysets as consolidation sees them: one about to expire is out of use already, as long as
    its unit has another."""
    soon = now_s + _EXPIRES_SOON_S
    staying = {
        one.unit
        for one in keysets.values()
        if one.active and not 0 < (one.final_expiry or 0) <= soon
    }
    return {
        key: replace(one, active=False)
        if one.unit in staying and 0 < (one.final_expiry or 0) <= soon
        else one
        for key, one in keysets.items()
    }
