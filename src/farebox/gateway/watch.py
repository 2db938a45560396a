"""One look at all deliveries, many times a second: who left, and who has been silent for too long.

A timer and a listener for each request would cost more than they find: nearly every request is
over before its first look.
"""

from __future__ import annotations

import asyncio
from typing import Final

from farebox.gateway.asgi import Receive
from farebox.gateway.delivery import Delivery, Why

_LOOK_EVERY_S: Final = 0.05


class Watch:
    """Looks after the deliveries of one carrier, while there are any."""

    def __init__(self) -> None:
        self._new: dict[Delivery, Receive] = {}
        self._seen: dict[Delivery, Receive] = {}
        self._listening: dict[Delivery, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, delivery: Delivery, receive: Receive) -> None:
        """Look after a delivery. `receive` tells when its caller leaves, and nothing else."""
        self._new[delivery] = receive
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)

    def end(self, delivery: Delivery) -> None:
        """It is over."""
        if self._new.pop(delivery, None) is not None:
            return
        self._seen.pop(delivery, None)
        listening = self._listening.pop(delivery, None)
        if listening is not None:
            listening.cancel()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        for delivery, receive in self._seen.items():
            if delivery not in self._listening:
                self._listening[delivery] = loop.create_task(_listen(delivery, receive))
        self._seen |= self._new
        self._new.clear()
        for delivery in self._seen:
            delivery.tick()
        self._timer = loop.call_later(_LOOK_EVERY_S, self._look) if self._seen else None


async def _listen(delivery: Delivery, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    delivery.interrupt(Why.CALLER_LEFT)
