"""What is told of many latencies is as exact as it says."""

from __future__ import annotations

import random

import pytest

from farebox.cli.bench.histogram import Histogram


def exact(values: list[int], per_mille: int) -> int:
    return sorted(values)[-(-len(values) * per_mille // 1000) - 1]


@pytest.mark.parametrize("seed", range(20))
def test_a_percentile_is_never_shorter_and_at_most_a_hundredth_longer(seed: int) -> None:
    draw = random.Random(seed)
    values = [int(draw.lognormvariate(8, 3)) for _ in range(5_000)]
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    for per_mille in (1, 500, 900, 990, 999, 1000):
        true = exact(values, per_mille)
        assert true <= histogram.percentile(per_mille) <= true + true // 128


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255, 256, 257, 511, 512, 2**20, 2**40 - 1])
def test_one_latency_is_every_percentile(value: int) -> None:
    histogram = Histogram()
    histogram.add(value)
    assert set(histogram.facts().values()) == {value}


def test_nothing_counted_is_nothing_told() -> None:
    assert set(Histogram().facts().values()) == {0}


def test_a_latency_below_the_clocks_resolution_is_none() -> None:
    histogram = Histogram()
    histogram.add(-3)
    assert (histogram.count, histogram.max_us) == (1, 0)


def test_a_long_run_needs_no_more_memory_than_a_short_one() -> None:
    histogram = Histogram()
    for value in range(0, 60_000_000, 997):
        histogram.add(value)
    assert len(histogram._counts) < 3_000
