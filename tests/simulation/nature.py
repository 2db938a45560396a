"""Time and chance, as every program of the simulation gets them from its machine.

The house asks its clock for the time; only ids take it from `time.time_ns`. Random bytes come
from `os.urandom` and `secrets`. These few names are replaced here while a seed runs, and nowhere
else; threads and sockets are refused.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest.mock import patch

from farebox.clock import NS_PER_S
from tests.simulation.loop import RealWorld, SimulatedLoop, seeded

_BEGIN_NS = 1_750_000_000 * NS_PER_S


class WorldClock:
    """Time as the loop has it, for the mints and the world."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self.ahead_s = 0.0

    def now_ns(self) -> int:
        """UTC nanoseconds; wrong by `ahead_s` where this is a machine's own clock."""
        return _BEGIN_NS + int((self._loop.time() + self.ahead_s) * NS_PER_S)

    def elapsed_ns(self) -> int:
        """What nobody sets."""
        return int(self._loop.time() * NS_PER_S)


@contextmanager
def nature(seed: int, clock: WorldClock) -> Iterator[None]:
    """While this lasts, chance is the seed's and the time is the clock's."""
    chance = seeded(seed, "nature")
    with (
        patch.object(os, "urandom", chance.randbytes),
        patch.object(random, "_urandom", chance.randbytes),  # what `secrets` draws from
        patch.object(time, "time_ns", clock.now_ns),
        patch.object(time, "time", lambda: clock.now_ns() / NS_PER_S),
        patch.object(time, "sleep", _refuse("sleeps")),
        patch.object(threading.Thread, "start", _refuse("starts a thread")),
        patch.object(socket.socket, "connect", _refuse("connects a socket")),
    ):
        yield


def _refuse(what: str) -> Any:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise RealWorld(f"something {what}")

    return refuse
