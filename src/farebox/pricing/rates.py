"""What a currency is worth in millisatoshi: a port, a fixed rate, and the median of several.

Fail closed: a rate that is too old, that too few sources stand behind, or that they disagree on,
is no rate. A `Rate` says until when it holds, so whoever keeps one can judge it without asking.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Final, Protocol

import msgspec

from farebox.clock import NS_PER_S, Clock
from farebox.errors import InvalidSettings, RailError, RailUnavailable
from farebox.money import MSAT_PER_BTC
from farebox.pricing.model import Currency

_RATE_MAX: Final = Fraction(10**30)


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """`msat_per_unit` millisatoshi are worth one of `currency`; exact, so not a whole number.

    A currency is what prices are written in, or an asset that some rail brings, by its code.

    as_of_ns: when the oldest price in it was true. valid_until_ns: it must not be used later.
    """

    currency: str
    msat_per_unit: Fraction
    as_of_ns: int
    valid_until_ns: int
    sources: tuple[str, ...]

    def holds(self, now_ns: int) -> bool:
        """Whether it may be used now. A rate from the future is refused: some clock is wrong."""
        return self.as_of_ns - _CLOCK_SLACK_NS <= now_ns < self.valid_until_ns


_CLOCK_SLACK_NS: Final = 5 * NS_PER_S


class StaleReason(enum.StrEnum):
    """Why there is no rate."""

    UNKNOWN_CURRENCY = "no source for this currency"
    TOO_FEW_SOURCES = "too few sources gave a recent price"
    SOURCES_DISAGREE = "the sources disagree"
    EXPIRED = "the last rate is too old"


class RateStale(msgspec.Struct, frozen=True):
    """There is no rate that may be used. Nothing can be quoted in this currency for now."""

    currency: str
    reason: StaleReason


class RateFeed(Protocol):
    """Where rates come from."""

    async def rate(self, currency: str) -> Rate | RateStale:
        """The rate now. Never raises for a source that fails."""
        ...


class Observation(msgspec.Struct, frozen=True):
    """What one source says: millisatoshi per one of the currency, and when that was so."""

    msat_per_unit: Fraction
    as_of_ns: int


class RateSource(Protocol):
    """One place where a price can be read."""

    @property
    def name(self) -> str:
        """Shown in receipts and logs; carries no secret."""
        ...

    async def observe(self) -> Observation:
        """Read the price. Bounded in time. Raises RailError where there is none to be had."""
        ...


class SetPrice:
    """A price that the operator has set, read like one that is found elsewhere."""

    name = "settings"

    def __init__(self, worth: Fraction, clock: Clock) -> None:
        self._worth = worth
        self._clock = clock

    async def observe(self) -> Observation:
        """The price that was set, as of now."""
        return Observation(self._worth, self._clock.now_ns())


class InDollars:
    """A source whose prices are in dollars. They are as old as the older of the two rates."""

    def __init__(self, source: RateSource, dollars: RateFeed) -> None:
        self._source = source
        self._dollars = dollars
        self.name = source.name

    async def observe(self) -> Observation:
        """Read the price. Raises RailError where there is none, or none of the dollar."""
        seen = await self._source.observe()
        dollar = await self._dollars.rate(Currency.USD)
        if isinstance(dollar, RateStale):
            raise RailUnavailable(f"no rate of the dollar: {dollar.reason.value}")
        worth = seen.msat_per_unit * dollar.msat_per_unit
        return Observation(worth, min(seen.as_of_ns, dollar.as_of_ns))


def msat_per_unit(units_per_btc: str) -> Fraction:
    """The price of one bitcoin, as decimal text, turned round into msat per unit of currency.

    Raises InvalidSettings where it is no price.
    """
    try:
        price = Fraction(units_per_btc) if len(units_per_btc) <= 40 else Fraction(0)
    except (ValueError, ZeroDivisionError):
        price = Fraction(0)
    if not 0 < price < _RATE_MAX or "e" in units_per_btc.lower():
        raise InvalidSettings("rates", units_per_btc, 'a price of one bitcoin such as "97000.50"')
    return MSAT_PER_BTC / price


class StaticFeed:
    """Rates that the operator has set. They are as of now, and hold for an hour at a time."""

    _VALID_NS: Final = 3600 * NS_PER_S

    def __init__(self, rates: Mapping[str, Fraction], clock: Clock) -> None:
        """`rates`: millisatoshi per one of each currency."""
        self._rates = dict(rates)
        self._clock = clock

    async def rate(self, currency: str) -> Rate | RateStale:
        """The rate that was set."""
        worth = self._rates.get(currency)
        if worth is None:
            return RateStale(currency, StaleReason.UNKNOWN_CURRENCY)
        now_ns = self._clock.now_ns()
        return Rate(
            currency=currency,
            msat_per_unit=worth,
            as_of_ns=now_ns,
            valid_until_ns=now_ns + self._VALID_NS,
            sources=("settings",),
        )


class MedianFeed:
    """The median of several sources of one currency, read again at most every `refresh_s`.

    One source that lies cannot move the median far, and one further than `max_spread` from it is
    left out. A source that fails keeps its last price until that is older than `max_age_s`.
    """

    def __init__(
        self,
        currency: str,
        sources: Sequence[RateSource],
        clock: Clock,
        *,
        max_age_s: int = 300,
        refresh_s: int = 60,
        min_sources: int = 2,
        max_spread: Fraction = Fraction(2, 100),
    ) -> None:
        self._currency = currency
        self._sources = tuple(sources)
        self._clock = clock
        self._max_age_ns = max_age_s * NS_PER_S
        self._refresh_ns = refresh_s * NS_PER_S
        self._min_sources = min_sources
        self._max_spread = max_spread
        self._observed: dict[str, Observation] = {}
        self._refreshed_ns: int | None = None
        self._refreshing = asyncio.Lock()

    async def rate(self, currency: str) -> Rate | RateStale:
        """The rate now; reads the sources first when it is time to."""
        if currency != self._currency:
            return RateStale(currency, StaleReason.UNKNOWN_CURRENCY)
        if self._is_due():
            async with self._refreshing:
                if self._is_due():
                    await self._refresh()
        now_ns = self._clock.now_ns()
        return median_rate(
            currency,
            self._observed,
            now_ns,
            max_age_ns=self._max_age_ns,
            min_sources=self._min_sources,
            max_spread=self._max_spread,
        )

    def _is_due(self) -> bool:
        last_ns = self._refreshed_ns
        # A clock that was set back must not put the next reading off.
        return last_ns is None or abs(self._clock.now_ns() - last_ns) >= self._refresh_ns

    async def _refresh(self) -> None:
        answers = await asyncio.gather(*(self._observe(source) for source in self._sources))
        for source, observation in zip(self._sources, answers, strict=True):
            if observation is not None:
                self._observed[source.name] = observation
        self._refreshed_ns = self._clock.now_ns()

    async def _observe(self, source: RateSource) -> Observation | None:
        try:
            observation = await source.observe()
        except RailError:
            return None
        return observation if 0 < observation.msat_per_unit < _RATE_MAX else None


def median_rate(
    currency: str,
    observed: Mapping[str, Observation],
    now_ns: int,
    *,
    max_age_ns: int,
    min_sources: int,
    max_spread: Fraction,
) -> Rate | RateStale:
    """Judge what the sources said. An even number of them gives the mean of the middle two."""
    recent = {
        name: seen
        for name, seen in observed.items()
        if -_CLOCK_SLACK_NS <= now_ns - seen.as_of_ns < max_age_ns
    }
    if not recent or len(recent) < min_sources:
        return RateStale(currency, StaleReason.TOO_FEW_SOURCES)
    middle = _median([seen.msat_per_unit for seen in recent.values()])
    agreeing = {
        name: seen
        for name, seen in recent.items()
        if abs(seen.msat_per_unit - middle) <= max_spread * middle
    }
    if not agreeing or len(agreeing) < min_sources:
        return RateStale(currency, StaleReason.SOURCES_DISAGREE)
    as_of_ns = min(seen.as_of_ns for seen in agreeing.values())
    return Rate(
        currency=currency,
        msat_per_unit=_median([seen.msat_per_unit for seen in agreeing.values()]),
        as_of_ns=as_of_ns,
        valid_until_ns=as_of_ns + max_age_ns,
        sources=tuple(sorted(agreeing)),
    )


def _median(values: Sequence[Fraction]) -> Fraction:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
