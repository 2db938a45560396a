"""Paid requests through the gateway against a bare pass-through proxy, in one run.

    python -m benchmarks.gateway [--json] [--requests N] [--rounds N] [--data DIR] [--one-core]
                                 [--ecash]

A tiny upstream and the load generator are pinned to one core; the proxy and the gateway take turns
and may use every core, as they would for a user. (The proxy has one thread; the gateway has a
second one, which writes the book.) `--one-core` pins both to one core instead. Every request
through the gateway is paid with an account key and costs two commits with synchronous=FULL on a
real disk. Rounds alternate between proxy and gateway, so that a slow minute of the machine hits
both; each figure is the median of the rounds. CPU time per request is given as well: it tells more
than throughput where others use the machine.

The upstream answers at once. For the latency of a single connection that is the hardest case there
is, so the same is measured with an upstream that takes `UPSTREAM_PAUSE_MS` to answer; and
`least_1` measures, in the gateway's place, the bare proxy with the barest book that could survive a
crash (`benchmarks.bare_proxy`): what a durable charge costs at the least on this disk.

`--ecash` measures requests paid by an embedded Cashu token as well, against the rate at which the
same mint, a real one, carries out bare swaps: see `benchmarks.ecash`. It needs Nutshell (`make
peers`), and without it ends with status 2 before anything is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import uvloop

from benchmarks import ecash
from benchmarks.load import Load, chat_request, drive
from benchmarks.servers import Server, stopping
from tests.peers.install import PeerUnavailable

CONNECTIONS = 64
UPSTREAM_PAUSE_MS = 5
FIXED_PRICE = "10 sat"
METERED_PRICE = "0.002 sat / input token + 0.004 sat / output token"


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
    least_1: Figures
    stream_1: Figures
    fixed_1_paused: Figures
    stream_1_paused: Figures
    ecash: ecash.Figures | None = None


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
) -> AsyncIterator[tuple[Server, Server, Server, str]]:
    """An upstream, and in front of it a bare proxy, one with a book, and a gateway with a key."""
    with stopping() as these:
        upstream = these.started(Server("load", 1, "PORT", str(pause_ms)))
        url = f"http://127.0.0.1:{upstream.port}"
        bare = these.started(Server("bare_proxy", core, url, "PORT"))
        least = these.started(Server("bare_proxy", core, url, "PORT", these.folder(data)))
        book = these.folder(data)
        gateway = these.started(Server("paid_gateway", core, url, "PORT", book, price))
        key = await asyncio.to_thread(gateway.line, "sk-")
        for server in (upstream, bare, least, gateway):
            await server.ready()
        yield bare, least, gateway, key


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
    async with bench(FIXED_PRICE, 0, data, core) as (bare, least, gateway, key):

        async def one(
            against: Server, *, connections: int, count: int, stream: bool = False
        ) -> Figures:
            return await compare(
                bare,
                against,
                key,
                stream=stream,
                connections=connections,
                count=count,
                rounds=rounds,
            )

        fixed_64 = await one(gateway, connections=CONNECTIONS, count=requests)
        fixed_1 = await one(gateway, connections=1, count=few)
        least_1 = await one(least, connections=1, count=few)
    async with bench(METERED_PRICE, 0, data, core) as (bare, _, gateway, key):
        metered_64 = await one(gateway, connections=CONNECTIONS, count=requests)
        stream_64 = await one(gateway, connections=CONNECTIONS, count=requests // 2, stream=True)
        stream_1 = await one(gateway, connections=1, count=few, stream=True)
    async with bench(METERED_PRICE, UPSTREAM_PAUSE_MS, data, core) as (bare, _, gateway, key):
        fixed_1_paused = await one(gateway, connections=1, count=few // 2)
        stream_1_paused = await one(gateway, connections=1, count=few // 2, stream=True)
    return Report(
        cores=os.cpu_count() or 1,
        rounds=rounds,
        requests_per_round=requests,
        connections=CONNECTIONS,
        fixed_64=fixed_64,
        metered_64=metered_64,
        stream_64=stream_64,
        fixed_1=fixed_1,
        least_1=least_1,
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
    if report.ecash:
        print("\nPaid by token, one Nutshell mint:")
        for name, number in msgspec.structs.asdict(report.ecash).items():
            print(f"  {name:20} {number:8}")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Paid requests against a bare proxy.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--requests", type=int, default=6_000, help="requests in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path(), help="where the book is kept")
    parser.add_argument("--one-core", action="store_true", help="pin the gateway and the proxy")
    parser.add_argument("--ecash", action="store_true", help="pay by token at a Nutshell mint too")
    given = parser.parse_args()
    core = 0 if given.one_core else None
    paid_by_token = None
    if given.ecash:  # first: it may not be there, and what comes after pins this process
        try:
            paid_by_token = uvloop.run(ecash.measure(given.data))
        except PeerUnavailable as error:
            print(f"--ecash: {error}", file=sys.stderr)
            sys.exit(2)
    report = uvloop.run(measure(given.requests, given.rounds, given.data, core))
    report = msgspec.structs.replace(report, ecash=paid_by_token)
    if given.json:
        print(msgspec.json.encode(report).decode())
    else:
        show(report)


if __name__ == "__main__":
    main()
