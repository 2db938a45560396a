"""A circuit breaker: a place that does not answer is left alone for a while."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager

from farebox.clock import NS_PER_S, Clock
from farebox.errors import RailRejected, RailUnavailable
from farebox.payments.method import Standing

FAILURES_TO_OPEN = 5
PAUSE_S = 10


class BreakerState(enum.Enum):
    """Whether calls go through."""

    CLOSED = "closed"  # they do
    OPEN = "open"  # they fail at once
    HALF_OPEN = "half-open"  # one may try


class Breaker:
    """Opens after some failures in a row; after a pause one call may try, and its end decides.

    Only RailUnavailable is a failure: a place that refuses is well.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        who: str = "the mint",
        failures_to_open: int = FAILURES_TO_OPEN,
        pause_s: int = PAUSE_S,
    ) -> None:
        self._open = f"{who} did not answer lately; it is left alone for a while"
        self._clock = clock
        self._failures_to_open = failures_to_open
        self._pause_ns = pause_s * NS_PER_S
        self._failures = 0
        self._opened_at_ns: int | None = None
        self._trying = False

    @property
    def state(self) -> BreakerState:
        """What the next call will meet."""
        if self._opened_at_ns is None:
            return BreakerState.CLOSED
        waited_ns = self._clock.now_ns() - self._opened_at_ns
        # A clock that stepped back must not keep a place shut off for longer than the pause.
        is_over = waited_ns >= self._pause_ns or waited_ns < 0
        return BreakerState.HALF_OPEN if is_over and not self._trying else BreakerState.OPEN

    def standing(self, fault: str) -> Standing:
        """Of a way to pay behind it: by what its last probe found, and how calls fare since."""
        if self.state is BreakerState.OPEN:
            return Standing(False, self._open)
        return Standing(not fault, fault)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Guard one call and learn from its end. Raises RailUnavailable at once while open.

        A call that ends otherwise, as by cancellation, says nothing about the place.
        """
        state = self.state
        if state is BreakerState.OPEN:
            raise RailUnavailable(self._open)
        self._trying = state is BreakerState.HALF_OPEN
        try:
            yield
        except RailUnavailable:
            self._failed()
            raise
        except RailRejected:
            self._answered()
            raise
        else:
            self._answered()
        finally:
            if state is BreakerState.HALF_OPEN:
                self._trying = False

    def _failed(self) -> None:
        self._failures += 1
        if self._failures >= self._failures_to_open:
            self._opened_at_ns = self._clock.now_ns()

    def _answered(self) -> None:
        self._failures = 0
        self._opened_at_ns = None
