"""Latencies in buckets: memory that does not grow with a run, and an error that is known."""

from __future__ import annotations

from collections import Counter

#: Buckets up to each power of two; a bucket is at most 1/128 of its values wide.
_PER_OCTAVE = 128
_EXACT_BELOW = 2 * _PER_OCTAVE


class Histogram:
    """Counts whole microseconds. A percentile is told as the upper edge of its bucket.

    So it is never told shorter than it was, and at most 0.8 % longer. The maximum is exact.
    """

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.count = 0
        self.max_us = 0

    def add(self, latency_us: int) -> None:
        """Count one. What is below zero, by a clock's resolution, is zero."""
        latency_us = max(latency_us, 0)
        self._counts[_bucket(latency_us)] += 1
        self.count += 1
        self.max_us = max(self.max_us, latency_us)

    def percentile(self, per_mille: int) -> int:
        """The latency that this many of a thousand did not exceed; 0 where none was counted."""
        rank = -(-self.count * per_mille // 1000)
        for bucket in sorted(self._counts):
            rank -= self._counts[bucket]
            if rank <= 0:
                return min(_upper_edge(bucket), self.max_us)
        return self.max_us

    def facts(self) -> dict[str, int]:
        """What is told of it, in µs."""
        told = {"p50": 500, "p90": 900, "p99": 990, "p99_9": 999}
        percentiles = {name: self.percentile(per_mille) for name, per_mille in told.items()}
        return percentiles | {"max": self.max_us}


def _bucket(value: int) -> int:
    """Values below `_EXACT_BELOW` have a bucket each; above, every octave has `_PER_OCTAVE`."""
    shift = max(value.bit_length() - _EXACT_BELOW.bit_length() + 1, 0)
    return shift * _PER_OCTAVE + (value >> shift)


def _upper_edge(bucket: int) -> int:
    shift = max(bucket // _PER_OCTAVE - 1, 0)
    return ((bucket - shift * _PER_OCTAVE + 1) << shift) - 1
