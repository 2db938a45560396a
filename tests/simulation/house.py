"""The house: the real composition root, with its four doors to the world replaced.

Several may share one book, each a process of its own on a machine of its own; alone, a house has
the book to itself, as on SQLite.

What `farebox.bootstrap` opens for itself (the store, the two sessions that reach mints and
wallets, the connections to upstreams) is given by the simulation; everything behind is the real
thing, composed by the real root.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any
from unittest.mock import patch

from farebox import bootstrap
from farebox.api import deposits, payouts
from farebox.books import places
from farebox.bootstrap import Farebox, bitcoin, evm, lightning
from farebox.clock import Clock
from farebox.errors import FareboxError
from farebox.payments.cards import gateway
from farebox.settings import load_settings
from farebox.testing.asgi import App
from tests.simulation.chain import ModelWallet
from tests.simulation.disk import Disk
from tests.simulation.evm import SETTLED_BLOCKS
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.nature import WorldClock
from tests.simulation.network import (
    Ask,
    Connection,
    Network,
    NodeSession,
    Session,
    SimulatedUpstreams,
    served,
)
from tests.simulation.store import SimulatedStore
from tests.simulation.weather import DiskWeather

ROOT_KEY = b"simulated root key, 32 bytes ok."
#: How long a payer has to prove that it is them: as long as a storm, not as a coffee.
_ACT_S = 40


class House:
    """One running program, or none; the disk stays."""

    def __init__(
        self,
        loop: SimulatedLoop,
        disk: Disk,
        clock: WorldClock,
        settings: Mapping[str, object],
        trace: Callable[[str], None],
        *,
        name: str = "house",
        shares: Callable[[], SimulatedStore] | None = None,
    ) -> None:
        """`shares` opens a store on a book that other houses have open too."""
        self._loop = loop
        self._name = name
        self._shares = shares
        self._trace = trace
        self._settings = load_settings(None, {}, settings)
        self._connections: list[Connection] = []
        self._process: Process | None = None
        self._stopping = asyncio.Event()
        self._gone = asyncio.Event()
        self._opened: asyncio.Future[None] | None = None
        self._starts = 0
        self.disk = disk
        self.clock = clock
        self.farebox: Farebox | None = None
        #: Names that this house had in the books when something befell it, and when.
        self.stricken: dict[str, float] = {}

    @property
    def is_open(self) -> bool:
        """Whether callers are answered."""
        return self.farebox is not None

    async def start(self) -> bool:
        """Start the program, unless it is starting already; False where it does not come up."""
        if self._process is None or self._opened is None:
            self._starts += 1
            self._trace(f"{self._name} starts for the {self._starts}. time")
            self._process = self._loop.new_process(f"{self._name}-{self._starts}")
            self._stopping, self._gone = asyncio.Event(), asyncio.Event()
            self._opened = self._loop.create_future()
            self._process.spawn(self._live(self._opened, self._stopping))
        await asyncio.shield(self._opened)
        return self.is_open

    def kill(self, *, loses_power: bool) -> None:
        """Stop it, now and wherever it is."""
        if self._process is None:
            return
        self._trace(f"{self._name} {'loses power' if loses_power else 'is killed'}")
        self._strike()
        self._process.kill()
        self.disk.break_off(self._process)
        self._process = self.farebox = None
        self._gone.set()
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)
        if self._shares is None:
            self.disk.stop(loses_power=loses_power)
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.broke()

    async def stop(self) -> None:
        """Ask it to end by itself, and wait until it has."""
        if self._process is not None:
            self._strike()
            self._trace(f"{self._name} is told to stop")
            self._stopping.set()
            await self._gone.wait()

    async def freeze(self, seconds: float) -> None:
        """Let it stand still for so long, unless something else happens to it meanwhile."""
        process = self._process
        if process is None or process.is_frozen:
            return
        self._trace(f"{self._name} freezes for {seconds:.1f} s")
        self._strike()
        process.freeze()
        self.disk.break_off(process)
        await asyncio.sleep(seconds)
        if process is self._process:
            self._trace(f"{self._name} goes on")
            self._strike()
            self._loop.thaw(process)

    def _strike(self) -> None:
        if self.farebox is not None:
            self.stricken[self.farebox.processes.name] = self._loop.time()

    def serve(self, ask: Ask, connection: Connection) -> None:
        """Let it answer a caller; a house that is not open refuses the connection."""
        if self.farebox is None or self._process is None:
            connection.broke()
            return
        self._connections = [one for one in self._connections if not one.done.done()]
        self._connections.append(connection)
        self._process.spawn(served(self.farebox.app, connection, ask))

    async def _live(self, opened: asyncio.Future[None], end: asyncio.Event) -> None:
        store = None if self._shares is None else self._shares()
        opening = Farebox(self._settings, ROOT_KEY, clock=self.clock, shared=store)
        try:
            async with opening as farebox:
                self.farebox = farebox
                opened.set_result(None)
                await end.wait()
            if store is not None:
                await store.close()
        except FareboxError as error:
            self._trace(f"{self._name} does not start: {type(error).__name__}")
        else:
            self._trace(f"{self._name} has stopped")
        self.kill(loses_power=False)


@contextmanager
def outside_replaced(
    disk: Disk,
    disk_weather: Callable[[], DiskWeather],
    network: Network,
    outside: Process,
    upstream: App,
    chance: Random,
    wallet: Callable[[Clock], ModelWallet],
) -> Iterator[None]:
    """While this lasts, the composition root finds the simulation where it looks for the world."""

    class Store(SimulatedStore):
        def __init__(self, *_: object, clock: Clock, **__: object) -> None:
            super().__init__(disk, clock, disk_weather, chance)

    def session(*_: object) -> Session:
        return Session(network)

    honest = evm.preset_of

    def preset_of(found: Any) -> Any:
        return replace(honest(found), settled_blocks=SETTLED_BLOCKS)

    def upstreams(configs: Any) -> SimulatedUpstreams:
        return SimulatedUpstreams(configs, network, outside, upstream)

    with (
        patch.object(places, "SqliteStore", Store),
        patch.multiple(
            bootstrap,
            SqliteStore=Store,
            Upstreams=upstreams,
            open_session=session,
            open_guarded_session=session,
        ),
        patch.object(gateway, "_ACT_S", _ACT_S),
        # Nobody here looks at pictures, and to draw them took half of a seed's time.
        patch.object(deposits, "qr_svg", lambda _: ""),
        patch.object(payouts, "qr_svg", lambda _: ""),
        patch.object(bitcoin, "_wallet_of", lambda _, clock: wallet(clock)),
        patch.multiple(evm, open_rpc_session=lambda: Session(network), preset_of=preset_of),
        patch.object(lightning, "open_node_session", lambda: NodeSession(network)),
    ):
        yield
