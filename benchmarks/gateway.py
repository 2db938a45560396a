"""Paid requests through the gateway against a bare pass-through proxy, in one run.

    python -m benchmarks.gateway [--json] [--requests N] [--rounds N] [--data DIR] [--one-core]

A tiny upstream and the load generator are pinned to one core; the proxy and the gateway take turns
and may use every core, as they would for a user. (The proxy has one thread; the gateway has a
second one, which writes the book.) `--one-core` pins both to one core instead. Every request
through the gateway is paid with an account key and costs two commits with synchronous=FULL on a
real disk. Rounds alternate between proxy and gateway, so that a slow minute of the machine hits
both; each figure is the median of the rounds. CPU time per request is given as well: it tells more
than throughput where others use the machine.

The upstream answers at once. For the latency of a single connection that is the hardest case there
is, so the same is measured with an upstream that takes `UPSTREAM_PAUSE_MS` to answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import uvloop

from benchmarks.load import Load, chat_request, drive

CONNECTIONS = 64
UPSTREAM_PAUSE_MS = 5
FIXED_PRICE = "10 sat"
METERED_PRICE = "0.002 sat / input token + 0.004 sat / output token"
_READY_TRIES = 200
_ALL = os.sched_getaffinity(0)
_CORES = len(_ALL)


class Figures(msgspec.Struct, frozen=True):
    """Medians over the rounds. Ratios: gateway's throughput to bare, gateway's latency to bare."""

    bare_per_s: int
    gateway_per_s: int
    throughput_ratio: float
    bare_median_ms: float
    gateway_median_ms: float
    latency_ratio: float
    bare_cpu_us: int
    gateway_cpu_us: int


class Report(msgspec.Struct, frozen=True):
    """What one run measured."""

    cores: int
    rounds: int
    requests_per_round: int
    connections: int
    fixed_64: Figures
    metered_64: Figures
    stream_64: Figures
    fixed_1: Figures
    stream_1: Figures
    fixed_1_paused: Figures
    stream_1_paused: Figures


class Server:
    """A process that listens."""

    def __init__(self, name: str, core: int | None, *arguments: str) -> None:
        self.port = _free_port()
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        command += [one.replace("PORT", str(self.port)) for one in arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        os.sched_setaffinity(self.process.pid, {core} if core is not None and _CORES > 1 else _ALL)

    def line(self, prefix: str) -> str:
        """The next line it prints that begins so."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(prefix):
                return line.strip()
        raise RuntimeError("a server ended before it was ready")

    async def ready(self) -> None:
        """Wait until it listens."""
        for _ in range(_READY_TRIES):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.05)
        raise RuntimeError(f"nothing listens on port {self.port}")

    def cpu_s(self) -> float:
        """What it has used of a processor so far, all threads together."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _pin(core: int, process: int = 0) -> None:
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(process, {core})


class Lane:
    """A proxy or a gateway, and the request that goes through it."""

    def __init__(self, server: Server, headers: bytes = b"") -> None:
        self._server = server
        self._headers = headers
        self.rounds: list[Load] = []
        self.cpu_us: list[float] = []

    async def run(self, *, stream: bool, connections: int, count: int, keep: bool) -> None:
        """One round."""
        request = chat_request(self._server.port, stream=stream, headers=self._headers)
        before_s = self._server.cpu_s()
        load = await drive(self._server.port, request, connections=connections, count=count)
        if keep:
            self.rounds.append(load)
            self.cpu_us.append((self._server.cpu_s() - before_s) / count * 1e6)


@contextlib.asynccontextmanager
async def bench(
    price: str, pause_ms: int, data: Path, core: int | None
) -> AsyncIterator[tuple[Server, Server, str]]:
    """An upstream, and in front of it a bare proxy and a gateway with a key."""
    with _stopping() as stopping:
        upstream = stopping.started(Server("load", 1, "PORT", str(pause_ms)))
        url = f"http://127.0.0.1:{upstream.port}"
        bare = stopping.started(Server("bare_proxy", core, url, "PORT"))
        book = tempfile.mkdtemp(prefix=".bench-", dir=data)
        stopping.folders.append(book)
        gateway = stopping.started(Server("paid_gateway", core, url, "PORT", book, price))
        key = await asyncio.to_thread(gateway.line, "sk-")
        for server in (upstream, bare, gateway):
            await server.ready()
        yield bare, gateway, key


class _Stopping:
    def __init__(self) -> None:
        self.servers: list[Server] = []
        self.folders: list[str] = []

    def started(self, server: Server) -> Server:
        self.servers.append(server)
        return server


@contextlib.contextmanager
def _stopping() -> Iterator[_Stopping]:
    stopping = _Stopping()
    try:
        yield stopping
    finally:
        for server in reversed(stopping.servers):
            server.stop()
        for folder in stopping.folders:
            for file in Path(folder).iterdir():
                file.unlink()
            Path(folder).rmdir()


async def compare(
    bare: Server,
    gateway: Server,
    key: str,
    *,
    stream: bool,
    connections: int,
    count: int,
    rounds: int,
) -> Figures:
    """Alternate rounds through both; the first of each only warms up."""
    lanes = (Lane(bare), Lane(gateway, b"authorization: Bearer %s\r\n" % key.encode()))
    for number in range(rounds + 1):
        for lane in lanes:
            await lane.run(stream=stream, connections=connections, count=count, keep=number > 0)
    bare_per_s, paid_per_s = (statistics.median(one.per_s for one in lane.rounds) for lane in lanes)
    bare_ms, paid_ms = (
        statistics.median(one.latency_median_ms for one in lane.rounds) for lane in lanes
    )
    bare_cpu, paid_cpu = (statistics.median(lane.cpu_us) for lane in lanes)
    return Figures(
        bare_per_s=round(bare_per_s),
        gateway_per_s=round(paid_per_s),
        throughput_ratio=round(paid_per_s / bare_per_s, 2),
        bare_median_ms=round(bare_ms, 3),
        gateway_median_ms=round(paid_ms, 3),
        latency_ratio=round(paid_ms / bare_ms, 2),
        bare_cpu_us=round(bare_cpu),
        gateway_cpu_us=round(paid_cpu),
    )


async def measure(requests: int, rounds: int, data: Path, core: int | None) -> Report:
    """The whole run."""
    _pin(1)
    few = max(requests // 10, 50)
    async with bench(FIXED_PRICE, 0, data, core) as (bare, gateway, key):

        async def one(*, stream: bool, connections: int, count: int) -> Figures:
            return await compare(
                bare,
                gateway,
                key,
                stream=stream,
                connections=connections,
                count=count,
                rounds=rounds,
            )

        fixed_64 = await one(stream=False, connections=CONNECTIONS, count=requests)
        fixed_1 = await one(stream=False, connections=1, count=few)
    async with bench(METERED_PRICE, 0, data, core) as (bare, gateway, key):
        metered_64 = await one(stream=False, connections=CONNECTIONS, count=requests)
        stream_64 = await one(stream=True, connections=CONNECTIONS, count=requests // 2)
        stream_1 = await one(stream=True, connections=1, count=few)
    async with bench(METERED_PRICE, UPSTREAM_PAUSE_MS, data, core) as (bare, gateway, key):
        fixed_1_paused = await one(stream=False, connections=1, count=few // 2)
        stream_1_paused = await one(stream=True, connections=1, count=few // 2)
    return Report(
        cores=os.cpu_count() or 1,
        rounds=rounds,
        requests_per_round=requests,
        connections=CONNECTIONS,
        fixed_64=fixed_64,
        metered_64=metered_64,
        stream_64=stream_64,
        fixed_1=fixed_1,
        stream_1=stream_1,
        fixed_1_paused=fixed_1_paused,
        stream_1_paused=stream_1_paused,
    )


def show(report: Report) -> None:
    """A table for people."""
    print(
        f"{'':16} {'bare/s':>8} {'paid/s':>8} {'ratio':>6}  {'bare ms':>8} {'paid ms':>8} "
        f"{'ratio':>6}  {'bare µs CPU':>11} {'paid':>5}"
    )
    for name, value in msgspec.structs.asdict(report).items():
        if isinstance(value, Figures):
            print(
                f"{name:16} {value.bare_per_s:8} {value.gateway_per_s:8} "
                f"{value.throughput_ratio:6}  {value.bare_median_ms:8} {value.gateway_median_ms:8} "
                f"{value.latency_ratio:6}  {value.bare_cpu_us:11} {value.gateway_cpu_us:5}"
            )


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Paid requests against a bare proxy.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--requests", type=int, default=6_000, help="requests in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path(), help="where the book is kept")
    parser.add_argument("--one-core", action="store_true", help="pin the gateway and the proxy")
    given = parser.parse_args()
    core = 0 if given.one_core else None
    report = uvloop.run(measure(given.requests, given.rounds, given.data, core))
    if given.json:
        print(msgspec.json.encode(report).decode())
    else:
        show(report)


if __name__ == "__main__":
    main()
