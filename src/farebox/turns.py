"""A bounded number of requests at once, a bounded number in front of them, and no more."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Hands out turns in order of arrival."""

    def __init__(self, at_once_max: int, queue_max: int, wait_max_s: float) -> None:
        self._free = at_once_max
        self._at_once_max = at_once_max
        self._queue_max = queue_max
        self._wait_max_s = wait_max_s
        self._queue: deque[asyncio.Future[None]] = deque()

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
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await asyncio.wait((turn,), timeout=self._wait_max_s)
        except asyncio.CancelledError:
            if turn.done():  # given in the same moment: the next one shall have it
                self.give_back()
            else:
                self._queue.remove(turn)
            raise
        if not turn.done():
            self._queue.remove(turn)
            return False
        return True

    def give_back(self) -> None:
        """End a turn; whoever waits longest has it now."""
        if self._queue:
            self._queue.popleft().set_result(None)
        else:
            self._free += 1
