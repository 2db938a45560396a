"""Every metric, declared in one place and read from plain counts when Prometheus asks.

Nothing is counted in Prometheus's own types: a request adds to some integers, and a scrape turns
them into samples. A sample is a float in Prometheus: money above 2^53 of the asset's smallest
unit (90,071 BTC in msat) is told rounded, and the log says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from farebox.clock import NS_PER_S, running_s
from farebox.errors import StoreError
from farebox.operating.census import Census, CensusTaker
from farebox.operating.findings import Verdict
from farebox.operating.vitals import Parts, Vitals
from farebox.rails.web.breaker import BreakerState
from farebox.tally import Spread

_log = structlog.get_logger("farebox.metrics")

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_EXACT_MAX = 2**53
_CUSTODY = "custody:"
_GRADES = {Verdict.FINE: 0, Verdict.WARNING: 1, Verdict.FAILURE: 2}

_Rows = Iterable[tuple[Sequence[str], float]]


class Metrics(Collector):
    """The metrics of one house, in a registry of its own."""

    def __init__(self, parts: Parts, vitals: Vitals) -> None:
        self._parts = parts
        self._vitals = vitals
        self._census = CensusTaker(parts)
        self._counted: Census | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    async def exposition(self) -> bytes:
        """All of them as text. Where the book cannot be read, what stands in it is left out."""
        try:
            self._counted = await self._census.take()
        except StoreError as error:
            _log.warning("book.unread", error=str(error))
            self._counted = None
        return generate_latest(self._registry)

    def describe(self) -> Iterator[Metric]:
        """Nothing: names are not checked against other collectors', there is one."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Samples of this moment."""
        yield from self._requests()
        yield from self._commits()
        yield from self._events()
        yield from self._mints()
        yield from self._rails()
        yield from self._upstreams()
        yield from self._jobs()
        yield from self._health()
        yield _gauge(
            "farebox_book_read",
            "Whether the book could be read for this scrape.",
            [((), int(self._counted is not None))],
        )
        if self._counted is not None:
            yield from _money(self._counted)
            yield from _unfinished(self._counted)
            yield from _in_flight(self._counted)

    def _requests(self) -> Iterator[Metric]:
        gateway = self._parts.gateway
        tally = gateway.carrier.tally
        yield _counter(
            "farebox_requests",
            "Requests by whether they were let pass; what was not, by the code of its answer.",
            [
                (("admitted", ""), tally.admitted),
                *((("challenged", code), count) for code, count in tally.challenged.items()),
                *((("refused", code), count) for code, count in tally.refused.items()),
            ],
            "outcome",
            "code",
        )
        yield _counter(
            "farebox_requests_failed",
            "Requests let pass that got a problem for an answer, by its code; nothing is charged.",
            _by_name(tally.failed),
            "code",
        )
        yield _counter(
            "farebox_requests_settled",
            "Requests let pass and ended, by how.",
            _by_name(tally.ended),
            "ended",
        )
        yield _counter(
            "farebox_wallet_calls",
            "Calls of the wallet API, by the status of their answers.",
            [(name.split(" "), count) for name, count in self._parts.wallet_calls.items()],
            "endpoint",
            "status",
        )
        yield _histogram(
            "farebox_request_seconds",
            "authorise: until the hold is in the books; first_byte: the upstream's; settle: the "
            "settling commit; deliver: from the admission to the last byte.",
            [
                (("authorise",), tally.authorising),
                (("first_byte",), tally.first_byte),
                (("settle",), tally.settling),
                (("deliver",), tally.delivering),
            ],
            "stage",
        )
        for name, doc, value in (
            ("running", "Requests being carried.", gateway.running),
            ("waiting", "Requests that wait for their turn.", gateway.turns.waiting),
            (
                "unsettled",
                "Ended, but the books did not take the bill.",
                self._parts.paywall.unsettled,
            ),
        ):
            yield _gauge(f"farebox_requests_{name}", doc, [((), value)])

    def _commits(self) -> Iterator[Metric]:
        commits = self._parts.commits
        yield _histogram(
            "farebox_commit_units", "Units of work per group commit.", [((), commits.sizes)]
        )
        yield _histogram(
            "farebox_commit_seconds",
            "Group commits: writing one, and the syncs that make those before them durable.",
            [(("write",), commits.took), (("sync",), commits.synced)],
            "part",
        )
        yield _counter("farebox_commits_failed", "Commits that failed.", [((), commits.failures)])
        for name, doc, value in (
            ("commit_waiting", "Units that wait to be written.", commits.waiting()),
            ("book_units", "The number of the book's last unit of work.", commits.unit),
            ("book_events", "The number of the book's last event.", commits.event),
        ):
            yield _gauge(f"farebox_{name}", doc, [((), value)])

    def _events(self) -> Iterator[Metric]:
        """How far those are who read events: the book's, or those of a chain."""
        verified, event = self._vitals.verification, self._parts.commits.event
        lags = {"verify": max(0, event - (verified.event if verified else 0))}
        for watch in self._parts.watches:
            if watch.rail.behind is not None and watch.looked_at_s is not None:
                lags[watch.name] = watch.rail.behind
        yield _gauge(
            "farebox_event_lag",
            "Events that a consumer has yet to read: `verify` of the book's, a watcher of its "
            "chain's blocks.",
            _by_name(lags),
            "consumer",
        )
        ago_s = max(0, self._parts.clock.now_ns() / NS_PER_S - verified.at_s) if verified else 0
        yield _gauge(
            "farebox_verified_seconds_ago",
            "How long ago `farebox verify` last found the book whole, from this data directory.",
            [((), ago_s)] if verified else [],
        )

    def _mints(self) -> Iterator[Metric]:
        places = self._parts.mints.listed()
        yield _counter(
            "farebox_mint_calls",
            "Calls to a mint by how they ended.",
            [
                ((place.url, *name.split(" ")), count)
                for place in places
                for name, count in place.mint.calls.ends.items()
            ],
            "mint",
            "call",
            "outcome",
        )
        yield _histogram(
            "farebox_mint_call_seconds",
            "How long calls to a mint took.",
            [((place.url,), place.mint.calls.took) for place in places],
            "mint",
        )
        yield _gauge(
            "farebox_mint_breaker",
            "1 at the state a mint's circuit breaker is in.",
            [
                ((place.url, state.value), int(place.mint.breaker.state is state))
                for place in places
                for state in BreakerState
            ],
            "mint",
            "state",
        )

    def _rails(self) -> Iterator[Metric]:
        watches, now_s = self._parts.watches, running_s()
        yield _gauge(
            "farebox_rail_works",
            "Whether a rail works, by its last probe and its circuit breaker.",
            [((one.name,), int(one.rail.standing().works)) for one in watches],
            "method",
        )
        yield _gauge(
            "farebox_rail_looked_seconds_ago",
            "How long ago a rail was last looked through for deposits; told by whoever does it.",
            [
                ((one.name,), now_s - one.looked_at_s)
                for one in watches
                if one.looked_at_s is not None
            ],
            "method",
        )
        yield _gauge(
            "farebox_held",
            "What a rail itself says lies at a place, ours and the operator's own.",
            [
                ((one.asset, _place(one.custody)), _told(one.amount))
                for watch in watches
                for one in watch.holdings
            ],
            "asset",
            "place",
        )
        yield _counter(
            "farebox_deposits",
            "Deposits that have come so far here, by their method.",
            [(name.split(" "), count) for name, count in self._parts.deposits.moves.items()],
            "method",
            "state",
        )

    def _upstreams(self) -> Iterator[Metric]:
        addresses = [
            (one.path or "/", address)
            for one in self._parts.upstreams.all
            for address in one.addresses
        ]
        yield _counter(
            "farebox_upstream_connect_failures",
            "Connections to an upstream that could not be made.",
            [((path, address.url), address.failures_ever) for path, address in addresses],
            "upstream",
            "url",
        )

    def _jobs(self) -> Iterator[Metric]:
        runs, now_s = self._parts.worker.runs, running_s()
        yield _counter(
            "farebox_job_runs",
            "Runs of a background job.",
            [((name,), one.count) for name, one in runs.items()],
            "job",
        )
        yield _counter(
            "farebox_job_failures",
            "Runs of a background job that failed.",
            [((name,), one.failures) for name, one in runs.items()],
            "job",
        )
        yield _gauge(
            "farebox_job_well_seconds_ago",
            "How long ago a background job last went well.",
            [((name,), now_s - one.well_at_s) for name, one in runs.items()],
            "job",
        )

    def _health(self) -> Iterator[Metric]:
        yield _gauge(
            "farebox_check",
            "What /readyz checks: 0 is well, 1 a warning, 2 a failure.",
            [((one.check,), _GRADES[one.verdict]) for one in self._vitals.findings()],
            "check",
        )
        yield _gauge(
            "farebox_disk_free_bytes",
            "Room on the disk of the data directory.",
            [((), self._vitals.free_bytes)],
        )


def _money(census: Census) -> Iterator[Metric]:
    unit = "In the asset's smallest unit: msat for BTC."
    yield _gauge(
        "farebox_custody",
        f"What is held at each place. {unit}",
        [((one.asset, _place(one.id)), _told(one.held)) for one in census.custody],
        "asset",
        "place",
    )
    yield _gauge(
        "farebox_custody_ceiling",
        f"The most that may be held at each place that has a ceiling. {unit}",
        [
            ((one.asset, _place(one.id)), _told(one.ceiling))
            for one in census.custody
            if one.ceiling is not None
        ],
        "asset",
        "place",
    )
    yield _gauge(
        "farebox_custody_leaving",
        f"What is held for payments out that are not at their end. {unit}",
        [((one.asset, _place(one.id)), _told(one.credits_pending)) for one in census.custody],
        "asset",
        "place",
    )
    yield _gauge(
        "farebox_receivable",
        f"Owed to us: what was served and not signed for, and reversed deposits. {unit}",
        [((asset,), _told(amount)) for asset, amount in census.receivable.items()],
        "asset",
    )
    yield _gauge(
        "farebox_liabilities",
        f"What is owed: to customers, and what was earned and not withdrawn. {unit}",
        [(key, _told(amount)) for key, amount in census.owed.items()],
        "asset",
        "kind",
    )
    yield _gauge(
        "farebox_reserved",
        f"What running requests hold of customers' money. {unit}",
        [((asset,), _told(amount)) for asset, amount in census.reserved.items()],
        "asset",
    )


def _unfinished(census: Census) -> Iterator[Metric]:
    yield _gauge(
        "farebox_holds_open",
        "Requests whose hold is in the book and that are not settled, of every process.",
        [((), census.requests_open)],
    )
    yield _gauge(
        "farebox_operations",
        "Unfinished effects outside, such as swaps and refunds; 1,000 of a state at most.",
        [(key, count) for key, count in census.operations.items()],
        "kind",
        "state",
    )
    states = ("open", "queued", "manual")
    yield _gauge(
        "farebox_operation_oldest_seconds",
        "How old the oldest unfinished operation is; 0 where there is none.",
        [((state,), census.oldest_s.get(state, 0)) for state in states],
        "state",
    )


def _in_flight(census: Census) -> Iterator[Metric]:
    yield _gauge(
        "farebox_payouts_open",
        "Refunds and payouts that are not at their end and are at least so old.",
        [((str(least_s),), count) for least_s, count in census.payouts.items()],
        "older_than_s",
    )
    yield _gauge(
        "farebox_deposits_open",
        "Deposits that were seen and are not credited yet; 1,000 of a state at most.",
        [(key, count) for key, count in census.deposits.items()],
        "method",
        "state",
    )


def _place(account: str) -> str:
    return account.removeprefix(_CUSTODY)


def _told(amount: int) -> int:
    if abs(amount) > _EXACT_MAX:
        _log.warning("money.rounded", amount=str(amount))
    return amount


def _by_name(counts: dict[str, int]) -> _Rows:
    return [((name,), count) for name, count in counts.items()]


def _counter(name: str, doc: str, rows: _Rows, *labels: str) -> Metric:
    family = CounterMetricFamily(name, doc, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _gauge(name: str, doc: str, rows: _Rows, *labels: str) -> Metric:
    family = GaugeMetricFamily(name, doc, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _histogram(
    name: str, doc: str, rows: Iterable[tuple[Sequence[str], Spread]], *labels: str
) -> Metric:
    family = HistogramMetricFamily(name, doc, labels=labels)
    for values, spread in rows:
        total, buckets = 0, []
        for bound, count in zip((*map(str, spread.bounds), "+Inf"), spread.buckets, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric(values, buckets, spread.sum)
    return family
