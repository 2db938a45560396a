"""The sub-channels of a book: every change of one goes through here, one after the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec

from farebox.channels.chain import ChannelInfo, PaidTo, SubChannelInfo
from farebox.channels.model import (
    CHANNEL_CLOSE,
    SUB_CHANNEL,
    SubChannel,
    opened,
    sub_channel_key,
)
from farebox.channels.postings import Draft
from farebox.channels.rows import SubChannelRows
from farebox.channels.weighing import Accepted, Clear, Rejected, Verdict, weigh
from farebox.errors import StoreError
from farebox.ids import new_id
from farebox.ledger.model import (
    ABSENT,
    Applied,
    Code,
    Guard,
    Mismatch,
    Outcome,
    Refused,
    Replayed,
    Stale,
    Unit,
)
from farebox.ledger.processes import Processes
from farebox.ledger.records import Row
from farebox.ledger.service import Ledger
from farebox.ledger.store import PAGE_MAX
from farebox.turns import TurnsByKey
from farebox.wire.subrav.model import U64_END, ErrorCode, SignedSubRAV, SubRAV

#: Requests that may wait for their turn on one sub-channel.
_WAITING_MAX = 16
_CEILINGS_MAX = 50_000


class Turn(msgspec.Struct, frozen=True):
    """A request's turn on a sub-channel, with what the chain says of it now.

    `key` is that of the sub-channel's row. `once` names the request where it may be served but
    once, in whatever process it comes again.
    """

    key: str
    channel: ChannelInfo
    sub_channel: SubChannelInfo
    voucher: SignedSubRAV | None
    ceiling: int
    once: str = ""


class Charge(msgspec.Struct, frozen=True):
    """What a request costs, known before it is served."""

    cost: int
    cost_pico_usd: int


class Cover(msgspec.Struct, frozen=True):
    """What a request may cost, where only serving it tells; `floor` if nobody ever does.

    `request` names one whose row `keep` writes with the commit, and which `SubChannels.settle_left`
    settles should its process end.
    """

    cap: int
    floor: int
    floor_pico_usd: int
    request: str = ""
    keep: Callable[[Draft], None] | None = None


class Standing(msgspec.Struct, frozen=True):
    """How a voucher weighed, and the sub-channel as it stands after."""

    verdict: Verdict
    row: SubChannel | None


class SubChannels:
    """Reads, weighs and changes sub-channels, each in one commit."""

    def __init__(
        self, ledger: Ledger, processes: Processes, chain_id: int, *, wait_s: int = 30
    ) -> None:
        """`wait_s`: how long a request waits for the one before it on its sub-channel."""
        self.ledger = ledger
        self._rows = SubChannelRows(ledger)
        self.chain_id = chain_id
        self._processes = processes
        self._turns = TurnsByKey(_WAITING_MAX, wait_s)
        #: What each custody account's ceiling was last set to by this process.
        self._ceilings: dict[str, int] = {}
        #: Settles a request that is kept elsewhere and that nobody serves any more.
        self.settle_left: Callable[[str], Awaitable[bool]] = _nothing_is_kept_elsewhere

    async def read(self, channel_id: str, fragment: str) -> SubChannel | None:
        """A sub-channel as stored."""
        row = await self.ledger.store.get(SUB_CHANNEL, sub_channel_key(channel_id, fragment))
        return None if row is None else row.value

    async def of_channel(self, channel_id: str) -> list[SubChannel]:
        """The sub-channels of a channel, at most 1,000."""
        found = await self.ledger.store.find(SUB_CHANNEL, {"channel_id": channel_id})
        return [row.value for _, row in found]

    async def due(
        self, field: str, at_most: int, after: str = "", limit: int = PAGE_MAX
    ) -> list[tuple[str, SubChannel]]:
        """Sub-channels whose `pending_at` or `unclaimed_since` is at most this, by key."""
        found = await self.ledger.store.find(
            SUB_CHANNEL, {}, at_most=(field, at_most), after=after, limit=limit
        )
        return [(key, row.value) for key, row in found]

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[bool]:
        """One request's turn on a sub-channel in this process; False: it did not come in time."""
        came = await self.take_turn(key)
        try:
            yield came
        finally:
            if came:
                self.give_turn(key)

    def take_turn(self, key: str) -> Awaitable[bool]:
        """Wait for the turn of a sub-channel. `give_turn` must follow when it came."""
        return self._turns.take(key)

    def give_turn(self, key: str) -> None:
        """Let the next one in."""
        self._turns.give_back(key)

    # ── changes ──────────────────────────────────────────────────────────────────────────────────

    async def serve(
        self,
        turn: Turn,
        ask: Charge | Cover | None,
        service_tx_ref: str = "",
        *,
        synced: bool = True,
    ) -> Standing:
        """Weigh the voucher, take it, and charge or cover the request: all in one commit.

        A charge without a reference has the commit's own. Unsynced, a loss of power may take it
        back: only for what is told to nobody before a commit that is synced.
        With nothing to ask for, or where the verdict lets nothing be served, a good voucher is
        still taken. A request that the collateral doesn't cover is `Rejected`, its voucher taken.
        """
        # A key that is new to us has no row that a close could have frozen: its first commit holds
        # on to there being none.
        opening = () if self._rows.knows(turn.key) else await self._unless_closing(turn)
        backing, ceiling = turn.channel.backing, turn.ceiling
        is_new_limit = self._ceilings.get(backing) != ceiling
        asked = _Asked(
            turn, ask, service_tx_ref, opening, is_new_limit, self.chain_id, self._processes.name
        )
        outcome = await self._rows.decide(turn.key, asked.whole, synced=synced)
        is_taken = isinstance(outcome, Standing) and outcome.verdict is _BEING_SERVED
        if is_taken and await self._settle_abandoned(turn):
            outcome = await self._rows.decide(turn.key, asked.whole, synced=synced)
        if isinstance(outcome, Refused):
            return await self._not_covered(turn, ask, outcome)
        standing = asked.standing(outcome)
        if ask is not None and isinstance(standing.verdict, Accepted | Clear):
            self._limited(backing, ceiling)
        return standing

    async def _not_covered(
        self, turn: Turn, ask: Charge | Cover | None, refused: Refused
    ) -> Standing:
        """A request that the collateral does not cover; its voucher is taken all the same."""
        if refused.code is not Code.EXCEEDS_CEILING:
            raise StoreError(f"a sub-channel cannot be charged: {refused.code}")
        if ask is not None and turn.voucher is not None:
            await self.serve(turn, None)
        row = await self.read(turn.channel.channel_id, turn.sub_channel.vm_id_fragment)
        return Standing(_uncovered(turn), row)

    async def take_once(self, once: str) -> bool:
        """Whether nobody took this name before, in any process of the book. Raises StoreError."""
        outcome = await self.ledger.store.commit(Unit(once, fingerprint=_of_this_call()))
        return isinstance(outcome, Applied | Replayed)

    async def settle(self, channel_id: str, fragment: str, charge: Charge | None) -> SubChannel:
        """End the request that is being served, charged or for nothing. Its turn is held."""

        def decide(row: SubChannel, draft: Draft) -> None:
            if row.serving is not None and row.serving.process == self._processes.name:
                draft.end()
                if charge is not None:
                    draft.propose(charge.cost, charge.cost_pico_usd)

        return await self.change(channel_id, fragment, decide)

    async def change(
        self, channel_id: str, fragment: str, decide: Callable[[SubChannel, Draft], None]
    ) -> SubChannel:
        """Change a sub-channel that is there. Raises StoreError."""
        outcome = await self.try_change(channel_id, fragment, decide)
        if isinstance(outcome, SubChannel):
            return outcome
        raise StoreError(f"a change of a sub-channel was refused: {outcome}")

    async def try_change(
        self, channel_id: str, fragment: str, decide: Callable[[SubChannel, Draft], None]
    ) -> SubChannel | Outcome:
        """The same; the outcome where a row of somebody else's that joins it was in its way."""
        key = sub_channel_key(channel_id, fragment)

        unit_id = new_id("srv")

        def whole(found: Row[SubChannel] | None, now: int) -> Unit | SubChannel:
            if found is None:
                raise StoreError(f"there is no sub-channel {key}")
            draft = Draft(unit_id, key, found.value, found.version, now)
            decide(found.value, draft)
            changed.append(draft.row)
            is_same = draft.row is found.value and not draft.is_joined
            return found.value if is_same else draft.unit()

        changed: list[SubChannel] = []
        outcome = await self._rows.decide(key, whole)
        if isinstance(outcome, Applied | Replayed | SubChannel):
            return changed[-1]
        return outcome

    async def claimed(
        self, row: SubChannel, amount: int, paid_to: PaidTo, ceiling: int
    ) -> SubChannel:
        """Note that a claim was paid, up to `amount` in all, and what the collateral still covers:
        with it, so that no process trusts what has just been claimed."""

        def decide(now: SubChannel, draft: Draft) -> None:
            if now.epoch == row.epoch:
                draft.claimed(amount, paid_to)
                draft.limit(ceiling)

        done = await self.change(row.channel_id, row.fragment, decide)
        self._limited(row.backing, ceiling)
        return done

    async def lost(self, row: SubChannel) -> SubChannel:
        """Note that nothing more of an epoch will be paid."""

        def decide(now: SubChannel, draft: Draft) -> None:
            if now.epoch == row.epoch:
                draft.lost()

        return await self.change(row.channel_id, row.fragment, decide)

    async def write_off(self, row: SubChannel) -> bool:
        """Write off a proposal unless something became of it meanwhile."""

        def decide(now: SubChannel, draft: Draft) -> None:
            if now.pending == row.pending and now.pending_at is not None:
                draft.write_off()

        done = await self.change(row.channel_id, row.fragment, decide)
        return done.pending is not None and done.pending.is_written_off

    async def _settle_abandoned(self, turn: Turn) -> bool:
        """Charge the floor for a request that a process which ended left unsettled, if one did.

        The turn is ours: what *this* process is said to be serving, nobody serves any more.
        """
        channel_id, fragment = turn.channel.channel_id, turn.sub_channel.vm_id_fragment
        row = await self.read(channel_id, fragment)
        if row is None or row.serving is None:
            return True
        if row.serving.request:
            return await self.settle_left(row.serving.request)
        if row.serving.process in await self._processes.others():
            return False

        def decide(now: SubChannel, draft: Draft) -> None:
            if row.serving is not None and now.serving == row.serving:
                draft.end()
                draft.propose(row.serving.floor, row.serving.floor_pico_usd)

        await self.change(channel_id, fragment, decide)
        return True

    async def _unless_closing(self, turn: Turn) -> tuple[Guard, ...] | None:
        """Holds on to what stands of a channel's closing; None: its epoch is being closed."""
        channel_id = turn.channel.channel_id
        row = await self.ledger.store.get(CHANNEL_CLOSE, channel_id)
        if row is None:
            return (Guard(CHANNEL_CLOSE, channel_id, ABSENT),)
        if row.value.epoch == turn.channel.epoch:
            return None
        return (Guard(CHANNEL_CLOSE, channel_id, row.version),)

    def _limited(self, backing: str, ceiling: int) -> None:
        if len(self._ceilings) >= _CEILINGS_MAX:
            self._ceilings.clear()
        self._ceilings[backing] = ceiling


class _Asked:
    """One call of `serve`: decides what becomes of the row, as often as another was faster."""

    __slots__ = (
        "_ask",
        "_chain_id",
        "_fingerprint",
        "_is_new_limit",
        "_made",
        "_opening",
        "_process",
        "_reference",
        "_turn",
        "_unit_id",
    )

    def __init__(
        self,
        turn: Turn,
        ask: Charge | Cover | None,
        reference: str,
        opening: tuple[Guard, ...] | None,
        is_new_limit: bool,
        chain_id: int,
        process: str,
    ) -> None:
        once = "" if ask is None else turn.once
        request = ask.request if isinstance(ask, Cover) else ""
        self._turn = turn
        self._ask = ask
        self._reference = reference
        self._opening = opening
        self._is_new_limit = is_new_limit
        self._chain_id = chain_id
        self._process = process
        # Fresh, as a request's id is; a reference of the payer's may come twice.
        self._unit_id = once or request or new_id("srv")
        self._fingerprint = _of_this_call() if once else b""
        self._made: Standing | None = None

    def whole(self, found: Row[SubChannel] | None, now: int) -> Unit | Standing:
        """The unit that does it, or why nothing is to be done."""
        turn, opening = self._turn, self._opening
        if found is not None and found.value.epoch > turn.channel.epoch:
            return Standing(_OLD_EPOCH, found.value)
        if (found is None and opening is None) or (found and _is_frozen(found.value, turn)):
            return Standing(_CLOSING, None if found is None else found.value)
        draft = _draft(self._unit_id, turn, found, now)
        before = draft.row
        verdict = self._weighed(None if found is None else before, draft)
        if draft.row is before:
            return Standing(verdict, None if found is None else found.value)
        self._made = Standing(verdict, draft.row)
        unit = draft.unit(self._fingerprint)
        if found is None and opening:
            return msgspec.structs.replace(unit, guards=opening)
        return unit

    def _weighed(self, row: SubChannel | None, draft: Draft) -> Verdict:
        turn, ask = self._turn, self._ask
        verdict = weigh(row, voucher_of(turn), self._chain_id)
        if isinstance(verdict, Accepted):
            assert turn.voucher is not None
            draft.accept(turn.voucher)
        elif isinstance(verdict, Rejected):
            return verdict
        if ask is None:
            return verdict
        if draft.row.serving is not None:
            return _BEING_SERVED
        if draft.row.pending is not None:
            return verdict
        if _is_behind(draft.row, turn.sub_channel):
            return _BEHIND
        if self._is_new_limit:
            draft.limit(turn.ceiling)
        if isinstance(ask, Charge):
            draft.propose(ask.cost, ask.cost_pico_usd, self._reference)
            return verdict
        draft.begin(self._process, ask.cap, ask.floor, ask.floor_pico_usd, ask.request)
        if ask.keep is not None:
            ask.keep(draft)
        return verdict

    def standing(self, outcome: Outcome | Standing) -> Standing:
        """How it stands after what became of that."""
        match outcome:
            case Applied() | Replayed(Applied()):
                assert self._made is not None
                return self._made
            case Standing():
                return outcome
            case Mismatch():
                return Standing(USED_BEFORE, None)
            case Stale(CHANNEL_CLOSE.kind):
                return Standing(_CLOSING, None)
        raise StoreError(f"a sub-channel cannot be changed: {outcome}")


def _of_this_call() -> bytes:
    """Tells a name that this call took from one that another did: the store says `Mismatch`."""
    return new_id("call").encode()


USED_BEFORE = Rejected(ErrorCode.AUTH_INVALID, "The authorization was used before; sign a new one.")
_BEING_SERVED = Rejected(
    ErrorCode.RAV_CONFLICT, "Another request of this sub-channel is being served; try later."
)
_BEHIND = Rejected(
    ErrorCode.RAV_CONFLICT,
    "The chain has a later voucher of this sub-channel than we do; close the channel, or use "
    "another key.",
)
_CLOSING = Rejected(
    ErrorCode.CHANNEL_CLOSED, "The channel is being closed, as its payer asked; open it again."
)
_OLD_EPOCH = Rejected(
    ErrorCode.EPOCH_MISMATCH, "The channel was opened anew just now; try again in some seconds."
)


def _is_behind(row: SubChannel, sub: SubChannelInfo) -> bool:
    """Whether the payer redeemed a voucher that it never gave us: the chain would pay nothing for
    those that follow ours. Or one with the last nonce there is, which none can follow."""
    nonce = row.paid_nonce
    return (
        sub.last_confirmed_nonce > nonce
        or sub.last_claimed_amount > row.paid_amount
        or nonce == U64_END - 1
    )


def _is_frozen(row: SubChannel, turn: Turn) -> bool:
    """Whether a close was agreed that has not ended, or of which something is not booked yet."""
    return row.is_closing and (row.epoch == turn.channel.epoch or row.unclaimed_amount > 0)


async def _nothing_is_kept_elsewhere(_: str) -> bool:
    return False


def voucher_of(turn: Turn) -> SubRAV | None:
    """The SubRAV of a turn's voucher."""
    return None if turn.voucher is None else turn.voucher.sub_rav


def _draft(unit_id: str, turn: Turn, found: Row[SubChannel] | None, now: int) -> Draft:
    sub = turn.sub_channel
    amount, nonce = sub.last_claimed_amount, sub.last_confirmed_nonce
    if found is None:
        row = opened(turn.channel, sub.vm_id_fragment, amount, nonce)
        return Draft(unit_id, turn.key, row, ABSENT, now)
    draft = Draft(unit_id, turn.key, found.value, found.version, now)
    if found.value.epoch != turn.channel.epoch:
        draft.reopen(turn.channel, amount, nonce)
    return draft


def _uncovered(turn: Turn) -> Rejected:
    return Rejected(
        ErrorCode.HUB_INSUFFICIENT_FUNDS,
        f"What is signed for and not claimed, and this request, exceed {turn.ceiling}, which is "
        "what the collateral covers; top it up.",
    )
