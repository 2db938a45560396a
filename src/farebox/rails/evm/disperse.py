"""Paying many in one transaction, where that takes less gas: chosen per recipient.

A batch is an operation with the payments as its children. Gas was measured with our contract on
anvil, the transaction's own 21,000 included (`tests/integration/test_evm_disperse_anvil.py`):

| paid to           | alone  | in a batch of 100 |
|-------------------|--------|-------------------|
| ETH, empty account| 21,000 | 35,560            |
| ETH, others       | 21,000 | 10,560            |
| token, first time | 51,250 | 26,800            |
| token, others     | 34,150 |  9,700            |

So ETH goes to empty accounts alone. A batch is run at the node before it is signed; where that
reverts it is halved until what reverts stands alone and is left to be sent, and refused, alone.
Where the chain lacks DEPLOYER there is no batch, and `farebox doctor` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from farebox.errors import RailRejected
from farebox.ids import derived_id
from farebox.ledger.model import Put
from farebox.ledger.service import Ledger
from farebox.payments.model import (
    OPERATION,
    Operation,
    OperationState,
    Rejected,
    Succeeded,
    Unresolved,
    Verdict,
)
from farebox.payments.operations import opens
from farebox.rails.evm.contracts import DEPLOYER, answered, artifact, calldata
from farebox.rails.evm.outbox import INTENT, Call, Intent, IntentState, SlotState
from farebox.rails.evm.reads import held
from farebox.rails.evm.sending import Held, Parcel, Sending

ITEMS_MAX = 100
_EVERYTHING = 2**256 - 1
_DEPLOY_GAS = 1_200_000
_APPROVE_GAS = 80_000


@dataclass(frozen=True, slots=True)
class Gas:
    """What a payment takes alone, and in a batch: a share of what all share, and its own."""

    alone: int
    shared: int
    item: int


#: By whether it is a token, and whether the recipient has none of it (for ETH: is empty).
GAS = {
    (False, True): Gas(21_000, 22_250, 35_340),
    (False, False): Gas(21_000, 22_250, 10_340),
    (True, True): Gas(51_250, 44_280, 26_360),
    (True, False): Gas(34_150, 44_280, 9_260),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One payment that waits; `is_fresh` says that its recipient has none of this yet."""

    key: str
    intent: Intent
    is_fresh: bool

    @property
    def gas(self) -> Gas:
        """What it takes."""
        return GAS[bool(self.intent.token), self.is_fresh]


def chosen(items: Sequence[Item]) -> list[Item]:
    """Those that take less gas together than each alone; none where that is so of nobody."""
    cheaper = [one for one in items if one.gas.item < one.gas.alone][:ITEMS_MAX]
    together = sum(one.gas.item for one in cheaper) + (cheaper[0].gas.shared if cheaper else 0)
    return cheaper if together < sum(one.gas.alone for one in cheaper) else []


class BatchPlan(msgspec.Struct, frozen=True):
    """The payments of a batch, in its order."""

    children: tuple[str, ...]


class Disperse:
    """Gathers what waits on one chain into batches, and follows these."""

    def __init__(self, sending: Sending, ledger: Ledger) -> None:
        self._sending = sending
        self._chain = sending.chain
        self._ledger = ledger
        #: The kind of a batch's operation.
        self.kind = f"evm_batch:{sending.terms.chain}"
        self.contract = artifact("Disperse").address

    async def run(self) -> list[str]:
        """Batch what waits now; the ids of the batches. Raises RailUnavailable, RailRejected."""
        made = []
        rows = await self._ledger.store.find(
            INTENT, {"chain": self._sending.terms.chain, "state": IntentState.WAITING}
        )
        waiting = [(key, row.value) for key, row in rows if not row.value.alone]
        for token in sorted({intent.token for _, intent in waiting}):
            items = [await self._weighed(key, one) for key, one in waiting if one.token == token]
            batch = chosen(items)
            if batch and await self._is_ready(token, sum(one.intent.amount for one in batch)):
                made += await self._send(batch)
        return made

    async def attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        """Follow a batch to its end: its gas is all that is booked for it."""
        plan = msgspec.json.decode(operation.plan, type=BatchPlan)
        slot = await self._sending.slot_of(operation.id)
        if slot is None:
            return Rejected("not_sent", "the batch was never signed")
        slot = await self._sending.push(slot.key)
        if slot.state is SlotState.LOST:
            return Unresolved("its nonce was used by a transaction that is not ours", alarm=True)
        if slot.mined is None or slot.state is not SlotState.DONE:
            return Unresolved(f"{slot.state} as {slot.newest.hash}")
        if slot.is_cancelled or not slot.mined.ok:
            return Rejected("reverted", f"none of its {len(plan.children)} payments was made")
        return Succeeded(0, slot.mined.hash.encode())

    async def _weighed(self, key: str, intent: Intent) -> Item:
        if intent.token:
            return Item(key, intent, await held(self._chain, intent.to, intent.token) == 0)
        is_used = await self._chain.balance(intent.to) or await self._chain.used(intent.to)
        return Item(key, intent, not is_used and not await self._chain.code(intent.to))

    async def _is_ready(self, token: str, total: int) -> bool:
        """Whether the contract is there and may take the token; what is missing is sent for."""
        sender = self._sending.keys.addresses[0]
        if not await self._chain.code(self.contract):
            if not await self._chain.code(DEPLOYER):
                return False  # nobody could put it there: each leaves alone, having waited
            deployment = Call(DEPLOYER, 0, artifact("Disperse").deployment, _DEPLOY_GAS)
            return await self._prepared(sender, deployment, "deploy")
        if not token:
            return True
        data = calldata("allowance(address,address)", sender, self.contract)
        told = await self._chain.run(sender, Call(token, 0, data))
        if answered(("uint256",), told)[0] >= total:
            return True
        data = calldata("approve(address,uint256)", self.contract, _EVERYTHING)
        return await self._prepared(sender, Call(token, 0, data, _APPROVE_GAS), f"approve:{token}")

    async def _prepared(self, sender: str, call: Call, what: str) -> bool:
        """Send for it, unless that is on its way; it is ready another time."""
        slots = await self._sending.open_slots(sender)
        if not any(one.purpose == what for one in slots):
            await self._sending.send(Parcel(sender, call, what))
        return False

    async def _send(self, batch: list[Item]) -> list[str]:
        if len(batch) < 2:
            return []
        sender = self._sending.keys.addresses[0]
        call = self._call(batch)
        try:
            await self._chain.run(sender, call)
            gas = await self._chain.gas(sender, call)
        except RailRejected:
            half = len(batch) // 2
            return await self._send(batch[:half]) + await self._send(batch[half:])
        keys = tuple(one.key for one in batch)
        batch_id = derived_id("batch", *keys)
        parcel = Parcel(
            sender,
            msgspec.structs.replace(call, gas=gas + gas // 4),
            batch_id,
            keys,
            token=batch[0].intent.token,
            spends=sum(one.intent.amount for one in batch) if batch[0].intent.token else 0,
            batch=True,
            puts=await self._family(batch_id, keys),
        )
        sent = await self._sending.send(parcel)
        return [] if sent is None or isinstance(sent, Held) else [batch_id]

    async def _family(self, batch_id: str, keys: Sequence[str]) -> tuple[Put, ...]:
        """The batch's operation, and its children's rows with its name in them."""
        plan = msgspec.json.encode(BatchPlan(tuple(keys)))
        parent = Operation(id=batch_id, kind=self.kind, account="", hold="", plan=plan)
        puts = [opens(parent, self._ledger.clock.now_ns())]
        for key in keys:
            row = await self._ledger.store.get(OPERATION, key)
            if row is not None and row.value.state is OperationState.OPEN:
                child = msgspec.structs.replace(row.value, parent=batch_id)
                puts.append(Put(OPERATION, key, child, row.version))
        return tuple(puts)

    def _call(self, batch: Sequence[Item]) -> Call:
        to = [one.intent.to for one in batch]
        amounts = [one.intent.amount for one in batch]
        token = batch[0].intent.token
        if token:
            data = calldata("payToken(address,address[],uint256[])", token, to, amounts)
            return Call(self.contract, 0, data)
        data = calldata("payNative(address[],uint256[])", to, amounts)
        return Call(self.contract, sum(amounts), data)
