"""Plans whose outputs a mint will not sign, for reasons that are not the payer's: planned anew.

Without this a payer could not use a good token here after a mint has rotated its keys, and what a
mint was paid over Lightning would stay in its quote. The refused outputs can never be signed (any
more), since their keyset is out of use or they were signed in an earlier life of this book, so
that of the two plans only one can happen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from farebox.ecash import saga
from farebox.ecash.codes import NutError
from farebox.ecash.plan import MintPlan, SwapPlan
from farebox.errors import InvalidAmount, RailRejected, RailUnavailable
from farebox.ledger.model import ABSENT, Applied, Put, Unit
from farebox.ledger.service import Ledger
from farebox.rails.cashu.inventory import Inventory
from farebox.rails.cashu.mints import MintPlace
from farebox.rails.cashu.records import REPLAN, Replan
from farebox.signer import Signer
from farebox.wire.cashu.amounts import split

P = TypeVar("P", SwapPlan, MintPlan)
End = TypeVar("End")

#: How many counters to leave out, try after try, where the mint has signed for ours before.
_SKIPPED_COUNTERS = (1 << 10, 1 << 14, 1 << 18)
#: Somebody else was there first: no other outputs help.
_TAKEN = (NutError.PROOFS_SPENT, NutError.QUOTE_ISSUED)


@dataclass(frozen=True, slots=True)
class Standing(Generic[P]):
    """The plan that counts, and the input fee of the keyset that its outputs are in.

    `version` is its row's: another takes its place only while it is the one that counts.
    """

    plan: P
    fee_ppk: int
    version: int = ABSENT

    @property
    def key(self) -> str:
        """One per operation: a token that was rejected may come again, and is planned anew then.
        By the plan of a try before, its outputs would never be found."""
        return f"{self.plan.keyset_id}:{self.plan.first_counter}"


class Replanning:
    """Carries a plan on, and puts another in its place where its outputs are the matter."""

    def __init__(self, inventory: Inventory, ledger: Ledger, signer: Signer) -> None:
        self._inventory = inventory
        self._ledger = ledger
        self._signer = signer

    async def advance(
        self,
        reference: str,
        first: Standing[P],
        place: MintPlace,
        step: Callable[[P, bool], Awaitable[End | saga.Rejected | saga.Unknown]],
        *,
        asked_before: bool,
    ) -> tuple[Standing[P], End | saga.Rejected | saga.Unknown]:
        """One step with the plan that counts, which is told too.

        `first` is the plan of the opening commit; `step` takes a plan and whether it may have been
        sent before.
        """
        key = f"{reference}:{first.key}"
        standing = await self._stored(key, first) if asked_before else first
        end = await step(standing.plan, asked_before)
        for skipped in _SKIPPED_COUNTERS:
            if not isinstance(end, saga.Rejected) or end.code in _TAKEN:
                break
            if asked_before and end.vague:
                break  # the plan may be carried out yet: another one must not take its place
            anew = await self._anew(key, standing, place, end.code, skipped)
            if isinstance(anew, saga.Unknown):
                return standing, anew
            if anew is None:
                break
            standing, end = anew, await step(anew.plan, False)
        if isinstance(end, saga.Rejected) and (await self._stored(key, first)) != standing:
            # Another process has planned anew meanwhile: what was taken was taken by its plan.
            return standing, saga.Unknown("planned anew elsewhere")
        return standing, end

    async def _stored(self, key: str, first: Standing[P]) -> Standing[P]:
        row = await self._ledger.store.get(REPLAN, key)
        if row is None:
            return first
        plan = type(first.plan).from_bytes(self._signer.unseal(row.value.sealed, key))
        fee_ppk = first.fee_ppk if row.value.fee_ppk is None else row.value.fee_ppk
        return Standing(plan, fee_ppk, row.version)

    async def _anew(
        self, key: str, standing: Standing[P], place: MintPlace, code: int | None, skipped: int
    ) -> Standing[P] | saga.Unknown | None:
        """A stored plan with other outputs, or None where the outputs were not the matter."""
        plan, version = standing.plan, standing.version
        was_signed = code == NutError.OUTPUTS_SIGNED
        try:
            keysets = await place.keysets(plan.unit)
            before = keysets.get(plan.keyset_id)
            target = await place.output_keyset(plan.unit)
        except (RailUnavailable, RailRejected) as error:
            return saga.Unknown(str(error))
        if target is None or (before is not None and before.active and not was_signed):
            if code == NutError.KEYSET_INACTIVE and place.mint.doubts_keysets:
                return saga.Unknown("the mint has put its keys out of use a moment ago")
            return None
        if was_signed:
            await self._inventory.skip_counters(target.id, skipped)
        try:
            amounts = tuple(small for part in plan.amounts for small in split(part, target.keys))
        except InvalidAmount:
            return None
        first = await self._inventory.take_counters(target.id, len(amounts))
        anew = msgspec.structs.replace(
            plan, keyset_id=target.id, first_counter=first, amounts=tuple(sorted(amounts))
        )
        sealed = Replan(self._signer.seal(anew.to_bytes(), key), target.input_fee_ppk)
        unit = Unit(f"{key}:replan:{version}", puts=(Put(REPLAN, key, sealed, version),))
        outcome = await self._ledger.store.commit(unit)
        if not isinstance(outcome, Applied):
            return saga.Unknown("planned anew elsewhere")
        return Standing(anew, target.input_fee_ppk, version + 1)
