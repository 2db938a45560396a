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
from farebox.payments.deposits import DEPOSIT, DepositState
from farebox.payments.rail import Sighting
from farebox.rails.bitcoin.chain import Coin, View
from farebox.rails.bitcoin.config import BitcoinConfig
from farebox.rails.bitcoin.keys import WalletKeys
from farebox.rails.bitcoin.records import ADDRESS, ARRIVAL, Arrival, Young

#: No chain has been known to take back so many blocks; until then an arrival stays young.
_SAFE_DEPTH = 100
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
                gone = await self._gone(outpoint, known)
                if gone is not None:
                    yield gone

    async def _of_coin(self, coin: Coin, view: View) -> Sighting | None:
        known = await self._known(coin)
        if known is None:
            return None  # an address that was given to nobody: the operator's own
        arrival = known.arrival
        state = await self._booked(coin.outpoint, arrival)
        depth = view.confirmations(coin.block)
        if state is DepositState.REVERSED:  # it is back
            arrival = msgspec.structs.replace(
                arrival, times=arrival.times + 1, block="", young=Young.YES
            )
            known, state = await self._keep(coin.outpoint, known, arrival), None
        told = judged(state, depth, self._config.confirmations(coin.amount_sat))
        block = coin.block.hash if coin.block else ""
        is_over = depth >= _SAFE_DEPTH and state is DepositState.CREDITED
        young = Young.NO if is_over else Young.YES
        fresh = msgspec.structs.replace(known.arrival, block=block, young=young)
        if fresh != known.arrival or known.version == ABSENT:
            await self._keep(coin.outpoint, known, fresh)
        if is_over and len(self._over) < _REMEMBERED_MAX:
            self._over.add(coin.outpoint)
        if told is None:
            return None
        time_s = coin.block.time_s if coin.block else 0
        return _sighting(coin.outpoint, fresh, told, time_s * NS_PER_S)

    async def _gone(self, outpoint: str, known: _Known) -> Sighting | None:
        state = await self._booked(outpoint, known.arrival)
        if state in (None, DepositState.REVERSED):
            fresh = msgspec.structs.replace(known.arrival, block="", young=Young.NO)
            await self._keep(outpoint, known, fresh)
            return None
        return _sighting(outpoint, known.arrival, DepositState.REVERSED, 0)

    async def _known(self, coin: Coin) -> _Known | None:
        row = await self._ledger.store.get(ARRIVAL, coin.outpoint)
        if row is not None:
            return _Known(row.value, row.version)
        address = self._keys.address(coin.index)
        if await self._ledger.store.get(ADDRESS, address) is None:
            return None
        return _Known(Arrival(address, coin.amount_sat), ABSENT)

    async def _booked(self, outpoint: str, arrival: Arrival) -> DepositState | None:
        external, index = _name(outpoint, arrival)
        row = await self._ledger.store.get(DEPOSIT, f"bitcoin:{external}:{index}")
        return None if row is None else row.value.state

    async def _keep(self, outpoint: str, known: _Known, fresh: Arrival) -> _Known:
        put = Put(ARRIVAL, outpoint, fresh, known.version)
        unit = Unit(derived_id("arrival", outpoint, str(known.version)), puts=(put,))
        await self._ledger.store.commit(unit)
        row = await self._ledger.store.get(ARRIVAL, outpoint)
        assert row is not None, "it was just stored, here or by another"
        return _Known(row.value, row.version)

    async def _young(self) -> AsyncGenerator[tuple[str, _Known], None]:
        after = ""
        while page := await self._ledger.store.find(
            ARRIVAL, {"young": Young.YES}, after=after, limit=_PAGE
        ):
            after = page[-1][0]
            for outpoint, row in page:
                yield outpoint, _Known(row.value, row.version)


def judged(booked: DepositState | None, depth: int, needed: int) -> DepositState | None:
    """What is to be told of an output that is there; None: nothing new.

    `booked` is how its deposit stands, `depth` its confirmations. A credited one that lost some of
    its confirmations stays credited while it is in a block at all.
    """
    if booked is DepositState.CREDITED:
        return None if depth else DepositState.REVERSED
    if depth >= max(1, needed):
        return DepositState.CONFIRMED
    return DepositState.DETECTED if booked is None else None


def _name(outpoint: str, arrival: Arrival) -> tuple[str, int]:
    """What a deposit is called: its outpoint, and how often that was taken back before."""
    txid, _, index = outpoint.partition(":")
    return (f"{txid}~{arrival.times}" if arrival.times else txid), int(index)


def _sighting(outpoint: str, arrival: Arrival, state: DepositState, at: int) -> Sighting:
    external, index = _name(outpoint, arrival)
    amount_msat = arrival.amount_sat * MSAT_PER_SAT
    return Sighting(
        reference=arrival.address,
        external=external,
        amount=amount_msat,
        amount_msat=amount_msat,
        state=state,
        index=index,
        at=at,
    )
