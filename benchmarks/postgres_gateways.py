"""One gateway and two gateways on one book in PostgreSQL: requests paid by account key.

Load generator, upstream, gateways and database share the machine. So the rates say what this
machine allowed; the CPU of each of them says what would be needed for more.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks.load import chat_request, drive
from benchmarks.servers import Server, stopping

_CONNECTIONS = 64
_PRICE = "10 sat"


class Figures(msgspec.Struct, frozen=True):
    """Medians over the rounds. CPU in µs a request: of the gateways, the database, the others."""

    per_s: int
    gateway_cpu_us: int
    database_cpu_us: int
    others_cpu_us: int
    busy: float


async def measure(
    dsn: str, data: Path, requests: int, rounds: int, database_cpu_s: Callable[[], float]
) -> list[Figures]:
    """One gateway, then two; rounds alternate, and the first of each warms up."""
    os.environ["FAREBOX_DATABASE"] = dsn  # for the gateways
    with stopping() as these:
        upstream = these.started(Server("load", None, "PORT", "0"))
        url = f"http://127.0.0.1:{upstream.port}"
        gateways, keys = [], []
        for _ in range(2):
            arguments = (url, "PORT", these.folder(data), _PRICE)
            gateways.append(these.started(Server("paid_gateway", None, *arguments)))
            keys.append(await asyncio.to_thread(gateways[-1].line, "sk-"))
        for server in (upstream, *gateways):
            await server.ready()

        async def one_round(count: int, size: int) -> Figures:
            taking_part = list(zip(gateways, keys, strict=True))[:count]
            database_s = database_cpu_s()
            gateway_s = sum(gateway.cpu_s() for gateway in gateways)
            others_s = time.process_time() + upstream.cpu_s()
            began_s = time.perf_counter()
            await asyncio.gather(
                *(
                    drive(
                        gateway.port,
                        chat_request(
                            gateway.port,
                            stream=False,
                            headers=b"authorization: Bearer %s\r\n" % key.encode(),
                        ),
                        connections=_CONNECTIONS // count,
                        count=size // count,
                    )
                    for gateway, key in taking_part
                )
            )
            took_s = time.perf_counter() - began_s
            others_s = time.process_time() + upstream.cpu_s() - others_s
            gateway_s = sum(gateway.cpu_s() for gateway in gateways) - gateway_s
            database_s = database_cpu_s() - database_s
            return Figures(
                round(size / took_s),
                round(gateway_s / size * 1e6),
                round(database_s / size * 1e6),
                round(others_s / size * 1e6),
                (gateway_s + others_s + database_s) / took_s,
            )

        figures: dict[int, list[Figures]] = {1: [], 2: []}
        for number in range(rounds + 1):
            for count in (1, 2):
                figures[count].append(await one_round(count, requests if number else requests // 4))
    return [_medians(figures[count][1:]) for count in (1, 2)]


def _medians(rounds: list[Figures]) -> Figures:
    def median(name: str) -> float:
        values: list[float] = [getattr(one, name) for one in rounds]
        return statistics.median(values)

    return Figures(
        round(median("per_s")),
        round(median("gateway_cpu_us")),
        round(median("database_cpu_us")),
        round(median("others_cpu_us")),
        round(median("busy"), 2),
    )
