"""The ledger on PostgreSQL against a bare set-based batch writer, in one run.

    python -m benchmarks.postgres [--json] [--quick] [--transfers N] [--rounds N] [--dsn DSN]

256 callers in two processes make single transfers, each with an id of its own, each told when the
database has it on its disk. Bare: `benchmarks.bare_postgres`, batches of as many transfers as one
process has callers, by one process and by two. Rounds of all variants alternate, so that a slow
minute of the machine hits all of them. At the end every book is verified, the bare ones too.

Without `--dsn` a throw-away server of the machine's own programs is used, with its defaults but for
a larger buffer, on the disk of the temporary directory. It uses the same cores as the processes
that are measured: `busy` tells how many cores they used together, and so what the machine
allowed; `writing` how much of the time a process had a batch under way, waits for the book's lock
included: where one process alone comes near 1, the book is the limit, and not its callers.

At the end one gateway and two gateways take requests paid by account key, as `farebox serve` would
run them (`benchmarks.postgres_gateways`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import msgspec
import psycopg
import uvloop

from benchmarks import postgres_gateways
from benchmarks.bare_postgres import BareWriter
from benchmarks.ledger import ACCOUNTS, START_MSAT, Pair, customer, one_credited, random_pairs
from farebox.cli.serve import quieten_collector
from farebox.clock import SystemClock
from farebox.ledger.invariants import verify
from farebox.ledger.model import Applied, Kind, Open, Transfer, Unit
from farebox.ledger.replay import Broken
from farebox.ledger.service import Ledger
from farebox.ledger.store import UNITS_MAX
from farebox.stores.postgres import PostgresStore
from farebox.stores.postgres.audit import PostgresAuditReader
from farebox.tally import Commits
from tests.peers.install import PeerUnavailable
from tests.peers.postgres import Postgres

CALLERS = 256
#: The book that all write, the one beside it, and the bare writers' own.
OURS, OTHER, BARE = 1, 2, 3
_READY_S = 120

Side = Literal["single", "many", "bare"]


class Round(msgspec.Struct, frozen=True):
    """What one process is to do: its share of the pairs, and how."""

    round_id: str
    side: Side
    book: int
    one_credited: bool
    first: int
    transfers: int
    callers: int


class Figures(msgspec.Struct, frozen=True):
    """Medians over the rounds. CPU in µs a transfer, of our processes and of the database's."""

    per_s: int
    cpu_us: float
    database_cpu_us: float
    busy: float
    batch: float
    writing: float


class Done(msgspec.Struct, frozen=True):
    """What one process tells of a round; nothing of its batches where they are not a store's."""

    cpu_s: float
    batches: int = 0
    writing_s: float = 0


class Report(msgspec.Struct, frozen=True):
    """What one run measured. Ratios are medians of the ratios of one round each."""

    cores: int
    callers: int
    transfers_per_round: int
    rounds: int
    variants: dict[str, Figures]
    gateways: dict[str, postgres_gateways.Figures]
    ratios: dict[str, float]


# ── a process that is measured ───────────────────────────────────────────────────────────────────


def share(one: Round) -> list[Pair]:
    """Whom this process lets pay whom."""
    pairs = one_credited() if one.one_credited else random_pairs()
    return list(islice(pairs, one.first, one.first + one.transfers))


async def _single(store: PostgresStore, one: Round, pairs: Sequence[Pair]) -> None:
    async def caller(own: range) -> None:
        for number in own:
            debit, credit = pairs[number]
            unit = Unit(f"{one.round_id}:{number}", (Transfer(debit, credit, 1, "charge"),))
            assert isinstance(await store.commit(unit), Applied)

    callers = (caller(range(first, len(pairs), one.callers)) for first in range(one.callers))
    await asyncio.gather(*callers)


async def _many(store: PostgresStore, one: Round, pairs: Sequence[Pair]) -> None:
    ledger = Ledger(store, SystemClock())
    for first in range(0, len(pairs), UNITS_MAX):
        transfers = {
            f"{one.round_id}:{number}": Transfer(debit, credit, 1, "charge")
            for number, (debit, credit) in enumerate(pairs[first : first + UNITS_MAX], first)
        }
        told = await ledger.post_many(transfers)
        assert all(isinstance(outcome, Applied) for outcome in told.values())


async def _serve(dsn: str, pipe: Connection) -> None:
    commits = Commits()
    stores = {
        book: await PostgresStore.open(dsn, (), book=book, commits=commits)
        for book in (OURS, OTHER)
    }
    bare = BareWriter(dsn, BARE)
    quieten_collector()
    pipe.send("ready")
    while isinstance(one := pipe.recv(), Round):
        pairs = share(one)
        pipe.send("ready")
        pipe.recv()
        batches, writing_s = sum(commits.sizes.buckets), commits.took.sum
        began_s = time.process_time()
        if one.side == "single":
            await _single(stores[one.book], one, pairs)
        elif one.side == "many":
            await _many(stores[one.book], one, pairs)
        else:
            bare.run(pairs, one.round_id, one.callers)
        pipe.send(
            Done(
                time.process_time() - began_s,
                sum(commits.sizes.buckets) - batches,
                commits.took.sum - writing_s,
            )
        )
    bare.close()
    for store in stores.values():
        await store.close()


def work(dsn: str, pipe: Connection) -> None:
    """Do the rounds that come through the pipe."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(dsn, pipe))


# ── the measurement ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Variant:
    """Which processes do what; a share of the callers and of the transfers each."""

    side: Side
    books: tuple[int, ...]
    one_credited: bool = False
    callers: int = CALLERS


VARIANTS = {
    "bare, one process": Variant("bare", (BARE,), callers=CALLERS // 2),
    "bare, two processes": Variant("bare", (BARE, BARE)),
    "two processes": Variant("single", (OURS, OURS)),
    "two processes, one account credited": Variant("single", (OURS, OURS), one_credited=True),
    "one process": Variant("single", (OURS,)),
    "two processes, a book each": Variant("single", (OURS, OTHER)),
    "post_many": Variant("many", (OURS,)),
    "bare, batches of 1,000": Variant("bare", (BARE,), callers=UNITS_MAX),
}


@dataclass
class Bench:
    """Two processes, their pipes, and what was measured so far."""

    dsn: str
    pipes: list[Connection]
    figures: dict[str, list[Figures]] = field(default_factory=dict)

    def run(self, name: str, number: int, transfers: int, *, keep: bool) -> None:
        """One round of one variant."""
        variant = VARIANTS[name]
        count = len(variant.books)
        own = transfers // count
        taking_part = self.pipes[:count]
        for index, (pipe, book) in enumerate(zip(taking_part, variant.books, strict=True)):
            round_id = f"{name}:{number}:{index}"
            pipe.send(
                Round(
                    round_id,
                    variant.side,
                    book,
                    variant.one_credited,
                    index * own,
                    own,
                    variant.callers // count,
                )
            )
        for pipe in taking_part:
            _hear(pipe)
        before_s, began_s = self.database_cpu_s(), time.perf_counter()
        for pipe in taking_part:
            pipe.send("go")
        told = [done for pipe in taking_part if isinstance(done := _hear(pipe), Done)]
        took_s = time.perf_counter() - began_s
        database_s = self.database_cpu_s() - before_s
        if keep:
            transfers = own * count
            cpu_s = sum(one.cpu_s for one in told)
            batches = sum(one.batches for one in told)
            self.figures.setdefault(name, []).append(
                Figures(
                    per_s=round(transfers / took_s),
                    cpu_us=cpu_s / transfers * 1e6,
                    database_cpu_us=database_s / transfers * 1e6,
                    busy=(cpu_s + database_s) / took_s,
                    batch=transfers / batches if batches else variant.callers / count,
                    writing=sum(one.writing_s for one in told) / took_s / count,
                )
            )

    def database_cpu_s(self) -> float:
        """What the server's processes have used, those that serve other connections too."""
        with psycopg.connect(self.dsn) as db:
            row = db.execute(
                "SELECT array_agg(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            ).fetchone()
        assert row is not None
        return sum(_cpu_s(pid) for pid in row[0])


def _hear(pipe: Connection) -> object:
    if not pipe.poll(_READY_S):
        raise RuntimeError(f"a process was silent for {_READY_S} s")
    return pipe.recv()


def _cpu_s(pid: int) -> float:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:  # another machine's, or ended
        return 0
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


async def open_accounts(dsn: str) -> None:
    """Customers with money, in every book."""
    for book in (OURS, OTHER, BARE):
        store = await PostgresStore.open(dsn, (), book=book)
        fixed = (
            Open("custody:mint", "BTC", Kind.CUSTODY),
            Open("revenue:shop", "BTC", Kind.REVENUE),
        )
        units = [Unit("open", fixed)]
        for number in range(ACCOUNTS):
            steps = (
                Open(customer(number), "BTC", Kind.CUSTOMER),
                Transfer("custody:mint", customer(number), START_MSAT, "deposit"),
            )
            units.append(Unit(f"open:{number}", steps))
        for first in range(0, len(units), UNITS_MAX):
            await store.commit_many(units[first : first + UNITS_MAX])
        await store.close()


def check_books(dsn: str) -> None:
    """Every book must be whole."""
    for book in (OURS, OTHER, BARE):
        with PostgresAuditReader(dsn, (), book=book) as reader:
            result = verify(reader)
        if isinstance(result, Broken):
            sys.exit(f"book {book}: {result}")


@contextlib.contextmanager
def processes(dsn: str, count: int) -> Iterator[list[Connection]]:
    """Processes that wait for rounds, by their pipes."""
    context = multiprocessing.get_context("spawn")
    pipes, running = [], []
    for _ in range(count):
        mine, its = context.Pipe()
        process = context.Process(target=work, args=(dsn, its), daemon=True)
        process.start()
        pipes.append(mine)
        running.append(process)
    try:
        for pipe in pipes:
            _hear(pipe)
        yield pipes
        for pipe in pipes:
            pipe.send("end")
        for process in running:
            process.join(30)
    finally:
        for process in running:
            process.kill()


def measure(dsn: str, transfers: int, rounds: int) -> Report:
    """Alternate rounds of all variants, after a short one of each that warms up."""
    asyncio.run(open_accounts(dsn))
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("VACUUM ANALYZE")
    with processes(dsn, 2) as pipes:
        bench = Bench(dsn, pipes)
        for number in range(rounds + 1):
            for name in VARIANTS:
                size = transfers if number else transfers // 4
                bench.run(name, number, size, keep=number > 0)
    check_books(dsn)
    one, two = uvloop.run(
        postgres_gateways.measure(dsn, Path(), transfers // 4, rounds, bench.database_cpu_s)
    )

    def ratio(ours: str, theirs: str) -> float:
        both = zip(bench.figures[ours], bench.figures[theirs], strict=True)
        return round(statistics.median(a.per_s / b.per_s for a, b in both), 2)

    return Report(
        cores=os.cpu_count() or 1,
        callers=CALLERS,
        transfers_per_round=transfers,
        rounds=rounds,
        variants={name: _medians(bench.figures[name]) for name in VARIANTS},
        gateways={"one gateway": one, "two gateways": two},
        ratios={
            "two processes to bare in one": ratio("two processes", "bare, one process"),
            "two processes to bare in two": ratio("two processes", "bare, two processes"),
            "one account credited to spread": ratio(
                "two processes, one account credited", "two processes"
            ),
            "two processes to one": ratio("two processes", "one process"),
            "two books to one": ratio("two processes, a book each", "one process"),
            "post_many to bare batches of 1,000": ratio("post_many", "bare, batches of 1,000"),
            "two gateways to one": round(two.per_s / one.per_s, 2),
        },
    )


def _medians(rounds: Sequence[Figures]) -> Figures:
    def median(name: str) -> float:
        values: list[float] = [getattr(one, name) for one in rounds]
        return round(statistics.median(values), 2)

    return Figures(
        per_s=round(median("per_s")),
        cpu_us=median("cpu_us"),
        database_cpu_us=median("database_cpu_us"),
        busy=median("busy"),
        batch=median("batch"),
        writing=median("writing"),
    )


def table(report: Report) -> str:
    """The report for people."""
    lines = [
        f"{report.callers} callers, {report.rounds} rounds of {report.transfers_per_round:,} "
        f"transfers, {report.cores} cores",
        f"{'':<38}{'per s':>8}{'CPU µs':>8}{'server µs':>11}{'busy':>6}{'batch':>7}{'writing':>9}",
    ]
    for name, one in report.variants.items():
        numbers = f"{one.per_s:>8,}{one.cpu_us:>8.1f}{one.database_cpu_us:>11.1f}{one.busy:>6.2f}"
        lines.append(f"{name:<38}{numbers}{one.batch:>7.0f}{one.writing:>9.2f}")
    lines += ["", f"{'':<38}{'per s':>8}{'CPU µs':>8}{'server µs':>11}{'busy':>6}{'others µs':>11}"]
    for name, of in report.gateways.items():
        numbers = f"{of.per_s:>8,}{of.gateway_cpu_us:>8}{of.database_cpu_us:>11}{of.busy:>6.2f}"
        lines.append(f"{name:<38}{numbers}{of.others_cpu_us:>11}")
    lines += ["", *(f"{name:<38}{value:>8}" for name, value in report.ratios.items())]
    return "\n".join(lines)


@contextlib.contextmanager
def server(dsn: str | None) -> Iterator[str]:
    """The database to measure on."""
    if dsn is not None:
        yield dsn
        return
    postgres = Postgres(fsync="on", shared_buffers="256MB")
    try:
        postgres.start()
        yield postgres.dsn
    finally:
        postgres.remove()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.postgres", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="short and few rounds")
    parser.add_argument("--transfers", type=int, default=10_000, help="per round and variant")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dsn", help="a database without books; default: a throw-away server")
    chosen = parser.parse_args()
    transfers, rounds = (3_000, 2) if chosen.quick else (chosen.transfers, chosen.rounds)
    try:
        with server(chosen.dsn) as dsn:
            report = measure(dsn, transfers, rounds)
    except PeerUnavailable as error:
        sys.exit(f"{error}")
    print(msgspec.json.encode(report).decode() if chosen.json else table(report))


if __name__ == "__main__":
    main()
