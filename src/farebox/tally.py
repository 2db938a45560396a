"""What happened, counted in plain numbers: cheap to add to, read by whoever reports them.

Promises: adding takes no lock, waits for nothing, costs well under a microsecond; under how many
names a thing is counted is bounded. Never: money; a decision; a name that a caller could choose
at will.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from farebox.clock import running_s
from farebox.errors import RailRejected, RailUnavailable

_NAMES_MAX = 128
#: Upper bounds in seconds, from a commit on a fast disk to a long stream.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)


class Counts(dict[str, int]):
    """How often each name came up. What comes after the first 128 names is counted as `other`."""

    def add(self, name: str) -> None:
        """Once more."""
        if name not in self and len(self) >= _NAMES_MAX:
            name = "other"
        self[name] = self.get(name, 0) + 1


class Spread:
    """How values are spread: how many fell in each bucket, and their sum."""

    __slots__ = ("bounds", "buckets", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        #: How many values were at most each bound and above the one before; last, those above all.
        self.buckets = [0] * (len(bounds) + 1)
        self.sum: float = 0

    def add(self, value: float) -> None:
        """One more value."""
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Calls:
    """Calls to one foreign party: how each kind ended, and how long they took."""

    def __init__(self) -> None:
        #: "swap answered", "swap refused", "swap unavailable": a kind of call and its end.
        self.ends = Counts()
        self.took = Spread()

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Count one call by its end; whatever it raises is passed on."""
        began_s = running_s()
        end = "broken_off"
        try:
            yield
            end = "answered"
        except RailRejected:
            end = "refused"
            raise
        except RailUnavailable:
            end = "unavailable"
            raise
        finally:
            self.ends.add(f"{kind} {end}")
            self.took.add(running_s() - began_s)


class Commits:
    """Group commits of one store, and where its book stands."""

    def __init__(self) -> None:
        self.sizes = Spread(SIZES)
        #: A batch from its first unit to its commit, and the syncs that make batches durable.
        self.took = Spread()
        self.synced = Spread()
        self.failures = 0
        #: Whether the last batch failed for what would fail any other: a full disk, say.
        self.is_failing = False
        #: The last unit and the last event of the book, and the book's own time of that unit.
        self.unit = 0
        self.event = 0
        self.at_ns = 0
        #: How many units wait to be written.
        self.waiting: Callable[[], int] = int

    def add(self, size: int, took_s: float) -> None:
        """One more batch is written."""
        self.is_failing = False
        self.sizes.add(size)
        self.took.add(took_s)

    def add_sync(self, took_s: float) -> None:
        """The disk has what was written."""
        self.synced.add(took_s)

    def failed(self, *, everybodys: bool) -> None:
        """One more batch was not written; `everybodys`: nor would any other have been."""
        self.failures += 1
        self.is_failing = everybodys

    def stands(self, unit: int, event: int, at_ns: int) -> None:
        """Where the book stands now."""
        self.unit, self.event, self.at_ns = unit, event, at_ns
