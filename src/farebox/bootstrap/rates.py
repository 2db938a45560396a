"""Rates from the settings: of dollars for prices, and of every asset that some rail brings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

import aiohttp

from farebox.clock import Clock
from farebox.errors import InvalidSettings
from farebox.money import MSAT_PER_BTC
from farebox.payments.exchange import Exchange
from farebox.payments.method import AbstractPaymentMethod
from farebox.payments.rail import DepositMethod
from farebox.paywall.prices import Prices
from farebox.pricing.model import Currency
from farebox.pricing.rates import (
    InDollars,
    MedianFeed,
    RateFeed,
    RateSource,
    SetPrice,
    StaticFeed,
    msat_per_unit,
)
from farebox.pricing.worths import AssetRates
from farebox.rails.rates.http import HttpRateSource
from farebox.settings import AssetRateSettings, PricedIn, RatesSettings, Settings


def rate_feeds(
    settings: Settings, session: aiohttp.ClientSession, clock: Clock
) -> dict[str, RateFeed]:
    """Where each rate comes from, by the code of what it is the rate of."""
    feeds: dict[str, RateFeed] = {}
    found = settings.rates
    if found.btc_usd is not None:
        worth = msat_per_unit(found.btc_usd)
        feeds[Currency.USD.value] = StaticFeed({Currency.USD: worth}, clock)
    elif found.sources:
        sources = [HttpRateSource(source, session, clock) for source in found.sources]
        feeds[Currency.USD.value] = _median(Currency.USD, sources, clock, found, found.sources_min)
    for asset in settings.asset_rates:
        feeds[asset.asset] = _feed_of(asset, found, feeds, session, clock)
    return feeds


def _feed_of(
    asset: AssetRateSettings,
    terms: RatesSettings,
    known: dict[str, RateFeed],
    session: aiohttp.ClientSession,
    clock: Clock,
) -> RateFeed:
    key = f"rate.{asset.asset}"
    # A bitcoin's worth is known; a dollar's is found out with each reading.
    unit = MSAT_PER_BTC if asset.priced_in is PricedIn.BTC else 1
    sources: list[RateSource]
    if asset.price is not None:
        sources = [SetPrice(Fraction(asset.price) * unit, clock)]
    elif asset.sources:
        sources = [
            HttpRateSource(one, session, clock, worth=lambda price: price * unit)
            for one in asset.sources
        ]
    else:
        raise InvalidSettings(key, "neither a price nor sources", "one of them")
    if asset.priced_in is PricedIn.USD:
        dollars = known.get(Currency.USD.value)
        if dollars is None:
            allowed = 'rates.btc_usd or rates.sources first, or priced_in = "BTC"'
            raise InvalidSettings(key, "a price in dollars", allowed)
        sources = [InDollars(one, dollars) for one in sources]
    least = 1 if asset.price is not None else terms.sources_min
    return _median(asset.asset, sources, clock, terms, least)


def _median(
    code: str, sources: Sequence[RateSource], clock: Clock, terms: RatesSettings, least: int
) -> RateFeed:
    return MedianFeed(
        code,
        sources,
        clock,
        max_age_s=terms.age_max_s,
        refresh_s=terms.refresh_s,
        min_sources=least,
    )


def exchange_of(found: RatesSettings, rates: AssetRates) -> Exchange:
    """At what rates the operator converts, and what not."""
    return Exchange(rates, found.spread_ppm, frozenset(found.held))


def count_assets(rates: AssetRates, methods: Iterable[AbstractPaymentMethod]) -> None:
    """Tell the rates how the rails count. Raises InvalidSettings where two disagree."""
    for rail in (one for one in methods if isinstance(one, DepositMethod)):
        for one in rail.terms().assets:
            if not rates.count(one.asset):
                found = f"{one.asset.code} with {one.asset.scale} decimals"
                allowed = "another code for it: elsewhere it has others"
                raise InvalidSettings(rail.payment_type, found, allowed)


class RateRefresh:
    """Reads the rates again, for conversions and for prices in dollars."""

    def __init__(self, rates: AssetRates, prices: Prices) -> None:
        self._rates = rates
        self._prices = prices

    async def run(self) -> None:
        """Read them all once."""
        await self._rates.refresh()
        rate = self._rates.rate(Currency.USD)
        # A stale rate replaces a good one too: prices in USD are then refused, never guessed.
        self._prices.rates = {} if rate is None else {Currency.USD: rate}
