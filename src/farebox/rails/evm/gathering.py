"""Gathering: what a payment needs, and no sender has alone, is brought together at one of them.

A payment is planned while a sender has its amount, and leaves later: meanwhile others may have left
from there. Nothing is booked for it but its gas: custody is of all our addresses together.

| boundary                 | what can fail | recovery                                              |
|--------------------------|---------------|-------------------------------------------------------|
| before a nonce commit    | anything      | the next round decides anew, by what the chain has    |
| nonce commit → confirmed | `outbox.py`   | followed; nothing more is gathered of it meanwhile    |
| it vanishes, or comes too| -             | the next round decides anew; the payment waits        |
| late                     |               |                                                       |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from farebox.ledger.service import Ledger
from farebox.rails.evm.fees import Fees
from farebox.rails.evm.gas import PLAIN_GAS, Gas
from farebox.rails.evm.outbox import INTENT, IntentState
from farebox.rails.evm.reads import transfer_of
from farebox.rails.evm.sending import Held, Parcel, Sending

_GATHER = "gather"
#: Coin that stays with a sender, in what the gas of a transfer may cost at most.
_ROOM = 4


@dataclass(frozen=True, slots=True)
class Gathered:
    """What goes to whom, by the sender that it comes from."""

    to: str
    parts: Mapping[str, int]


def gathered(free: Mapping[str, int], wanted: Iterable[int]) -> Gathered | None:
    """What to move for the largest amount that no sender has alone and all have together, out of as
    few of them as it takes; None where there is no such amount. Decides only."""
    by_wealth = sorted(free, key=lambda one: (-free[one], one))
    to = by_wealth[0]
    total = sum(amount for amount in free.values() if amount > 0)
    missing = max((one for one in wanted if free[to] < one <= total), default=0) - free[to]
    parts: dict[str, int] = {}
    for sender in by_wealth[1:]:
        if missing > 0 and free[sender] > 0:
            parts[sender] = min(missing, free[sender])
            missing -= parts[sender]
    return Gathered(to, parts) if parts else None


class Gathering:
    """Gathers on one chain."""

    def __init__(self, sending: Sending, gas: Gas, ledger: Ledger) -> None:
        self._sending = sending
        self._gas = gas
        self._ledger = ledger

    async def run(self) -> int:
        """One round; how many transactions were sent. Raises RailUnavailable, RailRejected."""
        senders = self._sending.keys.addresses
        offered = await self._sending.offer()
        if len(senders) < 2 or not isinstance(offered, Fees):
            return 0
        rows = await self._ledger.store.find(
            INTENT, {"chain": self._sending.terms.chain, "state": IntentState.WAITING}
        )
        # What a payer has signed a transfer of comes to a sender, and is none that leaves.
        leaving = [row.value for _, row in rows if row.value.to not in senders]
        on_its_way = {one.purpose for one in await self._sending.open_slots()}
        sent = 0
        for token in sorted({one.token for one in leaving} - {_token_of(p) for p in on_its_way}):
            wanted = [one.amount for one in leaving if one.token == token]
            sent += await self._gather(token, wanted, offered)
        return sent

    async def _gather(self, token: str, wanted: Iterable[int], offered: Fees) -> int:
        room = 0 if token else _ROOM * PLAIN_GAS * offered.max_fee
        senders = self._sending.keys.addresses
        free = {one: await self._sending.free(one, token) - room for one in senders}
        found = gathered(free, wanted)
        if found is None:
            return 0
        sent = 0
        for sender, amount in found.parts.items():
            call = transfer_of(token, found.to, amount)
            gas = await self._gas.limit(sender, call)
            call = msgspec.structs.replace(call, gas=gas if gas == PLAIN_GAS else gas + gas // 4)
            spends = amount if token else 0
            parcel = Parcel(sender, call, f"{_GATHER}:{token}", token=token, spends=spends)
            made = await self._sending.send(parcel)
            sent += made is not None and not isinstance(made, Held)
        return sent


def _token_of(purpose: str) -> str | None:
    """What is being gathered by a transaction; None: it does something else."""
    kind, _, token = purpose.partition(":")
    return token if kind == _GATHER else None
