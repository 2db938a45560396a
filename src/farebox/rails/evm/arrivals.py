"""What arrives at our addresses: found block by block, looked at again until it cannot vanish.

| boundary               | what can fail       | recovery                                       |
|------------------------|---------------------|------------------------------------------------|
| mined there → commit   | we stop, line breaks| the cursor stays: the same blocks are looked   |
|                        |                     | through again                                  |
| commit → told          | we stop             | every row that does not rest is told again     |
| told → credited        | anything            | as above; a row rests once it is credited      |
| its block is replaced  | -                   | REVERSED where it was, then found anew; the    |
|                        |                     | cursor goes back as well                       |

Found are transactions that carry value to an address, and Transfer events of the listed tokens.
Value that a contract passes on inside of a transaction (an *internal transfer*, as some exchanges
and smart wallets make) is found with `traces`, by a node that has them; others show none of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import structlog

from farebox.clock import NS_PER_S
from farebox.errors import RailUnavailable
from farebox.ledger.model import ABSENT, Applied, Put, Unit
from farebox.ledger.records import Row
from farebox.ledger.service import Ledger
from farebox.money import AMOUNT_END
from farebox.payments.deposits import DEPOSIT, DepositState
from farebox.payments.rail import Sighting
from farebox.rails.evm.addresses import Addresses
from farebox.rails.evm.outbox import custody_of
from farebox.rails.evm.records import (
    ADDRESS,
    ARRIVAL,
    CURSOR,
    Address,
    Arrival,
    Cursor,
    Presence,
    Purse,
    address_key,
)
from farebox.rails.evm.scan import TRANSFER, Block, Event, Header, Placed, Scan

_log = structlog.get_logger("farebox.evm")

#: Depth that means: the chain itself says that it is final.
FINALIZED = 0
_LEFT_MAX = 8
_PAGE = 500
#: Where the numbers of what contracts passed on begin, beyond those of a receipt's events.
_INNER = 1 << 30
#: What has not changed is told again after so long: its credit may have waited for something.
_AGAIN_S = 30
#: Events of a block may be told later than the block, where several nodes answer at one address: so
#: many blocks are asked about again each time. What is known of them stays as it is.
_LATE_BLOCKS = 16


@dataclass(frozen=True, slots=True)
class Depth:
    """From this amount on so many blocks must have an arrival below them, itself counted in."""

    least: int
    confirmations: int


@dataclass(frozen=True, slots=True)
class TakenAsset:
    """An asset that is looked for; `token` is empty for the chain's coin.

    `depths` begin with the one from 0 on. `keeps_part`: the token keeps a part of a transfer, so
    that balances say what arrived, not its events.
    """

    asset: str
    token: str
    depths: tuple[Depth, ...]
    keeps_part: bool = False

    def depth(self, amount: int) -> int:
        """The confirmations that an amount needs."""
        return max(
            (one for one in self.depths if one.least <= amount), key=lambda one: one.least
        ).confirmations


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchTerms:
    """How one chain is watched.

    With `traces` the node is asked what contracts passed on. Nothing vanishes below
    `settled_blocks`; as many are looked through again when the newest one
    was replaced. At most `step_blocks` are looked through at once.
    """

    chain: str
    assets: tuple[TakenAsset, ...]
    settled_blocks: int = 64
    step_blocks: int = 100
    traces: bool = False


class Arrivals:
    """Watches the addresses of one chain. What our own senders send there is gas, no payment."""

    def __init__(
        self,
        terms: WatchTerms,
        scan: Scan,
        addresses: Addresses,
        senders: Sequence[str],
        ledger: Ledger,
    ) -> None:
        self._terms = terms
        self._scan = scan
        self.addresses = addresses
        self._senders = frozenset(one.lower() for one in senders)
        self._ledger = ledger
        self._tokens = {one.token.lower(): one for one in terms.assets if one.token}
        self._coin = next((one for one in terms.assets if not one.token), None)
        self._of = {one.asset: one for one in terms.assets}
        self._lock = asyncio.Lock()
        self._told: dict[str, tuple[Sequence[Sighting], int]] = {}
        self._checked: Header | None = None
        #: Blocks of the chain that were not looked through yet, as of the last look.
        self.behind: int | None = None

    async def begin(self) -> Header:
        """Make sure that everything from now on will be found; the newest block."""
        head = await self.newest()
        if await self._ledger.store.get(CURSOR, self._terms.chain) is None:
            put = Put(CURSOR, self._terms.chain, Cursor(int(head.number), head.hash), ABSENT)
            await self._ledger.store.commit(Unit(f"cursor:{put.key}:{head.hash}", puts=(put,)))
        return head

    async def advance(self) -> bool:
        """Look again at what may vanish, then through the next blocks; whether that were all.

        Raises RailUnavailable, RailRejected.
        """
        async with self._lock:
            # In this order: whoever was paid in a block was shown the address before it.
            head = await self.begin()
            known = await self.addresses.watched()
            await self._look_again(head)
            return await self._look_further(head, known)

    async def look_again(self) -> None:
        """Find out what has vanished, and count depths from the newest block: for who asks without
        watching, since that is another process's. Raises RailUnavailable, RailRejected."""
        async with self._lock:
            await self._look_again(await self.newest())

    async def of_address(self, address: str) -> list[Sighting]:
        """All that ever arrived at an address, as it stands."""
        head = await self._checked_head()
        rows = await self._ledger.store.find(ARRIVAL, {"address": address})
        here = [row.value for _, row in rows if row.value.chain == self._terms.chain]
        finalized = await self._finalized(here)
        return [told for one in here for told in self._tellings(one, head, finalized)]

    # ── looking ──────────────────────────────────────────────────────────────────────────────────

    async def newest(self) -> Header:
        """The newest block. Raises RailUnavailable, RailRejected."""
        head = await self._scan.header("latest")
        if head is None:
            raise RailUnavailable("the node has no block")
        return head

    async def _checked_head(self) -> Header:
        """What depths are counted from: the newest block that there was before all rows were found
        where they are. One that is newer may be of another branch, without them."""
        if self._checked is None:
            async with self._lock:
                await self._look_again(await self.newest())
        assert self._checked is not None, "it was looked"
        return self._checked

    async def _rows(self, presence: Presence) -> list[tuple[str, Row[Arrival]]]:
        where = {"chain": self._terms.chain, "presence": presence}
        found: list[tuple[str, Row[Arrival]]] = []
        while page := await self._ledger.store.find(
            ARRIVAL, where, after=found[-1][0] if found else "", limit=_PAGE
        ):
            found += page
        return found

    async def _look_again(self, head: Header) -> None:
        """Find out what has vanished with its block."""
        rows = [
            (key, row)
            for key, row in await self._rows(Presence.SEEN)
            # A node that is behind says nothing of what it has not reached.
            if row.value.height <= head.number
        ]
        hashes = await self._scan.hashes({row.value.height for _, row in rows})
        moved = [
            (key, row)
            for key, row in rows
            if hashes.get(row.value.height, row.value.block_hash) != row.value.block_hash
        ]
        if moved:
            await self._look_anew()
        for key, row in moved:
            _log.warning("evm.arrival_vanished", arrival=key, height=row.value.height)
            await self._put([(row.version, vanished(row.value))])
        self._checked = head

    async def _look_anew(self) -> None:
        """Have the newest blocks looked through again, whichever they are then: the branch that
        was may come back before another was followed, and with it what has vanished."""
        row = await self._ledger.store.get(CURSOR, self._terms.chain)
        assert row is not None, "it was begun"
        put = Put(CURSOR, self._terms.chain, Cursor(row.value.height, ""), row.version)
        unit = Unit(f"cursor:{put.key}:{row.version}:anew", puts=(put,))
        if not isinstance(await self._ledger.store.commit(unit), Applied):
            raise RailUnavailable("another process watches the same chain; it goes on")

    async def _look_further(self, head: Header, known: Mapping[str, Address]) -> bool:
        terms = self._terms
        row = await self._ledger.store.get(CURSOR, terms.chain)
        assert row is not None, "it was begun"
        height = row.value.height
        self.behind = max(0, int(head.number) - height)
        if height > head.number:
            return True  # a node that is behind, or a chain that is about to be another
        if (await self._scan.hashes({height}))[height] != row.value.block_hash:
            _log.warning("evm.reorganised", chain=terms.chain, height=height)
            height = max(0, height - terms.settled_blocks)
        last = min(int(head.number), height + terms.step_blocks)
        if last == row.value.height and last == height:
            return True
        tip = (await self._scan.hashes({last}))[last]
        found = await self._found(height + 1, last, known) if known else []
        if (await self._scan.hashes({last}))[last] != tip:
            return False  # replaced while we looked; what is another block is looked at anew
        await self._note(found, known)
        put = Put(CURSOR, terms.chain, Cursor(last, tip), row.version)
        await self._ledger.store.commit(Unit(f"cursor:{put.key}:{row.version}:{tip}", puts=(put,)))
        self.behind = int(head.number) - last
        return last == head.number

    async def _found(self, first: int, last: int, known: Mapping[str, Address]) -> list[Arrival]:
        found: list[Arrival] = []
        if self._tokens:
            tokens = [one.token for one in self._tokens.values()]
            since = max(1, first - _LATE_BLOCKS)
            events = await self._scan.transfers(since, last, tokens, known)
            found += await self._by_event(events, known)
        if self._coin is not None:
            found += await self._by_value(first, last, known)
        return found

    async def _by_event(
        self, events: Sequence[Event], known: Mapping[str, Address]
    ) -> list[Arrival]:
        """One for each transfer of something; its number is its place in its receipt."""
        placed = await self._scan.receipts(sorted({one.transaction_hash for one in events}))
        times = await self._times({int(one.block_number) for one in events})
        left: dict[tuple[str, str, int], int] = {}
        found = []
        for event in events:
            of = self._tokens.get(event.address.lower())
            receipt = _placed_in(placed, event.transaction_hash, event.block_hash)
            if (
                of is None
                or event.topics[:1] != (TRANSFER,)
                or len(event.topics) != 3
                or event.to not in known
            ):
                continue
            amount = await self._measured(event, left) if of.keeps_part else event.value
            if not 0 < amount < AMOUNT_END:
                continue
            order = [int(one.log_index) for one in receipt.logs].index(int(event.log_index))
            found.append(
                Arrival(
                    chain=self._terms.chain,
                    address=known[event.to].address,
                    transaction=event.transaction_hash,
                    index=order + 1,
                    asset=of.asset,
                    amount=amount,
                    height=int(event.block_number),
                    block_hash=event.block_hash,
                    at_s=times[int(event.block_number)],
                )
            )
        return found

    async def _measured(self, event: Event, left: dict[tuple[str, str, int], int]) -> int:
        """What came of a transfer, by balances; `left` is what a block brought and is not counted
        yet. What is swept out in the same block is missing in that."""
        height = int(event.block_number)
        of = event.to, event.address.lower(), height
        if of not in left:
            before = await self._scan.held_at(event.to, event.address, height - 1)
            left[of] = max(0, await self._scan.held_at(event.to, event.address, height) - before)
        amount = min(event.value, left[of])
        left[of] -= amount
        return amount

    async def _times(self, heights: set[int]) -> dict[int, int]:
        times = {}
        for height in heights:
            header = await self._scan.header(height)
            if header is None:
                raise RailUnavailable("the node has lost a block that it spoke of")
            times[height] = int(header.timestamp)
        return times

    async def _by_value(self, first: int, last: int, known: Mapping[str, Address]) -> list[Arrival]:
        blocks, found = await self._scan.blocks(first, last), list[Arrival]()
        for block in blocks:
            theirs = [one for one in block.transactions if one.sender.lower() not in self._senders]
            found += [
                self._coin_at(block, one.hash, 0, known[one.to.lower()], int(one.value))
                for one in theirs
                if one.to and one.to.lower() in known and 0 < one.value < AMOUNT_END
            ]
            if self._terms.traces:
                found += await self._inside(block, {one.hash for one in theirs}, known)
        placed = await self._scan.receipts(sorted({one.transaction for one in found}))
        return [
            one for one in found if _placed_in(placed, one.transaction, one.block_hash).status == 1
        ]

    async def _inside(
        self, block: Block, theirs: Collection[str], known: Mapping[str, Address]
    ) -> list[Arrival]:
        """What contracts passed on in a block, of what others began."""
        found = []
        names = [one.hash for one in block.transactions]
        for one in await self._scan.inner(int(block.number), names):
            if one.block_hash != block.hash:
                raise RailUnavailable("the chain is being reorganised, or its nodes disagree")
            if one.transaction in theirs and one.to in known and one.value < AMOUNT_END:
                index = _INNER + one.number
                at = known[one.to]
                found.append(self._coin_at(block, one.transaction, index, at, one.value))
        return found

    def _coin_at(
        self, block: Block, transaction: str, index: int, at: Address, amount: int
    ) -> Arrival:
        assert self._coin is not None
        return Arrival(
            chain=self._terms.chain,
            address=at.address,
            transaction=transaction,
            index=index,
            asset=self._coin.asset,
            amount=amount,
            height=int(block.number),
            block_hash=block.hash,
            at_s=int(block.timestamp),
        )

    # ── keeping ──────────────────────────────────────────────────────────────────────────────────

    async def _note(self, found: Sequence[Arrival], known: Mapping[str, Address]) -> None:
        for one in found:
            row = await self._ledger.store.get(ARRIVAL, one.key)
            if row is None:
                await self._put([(ABSENT, one)], known[one.address.lower()])
            elif (again := refound(row.value, one)) != row.value:
                await self._put([(row.version, again)])

    async def _put(self, changed: Sequence[tuple[int, Arrival]], at: Address | None = None) -> None:
        """Store how arrivals stand; `at` is where the first of its kind has come."""
        puts = [Put(ARRIVAL, one.key, one, version) for version, one in changed]
        if at is not None:
            key = address_key(at.tree, at.index)
            row = await self._ledger.store.get(ADDRESS, key)
            if row is not None and row.value.purse is Purse.EMPTY:
                holds = msgspec.structs.replace(row.value, purse=Purse.HOLDS)
                puts.append(Put(ADDRESS, key, holds, row.version))
        names = ":".join(f"{put.key}:{put.expect}" for put in puts)
        outcome = await self._ledger.store.commit(
            Unit(f"arrival:{names}:{self._ledger.clock.now_ns()}", puts=tuple(puts))
        )
        if not isinstance(outcome, Applied):
            raise RailUnavailable("another process watches the same chain; it goes on")

    # ── telling ──────────────────────────────────────────────────────────────────────────────────

    async def to_be_told(self) -> list[Sighting]:
        """How everything stands that may still change, unless that was told a moment ago."""
        head = await self._checked_head()
        now_s = self._ledger.clock.now_ns() // NS_PER_S
        rows = [*await self._rows(Presence.SEEN), *await self._rows(Presence.GONE)]
        finalized = await self._finalized([row.value for _, row in rows])
        found: list[Sighting] = []
        for key, row in rows:
            if await self._may_rest(row.value, head):
                await self._put([(row.version, at_rest(row.value))])
                self._told.pop(key, None)
                continue
            telling = self._tellings(row.value, head, finalized)
            told, at_s = self._told.get(key, ([], 0))
            if telling != told or now_s >= at_s + _AGAIN_S:
                self._told[key] = telling, now_s
                found += telling
        return found

    def _tellings(self, one: Arrival, head: Header, finalized: int) -> list[Sighting]:
        """Where it was and is no more, then how it stands where it is."""
        told = [self._telling(one, DepositState.REVERSED, place) for place in one.left]
        if one.is_gone:
            return told
        of = self._of.get(one.asset)
        depth = of.depth(one.amount) if of else self._terms.settled_blocks
        deep = head.number - one.height + 1 >= depth if depth else one.height <= finalized
        state = DepositState.CONFIRMED if deep else DepositState.DETECTED
        return [*told, self._telling(one, state, one.place)]

    def _telling(self, one: Arrival, state: DepositState, place: str) -> Sighting:
        return Sighting(
            reference=one.address,
            external=one.transaction,
            amount=one.amount,
            state=state,
            index=one.index,
            at=one.at_s * NS_PER_S,
            asset=one.asset,
            custody=custody_of(self._terms.chain, one.asset),
            seen_in=place,
        )

    async def _finalized(self, rows: Sequence[Arrival]) -> int:
        """The height that the chain calls final, where anything waits for that."""
        wants = (self._of[one.asset].depth(one.amount) for one in rows if one.asset in self._of)
        if FINALIZED not in wants:
            return -1
        header = await self._scan.header("finalized")
        return -1 if header is None else int(header.number)

    async def _may_rest(self, one: Arrival, head: Header) -> bool:
        if head.number - one.height < self._terms.settled_blocks:
            return False
        row = await self._ledger.store.get(
            DEPOSIT, f"{self._terms.chain}:{one.transaction}:{one.index}"
        )
        if one.is_gone:
            return row is None or row.value.state is DepositState.REVERSED
        if row is None:
            return False
        return row.value.state is DepositState.CREDITED and row.value.seen_in == one.place


def _placed_in(placed: Mapping[str, Placed], transaction: str, block_hash: str) -> Placed:
    """The receipt of what was just seen in a block. Raises RailUnavailable where it is not there
    now: then nothing is concluded, and the same blocks are looked through again."""
    receipt = placed.get(transaction)
    if receipt is None or receipt.block_hash != block_hash:
        raise RailUnavailable("the chain is being reorganised, or its nodes disagree")
    return receipt


def vanished(one: Arrival) -> Arrival:
    """The arrival after its block was replaced."""
    left = (*one.left, one.place)[-_LEFT_MAX:]
    return msgspec.structs.replace(one, left=left, turn=one.turn + 1, presence=Presence.GONE)


def at_rest(one: Arrival) -> Arrival:
    """The arrival once nothing more is expected. Asked for, it still tells whether it is there."""
    presence = Presence.LOST if one.is_gone else Presence.RESTING
    return msgspec.structs.replace(one, presence=presence)


def refound(known: Arrival, found: Arrival) -> Arrival:
    """The arrival after it was found once more, where it was or somewhere else."""
    if not known.is_gone and known.block_hash == found.block_hash:
        return known
    gone = known if known.is_gone else vanished(known)
    return msgspec.structs.replace(found, turn=gone.turn, left=gone.left)
