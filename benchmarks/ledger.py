"""The group-commit ledger against a bare SQLite loop that does the same checks and writes.

    python -m benchmarks.ledger [--json] [--transfers N] [--rounds N] [--data DIR]

Ours: 1,024 concurrent callers, one transfer per unit, each with a fresh id; and one caller who
posts 1,000 transfers a call (`Ledger.post_many`). Bare: one loop without a ledger, an event loop or
callers, 1,000 transfers per transaction. All on one real disk, told once the disk has it; rounds
alternate, so that a slow minute of the machine hits all of them. Python's collector is set as
`farebox serve` sets it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import apsw
import msgspec
import uvloop

from farebox.cli.serve import quieten_collector
from farebox.clock import SystemClock
from farebox.ledger.audit import GENESIS
from farebox.ledger.model import Applied, Kind, Open, Transfer, Unit
from farebox.ledger.service import Ledger
from farebox.ledger.store import UNITS_MAX
from farebox.money import AMOUNT_END
from farebox.stores.sqlite import SqliteStore
from farebox.stores.sqlite.schema import MIGRATIONS
from farebox.stores.sqlite.store import open_connection

CALLERS = 1_024
BARE_BATCH = 1_000
ACCOUNTS = 10_000
START_MSAT = 10**12
BOOK = 1

_pack = msgspec.msgpack.Encoder().encode
Pair = tuple[str, str]


class Figures(msgspec.Struct, frozen=True):
    """Transfers per second and their ratio: medians over all rounds."""

    ledger_per_s: int
    many_per_s: int
    bare_per_s: int
    ratio: float
    many_ratio: float


class Report(msgspec.Struct, frozen=True):
    """What one run measured."""

    callers: int
    transfers_per_round: int
    rounds: int
    random_accounts: Figures
    distinct_accounts: Figures
    one_account_credited: Figures

    @property
    def variants(self) -> dict[str, Figures]:
        """By the name that the table shows."""
        return {
            "random accounts": self.random_accounts,
            "all accounts distinct": self.distinct_accounts,
            "one account credited": self.one_account_credited,
        }


def customer(number: int) -> str:
    """The id of one of the customers."""
    return f"customer:{number:05d}"


# ── who pays whom ────────────────────────────────────────────────────────────────────────────────


def random_pairs() -> Iterator[Pair]:
    """Anybody pays anybody."""
    draw = random.Random(1)
    while True:
        debit, credit = draw.sample(range(ACCOUNTS), 2)
        yield customer(debit), customer(credit)


def distinct_pairs() -> Iterator[Pair]:
    """No account occurs twice in 5,000 transfers, hence in no batch."""
    for number in itertools.cycle(range(0, ACCOUNTS, 2)):
        yield customer(number), customer(number + 1)


def one_credited() -> Iterator[Pair]:
    """Everybody pays the same shop."""
    for number in itertools.cycle(range(ACCOUNTS)):
        yield customer(number), "revenue:shop"


# ── ours ─────────────────────────────────────────────────────────────────────────────────────────


async def open_accounts(store: SqliteStore) -> None:
    """Customers with money, as a deposit gives it to them."""
    fixed = (Open("custody:mint", "BTC", Kind.CUSTODY), Open("revenue:shop", "BTC", Kind.REVENUE))
    await store.commit(Unit("open", fixed))
    units = (
        Unit(
            f"open:{number}",
            (
                Open(customer(number), "BTC", Kind.CUSTOMER),
                Transfer("custody:mint", customer(number), START_MSAT, "deposit"),
            ),
        )
        for number in range(ACCOUNTS)
    )
    await asyncio.gather(*(store.commit(unit) for unit in units))


async def run_ledger(store: SqliteStore, pairs: list[Pair], round_id: str) -> float:
    """Seconds for all pairs; each caller waits for its commit before it makes the next."""

    async def caller(own: range) -> None:
        for number in own:
            debit, credit = pairs[number]
            unit = Unit(f"{round_id}:{number}", (Transfer(debit, credit, 1, "charge"),))
            assert isinstance(await store.commit(unit), Applied)

    started = time.perf_counter()
    callers = (caller(range(first, len(pairs), CALLERS)) for first in range(CALLERS))
    await asyncio.gather(*callers)
    return time.perf_counter() - started


async def run_many(store: SqliteStore, pairs: list[Pair], round_id: str) -> float:
    """Seconds for all pairs, as many in one call as one takes, one call after the other."""
    ledger = Ledger(store, SystemClock())
    started = time.perf_counter()
    for first in range(0, len(pairs), UNITS_MAX):
        transfers = {
            f"{round_id}:{number}": Transfer(debit, credit, 1, "charge")
            for number, (debit, credit) in enumerate(pairs[first : first + UNITS_MAX], first)
        }
        told = await ledger.post_many(transfers)
        assert all(isinstance(outcome, Applied) for outcome in told.values())
    return time.perf_counter() - started


# ── bare ─────────────────────────────────────────────────────────────────────────────────────────


class Bare:
    """The loop one would write by hand: the same tables, look-ups, limits, hashes and writes."""

    def __init__(self, path: Path) -> None:
        self.db = open_connection(path)
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.execute(MIGRATIONS[0].sql)
        self.seq = 0
        self.digest = GENESIS
        rows = [(BOOK, "revenue:shop", "BTC", "revenue", "0", "0", "0", "0", None)]
        for number in range(ACCOUNTS):
            money = ("0", "0", "0", str(START_MSAT), None)
            rows.append((BOOK, customer(number), "BTC", "customer", *money))
        with self.db:
            self.db.executemany("INSERT INTO accounts VALUES (?,?,?,?,?,?,?,?,?)", rows)

    def run(self, pairs: list[Pair], round_id: str) -> float:
        """Seconds for all pairs."""
        started = time.perf_counter()
        transfers = iter(enumerate(pairs))
        cursor = self.db.cursor()
        while batch := list(islice(transfers, BARE_BATCH)):
            cursor.execute("BEGIN IMMEDIATE")
            at = time.time_ns()
            for number, (debit, credit) in batch:
                self._transfer(cursor, f"{round_id}:{number}", debit, credit, at)
            cursor.execute("COMMIT")
        return time.perf_counter() - started

    def _transfer(
        self, cursor: apsw.Cursor, unit_id: str, debit: str, credit: str, at: int
    ) -> None:
        known = "SELECT seq FROM units WHERE book = ? AND id = ?"
        assert cursor.execute(known, (BOOK, unit_id)).fetchone() is None
        select = (
            "SELECT asset, kind, debits_pending, debits_posted, credits_pending, credits_posted, "
            "ceiling FROM accounts WHERE book = ? AND id = ?"
        )
        debtor = cursor.execute(select, (BOOK, debit)).fetchone()
        creditor = cursor.execute(select, (BOOK, credit)).fetchone()
        assert debtor is not None
        assert creditor is not None
        assert debtor[0] == creditor[0]
        debits, credits_ = int(debtor[3]) + 1, int(creditor[5]) + 1
        assert debits + int(debtor[2]) <= int(debtor[5])
        assert max(debits + int(debtor[2]), credits_ + int(creditor[4])) < AMOUNT_END
        self.seq += 1
        movement = (0, "transfer", debit, credit, "1", "charge", "", 0)
        body = _pack((b"", False, None, b"", (movement,), (), (), ()))
        link = _pack((self.seq, at, unit_id, body, ()))
        self.digest = hashlib.sha256(self.digest + link).digest()
        unit = (BOOK, self.seq, unit_id, at, body, self.digest)
        cursor.execute("INSERT INTO units VALUES (?,?,?,?,?,?)", unit)
        debited = "UPDATE accounts SET debits_posted = ? WHERE book = ? AND id = ?"
        cursor.execute(debited, (str(debits), BOOK, debit))
        credited = "UPDATE accounts SET credits_posted = ? WHERE book = ? AND id = ?"
        cursor.execute(credited, (str(credits_), BOOK, credit))


# ── both ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Contest:
    """Both sides, with a book each."""

    store: SqliteStore
    bare: Bare
    transfers: int
    rounds: int

    async def figures(self, name: str, make_pairs: Callable[[], Iterator[Pair]]) -> Figures:
        """Alternate rounds of both sides, after a short one that warms up."""
        pairs = list(islice(make_pairs(), self.transfers))
        warm = pairs[: self.transfers // 4]
        await run_ledger(self.store, warm, f"{name}:warm")
        await run_many(self.store, warm, f"{name}:many:warm")
        self.bare.run(warm, f"{name}:warm")
        ledger_s, many_s, bare_s = [], [], []
        for number in range(self.rounds):
            ledger_s.append(await run_ledger(self.store, pairs, f"{name}:{number}"))
            many_s.append(await run_many(self.store, pairs, f"{name}:many:{number}"))
            bare_s.append(self.bare.run(pairs, f"{name}:{number}"))

        def per_s(seconds: list[float]) -> int:
            return round(self.transfers / statistics.median(seconds))

        def ratio(seconds: list[float]) -> float:
            both = zip(seconds, bare_s, strict=True)
            return round(statistics.median(bare / ours for ours, bare in both), 2)

        return Figures(
            per_s(ledger_s), per_s(many_s), per_s(bare_s), ratio(ledger_s), ratio(many_s)
        )


async def measure(directory: Path, transfers: int, rounds: int) -> Report:
    """Run every variant in `directory`, which must be on the disk to be measured."""
    store = SqliteStore(directory / "ledger.db", ())
    await open_accounts(store)
    bare = Bare(directory / "bare.db")
    quieten_collector()
    contest = Contest(store, bare, transfers, rounds)
    try:
        return Report(
            callers=CALLERS,
            transfers_per_round=transfers,
            rounds=rounds,
            random_accounts=await contest.figures("random", random_pairs),
            distinct_accounts=await contest.figures("distinct", distinct_pairs),
            one_account_credited=await contest.figures("credited", one_credited),
        )
    finally:
        bare.db.close()
        await store.close()


def table(report: Report) -> str:
    """The report for people."""
    lines = [
        f"{report.callers:,} callers, {report.rounds} rounds of {report.transfers_per_round:,} "
        "transfers, synchronous=FULL",
        f"{'':<24}{'single/s':>12}{'post_many/s':>14}{'bare loop/s':>14}{'ratios':>8}",
    ]
    for name, figures in report.variants.items():
        rates = f"{figures.ledger_per_s:>12,}{figures.many_per_s:>14,}{figures.bare_per_s:>14,}"
        lines.append(f"{name:<24}{rates}{figures.ratio:>8.2f}{figures.many_ratio:>6.2f}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--transfers", type=int, default=10_000, help="per round and side")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--data", type=Path, help="where the books are made; default: here")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=chosen.data or Path.cwd()) as directory:
        measuring = measure(Path(directory), chosen.transfers, chosen.rounds)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report = runner.run(measuring)
    print(msgspec.json.encode(report).decode() if chosen.json else table(report))


if __name__ == "__main__":
    main()
