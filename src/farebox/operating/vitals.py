"""Whether a house can serve: each thing it depends on, from memory, with a reason.

A failure says that requests cannot be served here and belong elsewhere; a warning, that some
cannot. What is asked of a disk or the book is asked by `look`, every few seconds: a probe costs a
reading of some numbers, so that nobody can load a house with probes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from farebox.clock import NS_PER_S, Clock, running_s
from farebox.errors import StoreError
from farebox.gateway import Gateway, Upstreams
from farebox.ids import new_id
from farebox.ledger.checkpoint import CHECKPOINT_FILE, event_of
from farebox.ledger.model import Kind, Open, Unit
from farebox.ledger.service import Ledger
from farebox.money import BTC
from farebox.operating.doors import Doors
from farebox.operating.findings import Finding, Verdict, disk_space, fine, free_bytes
from farebox.payments.deposits import Deposits
from farebox.payments.exchange import REVENUE
from farebox.payments.operations import Operations
from farebox.payments.rail import DepositMethod
from farebox.paywall.service import Paywall
from farebox.pricing.model import Currency
from farebox.rails.cashu.mints import MintPlace, Mints
from farebox.rails.web.breaker import BreakerState
from farebox.tally import Commits, Counts
from farebox.worker import RailWatch, Worker

_log = structlog.get_logger("farebox.vitals")

#: The job that writes to the book at least every five seconds.
WRITING_JOB = "holds"
#: A book that has not taken a write for so long will not take the next one either.
_WRITE_AGE_MAX_S = 60
_BEHIND_MAX_S = 30


@dataclass(frozen=True, slots=True)
class Parts:
    """What of a house can be looked at."""

    clock: Clock
    ledger: Ledger
    commits: Commits
    operations: Operations
    paywall: Paywall
    gateway: Gateway
    upstreams: Upstreams
    mints: Mints
    watches: Sequence[RailWatch]
    deposits: Deposits
    worker: Worker
    wallet_calls: Counts
    data_dir: Path
    doors: Doors


@dataclass(frozen=True, slots=True)
class Verification:
    """The last time that `farebox verify` found the book whole, from this data directory."""

    #: Up to which event, and when, in seconds of the system's clock.
    event: int
    at_s: float


class Vitals:
    """What is known of one house's health."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.free_bytes = free_bytes(parts.data_dir)
        #: The process was told to stop: balancers shall send nothing more.
        self.is_stopping = False
        self.verification: Verification | None = None

    async def look(self) -> None:
        """Read what has to be asked for. The worker calls it every few seconds."""
        data_dir = self._parts.data_dir
        self.free_bytes = await asyncio.to_thread(free_bytes, data_dir)
        self.verification = await asyncio.to_thread(_verification, data_dir, self.verification)
        if self._parts.commits.is_failing:
            # While nobody pays, only a write tells that the book can be written again; and while
            # nobody is sent here because it cannot, nobody pays.
            try:
                steps = (Open(REVENUE, BTC.code, Kind.REVENUE),)
                await self._parts.ledger.store.commit(Unit(new_id("look"), steps))
            except StoreError as error:
                _log.error("book.not_writable", error=str(error))

    def findings(self) -> list[Finding]:
        """Every dependency with its state, from memory."""
        return [
            self.serving(),
            self.book(),
            disk_space(self.free_bytes),
            self.clock(),
            fine("root key", "it opens this book"),  # or the house would not have opened
            *self.rate(),
            *map(_mint, self._parts.mints.trusted()),
            *(_rail(one.rail) for one in self._parts.watches),
            *self.upstreams(),
        ]

    def serving(self) -> Finding:
        """Whether requests are taken at all."""
        if self.is_stopping or self._parts.gateway.carrier.is_stopping:
            return Finding(Verdict.FAILURE, "serving", "being stopped", "start it again")
        if self._parts.doors.is_closed:
            found = f"the book is closed: {self._parts.doors.state.reason}"
            return Finding(Verdict.FAILURE, "serving", found, "`farebox reconcile` opens it")
        turns = self._parts.gateway.turns
        if turns.waiting:
            found = f"all {turns.running} turns are taken, {turns.waiting} requests wait"
            return Finding(Verdict.WARNING, "serving", found, "see gateway.requests_max")
        return fine("serving", "requests are taken")

    def book(self) -> Finding:
        """Whether the book was written lately and not in vain."""
        if self._parts.commits.is_failing:
            advice = "make room on its disk, or mount it writable again; the log says what fails"
            return Finding(Verdict.FAILURE, "book", "it cannot be written", advice)
        age_s = running_s() - self._parts.worker.runs[WRITING_JOB].well_at_s
        if age_s > _WRITE_AGE_MAX_S:
            advice = "its disk hangs, or a backup holds it: look at the machine"
            return Finding(Verdict.FAILURE, "book", f"not written for {age_s:.0f} s", advice)
        return fine("book", "it is written")

    def clock(self) -> Finding:
        """Whether this machine's clock went back behind the book's own time."""
        behind_s = (self._parts.commits.at_ns - self._parts.clock.now_ns()) // NS_PER_S
        if behind_s > _BEHIND_MAX_S:
            found = f"{behind_s} s behind the book"
            advice = "set this machine's clock, best by NTP: prices and keys expire by it"
            return Finding(Verdict.WARNING, "clock", found, advice)
        return fine("clock", "not behind the book")

    def rate(self) -> list[Finding]:
        """Whether what is priced in dollars can be sold; nothing where nothing is."""
        prices = self._parts.paywall.prices
        if not any(Currency.USD in rule.currencies for rule in prices.book.rules):
            return []
        if Currency.USD in prices.rates:
            return [fine("rate", "there is one")]
        found = "none can be trusted: what is priced in dollars is refused"
        advice = "look whether rates.sources answer; rates.btc_usd fixes one for a while"
        return [Finding(Verdict.WARNING, "rate", found, advice)]

    def upstreams(self) -> list[Finding]:
        """Whether each service could be reached when it was last tried.

        One that is down counts as up again after a pause of at most 30 s: only a request can tell.
        """
        now_s = asyncio.get_running_loop().time()
        services = self._parts.upstreams.all
        down = {one.path for one in services if one.is_down(now_s)}
        verdict = Verdict.FAILURE if len(down) == len(services) else Verdict.WARNING
        advice = "start it, or correct upstream.urls; until then callers get 502, charged nothing"
        return [
            Finding(verdict, f"upstream {one.path or '/'}", "it takes no connection", advice)
            if one.path in down
            else fine(f"upstream {one.path or '/'}", "nothing is known against it")
            for one in services
        ]


def _verification(data_dir: Path, known: Verification | None) -> Verification | None:
    """What the checkpoint beside the book says; read again only where it is another one."""
    path = data_dir / CHECKPOINT_FILE
    try:
        at_s = path.stat().st_mtime
        if known is None or known.at_s != at_s:
            known = Verification(event_of(path.read_bytes()), at_s)
    except OSError:
        return None
    return known


def _rail(rail: DepositMethod) -> Finding:
    """Like a mint: keys go on paying while it is away."""
    check, standing = f"rail {rail.payment_type}", rail.standing()
    if standing.works:
        return fine(check, "nothing is known against it")
    advice = "`farebox doctor` asks it now; no deposits are asked for until it works"
    return Finding(Verdict.WARNING, check, standing.reason, advice)


def _mint(place: MintPlace) -> Finding:
    """Keys go on paying while a mint is away: that is never a failure of the whole house."""
    check = f"mint {place.url}"
    match place.mint.breaker.state:
        case BreakerState.CLOSED:
            return fine(check, "nothing is known against it")
        case BreakerState.OPEN:
            found = "it did not answer and is left alone for some seconds"
        case BreakerState.HALF_OPEN:
            found = "it did not answer lately; the next call tries it"
    advice = "nothing here: its tokens are refused untouched until it answers, keys go on paying"
    return Finding(Verdict.WARNING, check, found, advice)
