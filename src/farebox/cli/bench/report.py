"""What a run came to, as facts and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from farebox.cli.bench.histogram import Histogram
from farebox.cli.bench.openloop import Arrivals, Kind
from farebox.cli.bench.tally import Tally
from farebox.cli.output import columns, sat

_HEADS = ("", "p50", "p90", "p99", "p99.9", "max")


@dataclass(frozen=True, slots=True)
class Charges:
    """What receipts say was charged, against what the gateway's books say.

    A request whose answer was lost was charged something between nothing and its maximum: sums
    must agree to within that, and exactly where no answer was lost.
    """

    receipts_msat: int
    unknown: int
    unknown_most_msat: int
    key_receipts_msat: int
    key_unknown_most_msat: int
    key_msat: int | None
    books_msat: int | None
    problem: str

    @staticmethod
    def of(
        tally: Tally,
        maximum_msat: Mapping[Kind, int],
        *,
        key_msat: int | None,
        books_msat: int | None,
        problem: str = "",
    ) -> Charges:
        """`key_msat` is what the key has spent, `books_msat` what was earned; None if not asked.

        `problem` says why they could not be asked.
        """
        on_key = {kind: one for kind, one in tally.kinds.items() if kind is not Kind.ECASH}
        return Charges(
            receipts_msat=sum(one.charged_msat for one in tally.kinds.values()),
            unknown=sum(one.unknown for one in tally.kinds.values()),
            unknown_most_msat=sum(
                one.unknown * maximum_msat[kind] for kind, one in tally.kinds.items()
            ),
            key_receipts_msat=sum(one.charged_msat for one in on_key.values()),
            key_unknown_most_msat=sum(
                one.unknown * maximum_msat[kind] for kind, one in on_key.items()
            ),
            key_msat=key_msat,
            books_msat=books_msat,
            problem=problem,
        )

    @property
    def agree(self) -> bool:
        """Whether receipts, the key's account and the books tell the same."""
        by_key = self.key_msat is None or (
            0 <= self.key_msat - self.key_receipts_msat <= self.key_unknown_most_msat
        )
        by_books = self.books_msat is None or (
            0 <= self.books_msat - self.receipts_msat <= self.unknown_most_msat
        )
        return by_key and by_books and not self.problem

    def facts(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "receipts_msat": self.receipts_msat,
            "key_receipts_msat": self.key_receipts_msat,
            "key_msat": self.key_msat,
            "books_msat": self.books_msat,
            "unknown": self.unknown,
            "problem": self.problem,
            "agree": self.agree,
        }

    def rows(self) -> list[tuple[str, str]]:
        """For people."""
        rows = [("charged by receipts", sat(self.receipts_msat))]
        if self.key_msat is not None:
            rows.append(
                ("the key spent", f"{sat(self.key_msat)}, receipts {sat(self.key_receipts_msat)}")
            )
        if self.books_msat is not None:
            rows.append(("earned in the books", sat(self.books_msat)))
        if self.unknown:
            most = sat(self.unknown_most_msat)
            rows.append(("answers lost", f"{self.unknown:,}, charged {most} together at most"))
        why = self.problem or "or others used the gateway meanwhile"
        verdict = "yes" if self.agree else f"NO: {why}"
        return [*rows, ("they agree", verdict)]


@dataclass(frozen=True, slots=True)
class Report:
    """A run that is over."""

    arrivals: Arrivals
    seconds: float
    started: Counter[Kind]
    unstarted: Counter[Kind]
    tally: Tally
    charges: Charges

    def facts(self) -> dict[str, object]:
        """For `--json`. Latencies are whole microseconds from when a request was due."""
        return {
            "seconds": round(self.seconds, 3),
            "rate_per_s": self.arrivals.rate_per_s,
            "answered_per_s": round(self.tally.answered / max(self.seconds, 1e-9), 1),
            "answered": self.tally.answered,
            "failed": self.tally.failed,
            "unstarted": self.unstarted.total(),
            "kinds": {kind.value: self._kind_facts(kind) for kind in self.arrivals.mix},
            "charges": self.charges.facts(),
        }

    def _kind_facts(self, kind: Kind) -> dict[str, object]:
        one = self.tally.of(kind)
        facts: dict[str, object] = {
            "started": self.started[kind],
            "unstarted": self.unstarted[kind],
            "answered": one.whole.count,
            "errors": dict(one.errors.most_common()),
            "charged_msat": one.charged_msat,
            "latency_us": one.whole.facts(),
        }
        return facts | ({"first_byte_us": one.first_byte.facts()} if kind is Kind.STREAM else {})

    def text(self) -> str:
        """For people."""
        asked, reached = self.arrivals.rate_per_s, self.tally.answered / max(self.seconds, 1e-9)
        rows = [("asked", f"{self.started.total():,} in {self.seconds:.1f} s, {asked:,} a second")]
        rows.append(("answered", f"{self.tally.answered:,}, {reached:,.1f} a second"))
        if self.unstarted:
            why = "no place was free: the gateway is slower than the rate"
            rows.append(("never started", f"{self.unstarted.total():,}, {why}"))
        for kind in self.arrivals.mix:
            for how, count in self.tally.of(kind).errors.most_common():
                rows.append((f"{kind}: {how}", f"{count:,}"))
        return f"{self._latencies()}\n\n{columns([*rows, *self.charges.rows()])}"

    def _latencies(self) -> str:
        rows: list[tuple[str, ...]] = [_HEADS]
        for kind in self.arrivals.mix:
            one = self.tally.of(kind)
            rows.append((kind.value, *_milliseconds(one.whole)))
            if kind is Kind.STREAM:
                rows.append(("  first byte", *_milliseconds(one.first_byte)))
        return f"latency from when a request was due, in ms\n{columns(rows)}"


def _milliseconds(histogram: Histogram) -> tuple[str, ...]:
    return tuple(f"{latency_us / 1000:,.1f}" for latency_us in histogram.facts().values())
