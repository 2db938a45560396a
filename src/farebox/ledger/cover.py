"""Whether what is held covers what is owed: the one rule that looks at a whole book at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

import msgspec

from farebox.ledger.model import Account, Kind
from farebox.ledger.replay import Balance
from farebox.ledger.store import Store

#: Whom what we hold belongs to. What was earned, and the operator's capital, bear losses.
_OWED = frozenset({Kind.CUSTOMER, Kind.IMMATURE, Kind.ESCROW, Kind.PAYABLE})


class Cover(msgspec.Struct, frozen=True):
    """For one asset: what custody holds, and what customers and providers are owed.

    `exchanged` is what was given for other assets that we hold instead, less what was taken.
    """

    custody: int
    owed: int
    exchanged: int = 0

    @property
    def surplus(self) -> int:
        """What is there beyond that; below zero it lacks."""
        return self.custody + self.exchanged - self.owed


class Covers:
    """Adds accounts up, in any order and in as many pages as there are."""

    def __init__(self) -> None:
        self._custody: Counter[str] = Counter()
        self._owed: Counter[str] = Counter()
        self._exchanged: Counter[str] = Counter()

    def add(self, accounts: Iterable[Account | Balance]) -> None:
        """Count some accounts."""
        for one in accounts:
            held = one.debits_posted - one.credits_posted
            if one.kind is Kind.CUSTODY:
                self._custody[one.asset] += held
            elif one.kind in _OWED:
                self._owed[one.asset] -= held
            elif one.kind is Kind.EXCHANGE:
                self._exchanged[one.asset] += held

    def told(self) -> dict[str, Cover]:
        """Of each asset that anything is held, owed or exchanged in."""
        assets = sorted(self._custody.keys() | self._owed.keys() | self._exchanged.keys())
        return {
            one: Cover(self._custody[one], self._owed[one], self._exchanged[one]) for one in assets
        }


async def covers_of(store: Store) -> dict[str, Cover]:
    """Of a whole book, as it stands now: every account is read."""
    covers, after = Covers(), ""
    while accounts := await store.accounts(after):
        covers.add(accounts)
        after = accounts[-1].id
        await asyncio.sleep(0)  # a long book must not keep a server's callers waiting
    return covers.told()
