"""What stands in the book, as an operator watches it: money by place, what is open, how long.

Customers' accounts may be a million, so they are not read: the book balances, and what all other
accounts are short of is what customers are owed. `farebox verify` proves that premise.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from farebox.clock import NS_PER_S, running_s
from farebox.errors import StoreError
from farebox.identity import CUSTOMER_PREFIX
from farebox.ledger.model import Account, Kind
from farebox.ledger.store import PAGE_MAX, Store
from farebox.money import BTC
from farebox.operating.vitals import Parts
from farebox.payments.deposits import DEPOSIT, DepositState
from farebox.payments.model import Operation
from farebox.payments.service import PAYOUT, REFUND
from farebox.paywall.model import REQUEST, RequestState

#: Whoever asks more often is told the same again.
_AGE_MAX_S = 5
_PAGES_MAX = 100
#: Small, for the first one mostly reads customers for nothing; those after it grow.
_PAGE = 100
#: One account for each channel: they are told as one place.
_CHANNEL = "custody:channel:"
_CHANNELS = "custody:channels"
_BEHIND_CUSTOMERS = CUSTOMER_PREFIX[:-1] + chr(ord(CUSTOMER_PREFIX[-1]) + 1)
_AGES_S = (0, 60, 3_600, 86_400)
_DEBIT_NORMAL = frozenset({Kind.CUSTODY, Kind.RECEIVABLE, Kind.EXPENSE})


@dataclass(frozen=True, slots=True)
class Census:
    """The book at one moment. Amounts are in the asset's smallest unit, msat for bitcoin."""

    #: What we hold, each place with its ceiling.
    custody: Sequence[Account]
    #: Asset → what is owed to us: requests through channels that are not signed for, and deposits
    #: that were taken back after their money was spent.
    receivable: Counter[str]
    #: (asset, "customers" or the kind of account) → what is owed.
    owed: Counter[tuple[str, str]]
    #: Asset → what requests hold of customers' money.
    reserved: Counter[str]
    requests_open: int
    #: (kind, state) → how many unfinished operations.
    operations: Counter[tuple[str, str]]
    #: State → the age of its oldest.
    oldest_s: dict[str, int]
    #: Age in seconds → how many payments to customers are unfinished and at least so old.
    payouts: dict[int, int]
    #: (method, state) → how many deposits were seen and are not credited yet.
    deposits: Counter[tuple[str, str]]


class CensusTaker:
    """Takes a census when asked, at most every five seconds."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._taking = asyncio.Lock()
        self._last: Census | None = None
        self._taken_at_s: float = 0

    async def take(self) -> Census:
        """The book as of now, or of five seconds ago. Raises StoreError."""
        async with self._taking:
            if self._last is None or running_s() - self._taken_at_s > _AGE_MAX_S:
                self._last = await self._take()
                self._taken_at_s = running_s()
            return self._last

    async def _take(self) -> Census:
        store = self._parts.ledger.store
        accounts = await _without_customers(store)
        owed: Counter[tuple[str, str]] = Counter()
        reserved: Counter[str] = Counter()
        receivable: Counter[str] = Counter({BTC.code: 0})
        for one in accounts:
            owed[one.asset, "customers"] += one.held
            if one.kind not in _DEBIT_NORMAL:
                owed[one.asset, one.kind.value] -= one.held
            if one.kind is Kind.REVENUE:
                reserved[one.asset] += one.credits_pending
            if one.kind is Kind.RECEIVABLE:
                receivable[one.asset] += one.held
        unfinished = await self._parts.operations.unfinished()
        return Census(
            custody=_places([one for one in accounts if one.kind is Kind.CUSTODY]),
            receivable=receivable,
            owed=owed,
            reserved=reserved,
            requests_open=await _requests_open(store),
            operations=Counter((one.kind, one.state.value) for one in unfinished),
            oldest_s=self._oldest(unfinished),
            payouts=self._payouts(unfinished),
            deposits=await _deposits_open(store),
        )

    def _oldest(self, unfinished: Sequence[Operation]) -> dict[str, int]:
        oldest: dict[str, int] = {}
        for one in unfinished:
            oldest[one.state.value] = max(self._age_s(one), oldest.get(one.state.value, 0))
        return oldest

    def _payouts(self, unfinished: Sequence[Operation]) -> dict[int, int]:
        ages_s = [self._age_s(one) for one in unfinished if one.kind in (REFUND, PAYOUT)]
        return {least_s: sum(age_s >= least_s for age_s in ages_s) for least_s in _AGES_S}

    def _age_s(self, operation: Operation) -> int:
        return max(0, self._parts.clock.now_ns() - operation.created_at) // NS_PER_S


def _places(custody: Sequence[Account]) -> list[Account]:
    """Custody accounts, those of all channels of an asset as one without a ceiling."""
    places = [one for one in custody if not one.id.startswith(_CHANNEL)]
    for asset in sorted({one.asset for one in custody if one.id.startswith(_CHANNEL)}):
        of = [one for one in custody if one.id.startswith(_CHANNEL) and one.asset == asset]
        places.append(
            msgspec.structs.replace(
                of[0],
                id=_CHANNELS,
                ceiling=None,
                debits_posted=sum(one.debits_posted for one in of),
                credits_posted=sum(one.credits_posted for one in of),
            )
        )
    return places


async def _without_customers(store: Store) -> list[Account]:
    """Every account but customers'. Ids are in order, so that theirs are stepped over.

    Raises StoreError for a book in which even those are too many.
    """
    found: list[Account] = []
    after, size = "", _PAGE
    for _ in range(_PAGES_MAX):
        page = await store.accounts(after, size)
        found += [one for one in page if not one.id.startswith(CUSTOMER_PREFIX)]
        if len(page) < size:
            return found
        size = min(2 * size, PAGE_MAX)
        after = page[-1].id
        if after.startswith(CUSTOMER_PREFIX):
            after = _BEHIND_CUSTOMERS
    raise StoreError(f"more than {len(found)} accounts that are not customers'")


async def _deposits_open(store: Store) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for state in (DepositState.DETECTED, DepositState.CONFIRMED):
        rows = await store.find(DEPOSIT, {"state": state})
        found.update((row.value.source, state.value) for _, row in rows)
    return found


async def _requests_open(store: Store) -> int:
    where, count, after = {"state": RequestState.AUTHORISED}, 0, ""
    for _ in range(_PAGES_MAX):
        page = await store.find(REQUEST, where, after=after)
        count += len(page)
        if len(page) < PAGE_MAX:
            break
        after = page[-1][0]
    return count
