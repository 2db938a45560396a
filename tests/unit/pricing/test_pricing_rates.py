"""Exchange rates: the median of sources that agree, and nothing that is stale."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.clock import NS_PER_S, ManualClock
from farebox.errors import InvalidSettings, RailUnavailable
from farebox.pricing.model import Currency
from farebox.pricing.rates import (
    MedianFeed,
    Observation,
    Rate,
    RateStale,
    StaleReason,
    StaticFeed,
    median_rate,
    msat_per_unit,
)

USD = Currency.USD


class Source:
    """A source that says what it is told to, and counts how often it was asked."""

    def __init__(self, name: str, clock: ManualClock, worth: int | None) -> None:
        self.name = name
        self.worth = worth
        self.asked = 0
        self._clock = clock

    async def observe(self) -> Observation:
        self.asked += 1
        await asyncio.sleep(0)
        if self.worth is None:
            raise RailUnavailable("down")
        return Observation(Fraction(self.worth), self._clock.now_ns())


def feed(clock: ManualClock, *worths: int | None) -> tuple[MedianFeed, list[Source]]:
    sources = [Source(f"s{index}", clock, worth) for index, worth in enumerate(worths)]
    return MedianFeed(USD, sources, clock, max_age_s=300, refresh_s=60), sources


async def worth_of(subject: MedianFeed) -> Fraction | StaleReason:
    rate = await subject.rate(USD)
    return rate.msat_per_unit if isinstance(rate, Rate) else rate.reason


async def test_the_median_of_the_sources_is_the_rate() -> None:
    assert await worth_of(feed(ManualClock(), 1000, 1010, 1005)[0]) == 1005
    assert await worth_of(feed(ManualClock(), 1000, 1001)[0]) == Fraction(2001, 2)


async def test_one_source_that_lies_is_left_out() -> None:
    rate = await feed(ManualClock(), 1000, 10**9, 1002)[0].rate(USD)
    assert isinstance(rate, Rate)
    assert rate.msat_per_unit == 1001
    assert rate.sources == ("s0", "s2")


@pytest.mark.parametrize(
    ("worths", "reason"),
    [
        ([1000, None, None], StaleReason.TOO_FEW_SOURCES),
        ([None], StaleReason.TOO_FEW_SOURCES),
        ([1000, -5, 0], StaleReason.TOO_FEW_SOURCES),
        ([], StaleReason.TOO_FEW_SOURCES),
        ([1000, 2000, 4000], StaleReason.SOURCES_DISAGREE),
        ([1000, 2000], StaleReason.SOURCES_DISAGREE),
    ],
)
async def test_too_few_sources_or_a_quarrel_give_no_rate(
    worths: list[int | None], reason: StaleReason
) -> None:
    assert await worth_of(feed(ManualClock(), *worths)[0]) is reason


async def test_sources_are_read_again_only_when_it_is_time() -> None:
    clock = ManualClock()
    subject, sources = feed(clock, 1000, 1000)
    await asyncio.gather(*(subject.rate(USD) for _ in range(20)))
    assert sources[0].asked == 1
    clock.advance(59)
    await subject.rate(USD)
    assert sources[0].asked == 1
    clock.advance(1)
    await subject.rate(USD)
    assert sources[0].asked == 2


async def test_sources_that_go_down_keep_their_rate_until_it_is_stale() -> None:
    clock = ManualClock()
    subject, sources = feed(clock, 1000, 1000)
    await subject.rate(USD)
    for source in sources:
        source.worth = None
    clock.advance(299)
    assert await worth_of(subject) == 1000
    clock.advance(1)
    assert await worth_of(subject) is StaleReason.TOO_FEW_SOURCES


async def test_a_clock_that_steps_back_does_not_freeze_the_rate() -> None:
    clock = ManualClock()
    subject, sources = feed(clock, 1000, 1000)
    await subject.rate(USD)
    clock.advance(-3600)
    for source in sources:
        source.worth = None
    assert await worth_of(subject) is StaleReason.TOO_FEW_SOURCES
    assert sources[0].asked == 2


async def test_only_known_currencies_have_a_rate() -> None:
    clock = ManualClock()
    static = StaticFeed({USD: Fraction(5)}, clock)
    assert await static.rate(Currency.SAT) == RateStale(Currency.SAT, StaleReason.UNKNOWN_CURRENCY)
    assert isinstance(await feed(clock, 1, 1)[0].rate(Currency.SAT), RateStale)
    rate = await static.rate(USD)
    assert isinstance(rate, Rate)
    assert rate.msat_per_unit == 5
    assert rate.holds(clock.now_ns())
    assert not rate.holds(clock.now_ns() + 3600 * NS_PER_S)


def test_a_price_of_one_bitcoin_is_turned_round_exactly() -> None:
    assert msat_per_unit("97000.50") == Fraction(10**13, 9700050)


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "1/0", "1e5", "9" * 50, "nan"])
def test_what_is_no_price_of_a_bitcoin_is_refused(text: str) -> None:
    with pytest.raises(InvalidSettings):
        msat_per_unit(text)


@given(st.lists(st.integers(990, 1010), min_size=2, max_size=7), st.integers(1, 10**12))
def test_fewer_than_half_liars_cannot_move_the_rate_out_of_the_honest_range(
    honest: list[int], lie: int
) -> None:
    liars = (len(honest) - 1) // 2
    said = [*honest, *[lie] * liars]
    observed = {f"s{i}": Observation(Fraction(worth), 1000) for i, worth in enumerate(said)}
    rate = median_rate(
        USD, observed, 1000, max_age_ns=10, min_sources=2, max_spread=Fraction(5, 100)
    )
    assert isinstance(rate, Rate)
    # A lie close enough to agree may move it, by no more than the spread.
    assert 930 <= rate.msat_per_unit <= 1070
