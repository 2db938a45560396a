"""Requests that are due by the clock, whether or not earlier ones were answered.

A caller who waits for each answer before he asks again asks less while a server is slow, and so
overlooks most of what its callers would suffer (coordinated omission). Here a request is due at a
time that no answer can move, and its latency counts from then.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from farebox.errors import InvalidInput

_SHARE_MAX = 1_000


class Kind(enum.StrEnum):
    """How a request is paid, and answered."""

    KEY = "key"
    STREAM = "stream"  # on the key as well
    ECASH = "ecash"


Mix = Mapping[Kind, int]


def read_mix(text: str) -> Mix:
    """Read `key=8,stream=1,ecash=1`. Raises InvalidInput saying what it should be."""
    mix: dict[Kind, int] = {}
    for part in text.split(","):
        name, _, share = part.strip().partition("=")
        if name not in set(Kind) or not share.isdecimal() or not 0 < int(share) <= _SHARE_MAX:
            raise InvalidInput(
                f"{text!r} is no mix: write shares of {', '.join(Kind)}, such as key=8,ecash=1"
            )
        mix[Kind(name)] = int(share)
    return mix


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When requests are due, evenly, and of which kind; the kinds take turns by their share."""

    rate_per_s: int
    seconds: int
    mix: Mix
    _turns: tuple[Kind, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_turns", _turns(self.mix))

    @property
    def count(self) -> int:
        """How many there are."""
        return self.rate_per_s * self.seconds

    def kind(self, number: int) -> Kind:
        """What the request of this number is, from 0."""
        return self._turns[number % len(self._turns)]

    def of(self, kind: Kind) -> int:
        """How many there are of a kind."""
        rounds, rest = divmod(self.count, len(self._turns))
        return rounds * self._turns.count(kind) + self._turns[:rest].count(kind)


def _turns(mix: Mix) -> tuple[Kind, ...]:
    """One round of turns in which each kind is spread as evenly as its share allows."""
    total = sum(mix.values())
    credit = dict.fromkeys(mix, 0)
    turns = []
    for _ in range(total):
        for kind, share in mix.items():
            credit[kind] += share
        turn = max(credit, key=lambda kind: credit[kind])
        credit[turn] -= total
        turns.append(turn)
    return tuple(turns)


class OpenLoop:
    """Starts each request when it is due, as long as no more than `in_flight_max` are running.

    One that finds no place waits for it, its latency counting on; what found none until the end
    was never started, and is counted as such.
    """

    def __init__(
        self,
        arrivals: Arrivals,
        fire: Callable[[Kind, float], Awaitable[None]],
        in_flight_max: int,
    ) -> None:
        """`fire` makes one request; it is given when that was due, in the loop's time."""
        self._arrivals = arrivals
        self._fire = fire
        self._in_flight_max = in_flight_max
        self._feeding: asyncio.Task[None] | None = None
        self._began_s = 0.0
        self.started: Counter[Kind] = Counter()
        self.unstarted: Counter[Kind] = Counter()
        self.in_flight = 0
        self.seconds = 0.0

    async def run(self) -> None:
        """Start them all, and wait for those that were started."""
        loop = asyncio.get_running_loop()
        self._began_s = loop.time()
        async with asyncio.TaskGroup() as group:
            self._feeding = group.create_task(self._feed(group))
            await asyncio.wait({self._feeding}, timeout=self._arrivals.seconds)
            self.stop()
            await asyncio.wait({self._feeding})
            self.seconds = min(loop.time() - self._began_s, float(self._arrivals.seconds))
            self._count_unstarted()
            if not self._feeding.cancelled():
                self._feeding.result()

    def stop(self) -> None:
        """Start nothing more."""
        if self._feeding is not None:
            self._feeding.cancel()

    @property
    def passed_s(self) -> float:
        """How long it has been running."""
        return asyncio.get_running_loop().time() - self._began_s if self._feeding else 0.0

    async def _feed(self, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        places = asyncio.Semaphore(self._in_flight_max)

        async def one(kind: Kind, due_s: float) -> None:
            self.in_flight += 1
            try:
                await self._fire(kind, due_s)
            finally:
                self.in_flight -= 1
                places.release()

        for number in range(self._arrivals.count):
            due_s = self._began_s + number / self._arrivals.rate_per_s
            early_s = due_s - loop.time()
            if early_s > 0:
                await asyncio.sleep(early_s)
            await places.acquire()
            kind = self._arrivals.kind(number)
            self.started[kind] += 1
            group.create_task(one(kind, due_s))

    def _count_unstarted(self) -> None:
        due = min(math.ceil(self.seconds * self._arrivals.rate_per_s), self._arrivals.count)
        for number in range(self.started.total(), due):
            self.unstarted[self._arrivals.kind(number)] += 1
