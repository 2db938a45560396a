"""A bounded number at once, a bounded number in front of them, and no more."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

_Queue = deque[asyncio.Future[None]]


class Turns:
    """Hands out turns in order of arrival."""

    def __init__(self, at_once_max: int, queue_max: int, wait_max_s: float) -> None:
        self._free = at_once_max
        self._at_once_max = at_once_max
        self._queue_max = queue_max
        self._wait_max_s = wait_max_s
        self._queue: _Queue = deque()

    @property
    def running(self) -> int:
        """How many have a turn."""
        return self._at_once_max - self._free

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._queue)

    async def take(self) -> bool:
        """Wait for a turn; False when there is none to be had, or not in time."""
        if self._free:
            self._free -= 1
            return True
        if len(self._queue) >= self._queue_max:
            return False
        return await _wait(self._queue, self._wait_max_s, self.give_back)

    def give_back(self) -> None:
        """End a turn; whoever waits longest has it now."""
        if self._queue:
            self._queue.popleft().set_result(None)
        else:
            self._free += 1


class TurnsByKey:
    """One turn at a time for each key. What nobody uses takes no room."""

    def __init__(self, queue_max: int, wait_max_s: float) -> None:
        """`queue_max`: how many may wait for the turn of one key."""
        self._queue_max = queue_max
        self._wait_max_s = wait_max_s
        #: Who waits, by each key whose turn somebody has; None: nobody does, as nearly always.
        self._queues: dict[str, _Queue | None] = {}

    async def take(self, key: str) -> bool:
        """Wait for the turn; False when too many do, or it does not come in time."""
        if key not in self._queues:
            self._queues[key] = None
            return True
        queue = self._queues[key]
        if queue is None:
            queue = self._queues[key] = deque()
        if len(queue) >= self._queue_max:
            return False
        return await _wait(queue, self._wait_max_s, lambda: self.give_back(key))

    def give_back(self, key: str) -> None:
        """End the turn; whoever waits longest has it now."""
        queue = self._queues[key]
        if queue:
            queue.popleft().set_result(None)
        else:
            del self._queues[key]


async def _wait(queue: _Queue, wait_max_s: float, give_back: Callable[[], None]) -> bool:
    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    queue.append(turn)
    try:
        await asyncio.wait((turn,), timeout=wait_max_s)
    except asyncio.CancelledError:
        if turn.done():  # given in the same moment: the next one shall have it
            give_back()
        else:
            queue.remove(turn)
        raise
    if not turn.done():
        queue.remove(turn)
        return False
    return True
