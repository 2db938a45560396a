"""What a foreign mint gives back of its fee reserve, where it did not tell at once.

An operation of its own, opened in the commit that credits the token. It moves no money in the
books: the proofs become rows of ours that no account counts.

| boundary                  | what can fail             | recovery                                |
|---------------------------|---------------------------|-----------------------------------------|
| opening commit → question | we stop, the mint is away | it is asked again, never sent anything  |
| question → closing commit | we stop                   | the mint tells, or restores, it again   |
| it does not tell in a day | -                         | Rejected: it is no use to ask for ever  |
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from farebox.clock import NS_PER_S
from farebox.ecash import saga
from farebox.ecash.plan import MeltPlan
from farebox.errors import StoreCorrupt
from farebox.ids import derived_id
from farebox.ledger.model import Put
from farebox.ledger.service import Ledger
from farebox.payments.model import Changes, Operation, Rejected, Succeeded, Unresolved, Verdict
from farebox.payments.operations import opens
from farebox.rails.cashu.config import custody_account
from farebox.rails.cashu.inventory import Inventory, added
from farebox.rails.cashu.mints import Mints
from farebox.signer import Signer
from farebox.wire.cashu.model import Proof

KIND = "cashu.leftover"
_ASKED_FOR_S = 24 * 3600


class _Plan(msgspec.Struct, frozen=True):
    """The melt whose change it is, and the input fee of the change's keyset."""

    melt: MeltPlan
    fee_ppk: int


class Leftover:
    """Opens these operations."""

    def __init__(self, ledger: Ledger, signer: Signer) -> None:
        self._ledger = ledger
        self._signer = signer

    def asked_later(self, melt: MeltPlan, fee_ppk: int) -> Put:
        """What, in the commit that ends a melt, has its change asked for from then on."""
        operation_id = derived_id("lft", melt.mint, melt.quote)
        sealed = self._signer.seal(msgspec.json.encode(_Plan(melt, fee_ppk)), operation_id)
        account = custody_account(melt.mint, melt.unit)
        operation = Operation(id=operation_id, kind=KIND, account=account, hold="", plan=sealed)
        return opens(operation, self._ledger.clock.now_ns())


class LeftoverHandler:
    """Carries them out."""

    def __init__(self, mints: Mints, inventory: Inventory, ledger: Ledger, signer: Signer) -> None:
        self._mints = mints
        self._inventory = inventory
        self._ledger = ledger
        self._signer = signer

    async def attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        """Ask once."""
        del asked_before  # nothing is ever sent
        plan = self._plan(operation)
        mint = self._mints.any(plan.melt.mint).mint
        found = await saga.find_melt(plan.melt, mint, self._inventory.keys)
        if isinstance(found, saga.Paid):
            puts = change_rows(self._inventory, plan.melt, found.change, plan.fee_ppk)
            return Succeeded(0, changes=Changes(puts=tuple(puts)))
        waited_ns = self._ledger.clock.now_ns() - operation.created_at
        if waited_ns >= _ASKED_FOR_S * NS_PER_S:
            return Rejected("never_told", found.reason)
        return Unresolved(found.reason)

    def _plan(self, operation: Operation) -> _Plan:
        raw = self._signer.unseal(operation.plan, operation.id)
        try:
            return msgspec.json.decode(raw, type=_Plan)
        except msgspec.DecodeError:
            raise StoreCorrupt("a stored melt cannot be read") from None


def change_rows(
    inventory: Inventory, melt: MeltPlan, change: Sequence[Proof], fee_ppk: int
) -> list[Put]:
    """The rows of a melt's change."""
    counters = inventory.counters_of(melt.keyset_id, melt.first_counter, change)
    return [
        added(melt.mint, melt.unit, counter, proof, fee_ppk)
        for counter, proof in zip(counters, change, strict=True)
    ]
