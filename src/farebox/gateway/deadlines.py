"""Deadlines for many short waits, at the price of a dictionary entry each.

`asyncio.timeout` makes a timer for every wait; nearly all of ours are over before it is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

R = TypeVar("R")

_LOOK_EVERY_S: Final = 0.25


class Deadlines:
    """Ends waits that take longer than `limit_s`, a quarter of a second late at most."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._look_every_s = min(_LOOK_EVERY_S, limit_s / 4)
        self._until_s: dict[asyncio.Task[Any], float] = {}
        self._overdue: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, awaitable: Awaitable[R]) -> R:
        """Wait for it. Raises TimeoutError when it is overdue."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._until_s[task] = loop.time() + self._limit_s
        if self._timer is None:
            self._timer = loop.call_later(self._look_every_s, self._look)
        try:
            return await awaitable
        except asyncio.CancelledError:
            # Ours alone, or a server's at the same time, which goes before.
            if task not in self._overdue or task.uncancel() > 0:
                raise
            raise TimeoutError from None
        finally:
            del self._until_s[task]
            self._overdue.discard(task)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for task, until_s in self._until_s.items():
            if now_s >= until_s and task not in self._overdue:
                self._overdue.add(task)
                task.cancel()
        self._timer = loop.call_later(self._look_every_s, self._look) if self._until_s else None
