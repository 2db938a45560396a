"""The composition root: the only place that names concrete stores and rails.

Promises: what it opens it closes, in reverse order; a process that starts first finishes what an
earlier one left open. Never: a decision about money.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from types import TracebackType
from typing import Any, Self, cast

import aiohttp

from farebox.api import ApiContext, create_api, owns_path
from farebox.api.totals import TOTALS
from farebox.clock import Clock, SystemClock
from farebox.errors import InvalidSettings, StoreError
from farebox.gateway import Catalogue, Gateway, Limits, UpstreamConfig, Upstreams
from farebox.gateway.asgi import App
from farebox.identity import RECORDS as IDENTITY_RECORDS
from farebox.identity import FailureLimit, Idempotency, Keys
from farebox.ids import new_id
from farebox.ledger.model import Applied, Kind, Open, Unit
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger
from farebox.ledger.store import Store
from farebox.money import BTC
from farebox.payments.deposits import DEPOSIT
from farebox.payments.operations import OPERATION, Operations
from farebox.payments.registry import PaymentMethods, plugins
from farebox.payments.service import Payments
from farebox.paywall.model import REQUEST
from farebox.paywall.prices import Prices
from farebox.paywall.service import Paywall
from farebox.paywall.settling import REVENUE
from farebox.pricing.book import PriceBook
from farebox.pricing.model import Currency
from farebox.pricing.parse import parse_rules
from farebox.pricing.rates import MedianFeed, Rate, RateFeed, StaticFeed, msat_per_unit
from farebox.pricing.tokens import local_tokenizer
from farebox.rails.cashu import RECORDS as CASHU_RECORDS
from farebox.rails.cashu import (
    CashuConfig,
    CashuMethod,
    MintLimits,
    MintTerms,
    Upkeep,
    open_guarded_session,
    open_session,
)
from farebox.rails.cashu.offer import Offers
from farebox.rails.rates.http import HttpRateSource
from farebox.settings import (
    ChangePolicy,
    ForeignPolicy,
    GatewaySettings,
    MintPolicy,
    Settings,
    UpstreamSettings,
)
from farebox.signer import Signer
from farebox.stores.audit import BookReader
from farebox.stores.sqlite import SqliteStore
from farebox.stores.sqlite.audit import SqliteAuditReader
from farebox.wire.cashu.model import normalize_mint_url
from farebox.worker import Job, Worker
from farebox.worker.expiry import KeyExpiry

_RECOVER_EVERY_S = 2
_EXPIRE_EVERY_S = 5
_KEYS_EVERY_S = 30
_UPKEEP_EVERY_S = 60
_PRUNE_EVERY_S = 600

#: Every kind of row a book holds beside the money.
RECORDS: tuple[RecordType[Any], ...] = (
    DEPOSIT,
    OPERATION,
    REQUEST,
    TOTALS,
    *IDENTITY_RECORDS,
    *CASHU_RECORDS,
)


class Farebox:
    """Everything behind the doors of one process, assembled from settings.

    Use it as `async with Farebox(settings, root_key) as farebox`: entering opens the book, finishes
    what was left open and starts the worker; leaving closes everything.
    """

    def __init__(self, settings: Settings, root_key: bytes, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.signer = Signer(root_key)
        self.owner = new_id("proc")
        self._rules = parse_rules(settings.prices)
        self.prices = Prices(PriceBook(self._rules))
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
        self.store = await open_store(self.settings, self.clock)
        self._closing.push_async_callback(self.store.close)
        self.session = await self._closing.enter_async_context(open_session())
        guarded = await self._closing.enter_async_context(open_guarded_session())
        self.ledger = Ledger(self.store, self.clock)
        self.operations = Operations(self.ledger, self.owner)
        self.cashu = CashuMethod(
            _cashu_config(self.settings), self.ledger, self.signer, self.session, guarded
        )
        self._upkeep = Upkeep(self.cashu, self.ledger, self.operations, self.signer)
        self.payments = Payments(self.ledger, self.operations, self._methods(), self.signer)
        self.keys = Keys(self.ledger, keys_max=self.settings.accounts.keys_max)
        accounts = self.settings.accounts
        self._failures = FailureLimit(self.clock, accounts.failures_max, accounts.failures_window_s)
        self.paywall = Paywall(
            self.ledger,
            self.payments,
            self.keys,
            self._failures,
            self.prices,
            self.signer,
            Offers(self.cashu.mints),
            owner=self.owner,
            public_url=public_url(self.settings),
            change_as_credit=_changes_as_credit(self.settings.ecash.change),
        )
        self._idempotency = Idempotency(self.ledger, self.signer)
        self.api = create_api(self._api_context())
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
            catalogue=self._catalogue,
        )
        await self._open_accounts()
        await self.cashu.start()
        worker = Worker(self._jobs())
        worker.start()
        self._closing.push_async_callback(worker.stop)
        # Left first: what runs is settled while everything it needs is still open.
        self._closing.push_async_callback(self.app.stop)

    def _methods(self) -> PaymentMethods:
        methods = PaymentMethods()
        methods.register(self.cashu)
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
            receipt_key=self.signer.public_key,
            key_expiry_s=accounts.key_expiry_s,
            header_bytes_max=gateway.header_bytes_max,
        )

    async def _open_accounts(self) -> None:
        unit = Unit(new_id("open"), (Open(REVENUE, BTC.code, Kind.REVENUE),))
        outcome = await self.store.commit(unit)
        if not isinstance(outcome, Applied):
            raise StoreError(f"the revenue account cannot be opened: {outcome}")

    def _jobs(self) -> list[Job]:
        expiry = KeyExpiry(self.ledger, self.operations, self.payments, self.keys)
        jobs = [
            Job("recovery", _RECOVER_EVERY_S, self.operations.recover),
            # Apart from the operations: what the books alone can settle waits for no mint.
            Job("requests", _RECOVER_EVERY_S, self.paywall.recover),
            Job("holds", _EXPIRE_EVERY_S, self.store.expire_due),
            Job("keys", _KEYS_EVERY_S, expiry.run),
            Job("upkeep", _UPKEEP_EVERY_S, self._upkeep.run),
            Job("idempotency", _PRUNE_EVERY_S, self._idempotency.prune),
        ]
        refreshes = [one.models_refresh_s for one in self.settings.upstreams]
        if any(refreshes):
            every_s = min(filter(None, refreshes))
            jobs.append(Job("models", every_s, self._catalogue.refresh))
        feed = _rate_feed(self.settings, self.session, self.clock)
        if feed is not None:
            refresh = _RateRefresh(feed, self.prices)
            jobs.append(Job("rates", self.settings.rates.refresh_s, refresh.run))
        return jobs


async def open_store(settings: Settings, clock: Clock) -> Store:
    """The book, in a file or in PostgreSQL. Raises StoreError, InvalidSettings."""
    path = settings.database_path
    if path is not None:
        return SqliteStore(path, RECORDS, clock=clock)
    with _driver():
        from farebox.stores.postgres import PostgresStore
    return await PostgresStore.open(_postgres(settings), RECORDS)


def open_audit(settings: Settings) -> BookReader:
    """A snapshot of the book for `farebox.ledger.invariants`; blocking. Raises as `open_store`."""
    path = settings.database_path
    if path is not None:
        return SqliteAuditReader(path, RECORDS)
    with _driver():
        from farebox.stores.postgres.audit import PostgresAuditReader
    return PostgresAuditReader(_postgres(settings), RECORDS)


def book_place(settings: Settings) -> str:
    """Where the book is, for people to read; never a password."""
    path = settings.database_path
    if path is not None:
        return str(path)
    with _driver():
        from farebox.stores.postgres.connection import place
    return place(_postgres(settings))


@contextmanager
def _driver() -> Iterator[None]:
    try:
        yield
    except ImportError:
        found = "PostgreSQL, for which the driver is missing"
        raise InvalidSettings("database.url", found, "pip install 'farebox[postgres]'") from None


def _postgres(settings: Settings) -> str:
    dsn = settings.database.postgres
    assert dsn is not None
    return dsn.reveal()


class _RateRefresh:
    def __init__(self, feed: RateFeed, prices: Prices) -> None:
        self._feed = feed
        self._prices = prices

    async def run(self) -> None:
        rate = await self._feed.rate(Currency.USD)
        # A stale rate replaces a good one too: prices in USD are then refused, never guessed.
        self._prices.rates = {Currency.USD: rate} if isinstance(rate, Rate) else {}


def _rate_feed(settings: Settings, session: aiohttp.ClientSession, clock: Clock) -> RateFeed | None:
    rates = settings.rates
    if rates.btc_usd is not None:
        return StaticFeed({Currency.USD: msat_per_unit(rates.btc_usd)}, clock)
    if not rates.sources:
        return None
    sources = [HttpRateSource(source, session, clock) for source in rates.sources]
    return MedianFeed(
        Currency.USD,
        sources,
        clock,
        max_age_s=rates.age_max_s,
        refresh_s=rates.refresh_s,
        min_sources=rates.sources_min,
    )


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
    listen = settings.gateway.listen
    return settings.gateway.public_url or f"http://{listen.host}:{listen.port}"
