"""Watching a rail: its subscription with a stored cursor, its poller, its probe.

| what happens                      | then                                                      |
|-----------------------------------|-----------------------------------------------------------|
| the subscription tells of a payment | it is credited, then the cursor is stored               |
| it breaks, or the rail is down    | again after a pause that grows, from the stored cursor    |
| we were down                      | the cursor brings what the rail has kept; the poller, the |
|                                   | rest                                                      |
| several processes                 | one watches and polls (`duty.py`); crediting is once      |
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing, suppress

import msgspec
import structlog

from farebox.clock import NS_PER_S, running_s
from farebox.errors import RailError
from farebox.ids import derived_id
from farebox.ledger.model import Put, Unit
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger, State
from farebox.payments.rail import DepositMethod, Holding
from farebox.payments.requests import DepositRequests

_log = structlog.get_logger("farebox.watch")

#: Pauses between two tries of a subscription: 1, 2, 4 … up to this.
_PAUSE_MOST_S = 60
#: A line that held for so long was a good one, also where nobody has paid meanwhile.
_WELL_S = 300


class WatchCursor(msgspec.Struct, frozen=True):
    """How far a rail's subscription has been listened to. The key is the custody it fills."""

    position: str


WATCH_CURSOR = RecordType("watch_cursor", WatchCursor)


class RailWatch:
    """One rail, watched by one process."""

    def __init__(self, rail: DepositMethod, requests: DepositRequests, ledger: Ledger) -> None:
        self._rail = rail
        self._requests = requests
        self._ledger = ledger
        self._listening: asyncio.Task[None] | None = None
        self._failures = 0
        #: When it was last looked through here, or we began to; None where others do it.
        self.looked_at_s: float | None = None
        self.holdings: Sequence[Holding] = ()

    @property
    def rail(self) -> DepositMethod:
        """What is watched."""
        return self._rail

    @property
    def name(self) -> str:
        """The rail's name."""
        return self._rail.payment_type

    async def poll(self) -> None:
        """One round: keep the subscription up, then ask about every open request that is due."""
        if self._listening is None or self._listening.done():
            self._listening = asyncio.create_task(self._listen(), name=f"watch:{self.name}")
        if self.looked_at_s is None:
            self.looked_at_s = running_s()
        try:
            await self._requests.poll(self.name)
            self.looked_at_s = running_s()
        except RailError as error:
            _log.warning("watch.not_polled", rail=self.name, reason=str(error))

    async def probe(self) -> None:
        """Ask the rail whether it is there, for `/v1/methods`."""
        with suppress(RailError):  # its standing tells
            await self._rail.probe()

    async def weigh(self) -> None:
        """Ask the rail what it holds, for the metrics: that may take many calls."""
        with suppress(RailError):  # what it held last stays
            self.holdings = await self._rail.holdings()

    async def stop(self) -> None:
        """Stop listening: others do it, or all ends."""
        self.looked_at_s = None
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listening = None

    async def _listen(self) -> None:
        """Without end; a rail that cannot be heard is tried again, ever less often."""
        while True:
            began_ns = self._ledger.clock.elapsed_ns()
            try:
                await self.listen_once()
            except RailError as error:
                _log.warning("watch.line_broken", rail=self.name, reason=str(error))
            except Exception:  # a defect here must not end the watch for good
                _log.exception("watch.failed", rail=self.name)
            if self._ledger.clock.elapsed_ns() - began_ns >= _WELL_S * NS_PER_S:
                self._failures = 0
            await asyncio.sleep(min(2**self._failures, _PAUSE_MOST_S))
            self._failures = min(self._failures + 1, 6)

    async def listen_once(self) -> None:
        """Credit what the subscription tells, until it breaks. Raises RailError."""
        row = await self._ledger.store.get(WATCH_CURSOR, self._key)
        told = self._rail.watch("" if row is None else row.value.position)
        async with aclosing(told):
            async for watched in told:
                self._failures = 0
                await self._requests.seen(self.name, watched.sighting)
                if watched.cursor:
                    await self._keep(watched.cursor)

    @property
    def _key(self) -> str:
        return self._rail.place

    async def _keep(self, position: str) -> None:
        def decide(state: State, _: int) -> Unit | None:
            known = state.row(WATCH_CURSOR, self._key)
            if known is not None and known.value.position == position:
                return None
            version = state.version(WATCH_CURSOR, self._key)
            put = Put(WATCH_CURSOR, self._key, WatchCursor(position), version)
            # A hash: ids are kept for ever, and a position may be long.
            return Unit(derived_id("cursor", self._key, str(version), position), puts=(put,))

        await self._ledger.transact([(WATCH_CURSOR, self._key)], decide)
