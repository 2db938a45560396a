"""What assets are worth, from memory: conversions are decided without asking anybody."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from fractions import Fraction

from farebox.clock import Clock
from farebox.money import Asset
from farebox.pricing.rates import Rate, RateFeed


class AssetRates:
    """The last rate of each asset that was read; one that holds no more is none."""

    def __init__(self, feeds: Mapping[str, RateFeed], clock: Clock) -> None:
        """`feeds` by the code of the asset."""
        self._feeds = feeds
        self._clock = clock
        self._scales: dict[str, int] = {}
        self._rates: dict[str, Rate] = {}

    async def refresh(self) -> None:
        """Read all rates. One that cannot be had replaces a good one: nothing is guessed."""
        read = await asyncio.gather(*(feed.rate(code) for code, feed in self._feeds.items()))
        self._rates = {rate.currency: rate for rate in read if isinstance(rate, Rate)}

    def count(self, asset: Asset) -> bool:
        """Know how an asset is counted; False where it is counted otherwise already."""
        return self._scales.setdefault(asset.code, asset.scale) == asset.scale

    def rate(self, asset: str) -> Rate | None:
        """The rate of one whole unit, if there is one that holds now."""
        rate = self._rates.get(asset)
        return rate if rate is not None and rate.holds(self._clock.now_ns()) else None

    def msat_per_unit(self, asset: str) -> Fraction | None:
        """What one *smallest* unit of an asset is worth in msat."""
        rate, scale = self.rate(asset), self._scales.get(asset)
        if rate is None or scale is None:
            return None
        return rate.msat_per_unit * Fraction(1, 10**scale)
