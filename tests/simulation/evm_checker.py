"""What the EVM chain has of the house, held against what the books say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from farebox.ledger.batch import Staged
from farebox.ledger.model import Kind
from farebox.payments.deposits import DEPOSIT, DEPOSIT_REQUEST, Deposit, DepositState
from farebox.payments.model import OPERATION, OperationState
from farebox.rails.evm.outbox import INTENT, SLOT, Slot, SlotState, custody_of
from farebox.rails.evm.records import ADDRESS
from tests.simulation.callers import Caller
from tests.simulation.disk import Disk
from tests.simulation.evm import SETTLED_BLOCKS, ModelEvm
from tests.simulation.evm_contracts import COIN_GAS
from tests.simulation.evm_payers import EvmPayer

NAME: Final = "evm"
#: Of the operator's own at each sender, for gas and to pay out with before anything is swept.
FLOAT_WEI: Final = 10 * 10**18
FLOAT_TOKENS: Final = 500 * 10**6
#: From so many units of the token on, an arrival is credited when it is so deep.
DEPTHS: Final = ((0, 2), (50_000_000, 4))
COIN_DEPTH: Final = 2
#: How deep what we sent has to be, a payer's signed transfer among it.
SEND_DEPTH: Final = 3
_SMALL_MSAT: Final = 4_000_000
_KINDS: Final = {"USDC": "token", "ETH": "coin"}


class EvmChecker:
    """Looks at the books and at the chain together."""

    #: The house bears what was spent of a deposit that vanished.
    may_lack_cover = True

    def __init__(self, disk: Disk, chain: ModelEvm, senders: Sequence[str], tokens: int) -> None:
        """`tokens` are the operator's own at each of the senders."""
        self._disk = disk
        self._chain = chain
        self._senders = senders
        self._own_tokens = tokens * len(senders)

    @property
    def too_little_msat(self) -> int:
        """What stays on an account: what is not paid out, and what the house lacks for it."""
        accounts = self._disk.accounts.values()
        owed = [one.held for one in accounts if one.kind is Kind.RECEIVABLE and one.asset == "BTC"]
        return _SMALL_MSAT * len(self._senders) + sum(owed)

    def after_commit(self, staged: Staged) -> list[str]:
        """Nothing is credited that never was as deep as it had to be, nothing called sent."""
        faults = []
        for row in staged.records.get(DEPOSIT, ()):
            deposit = self._disk.rows[DEPOSIT.kind][row[1]].value
            if deposit.source == NAME and deposit.state is DepositState.CREDITED:
                transaction, needed = deposit.reference, _depth_of(deposit)
                if self._chain.deepest[transaction.partition(":")[0]] < needed:
                    faults.append(f"{deposit} was credited and never was {needed} blocks deep")
        for row in staged.records.get(SLOT, ()):
            slot = self._disk.rows[SLOT.kind][row[1]].value
            if slot.state is SlotState.LOST:
                faults.append(f"slot {slot.key} is lost")
            if slot.state is SlotState.DONE and not self._chain.deepest[slot.mined.hash]:
                faults.append(f"slot {slot.key} counts as done and was in no block")
        return faults

    def unfinished(self) -> list[str]:
        """What is not at its end, and what the chain has and the books have not."""
        rows = self._disk.rows
        found = [
            f"slot {key} is {row.value.state}"
            for key, row in rows[SLOT.kind].items()
            if row.value.is_open and self._may_be_mined(row.value)
        ]
        return found + [
            f"deposit {key} is {row.value.state}"
            for key, row in rows[DEPOSIT.kind].items()
            if row.value.source == NAME
            and row.value.state in (DepositState.CONFIRMED, DepositState.DETECTED)
            and self._chain.is_there(row.value.reference)
        ]

    def _may_be_mined(self, slot: Slot) -> bool:
        """False: it was to sweep what has left the chain; its address has nothing for gas."""
        return self._chain.tip.state.coin[slot.sender] >= COIN_GAS * slot.newest.max_fee

    def at_rest(self, callers: Sequence[Caller]) -> list[str]:
        """What is there is in custody; what arrived is credited, what was paid out left once."""
        return [*self._custody(), *self._deposits(), *self._payouts(callers)]

    def _custody(self) -> list[str]:
        ours = [row.value.address for row in self._disk.rows[ADDRESS.kind].values()]
        state = self._chain.tip.state
        coin = sum(state.coin[one] for one in (*self._senders, *ours))
        token = sum(state.token[one] for one in (*self._senders, *ours))
        unclaimed, faults = self._signed()
        coin -= FLOAT_WEI * len(self._senders) + unclaimed["coin"]
        token -= self._own_tokens + unclaimed["token"]
        if token != self._held(custody_of(NAME, "USDC")):
            faults.append(f"{token} of the token on the chain, {self._held('USDC')} in custody")
        spent = self._held(f"suspense:evm:{NAME}:float")
        if coin != self._held(custody_of(NAME, "ETH")) + spent:
            held = self._held(custody_of(NAME, "ETH"))
            faults.append(f"{coin} wei on the chain, {held} in custody, {spent} for gas")
        return faults

    def _held(self, name: str) -> int:
        account = self._disk.accounts.get(name)
        return 0 if account is None else account.debits_posted - account.credits_posted

    def _signed(self) -> tuple[Counter[str], list[str]]:
        """What strangers have brought to our senders and nobody has claimed; and what was credited
        beyond that, or was not though we were given it."""
        rows, chain = self._disk.rows, self._chain
        credited: Counter[tuple[str, str]] = Counter()
        for row in rows[DEPOSIT.kind].values():
            if row.value.source == NAME and ":" in row.value.reference:
                credited[row.value.reference, _KINDS[row.value.asset]] += row.value.amount
        brought = chain.brought(self._senders)
        there = brought + chain.settled(self._senders)
        faults = [
            f"{credited[one]} credited of {there[one]} that came as {one}"
            for one in dict.fromkeys((*credited, *chain.settled(self._senders)))
            if credited[one] != there[one]
        ]
        unclaimed: Counter[str] = Counter()
        for (reference, kind), amount in brought.items():
            unclaimed[kind] += amount - credited[reference, kind]
        return unclaimed, faults

    def _deposits(self) -> list[str]:
        credited: Counter[str] = Counter()
        rows = self._disk.rows
        requests = [one.value for one in rows[DEPOSIT_REQUEST.kind].values()]
        for row in rows[DEPOSIT.kind].values():
            is_signed = ":" in row.value.reference
            if is_signed or row.value.source != NAME:
                continue
            if row.value.state is DepositState.CREDITED:
                request = next(one for one in requests if row.value.key in one.deposits)
                credited[f"{request.reference} {_KINDS[row.value.asset]}"] += row.value.amount
        faults = []
        for request in requests:
            for kind, there in self._chain.received(request.reference).items():
                booked = credited[f"{request.reference} {kind}"]
                if booked != there:
                    faults.append(f"{there} {kind} came to {request.reference}: {booked} credited")
        return faults

    def _payouts(self, callers: Sequence[Caller]) -> list[str]:
        ordered: dict[tuple[str, str], int] = {}
        for key, row in self._disk.rows[INTENT.kind].items():
            operation = self._disk.rows[OPERATION.kind].get(key)
            if operation is not None and operation.value.state is OperationState.SUCCEEDED:
                ordered[row.value.to, "token" if row.value.token else "coin"] = row.value.amount
        faults = []
        for caller in callers:
            for address in caller.sent_to if isinstance(caller, EvmPayer) else ():
                left = self._chain.left_to(address, self._senders)
                for kind in _KINDS.values():
                    wanted = ordered.get((address, kind), 0)
                    if left[kind] != wanted:
                        faults.append(f"{left[kind]} {kind} left to {address}, {wanted} ordered")
        return faults


def _depth_of(deposit: Deposit) -> int:
    """How deep an arrival has to be to be credited."""
    _, _, signed = deposit.reference.partition(":")
    if signed:  # a payer's address, or the number of a signed transfer
        return SEND_DEPTH if len(signed) > len("0x") + 40 else SETTLED_BLOCKS
    depths = DEPTHS if deposit.asset == "USDC" else ((0, COIN_DEPTH),)
    return max(depth for least, depth in depths if least <= deposit.amount)
