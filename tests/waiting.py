"""How a test waits for what others bring about: by asking for it, and never for a fixed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

#: Longer than a slow machine needs that does other things and stands still for a while.
WAIT_S = 60
_POLL_S = 0.02


@overload
async def eventually(ask: Callable[[], Awaitable[T]], holds: Callable[[T], object] = bool) -> T: ...


@overload
async def eventually(ask: Callable[[], T], holds: Callable[[T], object] = bool) -> T: ...


async def eventually(ask: Callable[[], Any], holds: Callable[[Any], object] = bool) -> Any:
    """Ask until the answer is so; gives that answer. Raises AssertionError with the last one."""
    ends_at = time.monotonic() + WAIT_S
    while True:
        found = ask()
        if inspect.isawaitable(found):
            found = await found
        if holds(found):
            return found
        if time.monotonic() > ends_at:
            raise AssertionError(f"it never came about: {found}")
        await asyncio.sleep(_POLL_S)
