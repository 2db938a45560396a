"""Rates of assets from the settings: crossed with the dollar, as old as the older, or none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from fractions import Fraction

import aiohttp
import pytest

from farebox.bootstrap.rates import rate_feeds
from farebox.clock import NS_PER_S, ManualClock
from farebox.errors import InvalidSettings
from farebox.money import Asset
from farebox.pricing.rates import InDollars, MedianFeed, Rate, RateStale, SetPrice, StaticFeed
from farebox.pricing.worths import AssetRates
from farebox.settings import Settings, load_settings


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def settings(**changed: object) -> Settings:
    return load_settings(None, {}, {key.replace("__", "."): one for key, one in changed.items()})


async def rates_of(found: Settings, session: aiohttp.ClientSession, **scales: int) -> AssetRates:
    clock = ManualClock()
    rates = AssetRates(rate_feeds(found, session, clock), clock)
    for code, scale in scales.items():
        assert rates.count(Asset(code, scale))
    await rates.refresh()
    return rates


async def test_a_price_in_dollars_is_crossed_with_the_rate_of_the_dollar(
    session: aiohttp.ClientSession,
) -> None:
    tables = [
        {"asset": "ETH", "price": "2500.5"},
        {"asset": "LBTC", "price": "0.999", "priced_in": "BTC"},
    ]
    rates = await rates_of(
        settings(rates__btc_usd="100000", rate=tables), session, ETH=18, LBTC=8, USD=2
    )
    assert rates.msat_per_unit("ETH") == Fraction(25_005 * 10**5, 10**18)
    assert rates.msat_per_unit("LBTC") == 999
    assert rates.msat_per_unit("USD") == 10_000  # a cent
    assert rates.msat_per_unit("EUR") is None


async def test_an_asset_that_no_rail_brings_has_no_unit_and_so_no_worth(
    session: aiohttp.ClientSession,
) -> None:
    rates = await rates_of(
        settings(rates__btc_usd="100000", rate=[{"asset": "ETH", "price": "2500"}]), session
    )
    assert rates.msat_per_unit("ETH") is None


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ({"asset": "ETH", "price": "2500"}, "a price in dollars"),
        ({"asset": "ETH"}, "neither a price nor sources"),
    ],
)
def test_a_rate_that_cannot_come_about_stops_the_start(table: dict[str, str], found: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        rate_feeds(settings(rate=[table]), None, ManualClock())  # type: ignore[arg-type]
    assert found in str(caught.value)


async def test_a_crossed_rate_ends_with_the_older_of_the_two() -> None:
    clock = ManualClock()
    dollars = MedianFeed("USD", [SetPrice(Fraction(10**6), clock)], clock, min_sources=1)
    await dollars.rate("USD")
    clock.advance(40)
    crossed = InDollars(SetPrice(Fraction(2), clock), dollars)
    ether = MedianFeed("ETH", [crossed], clock, min_sources=1)
    rate = await ether.rate("ETH")
    assert isinstance(rate, Rate)
    assert rate.msat_per_unit == 2 * 10**6
    assert rate.as_of_ns == clock.now_ns() - 40 * NS_PER_S


async def test_without_a_dollar_there_is_no_crossed_rate() -> None:
    clock = ManualClock()
    crossed = InDollars(SetPrice(Fraction(2), clock), StaticFeed({}, clock))
    ether = MedianFeed("ETH", [crossed], clock, min_sources=1)
    assert isinstance(await ether.rate("ETH"), RateStale)


async def test_a_rate_in_memory_is_none_once_it_is_too_old() -> None:
    clock = ManualClock()
    rates = AssetRates({"EUR": StaticFeed({"EUR": Fraction(7)}, clock)}, clock)
    rates.count(Asset("EUR", 2))
    await rates.refresh()
    assert rates.msat_per_unit("EUR") == Fraction(7, 100)
    clock.advance(3_601)
    assert rates.msat_per_unit("EUR") is None


def test_an_asset_that_two_rails_count_otherwise_is_noticed() -> None:
    rates = AssetRates({}, ManualClock())
    assert rates.count(Asset("USDC", 6))
    assert rates.count(Asset("USDC", 6))
    assert not rates.count(Asset("USDC", 18))
