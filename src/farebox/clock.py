"""Time, in one place, so that tests and recovery can own it.

Promises: UTC nanoseconds since 1970. Never: local time, a reading taken anywhere else.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

NS_PER_S = 1_000_000_000


class Clock(Protocol):
    """Where the time comes from."""

    def now_ns(self) -> int:
        """UTC nanoseconds since 1970. May step back; the ledger's own time never does."""
        ...

    def elapsed_ns(self) -> int:
        """Nanoseconds that passed in this process since any moment, whatever the time is set to.

        For waits that must not be cut short: it may stand still while the machine is suspended.
        """
        ...


class SystemClock:
    """The machine's clock."""

    def now_ns(self) -> int:
        """UTC nanoseconds since 1970."""
        return time.time_ns()

    def elapsed_ns(self) -> int:
        """Nanoseconds that passed, by the one clock of the machine that nobody can set."""
        return time.monotonic_ns()


def running_s() -> float:
    """Seconds of a clock that only runs forward, to measure how long something took.

    For reports alone: its zero means nothing, and no simulation moves it.
    """
    return time.perf_counter()


class ManualClock:
    """A clock that moves only when told to; for tests and simulations."""

    def __init__(self, now_ns: int = 1_750_000_000 * NS_PER_S) -> None:
        self._now_ns = now_ns
        self._elapsed_ns = 0

    def now_ns(self) -> int:
        """The time it was last set to."""
        return self._now_ns

    def elapsed_ns(self) -> int:
        """What it was advanced by."""
        return self._elapsed_ns

    def advance(self, seconds: float) -> None:
        """Let time pass. Negative: somebody sets the clock back."""
        self.jump(seconds)
        self._elapsed_ns += max(int(seconds * NS_PER_S), 0)

    def jump(self, seconds: float) -> None:
        """Somebody sets the clock, either way: no time passes."""
        self._now_ns += int(seconds * NS_PER_S)


def iso(at_ns: int) -> str:
    """UTC time as RFC 3339 with milliseconds and a trailing Z."""
    return f"{_iso_second(at_ns // NS_PER_S)}.{at_ns % NS_PER_S // 1_000_000:03d}Z"


@lru_cache(maxsize=16)  # every receipt of a second says the same
def _iso_second(at_s: int) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%M:%S}"
