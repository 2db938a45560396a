"""What the chain has of the house, held against what the books say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from farebox.ledger.batch import Staged
from farebox.ledger.model import Kind
from farebox.money import MSAT_PER_SAT
from farebox.payments.deposits import DEPOSIT, DEPOSIT_REQUEST, DepositState
from farebox.payments.model import OPERATION, OperationState
from farebox.rails.bitcoin.records import BATCH, PAYOUT, BatchState, PayoutState
from tests.simulation.callers import Caller
from tests.simulation.chain import ModelChain
from tests.simulation.disk import Disk
from tests.simulation.payers import BitcoinPayer

CUSTODY = "custody:bitcoin:main"
_SOURCE = "bitcoin"
_SMALL_MSAT = 4_000_000
#: From so many satoshi on, an output is credited when it is so deep.
DEPTHS = ((0, 1), (50_000, 3))


class ChainChecker:
    """Looks at the books and at the chain together."""

    #: The house bears what bumping costs, and what was spent of a deposit that vanished.
    may_lack_cover = True

    def __init__(self, disk: Disk, chain: ModelChain) -> None:
        self._disk = disk
        self._chain = chain

    @property
    def too_little_msat(self) -> int:
        """What stays on an account: what pays no fee, and what the house lacks for the last one."""
        accounts = self._disk.accounts.values()
        lost = [one.held for one in accounts if one.kind in (Kind.EXPENSE, Kind.RECEIVABLE)]
        return _SMALL_MSAT + sum(lost)

    def after_commit(self, staged: Staged) -> list[str]:
        """Nothing is credited that never was as deep as it had to be, nothing called paid."""
        faults = []
        for row in staged.records.get(DEPOSIT, ()):
            deposit = self._disk.rows[DEPOSIT.kind][row[1]].value
            if deposit.source == _SOURCE and deposit.state is DepositState.CREDITED:
                needed = max(n for sat, n in DEPTHS if sat * MSAT_PER_SAT <= deposit.amount_msat)
                deepest = self._chain.deepest.get(deposit.reference, 0)
                if deepest < needed:
                    faults.append(f"{deposit} was credited and never was {needed} blocks deep")
        for row in staged.records.get(BATCH, ()):
            batch = self._disk.rows[BATCH.kind][row[1]].value
            is_paid = batch.state is BatchState.PAID
            if is_paid and not any(one.txid in self._chain.deepest for one in batch.tries):
                faults.append(f"batch {row[1]} counts as paid and was in no block")
        return faults

    def unfinished(self) -> list[str]:
        """What is not at its end, and what the chain has and the books have not."""
        found = [
            f"payout {key} is {row.value.state}"
            for key, row in self._disk.rows[PAYOUT.kind].items()
            if row.value.state in (PayoutState.WAITING, PayoutState.BATCHED)
            and self._operation(key) is not OperationState.REJECTED
        ]
        found += [
            f"batch {key} is {row.value.state}"
            for key, row in self._disk.rows[BATCH.kind].items()
            if row.value.state in (BatchState.SENT, BatchState.UNSIGNED)
        ]
        return found + [
            f"deposit {key} is {row.value.state}"
            for key, row in self._disk.rows[DEPOSIT.kind].items()
            if row.value.state is DepositState.CONFIRMED
            or (row.value.state is DepositState.DETECTED and self._is_there(row.value.reference))
        ]

    def _is_there(self, txid: str) -> bool:
        return txid in self._chain.blocks or txid in self._chain.pool

    def _operation(self, key: str) -> OperationState | None:
        row = self._disk.rows[OPERATION.kind].get(key)
        return None if row is None else row.value.state

    def at_rest(self, callers: Sequence[Caller]) -> list[str]:
        """What is there is in custody; what arrived is credited, what was paid out left once."""
        account = self._disk.accounts.get(CUSTODY)
        held_msat = 0 if account is None else account.held
        faults = []
        there_sat = self._chain.held_sat() - self._chain.float_sat
        if held_msat != there_sat * MSAT_PER_SAT:
            faults.append(f"{held_msat} msat in custody, {there_sat} sat on the chain")
        credited: Counter[str] = Counter()
        for row in self._disk.rows[DEPOSIT.kind].values():
            if row.value.source == _SOURCE and row.value.state is DepositState.CREDITED:
                request = next(
                    one.value
                    for one in self._disk.rows[DEPOSIT_REQUEST.kind].values()
                    if row.value.key in one.value.deposits
                )
                credited[request.reference] += row.value.amount_msat
        for row in self._disk.rows[DEPOSIT_REQUEST.kind].values():
            address = row.value.reference
            there_msat = self._chain.received_sat(address) * MSAT_PER_SAT
            if not row.value.credited_msat == credited[address] == there_msat:
                faults.append(
                    f"{there_msat} msat came to {address}, its deposits are {credited[address]}, "
                    f"and {row.value.credited_msat} are told"
                )
        return faults + self._payouts(callers)

    def _payouts(self, callers: Sequence[Caller]) -> list[str]:
        ordered = {
            row.value.address: (key, row.value.amount_sat)
            for key, row in self._disk.rows[PAYOUT.kind].items()
            if self._operation(key) is OperationState.SUCCEEDED
        }
        faults = []
        for caller in callers:
            for address in caller.sent_to if isinstance(caller, BitcoinPayer) else ():
                came_sat = self._chain.received_sat(address)
                key, ordered_sat = ordered.get(address, ("", 0))
                if came_sat != ordered_sat:
                    faults.append(
                        f"{came_sat} sat left to {address}, {ordered_sat} by payout {key!r}"
                    )
        return faults
