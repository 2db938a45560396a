"""Outputs paid to us: what the chain says of each, held against what was told of it before.

    unconfirmed ──► in a block ──► deep enough: credited ──► too deep to come back: no longer young
         │               └── its block left the chain ──► taken back, and anew if it comes again
         └── replaced, or spent otherwise ──► gone

| boundary                       | what can fail | recovery                                       |
|--------------------------------|---------------|------------------------------------------------|
| in a block → we look           | we are down   | the wallet as a whole is compared at each look |
| row of the arrival → told      | we stop       | not in the books: told again                   |
| told → credited                | we stop       | told again, credited once by its outpoint      |
| a reorganisation, then we look | we are down   | young rows that the chain no longer has        |

What was credited is read off the book's own deposit, never kept twice.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import msgspec

from farebox.clock import NS_PER_S
from farebox.ids import derived_id
from farebox.ledger.model import ABSENT, Put, Unit
from farebox.ledger.service import Ledger
from farebox.money import MSAT_PER_SAT
from farebox.payments.deposits import DEPOSIT, Deposit, DepositState
from farebox.payments.rail import Sighting
from farebox.rails.bitcoin.chain import Block, Coin, View
from farebox.rails.bitcoin.config import BitcoinConfig
from farebox.rails.bitcoin.keys import WalletKeys
from farebox.rails.bitcoin.records import ADDRESS, ARRIVAL, Arrival, Young

#: No chain has been known to take back so many blocks; until then an arrival stays young.
_SAFE_DEPTH = 100
#: A branch that has more work has hardly ever fewer blocks, and never fewer by so many.
_SHORTER = 10
_PAGE = 100
_REMEMBERED_MAX = 200_000


@dataclass(frozen=True, slots=True)
class _Known:
    arrival: Arrival
    version: int


class Arrivals:
    """Tells what the books do not know yet."""

    def __init__(self, config: BitcoinConfig, keys: WalletKeys, ledger: Ledger) -> None:
        self._config = config
        self._keys = keys
        self._ledger = ledger
        #: Outpoints that need no look any more: deep and credited, or nobody's.
        self._over: set[str] = set()

    async def news(self, view: View, *, address: str = "") -> AsyncGenerator[Sighting, None]:
        """What changed, of all or of one address. Told again until the books have it."""
        present = set()
        for coin in view.coins:
            if coin.is_change:
                continue
            present.add(coin.outpoint)
            if coin.outpoint in self._over or address not in ("", self._keys.address(coin.index)):
                continue
            told = await self._of_coin(coin, view)
            if told is not None:
                yield told
        async for outpoint, known in self._young():
            if outpoint not in present and address in ("", known.arrival.address):
                gone = await self._gone(outpoint, known, view)
                if gone is not None:
                    yield gone

    async def _of_coin(self, coin: Coin, view: View) -> Sighting | None:
        known = await self._known(coin)
        if known is None:
            return None  # an address that was given to nobody: the operator's own
        booked = await self._booked(coin.outpoint)
        state = None if booked is None else booked.state
        depth = view.confirmations(coin.block)
        if state is DepositState.CREDITED and not depth and is_behind(view, known.arrival):
            return None
        is_over = depth >= _SAFE_DEPTH and state is DepositState.CREDITED
        young, height = Young.NO if is_over else Young.YES, coin.block.height if coin.block else 0
        await self._keep(coin.outpoint, known, young=young, gone_at=0, height=height)
        if is_over and len(self._over) < _REMEMBERED_MAX:
            self._over.add(coin.outpoint)
        told = judged(state, depth, self._config.confirmations(coin.amount_sat))
        if told is None:
            return None
        seen_in = where(booked, coin.block, told)
        at = coin.block.time_s * NS_PER_S if coin.block else 0
        return _sighting(coin.outpoint, known.arrival, told, seen_in, at)

    async def _gone(self, outpoint: str, known: _Known, view: View) -> Sighting | None:
        if is_behind(view, known.arrival):
            return None
        booked = await self._booked(outpoint)
        if booked is not None and booked.state is not DepositState.REVERSED:
            return _sighting(outpoint, known.arrival, DepositState.REVERSED, booked.seen_in, 0)
        # Somebody who looked a moment earlier may yet have it credited: it is kept an eye on.
        gone_at = known.arrival.gone_at or view.tip.height
        young = Young.NO if view.tip.height - gone_at >= _SAFE_DEPTH else Young.YES
        await self._keep(outpoint, known, young=young, gone_at=gone_at)
        return None

    async def _known(self, coin: Coin) -> _Known | None:
        row = await self._ledger.store.get(ARRIVAL, coin.outpoint)
        if row is not None:
            return _Known(row.value, row.version)
        address = self._keys.address(coin.index)
        if await self._ledger.store.get(ADDRESS, address) is None:
            return None
        return _Known(Arrival(address, coin.amount_sat), ABSENT)

    async def _booked(self, outpoint: str) -> Deposit | None:
        row = await self._ledger.store.get(DEPOSIT, f"bitcoin:{outpoint}")
        return None if row is None else row.value

    async def _keep(
        self, outpoint: str, known: _Known, *, young: Young, gone_at: int, height: int = 0
    ) -> None:
        height = height or known.arrival.height
        fresh = msgspec.structs.replace(known.arrival, young=young, gone_at=gone_at, height=height)
        if fresh == known.arrival and known.version != ABSENT:
            return
        put = Put(ARRIVAL, outpoint, fresh, known.version)
        unit = Unit(derived_id("arrival", outpoint, str(known.version)), puts=(put,))
        await self._ledger.store.commit(unit)  # refused: another was quicker, and will look again

    async def _young(self) -> AsyncGenerator[tuple[str, _Known], None]:
        after = ""
        while page := await self._ledger.store.find(
            ARRIVAL, {"young": Young.YES}, after=after, limit=_PAGE
        ):
            after = page[-1][0]
            for outpoint, row in page:
                yield outpoint, _Known(row.value, row.version)


def is_behind(view: View, arrival: Arrival) -> bool:
    """Whether the source is so far from the block that an arrival was in that it says nothing of
    it: a node that builds its index anew, or was put back. What leaves the chain leaves it shorter
    by less, if at all."""
    return view.tip.height + _SHORTER < arrival.height


def judged(booked: DepositState | None, depth: int, needed: int) -> DepositState | None:
    """What is to be told of an output that is there; None: nothing new.

    `booked` is how its deposit stands, `depth` its confirmations. A credited one that lost some of
    its confirmations stays credited while it is in a block at all; one that was taken back counts
    only in a block.
    """
    if booked is DepositState.CREDITED:
        return None if depth else DepositState.REVERSED
    if depth >= max(1, needed):
        return DepositState.CONFIRMED
    is_new = booked is None or (booked is DepositState.REVERSED and depth > 0)
    return DepositState.DETECTED if is_new else None


def where(booked: Deposit | None, block: Block | None, told: DepositState) -> str:
    """Where a sighting of `told` was seen: its block, "" for the pool.

    What is taken back was where the books say. A block that the chain left and came back to is
    another place each time, or what is in it would never count again.
    """
    if booked is not None and told is DepositState.REVERSED:
        return booked.seen_in
    if block is None:
        return ""
    has_left = booked is not None and block.hash in booked.gone_from
    return f"{block.hash}~{booked.turn + 1}" if booked and has_left else block.hash


def _sighting(
    outpoint: str, arrival: Arrival, state: DepositState, seen_in: str, at: int
) -> Sighting:
    txid, _, index = outpoint.partition(":")
    return Sighting(
        reference=arrival.address,
        external=txid,
        amount=arrival.amount_sat * MSAT_PER_SAT,
        state=state,
        index=int(index),
        at=at,
        seen_in=seen_in,
    )
