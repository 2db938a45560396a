"""The breaker, moved by hand."""

from __future__ import annotations

import asyncio

import pytest

from farebox.clock import ManualClock
from farebox.errors import RailRejected, RailUnavailable
from farebox.rails.web.breaker import Breaker, BreakerState


def breaker(clock: ManualClock) -> Breaker:
    return Breaker(clock, failures_to_open=3, pause_s=10)


def state(one: Breaker) -> BreakerState:
    return one.state


def attempt(one: Breaker, error: BaseException | None = None) -> None:
    with one.attempt():
        if error is not None:
            raise error


def fail(one: Breaker, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(RailUnavailable):
            attempt(one, RailUnavailable("down"))


def test_it_opens_after_failures_in_a_row_only() -> None:
    one = breaker(ManualClock())
    fail(one, 2)
    attempt(one)
    fail(one, 2)
    assert state(one) is BreakerState.CLOSED
    fail(one)
    assert state(one) is BreakerState.OPEN


def test_a_refusal_is_a_sign_of_life() -> None:
    one = breaker(ManualClock())
    fail(one, 2)
    with pytest.raises(RailRejected):
        attempt(one, RailRejected("spent", code=11001))
    fail(one, 2)
    assert state(one) is BreakerState.CLOSED


def test_after_the_pause_one_may_try_and_its_success_closes() -> None:
    clock = ManualClock()
    one = breaker(clock)
    fail(one, 3)
    clock.advance(10)
    assert state(one) is BreakerState.HALF_OPEN
    with one.attempt():
        assert state(one) is BreakerState.OPEN  # for everyone else
        with pytest.raises(RailUnavailable):
            attempt(one)
    assert state(one) is BreakerState.CLOSED


def test_a_try_that_fails_opens_it_again_at_once() -> None:
    clock = ManualClock()
    one = breaker(clock)
    fail(one, 3)
    clock.advance(10)
    fail(one)
    assert state(one) is BreakerState.OPEN
    clock.advance(10)
    assert state(one) is BreakerState.HALF_OPEN


def test_a_cancelled_try_leaves_the_place_to_the_next() -> None:
    clock = ManualClock()
    one = breaker(clock)
    fail(one, 3)
    clock.advance(10)
    with pytest.raises(asyncio.CancelledError):
        attempt(one, asyncio.CancelledError())
    assert state(one) is BreakerState.HALF_OPEN


def test_a_clock_that_steps_back_does_not_shut_a_mint_off() -> None:
    clock = ManualClock()
    one = breaker(clock)
    fail(one, 3)
    clock.advance(-86_400)
    assert state(one) is BreakerState.HALF_OPEN
