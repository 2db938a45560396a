"""Conversions of what is held: at the rate of now, once, and never more than is there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest

from farebox.clock import ManualClock
from farebox.ledger.model import Applied, Kind, Open, Transfer, Unit
from farebox.ledger.service import Ledger
from farebox.payments import Refusal
from farebox.payments.conversions import CONVERSION, Conversion, Conversions
from farebox.payments.exchange import Exchange
from farebox.stores.sqlite import SqliteStore

ALICE, HELD = "customer:alice", "customer:alice/USDC"


@dataclass
class Market:
    """A rate that a test sets; None is none."""

    rate: Fraction | None = Fraction(10_003, 10)

    def msat_per_unit(self, asset: str) -> Fraction | None:
        return self.rate if asset == "USDC" else None


@dataclass
class Desk:
    ledger: Ledger
    market: Market
    conversions: Conversions

    async def owed(self, account: str) -> int:
        found = await self.ledger.store.account(account)
        return 0 if found is None else found.credits_posted - found.debits_posted


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    clock = ManualClock()
    store = SqliteStore(tmp_path / "book.db", [CONVERSION], clock=clock)
    ledger, market = Ledger(store, clock), Market()
    steps = (
        Open("custody:play:USDC", "USDC", Kind.CUSTODY),
        Open(HELD, "USDC", Kind.CUSTOMER),
        Transfer("custody:play:USDC", HELD, 1_000, "deposit"),
    )
    assert isinstance(await store.commit(Unit("fund", steps)), Applied)
    exchange = Exchange(market, 20_000, frozenset({"USDC"}))
    yield Desk(ledger, market, Conversions(ledger, exchange))
    await store.close()


async def test_what_is_held_becomes_bitcoin_at_the_rate_less_the_spread(desk: Desk) -> None:
    made = await desk.conversions.convert(ALICE, "USDC", 400, "op-1")
    assert isinstance(made, Conversion)
    assert made.credited_msat == 392_117  # 400 × 1000.3 less two per cent
    assert await desk.owed(HELD) == await desk.owed(HELD) == 600
    assert await desk.owed(ALICE) == 392_117
    assert await desk.owed("revenue") + await desk.owed("revenue:rounding") == 8_003
    assert await desk.owed("exchange:USDC") == 400
    assert await desk.owed("exchange:BTC") == -400_120


async def test_the_same_conversion_again_tells_what_it_told_first_at_whatever_rate(
    desk: Desk,
) -> None:
    first = await desk.conversions.convert(ALICE, "USDC", 400, "op-1")
    desk.market.rate = Fraction(5)
    assert await desk.conversions.convert(ALICE, "USDC", 400, "op-1") == first
    desk.market.rate = None
    assert await desk.conversions.convert(ALICE, "USDC", 400, "op-1") == first
    assert await desk.owed(HELD) == 600


async def test_no_amount_is_all_that_is_held(desk: Desk) -> None:
    made = await desk.conversions.convert(ALICE, "USDC", None, "op-1")
    assert isinstance(made, Conversion)
    assert (made.amount, await desk.owed(HELD)) == (1_000, 0)


async def test_a_quote_moves_nothing_and_says_what_a_conversion_brings(desk: Desk) -> None:
    quote = await desk.conversions.quote(ALICE, "USDC", 400)
    assert isinstance(quote, Conversion)
    assert quote.credited_msat == 392_117
    assert (await desk.owed(HELD), await desk.owed(ALICE)) == (1_000, 0)


@pytest.mark.parametrize(
    ("asset", "amount", "code"),
    [
        ("USDC", 1_001, "insufficient_balance"),
        ("DAI", 1, "asset_not_held"),
        ("BTC", 1, "asset_not_held"),
    ],
)
async def test_what_cannot_be_converted_is_refused_and_stays(
    desk: Desk, asset: str, amount: int, code: str
) -> None:
    refused = await desk.conversions.convert(ALICE, asset, amount, "op-1")
    assert isinstance(refused, Refusal)
    assert refused.code == code
    assert await desk.owed(HELD) == 1_000


async def test_without_a_rate_nothing_is_guessed(desk: Desk) -> None:
    desk.market.rate = None
    refused = await desk.conversions.convert(ALICE, "USDC", 1, "op-1")
    assert isinstance(refused, Refusal)
    assert refused.code == "rate_unavailable"


async def test_dust_worth_less_than_a_millisatoshi_is_not_taken(desk: Desk) -> None:
    desk.market.rate = Fraction(1, 10)
    refused = await desk.conversions.convert(ALICE, "USDC", 5, "op-1")
    assert isinstance(refused, Refusal)
    assert refused.code == "amount_too_small"
