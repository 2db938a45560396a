"""The composition root: the only place that names concrete stores and rails.

Promises: what it opens it closes, in reverse order; a process that starts first finishes what an
earlier one left open. Never: a decision about money.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

import msgspec

from farebox.api import ApiContext, create_api, health, owns_path
from farebox.books import open_store
from farebox.books.root_key import require_root_key
from farebox.bootstrap.channels import House, channels_of
from farebox.bootstrap.rails import Ground, card_methods, open_rails
from farebox.bootstrap.rates import RateRefresh, count_assets, exchange_of, rate_feeds
from farebox.clock import Clock, SystemClock
from farebox.errors import InvalidSettings, StoreError
from farebox.gateway import Catalogue, Gateway, Limits, UpstreamConfig, Upstreams
from farebox.gateway.asgi import App
from farebox.identity import FailureLimit, Idempotency, Keys
from farebox.ids import new_id
from farebox.ledger.model import Applied, Kind, Open, Unit
from farebox.ledger.processes import BEAT_EVERY_S, Processes
from farebox.ledger.service import Ledger
from farebox.ledger.store import Store
from farebox.money import BTC
from farebox.operating import Doors, Metrics, OperatorDoor, Parts, Vitals, ready
from farebox.operating.comparing import catch_up
from farebox.payments.cards.gateway import PaymentGateway
from farebox.payments.conversions import Conversions
from farebox.payments.deposits import Deposits
from farebox.payments.exchange import REVENUE
from farebox.payments.links import WithdrawLinks
from farebox.payments.operations import Operations
from farebox.payments.registry import PaymentMethods, plugins
from farebox.payments.requests import DepositRequests
from farebox.payments.service import Payments
from farebox.paywall.model import Answer
from farebox.paywall.prices import Prices
from farebox.paywall.receipts import Receipts
from farebox.paywall.service import Paywall
from farebox.pricing.book import PriceBook
from farebox.pricing.parse import parse_rules
from farebox.pricing.tokens import local_tokenizer
from farebox.pricing.worths import AssetRates
from farebox.rails.cashu import (
    CashuConfig,
    CashuMethod,
    MintLimits,
    MintTerms,
    Reconciled,
    Reconciling,
    Sweep,
    Upkeep,
    open_session,
)
from farebox.rails.cashu.offer import Offers
from farebox.rails.web import open_guarded_session
from farebox.settings import (
    ChangePolicy,
    ForeignPolicy,
    GatewaySettings,
    MintPolicy,
    Settings,
    UpstreamSettings,
)
from farebox.signer import Signer
from farebox.stores.sqlite import SqliteStore
from farebox.tally import Commits, Counts
from farebox.wire.cashu.model import normalize_mint_url
from farebox.worker import Duty, Job, RailWatch, Worker
from farebox.worker.expiry import KeyExpiry

if TYPE_CHECKING:
    from farebox.operating.traces import Tracing

_RECOVER_EVERY_S = 2
_EXPIRE_EVERY_S = 5
_LOOK_EVERY_S = 5
_KEYS_EVERY_S = 30
_UPKEEP_EVERY_S = 60
_SWEEP_EVERY_S = 5
_PRUNE_EVERY_S = 600
_POLL_EVERY_S = 2
_PROBE_EVERY_S = 15
_WEIGH_EVERY_S = 60
#: Deposits that one address may ask for within a minute.
_ASKINGS_MAX = 30
_ASKINGS_WINDOW_S = 60


class Farebox:
    """Everything behind the doors of one process, assembled from settings.

    Use it as `async with Farebox(settings, root_key) as farebox`: entering opens the book, finishes
    what was left open and starts the worker; leaving closes everything.
    """

    def __init__(
        self,
        settings: Settings,
        root_key: bytes,
        *,
        clock: Clock | None = None,
        tracing: Tracing | None = None,
        shared: Store | None = None,
    ) -> None:
        """`tracing` is used instead of what the settings say, as by an app that traces itself.

        `shared` is a store that other houses use too and somebody else closes; without one the
        book of the settings is opened, for this house alone.
        """
        self.settings = settings
        self._tracing = tracing
        self._shared = shared
        self.clock = clock or SystemClock()
        self.signer = Signer(root_key)
        self._rules = parse_rules(settings.prices)
        self.prices = Prices(PriceBook(self._rules))
        self._commits = Commits()
        self._probes = {"/healthz": self._health, "/readyz": self._ready}
        self._reconciled = asyncio.Lock()
        self._closing = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._closing.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._closing.aclose()

    async def recover(self) -> int:
        """Carry on what was left unfinished; returns how many operations were looked at."""
        looked_at = await self.operations.recover()
        return looked_at + await self.paywall.recover()

    async def _open(self) -> None:
        self.store = self._shared or await self._open_store()
        self._open_traces()
        await self._enter_book()
        self.operations = Operations(self.ledger, self.processes)
        await self._open_rails()
        self.keys = Keys(self.ledger, keys_max=self.settings.accounts.keys_max)
        accounts = self.settings.accounts
        self._failures = FailureLimit(self.clock, accounts.failures_max, accounts.failures_window_s)
        house = House(
            self.ledger,
            self.processes,
            self._failures,
            self.payments.exchange,
            public_url(self.settings),
        )
        methods = [rail.method for rail in self._rails]
        self.channels = channels_of(self.settings.channels, house, methods)
        self.paywall = Paywall(
            self.ledger,
            self.payments,
            self.keys,
            self._failures,
            self.prices,
            Offers(self.cashu.mints, self.cashu.locked.public_key),
            Receipts(self.signer),
            processes=self.processes,
            # An app that mounts us, and a machine of many addresses, listen elsewhere than we know.
            public_url=self.settings.gateway.public_url or "",
            change_as_credit=_changes_as_credit(self.settings.ecash.change),
            till=self.channels.till if self.channels else None,
        )
        self._idempotency = Idempotency(self.ledger, self.signer, self.processes)
        context = self._api_context()
        self.api = create_api(context)
        upstreams = await self._closing.enter_async_context(
            Upstreams([_upstream_config(one) for one in self.settings.upstreams])
        )
        self._catalogue = Catalogue(upstreams, self.prices, self.clock, self._rules)
        self.app = Gateway(
            self.paywall,
            upstreams,
            local_tokenizer(),
            _limits(self.settings.gateway),
            api=cast("App", self.api),
            owns_path=owns_path,
            channels=self.channels.service if self.channels else None,
            probes=self._probes,
            catalogue=self._catalogue,
        )
        if self._tracing is not None:
            self._tracing.follow(self.app.carrier, self.paywall, self.operations, upstreams)
        await self._open_accounts()
        await self._start_rails()
        await self._mind_the_doors()
        self._watch(upstreams, context.calls)
        self.worker.start()
        self._closing.push_async_callback(self.worker.stop)
        # Left first: what runs is settled while everything it needs is still open.
        self._closing.push_async_callback(self.app.stop)

    async def _enter_book(self) -> None:
        self.ledger = Ledger(self.store, self.clock)
        await require_root_key(self.ledger, self.signer)
        # The lock file of a SQLite book lets one process in: those before it are dead.
        self.processes = Processes(self.ledger, alone=isinstance(self.store, SqliteStore))
        await self.processes.start()
        self._closing.push_async_callback(self.processes.stop)
        # After the processes: whoever moves the book waits for those that are in it.
        self.doors = Doors(self.ledger, self._commits, self.settings.data_dir)
        await self.doors.enter()

    async def _open_rails(self) -> None:
        traced = (self._tracing.calls(),) if self._tracing else ()
        self.session = await self._closing.enter_async_context(open_session(*traced))
        guarded = await self._closing.enter_async_context(open_guarded_session())
        self.cashu = CashuMethod(
            _cashu_config(self.settings), self.ledger, self.signer, self.session, guarded
        )
        self.sweep = Sweep(self.cashu, self.ledger, self.operations, self.signer)
        self._upkeep = Upkeep(self.cashu, self.ledger, self.operations, self.signer)
        self.reconciling = Reconciling(self.cashu, self.ledger, self.operations, self._upkeep)
        self._feeds = rate_feeds(self.settings, self.session, self.clock)
        rates = AssetRates(self._feeds, self.clock)
        exchange = exchange_of(self.settings.rates, rates)
        self._rails = await open_rails(
            self.settings,
            Ground(
                self.ledger,
                self.operations,
                self.processes,
                exchange,
                self.session,
                guarded,
                public_url(self.settings),
            ),
            self._closing,
        )
        methods = self._methods()
        count_assets(rates, methods)
        self._rates = RateRefresh(rates, self.prices)
        self.payments = Payments(self.ledger, self.operations, methods, self.signer, exchange)
        self._deposits = Deposits(self.ledger)
        self.deposits = DepositRequests(self.ledger, self._deposits, methods, exchange)
        self._watches = [
            RailWatch(rail, self.deposits, self.ledger) for rail in self.deposits.rails().values()
        ]
        self.cards = PaymentGateway(
            card_methods(self._rails),
            self.deposits,
            self.ledger,
            self.operations,
            self.signer,
            exchange,
        )

    async def _start_rails(self) -> None:
        """Put the ceilings into the books, and read what assets are worth."""
        await self._rates.run()
        await self.cashu.start()
        for rail in self._rails:
            if rail.start is not None:
                await rail.start()

    def _open_traces(self) -> None:
        """Opened before everything that is traced, and so closed after it."""
        endpoint = self.settings.traces.endpoint
        if self._tracing is not None or endpoint is None:
            return
        try:
            from farebox.operating.traces import Tracing, exporting
        except ImportError:
            allowed = "`pip install 'farebox[otel]'` first, or leave it out"
            raise InvalidSettings("traces.endpoint", endpoint, allowed) from None
        self._tracing = Tracing(exporting(endpoint))
        self._closing.push_async_callback(self._tracing.close)

    def _watch(self, upstreams: Upstreams, wallet_calls: Counts) -> None:
        """What the operator looks at."""
        self.worker = Worker(self._jobs())
        parts = Parts(
            clock=self.clock,
            ledger=self.ledger,
            commits=self._commits,
            operations=self.operations,
            paywall=self.paywall,
            gateway=self.app,
            upstreams=upstreams,
            mints=self.cashu.mints,
            watches=self._watches,
            deposits=self._deposits,
            worker=self.worker,
            wallet_calls=wallet_calls,
            data_dir=self.settings.data_dir,
            doors=self.doors,
        )
        self.vitals = Vitals(parts)
        #: For a listener of its own, or mounted behind the operator's own door.
        self.operator = OperatorDoor(self._probes, Metrics(parts, self.vitals))

    def _health(self) -> Answer:
        return health.health(self.signer.public_key)

    def _ready(self) -> Answer:
        return ready(self.vitals)

    async def _look(self) -> None:
        await self.vitals.look()

    async def _open_store(self) -> Store:
        store = await open_store(self.settings, self.clock, self._commits)
        self._closing.push_async_callback(store.close)
        return store

    async def _mind_the_doors(self) -> None:
        """Close a book that is older than the mints remember, and serve none that is closed."""
        if not self.doors.is_closed:
            older = await self.reconciling.find_older()
            if older:
                await self.doors.close(older)
        self.app.carrier.is_closed = self.doors.is_closed

    async def _look_at_doors(self) -> None:
        await self.doors.look()
        self.app.carrier.is_closed = self.doors.is_closed

    async def reconcile(self) -> Reconciled:
        """Hold a closed book against what mints and rails say; open it if all have answered."""
        async with self._reconciled:  # whoever asked before may have hung up, and it goes on
            if not self.doors.is_closed:
                return Reconciled()
            found = await self.reconciling.run()
            # After the operations: what they end is asked of the rails as well.
            away = await catch_up(self.deposits.rails().values(), self.deposits)
            found = msgspec.structs.replace(found, away=(*found.away, *away))
            if found.is_whole:
                await self.doors.reopen()
            self.app.carrier.is_closed = self.doors.is_closed
            return found

    def _methods(self) -> PaymentMethods:
        methods = PaymentMethods()
        methods.register(self.cashu)
        for rail in self._rails:
            methods.register(rail.method)
        for plugin in plugins():
            methods.register(plugin)
        return methods

    def _api_context(self) -> ApiContext:
        accounts, gateway = self.settings.accounts, self.settings.gateway
        return ApiContext(
            ledger=self.ledger,
            operations=self.operations,
            payments=self.payments,
            keys=self.keys,
            paywall=self.paywall,
            idempotency=self._idempotency,
            failures=self._failures,
            askings=FailureLimit(self.clock, _ASKINGS_MAX, _ASKINGS_WINDOW_S),
            deposits=self.deposits,
            cards=self.cards,
            conversions=Conversions(self.ledger, self.payments.exchange),
            links=WithdrawLinks(self.ledger, self.operations, self.payments),
            public_url=public_url(self.settings),
            key_expiry_s=accounts.key_expiry_s,
            channels=self.channels.desk if self.channels else None,
            header_bytes_max=gateway.header_bytes_max,
        )

    async def _open_accounts(self) -> None:
        unit = Unit(new_id("open"), (Open(REVENUE, BTC.code, Kind.REVENUE),))
        outcome = await self.store.commit(unit)
        if not isinstance(outcome, Applied):
            raise StoreError(f"the revenue account cannot be opened: {outcome}")

    def _jobs(self) -> list[Job]:
        expiry = KeyExpiry(self.ledger, self.operations, self.payments, self.keys)
        # The mints are asked once for all processes; the other jobs cost each of them one look.
        upkeep = Duty("upkeep", self._upkeep.run, self.ledger, self.processes)
        sweep = Duty("sweep", self.sweep.run, self.ledger, self.processes)
        found = Duty("found", self.reconciling.check_found, self.ledger, self.processes)
        jobs = [
            Job("recovery", _RECOVER_EVERY_S, self.operations.recover),
            # Apart from the operations: what the books alone can settle waits for no mint.
            Job("requests", _RECOVER_EVERY_S, self.paywall.recover),
            Job("holds", _EXPIRE_EVERY_S, self.store.expire_due),
            Job("keys", _KEYS_EVERY_S, expiry.run),
            Job("upkeep", _UPKEEP_EVERY_S, upkeep.run),
            Job("sweep", _SWEEP_EVERY_S, sweep.run),
            Job("found", _UPKEEP_EVERY_S, found.run),
            Job("idempotency", _PRUNE_EVERY_S, self._idempotency.prune),
            *(self.channels.jobs if self.channels else ()),
            *(job for rail in self._rails for job in rail.jobs),
        ]
        for watch in self._watches:
            self._closing.push_async_callback(watch.stop)
            # One process listens and polls; each knows for itself whether the rail is there.
            name = f"watch:{watch.name}"
            duty = Duty(name, watch.poll, self.ledger, self.processes, leave=watch.stop)
            jobs.append(Job(f"watch {watch.name}", _POLL_EVERY_S, duty.run))
            jobs.append(Job(f"probe {watch.name}", _PROBE_EVERY_S, watch.probe))
            jobs.append(Job(f"weigh {watch.name}", _WEIGH_EVERY_S, watch.weigh))
        refreshes = [one.models_refresh_s for one in self.settings.upstreams]
        if any(refreshes):
            every_s = min(filter(None, refreshes))
            jobs.append(Job("models", every_s, self._catalogue.refresh))
        if self._feeds:
            jobs.append(Job("rates", self.settings.rates.refresh_s, self._rates.run))
        always = [
            Job("beat", BEAT_EVERY_S, self.processes.beat),
            Job("doors", _LOOK_EVERY_S, self._look_at_doors),
            Job("vitals", _LOOK_EVERY_S, self._look),
        ]
        return [*always, *(replace(job, run=self._while_open(job.run)) for job in jobs)]

    def _while_open(self, run: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
        """A closed book is left as it is: above all no counter is taken, and nothing is swapped."""

        async def job() -> None:
            if not self.doors.is_closed:
                await run()

        return job


def _upstream_config(upstream: UpstreamSettings) -> UpstreamConfig:
    return UpstreamConfig(
        urls=upstream.urls,
        path=upstream.path,
        headers={name: secret.reveal() for name, secret in upstream.headers.items()},
        connect_timeout_s=upstream.connect_timeout_s,
        first_byte_timeout_s=upstream.first_byte_timeout_s,
        idle_timeout_s=upstream.idle_timeout_s,
        states_prices=upstream.models_refresh_s > 0,
    )


def _limits(gateway: GatewaySettings) -> Limits:
    return Limits(
        body_bytes_max=gateway.body_bytes_max,
        bodies_bytes_max=gateway.bodies_bytes_max,
        header_bytes_max=gateway.header_bytes_max,
        requests_max=gateway.requests_max,
        queue_max=gateway.queue_max,
        body_timeout_s=gateway.body_timeout_s,
        queue_timeout_s=gateway.queue_timeout_s,
        stop_grace_s=gateway.stop_grace_s,
    )


def _cashu_config(settings: Settings) -> CashuConfig:
    mints = tuple(
        MintTerms(
            url=normalize_mint_url(mint.url),
            trusted=mint.policy is MintPolicy.TRUSTED,
            units=tuple(unit.value for unit in mint.units),
            ceiling_msat=mint.ceiling_msat,
            require_dleq=mint.require_dleq,
            offline_max_msat=mint.offline_max_msat,
        )
        for mint in settings.mints
    )
    return CashuConfig(
        mints=mints,
        swap_foreign=settings.ecash.foreign is ForeignPolicy.SWAP,
        small_change_msat=settings.ecash.small_change_msat,
        consolidate_proofs=settings.ecash.consolidate_proofs,
        limits=MintLimits(call_s=settings.ecash.mint_timeout_s),
    )


def _changes_as_credit(order: Sequence[ChangePolicy]) -> bool:
    """Whether the operator puts credit before money; a token always costs us nothing to give."""
    return order[0] in (ChangePolicy.CREDIT, ChangePolicy.AGGREGATE)


def public_url(settings: Settings) -> str:
    """The address callers know us by."""
    return settings.gateway.public_url or f"http://{settings.gateway.listen}"
