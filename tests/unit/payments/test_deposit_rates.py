"""The rate of what arrives: as promised for what was asked for, and of the moment for the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from farebox.clock import ManualClock
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger
from farebox.money import Asset
from farebox.payments import PaymentMethods
from farebox.payments.deposits import (
    DEPOSIT,
    DEPOSIT_REQUEST,
    DepositRequest,
    Deposits,
    DepositState,
)
from farebox.payments.exchange import Exchange
from farebox.payments.maturity import MATURING
from farebox.payments.rail import AssetTerms, Limits, Sighting, Terms
from farebox.payments.requests import Asked, DepositRequests
from farebox.stores.sqlite import SqliteStore
from tests.unit.payments.test_deposit_requests import EXPIRY_S, OWNER, Tray

ASKED = 1_000


class Dollars(Tray):
    """A rail that brings units of another asset."""

    def terms(self) -> Terms:
        return Terms((AssetTerms(Asset("USDC", 6), Limits(1, 10**9), None),), "none", 1)


class Market:
    """What a unit is worth now, in msat; None: nobody says."""

    price: Fraction | None = Fraction(10)

    def msat_per_unit(self, asset: str) -> Fraction | None:
        return self.price


@dataclass
class Counter:
    """A book where dollars arrive."""

    ledger: Ledger
    clock: ManualClock
    market: Market
    requests: DepositRequests

    async def asked(self, amount: int | None) -> DepositRequest:
        made = await self.requests.ask("tray", "USDC", amount, OWNER, opens_account=False)
        assert isinstance(made, Asked), made
        return made.request

    async def arrives(self, request: DepositRequest, amount: int, index: int = 0) -> int:
        """What the account has more, once it has been paid."""
        before = await self._available()
        seen = Sighting(
            request.reference, "tx", amount, DepositState.CONFIRMED, index, asset="USDC"
        )
        await self.requests.seen("tray", seen)
        return await self._available() - before

    async def _available(self) -> int:
        found = await self.ledger.store.account(OWNER)
        return found.available if found else 0


@pytest.fixture
async def counter(tmp_path: Path) -> AsyncIterator[Counter]:
    clock, market = ManualClock(), Market()
    records: list[RecordType[Any]] = [DEPOSIT, DEPOSIT_REQUEST, MATURING]
    store = SqliteStore(tmp_path / "book.db", records, clock=clock)
    ledger, methods = Ledger(store, clock), PaymentMethods()
    methods.register(Dollars(clock))
    requests = DepositRequests(ledger, Deposits(ledger), methods, Exchange(market))
    yield Counter(ledger, clock, market, requests)
    await store.close()


@pytest.mark.parametrize("price", [5, 20])
async def test_what_was_asked_for_has_the_promised_rate_and_no_more(
    counter: Counter, price: int
) -> None:
    request = await counter.asked(ASKED)
    counter.market.price = Fraction(price)
    assert await counter.arrives(request, 400) == 400 * 10
    assert await counter.arrives(request, 700, 1) == 600 * 10 + 100 * price
    assert await counter.arrives(request, 50, 2) == 50 * price


async def test_nothing_is_promised_for_an_amount_that_the_payer_chooses(counter: Counter) -> None:
    request = await counter.asked(None)
    assert request.quoted is None
    counter.market.price = Fraction(7)
    assert await counter.arrives(request, 300) == 300 * 7


async def test_the_promise_lapses_with_the_deposit(counter: Counter) -> None:
    request = await counter.asked(ASKED)
    counter.market.price = Fraction(7)
    counter.clock.advance(EXPIRY_S + 1)
    assert await counter.arrives(request, ASKED) == ASKED * 7


async def test_what_is_more_than_asked_for_waits_for_a_rate(counter: Counter) -> None:
    request = await counter.asked(ASKED)
    counter.market.price = None
    assert await counter.arrives(request, 2 * ASKED) == 0
    counter.market.price = Fraction(20)
    assert await counter.arrives(request, 2 * ASKED) == ASKED * 10 + ASKED * 20
