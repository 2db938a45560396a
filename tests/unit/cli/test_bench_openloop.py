"""Requests are due by the clock, and a server that stalls cannot hide it.

The loop of these tests has a time of its own, which jumps to whatever is waited for next.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from farebox.cli.bench.histogram import Histogram
from farebox.cli.bench.openloop import Arrivals, Kind, OpenLoop, read_mix
from farebox.errors import InvalidInput

KEY_ALONE = {Kind.KEY: 1}
US = 1_000_000


class _Waiting(selectors.SelectSelector):
    """Waits in no time, and says for how long it should have."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.waited_s += timeout or 0
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._waiting = _Waiting()
        super().__init__(self._waiting)

    def time(self) -> float:
        return self._waiting.waited_s


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await main()

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(whole())


class Server:
    """Answers in 1 ms, but for a while in which it answers nobody."""

    def __init__(self, silent_from_s: float = -1, silent_until_s: float = -1) -> None:
        self._silent = (silent_from_s, silent_until_s)
        self.latencies = Histogram()
        self.answered: Counter[Kind] = Counter()
        self.most_at_once = 0
        self._at_once = 0

    async def fire(self, kind: Kind, due_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await asyncio.sleep(0.001)
        begins_s, ends_s = self._silent
        if begins_s <= loop.time() < ends_s:
            await asyncio.sleep(ends_s - loop.time())
        self._at_once -= 1
        self.answered[kind] += 1
        self.latencies.add(round((loop.time() - due_s) * US))


def test_every_request_that_a_stalled_server_kept_waiting_shows() -> None:
    """A closed loop of 4 callers would have seen 4 slow answers of a thousand: a p99 of 1 ms."""

    async def main() -> None:
        server = Server(silent_from_s=4, silent_until_s=6)
        loop = OpenLoop(Arrivals(100, 10, KEY_ALONE), server.fire, in_flight_max=4)
        await loop.run()
        assert server.answered[Kind.KEY] == 1_000
        assert not loop.unstarted
        assert server.latencies.percentile(500) < 2_000
        # 200 of the thousand were due while it was silent, the first of them for 2 s.
        assert server.latencies.percentile(850) > 400_000
        assert server.latencies.percentile(990) > 1_800_000
        assert server.latencies.max_us > 1_990_000

    run(main)


def test_what_found_no_place_until_the_end_is_counted_and_no_more_run_than_may() -> None:
    async def main() -> None:
        server = Server(silent_from_s=1, silent_until_s=20)
        loop = OpenLoop(Arrivals(100, 3, {Kind.KEY: 1, Kind.ECASH: 1}), server.fire, 8)
        await loop.run()
        assert server.most_at_once == 8
        assert loop.started.total() == server.answered.total()
        assert loop.started.total() + loop.unstarted.total() == 300
        assert loop.unstarted.total() >= 190
        assert abs(loop.unstarted[Kind.KEY] - loop.unstarted[Kind.ECASH]) <= 1
        assert loop.seconds == pytest.approx(3)

    run(main)


def test_a_run_that_is_stopped_ends_with_what_was_due_until_then() -> None:
    async def main() -> None:
        server = Server()
        loop = OpenLoop(Arrivals(10, 1_000, KEY_ALONE), server.fire, 8)
        asyncio.get_running_loop().call_later(2.05, loop.stop)
        await loop.run()
        assert server.answered[Kind.KEY] == 21
        assert not loop.unstarted
        assert loop.seconds == pytest.approx(2.05)

    run(main)


def test_a_defect_ends_the_run_and_is_not_hidden() -> None:
    async def broken(kind: Kind, due_s: float) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as raised:
            await OpenLoop(Arrivals(10, 100, KEY_ALONE), broken, 8).run()
        assert raised.group_contains(ZeroDivisionError)
        assert asyncio.get_running_loop().time() < 1

    run(main)


def test_kinds_take_turns_by_their_share() -> None:
    arrivals = Arrivals(25, 1, read_mix("key=8,stream=1, ecash=1"))
    kinds = [arrivals.kind(number) for number in range(arrivals.count)]
    assert Counter(kinds[:10]) == {Kind.KEY: 8, Kind.STREAM: 1, Kind.ECASH: 1}
    assert kinds[:10] == kinds[10:20]
    for kind in Kind:
        assert arrivals.of(kind) == kinds.count(kind)
    assert Kind.KEY in kinds[7:10], "the others do not come one after the other at the end"


@pytest.mark.parametrize("text", ["", "key", "key=0", "key=-1", "card=1", "key=1,,", "key=9999"])
def test_what_is_no_mix_is_refused_with_the_way_to_write_one(text: str) -> None:
    with pytest.raises(InvalidInput, match="key=8,ecash=1"):
        read_mix(text)
