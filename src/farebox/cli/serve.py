"""`farebox serve`: the gateway, from flags alone or from a settings file."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
import uvloop

from farebox.bootstrap import Farebox, public_url
from farebox.bootstrap.cards import providers
from farebox.cli.checks import needs_root_key
from farebox.cli.desk import carry_out
from farebox.cli.door import open_door
from farebox.cli.listener import listening, server_config
from farebox.cli.logs import write_library_logs, write_logs
from farebox.cli.options import DataOption, SettingsOption, read_settings
from farebox.cli.output import JsonOption, progress, show
from farebox.errors import FareboxError, InvalidSettings
from farebox.gateway.cors import Cors
from farebox.pricing.parse import format_price, parse_rules
from farebox.settings import Address, MintPolicy, Settings, create_root_key, read_root_key

#: After the grace: for the ends of answers that were cut, and their settling.
_LAST_WORDS_S = 10


def serve(
    upstream: Annotated[
        list[str] | None, typer.Option(help="The service to sell; again for fail-over.")
    ] = None,
    mint: Annotated[
        list[str] | None, typer.Option(help="A mint to trust; again for another one.")
    ] = None,
    price: Annotated[
        str | None, typer.Option(help='What a request costs, such as "10 sat".')
    ] = None,
    listen: Annotated[str | None, typer.Option(help="host:port to listen on.")] = None,
    data: DataOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a paywall in front of a service. Flags win over the settings file; none is needed."""
    found = read_settings(settings, data, _overrides(upstream, mint, price, listen))
    _check_complete(found)
    write_logs(found.log.level, found.log.format)
    write_library_logs(found.log.format)
    _make_directory(found.data_dir)
    if needs_root_key(found, os.environ):
        path = create_root_key(found.data_dir)
        progress(f"made {path}: keep a copy, nothing can be recovered without it")
    root_key = read_root_key(found.data_dir, os.environ)
    with ExitStack() as opened:
        listener = opened.enter_context(listening(found.gateway.listen, "gateway.listen"))
        metrics = None
        gateway = replace(found.gateway, listen=_bound(found.gateway.listen, listener))
        found = replace(found, gateway=gateway)
        if found.metrics.listen is not None:
            metrics = opened.enter_context(listening(found.metrics.listen, "metrics.listen"))
            bound = _bound(found.metrics.listen, metrics)
            found = replace(found, metrics=replace(found.metrics, listen=bound))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            announce = partial(_announce, found, as_json)
            runner.run(_serve(found, root_key, listener, metrics, announce))


def _bound(wanted: Address, listener: socket.socket) -> Address:
    """Where it listens: port 0 stands for any that is free."""
    return Address(wanted.host, listener.getsockname()[1])


def _overrides(
    upstream: list[str] | None, mint: list[str] | None, price: str | None, listen: str | None
) -> dict[str, object]:
    given: dict[str, object] = {}
    if upstream:
        given["upstream"] = [{"urls": upstream}]
    if mint:
        given["mint"] = [{"url": url} for url in mint]
    if price is not None:
        given["price"] = [{"price": price}]
    if listen is not None:
        given["gateway.listen"] = listen
    return given


def _check_complete(found: Settings) -> None:
    """Refuse to start a server that could sell nothing. Raises InvalidSettings."""
    if not found.upstreams:
        raise InvalidSettings("upstream", "none", "--upstream URL, or [[upstream]] in the file")
    trusted = any(mint.policy is MintPolicy.TRUSTED for mint in found.mints)
    rails = (found.lightning.url, found.bitcoin.url, *found.evm, *providers(found))
    if not (trusted or any(rails)):
        allowed = "--mint URL, or [[mint]] or the table of a rail in the file"
        raise InvalidSettings("mint", "none trusted", allowed)
    if not parse_rules(found.prices):
        raise InvalidSettings("price", "none", '--price "10 sat", or [[price]] in the file')


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        found = f"{path} ({error.strerror})"
        raise InvalidSettings("data_dir", found, "a directory that we may write") from None


async def _serve(
    found: Settings,
    root_key: bytes,
    listener: socket.socket,
    metrics: socket.socket | None,
    announce: Callable[[], None],
) -> None:
    async with (
        Farebox(found, root_key) as house,
        open_door(found.data_dir, lambda request: carry_out(house, request)),
        _operator_served(house, metrics),
    ):
        # The house cuts what outlasts the grace; this is for what even then does not end.
        patience_s = math.ceil(found.gateway.stop_grace_s) + _LAST_WORDS_S
        origins = found.gateway.cors_origins
        app = Cors(house.app, origins) if origins else house.app
        config = server_config(app, found.gateway.header_bytes_max, stop_timeout_s=patience_s)
        server = _Server(config, house, announce)
        quieten_collector()
        with server.stopped_by_signals():
            await server.serve(sockets=[listener])
        if not server.started:
            raise FareboxError("the server did not start; the log above says why")
    progress("stopped: every request that was running is settled")


def quieten_collector() -> None:
    """Have Python look for cyclic garbage rarely, and never in what was there at the start.

    A request leaves next to none, but makes hundreds of objects: at its defaults the collector
    takes a tenth of the time that requests take.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@asynccontextmanager
async def _operator_served(house: Farebox, listener: socket.socket | None) -> AsyncIterator[None]:
    """Metrics and probes on a listener of their own, until everything else has ended."""
    if listener is None:
        yield
        return
    header_bytes_max = house.settings.gateway.header_bytes_max
    config = server_config(house.operator, header_bytes_max, stop_timeout_s=1)
    server = _Quiet(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


class _Quiet(uvicorn.Server):
    """A server that leaves signals to somebody else."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn's own would raise the signal again afterwards, before the book is closed."""
        yield


class _Server(_Quiet):
    """A server that says when it listens, and ends by a signal without dying of it.

    signal ──► draining ──► stopping ──► stopped
      │  /readyz says so    no new requests, the grace runs, then they are cut
      └─ a second one: cut now
    """

    def __init__(
        self, config: uvicorn.Config, house: Farebox, announce: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._house = house
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Beside uvicorn's, which would cancel what outlasts the grace as if its caller had left.
        stopping = asyncio.create_task(self._house.app.stop())
        await super().shutdown(sockets)
        await stopping

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop it; a second one does not wait for running requests."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        if self._house.vitals.is_stopping:
            self._house.app.cut()
            self.should_exit = True
            return
        self._house.vitals.is_stopping = True
        gateway = self._house.settings.gateway
        drained = f"new ones are taken for {gateway.drain_s} s, " if gateway.drain_s else ""
        progress(
            f"stopping: {drained}running requests have {math.ceil(gateway.stop_grace_s)} s; "
            "the same signal again cuts them"
        )
        asyncio.get_running_loop().call_later(gateway.drain_s, self._end)

    def _end(self) -> None:
        self.should_exit = True


def _announce(found: Settings, as_json: bool) -> None:
    url = public_url(found)
    mints = [mint.url for mint in found.mints if mint.policy is MintPolicy.TRUSTED]
    services = [one for upstream in found.upstreams for one in upstream.urls]
    prices = [format_price(rule) for rule in parse_rules(found.prices)]
    facts = {
        "url": url,
        "pid": os.getpid(),
        "upstreams": services,
        "mints": mints,
        "prices": prices,
        "data_dir": str(found.data_dir),
    }
    if found.metrics.listen is not None:
        facts["metrics"] = f"http://{found.metrics.listen}/metrics"
    sold = f"{services[0]} for {prices[0]}" if len(services) == len(prices) == 1 else "services"
    places = [*mints, *filter(None, (found.lightning.url, found.bitcoin.url))]
    places += [*(chain.name for chain in found.evm), *providers(found)]
    text = f"listening on {url}, selling {sold}, paid at {', '.join(places)}"
    show(facts, text, as_json=as_json)
