"""The transaction manager: signs under the next nonce, and follows each to its end.

Everything that leaves a chain's senders goes through here; `outbox.py` has the states and the
table of failures. Several processes may work on one book: whatever they do at once is decided by
the versions of the rows, and broadcasting the same bytes twice harms nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import structlog

from farebox.errors import RailRejected, RailUnavailable
from farebox.ledger.model import ABSENT, Applied, Event, Kind, Open, Put, Refused, Step, Transfer
from farebox.ledger.model import Unit as LedgerUnit
from farebox.ledger.records import Row
from farebox.ledger.service import Ledger, RowName, State
from farebox.rails.evm.fees import Fees, TooDear, fresh_fees, replacement, within
from farebox.rails.evm.keys import Keys
from farebox.rails.evm.outbox import (
    IN_FLIGHT_MAX,
    INTENT,
    SENDER,
    SLOT,
    Attempt,
    Call,
    Intent,
    IntentState,
    Mined,
    Seen,
    Sender,
    Slot,
    SlotState,
    judged,
    lane_of,
    needs_replacement,
    slot_key,
    with_attempt,
)
from farebox.rails.evm.reads import Chain, held

_log = structlog.get_logger("farebox.evm")

#: Blocks after which the use of a nonce by none of our hashes is believed.
_USED_FOR_GOOD_BLOCKS = 64
#: What a self-send costs; it does nothing.
_IDLE_GAS = 21_000
#: Nonces that are looked at for holes at once.
_HOLES_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SendTerms:
    """How we send on one chain. `native` is its coin's asset code; fees are wei per gas.

    What is mined counts once it has `confirmations`.
    """

    chain: str
    chain_id: int
    native: str
    fee_cap: int = 500 * 10**9
    tip_floor: int = 10**6
    confirmations: int = 3
    in_flight_max: int = IN_FLIGHT_MAX
    used_for_good: int = _USED_FOR_GOOD_BLOCKS

    @property
    def expense(self) -> str:
        """The ledger account of what gas has cost."""
        return f"expense:evm:{self.chain}:gas"

    @property
    def gas_float(self) -> str:
        """The operator's own coin beside that of the custody: what senders have for gas."""
        return f"suspense:evm:{self.chain}:float"


@dataclass(frozen=True, slots=True)
class Held:
    """Nothing was signed, for a passing reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is to be sent: by whom, what, and which intents it serves (ids, in batch order).

    `token` and `spends`: what leaves in a token. `puts` join the nonce commit.
    """

    sender: str
    call: Call
    purpose: str
    intents: tuple[str, ...] = ()
    token: str = ""
    spends: int = 0
    batch: bool = False
    puts: tuple[Put, ...] = ()


class Sending:
    """One chain's outbox, worked on by this process."""

    def __init__(self, terms: SendTerms, chain: Chain, keys: Keys, ledger: Ledger) -> None:
        self.terms = terms
        self.chain = chain
        self.keys = keys
        self._ledger = ledger

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    async def slot(self, key: str) -> Slot | None:
        """One nonce as stored."""
        row = await self._ledger.store.get(SLOT, key)
        return None if row is None else row.value

    async def slot_of(self, purpose: str) -> Slot | None:
        """The nonce that was last taken for a purpose."""
        rows = await self._ledger.store.find(SLOT, {"purpose": purpose})
        return max((row.value for _, row in rows), key=lambda one: one.key, default=None)

    async def open_slots(self, sender: str = "") -> list[Slot]:
        """What is on its way, of one sender or of all on this chain."""
        where = {"lane": lane_of(self.terms.chain, sender)} if sender else {}
        found: list[Slot] = []
        for state in (SlotState.SENT, SlotState.MINED):
            by = where or {"chain": self.terms.chain}
            rows = await self._ledger.store.find(SLOT, {**by, "state": state})
            found += [row.value for _, row in rows]
        return sorted(found, key=lambda one: one.key)

    async def free(self, sender: str, token: str) -> int:
        """What a sender has of a token (of the coin, where that is empty) beside what it is sending
        already. Raises RailUnavailable."""
        on_its_way = sum(
            one.spends if token else one.call.value
            for one in await self.open_slots(sender)
            if one.state is SlotState.SENT and one.token in ("", token)
        )
        return await held(self.chain, sender, token) - on_its_way

    async def offer(self) -> Fees | TooDear:
        """What to offer for gas now, or why to wait. Raises RailUnavailable, RailRejected."""
        history = await self.chain.history()
        suggested = await self.chain.suggested_tip()
        fees = fresh_fees(history, suggested=suggested, floor=self.terms.tip_floor)
        return within(fees, self.terms.fee_cap)

    # ── taking a nonce ───────────────────────────────────────────────────────────────────────────

    async def send(self, parcel: Parcel) -> Slot | Held | None:
        """Sign under the next nonce and store it, with the intents it serves; then broadcast.

        None: an intent is no longer waiting, since another process was quicker or it was
        cancelled. Raises RailUnavailable before anything is signed; what fails to be broadcast is
        only noted, for `push` does it again.
        """
        fees = await self.offer()
        if isinstance(fees, TooDear):
            return Held(fees.reason)
        if len(await self.open_slots(parcel.sender)) >= self.terms.in_flight_max:
            return Held("as many transactions as one sender may have are on their way")
        most = parcel.call.gas * fees.max_fee + parcel.call.value
        if await self.chain.balance(parcel.sender) < most:
            return Held("its sender could not pay for it: what is offered for gas has risen")
        lane = lane_of(self.terms.chain, parcel.sender)
        known = await self._ledger.store.get(SENDER, lane)
        first = 0 if known is not None else await self.chain.pending(parcel.sender)
        height = await self.chain.height()

        made: list[Slot] = []

        def decide(state: State, _: int) -> LedgerUnit | None:
            claims = self._claims(state, parcel)
            if claims is None:
                return None
            nonce = (state.value(SENDER, lane) or Sender(first)).next_nonce
            slot = self._signed(parcel, lane, nonce, fees, height)
            made.append(slot)
            puts = (
                Put(SENDER, lane, Sender(nonce + 1), state.version(SENDER, lane)),
                Put(SLOT, slot.key, slot, ABSENT),
                *(msgspec.structs.replace(one, value=_sent(one.value, slot.key)) for one in claims),
                *parcel.puts,
            )
            return LedgerUnit(f"send:{parcel.purpose}:{slot.key}", puts=puts)

        rows: list[RowName] = [(SENDER, lane), *((INTENT, one) for one in parcel.intents)]
        outcome = await self._ledger.transact(rows, decide)
        return await self._broadcast(made[-1]) if isinstance(outcome, Applied) else None

    def _claims(self, state: State, parcel: Parcel) -> list[Put] | None:
        claims: list[Put] = []
        for index, key in enumerate(parcel.intents):
            row = state.row(INTENT, key)
            if row is None or row.value.state is not IntentState.WAITING:
                return None
            placed = msgspec.structs.replace(row.value, index=index if parcel.batch else -1)
            claims.append(Put(INTENT, key, placed, row.version))
        return claims

    def _signed(self, parcel: Parcel, lane: str, nonce: int, fees: Fees, height: int) -> Slot:
        attempt = self._attempt(parcel.sender, nonce, parcel.call, fees, height)
        return Slot(
            lane=lane,
            chain=self.terms.chain,
            sender=parcel.sender,
            nonce=nonce,
            purpose=parcel.purpose,
            call=parcel.call,
            attempts=(attempt,),
            token=parcel.token,
            spends=parcel.spends,
            batch=parcel.batch,
        )

    def _attempt(
        self, sender: str, nonce: int, call: Call, fees: Fees, height: int, *, cancels: bool = False
    ) -> Attempt:
        made = Call(sender, 0, "0x", _IDLE_GAS) if cancels else call
        name, raw = self.keys.sign(sender, self.terms.chain_id, nonce, made, fees)
        return Attempt(name, raw, fees.max_fee, fees.tip, height, cancels)

    # ── following it ─────────────────────────────────────────────────────────────────────────────

    async def push(self, key: str) -> Slot:
        """Look at one slot and do what is to be done for it now; how it stands then.

        Raises RailUnavailable.
        """
        row = await self._ledger.store.get(SLOT, key)
        assert row is not None, "slots are never removed"
        slot = row.value
        if not slot.is_open:
            return slot
        seen = await self._seen(slot)
        found = judged(slot, seen, self.terms.confirmations)
        if found != slot:
            slot = await self._keep(row, found)
        if slot.state is not SlotState.SENT:
            return slot
        return await self._urge(slot, seen.height)

    async def tick(self) -> int:
        """Push everything that is on its way on this chain; returns how many came to their end."""
        await self.fill_holes()
        ended = 0
        for slot in await self.open_slots():
            pushed = await self.push(slot.key)
            if not pushed.is_open:
                ended += 1
        return ended

    async def cancel(self, key: str) -> Slot:
        """Have a self-send take the place of what is not mined yet. Either may win.

        Raises RailUnavailable.
        """

        def decide(state: State, _: int) -> LedgerUnit | None:
            slot = state.value(SLOT, key)
            if slot is None or not slot.is_open or slot.wants_cancel:
                return None
            wanted = msgspec.structs.replace(slot, wants_cancel=True)
            version = state.version(SLOT, key)
            return LedgerUnit(f"cancel:{key}:{version}", puts=(Put(SLOT, key, wanted, version),))

        await self._ledger.transact([(SLOT, key)], decide)
        return await self.push(key)

    async def fill_holes(self) -> int:
        """Send nothing under nonces that a sender of ours skipped, so that later ones can be mined.

        Holes come from a book that was put back, or from a key that was used elsewhere; then our
        next nonce follows the chain's. Raises RailUnavailable. Returns how many were filled.
        """
        filled = 0
        for sender in self.keys.addresses:
            lane = lane_of(self.terms.chain, sender)
            row = await self._ledger.store.get(SENDER, lane)
            if row is None:
                continue
            used = await self.chain.used(sender)
            if used > row.value.next_nonce:
                await self._catch_up(lane, used)
                continue
            for nonce in range(used, min(row.value.next_nonce, used + _HOLES_MAX)):
                if await self.slot(slot_key(lane, nonce)) is None:
                    filled += await self._fill(sender, lane, nonce)
        return filled

    async def _catch_up(self, lane: str, used: int) -> None:
        def decide(state: State, _: int) -> LedgerUnit | None:
            known = state.value(SENDER, lane)
            if known is None or known.next_nonce >= used:
                return None
            put = Put(SENDER, lane, Sender(used), state.version(SENDER, lane))
            event = Event("evm.nonce_used_elsewhere", lane, {"nonce": used - 1})
            return LedgerUnit(f"catch-up:{lane}:{put.expect}", puts=(put,), events=(event,))

        # Not where another process has taken that nonce since the row was read.
        if isinstance(await self._ledger.transact([(SENDER, lane)], decide), Applied):
            _log.error("evm.nonce_used_elsewhere", lane=lane, used=used)

    async def _fill(self, sender: str, lane: str, nonce: int) -> int:
        fees = await self.offer()
        if isinstance(fees, TooDear):
            return 0
        nothing = Parcel(sender, Call(sender), f"hole:{slot_key(lane, nonce)}")
        slot = self._signed(nothing, lane, nonce, fees, await self.chain.height())
        unit = LedgerUnit(f"fill:{slot.key}", puts=(Put(SLOT, slot.key, slot, ABSENT),))
        outcome = await self._ledger.store.commit(unit)
        if isinstance(outcome, Applied):
            await self._broadcast(slot)
        return int(isinstance(outcome, Applied))

    async def _seen(self, slot: Slot) -> Seen:
        height = await self.chain.height()
        for attempt in reversed(slot.attempts):
            receipt = await self.chain.receipt(attempt.hash)
            if receipt is not None:
                mined = Mined(
                    attempt.hash,
                    int(receipt.block_number),
                    receipt.block_hash,
                    receipt.status == 1,
                    receipt.cost,
                )
                # The height was read before: a block that is newer has no confirmation yet.
                return Seen(height, mined)
        return Seen(height, None, await self._is_used_for_good(slot, height))

    async def _is_used_for_good(self, slot: Slot, height: int) -> bool:
        """Whether a transaction that is none of ours has taken the nonce, long ago."""
        before = height - self.terms.used_for_good
        if before < 0 or await self.chain.used(slot.sender) <= slot.nonce:
            return False
        try:
            return await self.chain.used(slot.sender, before) > slot.nonce
        except RailRejected:  # a node that forgets so soon
            return False

    async def _keep(self, row: Row[Slot], found: Slot) -> Slot:
        """Store what was seen; gas is booked in the commit that ends it."""
        slot, ended = row.value, found.state is SlotState.DONE
        where = found.mined.block_hash if found.mined else ""
        steps = self._gas(found) if ended else ()
        events: tuple[Event, ...] = ()
        if not found.is_open:
            facts = {"state": found.state.value, "nonce": found.nonce, "purpose": found.purpose}
            facts["hash"] = found.mined.hash if found.mined else ""
            events = (Event("evm.transaction_ended", found.lane, facts),)
        unit = LedgerUnit(
            f"slot:{slot.key}:{row.version}:{found.state}:{where}",
            steps,
            (Put(SLOT, slot.key, found, row.version),),
            events=events,
        )
        outcome = await self._ledger.store.commit(unit)
        if isinstance(outcome, Refused):
            raise RailUnavailable(f"the books refuse the end of a transaction: {outcome.code}")
        if slot.state is SlotState.MINED and found.state is SlotState.SENT:
            _log.warning("evm.mined_vanished", lane=slot.lane, nonce=slot.nonce)
        if found.state is SlotState.LOST:
            _log.error("evm.nonce_lost", lane=slot.lane, nonce=slot.nonce, purpose=slot.purpose)
        stored = await self.slot(slot.key)
        assert stored is not None, "slots are never removed"
        return stored

    def _gas(self, slot: Slot) -> tuple[Step, ...]:
        """What it took: an expense whatever it was for, out of the operator's float."""
        assert slot.mined is not None
        terms = self.terms
        return (
            Open(terms.expense, terms.native, Kind.EXPENSE),
            Open(terms.gas_float, terms.native, Kind.SUSPENSE),
            Transfer(terms.expense, terms.gas_float, slot.mined.cost, "gas"),
        )

    async def _urge(self, slot: Slot, height: int) -> Slot:
        """Broadcast what is not in a block, with a better offer where it is time for one."""
        history = await self.chain.history()
        if not needs_replacement(slot, height, history.base_fee):
            return await self._broadcast(slot)
        fresh = await self.offer()
        offered = fresh if isinstance(fresh, Fees) else slot.offered
        fees = within(replacement(slot.offered, offered), self.terms.fee_cap)
        if isinstance(fees, TooDear) or isinstance(fresh, TooDear):
            return await self._broadcast(slot)  # held: what was offered may still be taken
        call = Call(slot.sender, gas=_IDLE_GAS) if slot.wants_cancel else slot.call
        if await self.chain.balance(slot.sender) < call.gas * fees.max_fee + call.value:
            return await self._broadcast(slot)  # a better offer that nobody could pay is none
        attempt = self._attempt(
            slot.sender, slot.nonce, slot.call, fees, height, cancels=slot.wants_cancel
        )
        row = await self._ledger.store.get(SLOT, slot.key)
        if row is None or row.value != slot:
            return slot  # another process is at it
        better = with_attempt(slot, attempt)
        put = Put(SLOT, slot.key, better, row.version)
        unit = LedgerUnit(f"replace:{slot.key}:{row.version}:{attempt.hash}", puts=(put,))
        if not isinstance(await self._ledger.store.commit(unit), Applied):
            return slot
        return await self._broadcast(better)

    async def _broadcast(self, slot: Slot) -> Slot:
        """Again and again, until it is in a block. What a node says to that is never a no for good:
        somebody else may have the same bytes."""
        try:
            await self.chain.broadcast(slot.newest.raw)
        except RailRejected as said:
            if "already" not in str(said):
                _log.info("evm.not_taken", lane=slot.lane, nonce=slot.nonce, reason=str(said))
        except RailUnavailable as said:
            _log.warning("evm.not_broadcast", lane=slot.lane, nonce=slot.nonce, reason=str(said))
        return slot


def _sent(intent: Intent, key: str) -> Intent:
    return msgspec.structs.replace(intent, state=IntentState.SENT, slot=key)
