"""A real house in a process of its own that kills itself where it is told to.

`python -m tests.crash.victim` is a nursery: it imports everything once and, for each order on
standard input, forks a victim, which opens the house of the order on its data directory and serves
it. Fork comes before any event loop or thread exists. The nursery's answers are lines of JSON.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import select
import signal
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec
import structlog
import uvloop

from farebox import bootstrap
from farebox.books import open_audit
from farebox.bootstrap import Farebox
from farebox.clock import NS_PER_S, SystemClock
from farebox.gateway import Supervision, carrier
from farebox.ledger.invariants import verify
from farebox.ledger.model import Outcome, Unit
from farebox.ledger.records import RecordType, Row
from farebox.ledger.replay import Broken
from farebox.paywall.model import REQUEST, Ended, RequestState
from farebox.rails.bitcoin import filters
from farebox.rails.bitcoin.core import Core
from farebox.rails.cashu import http_mint
from farebox.rails.cashu.records import PROOF, ProofUse
from farebox.rails.lightning import Line
from farebox.rails.paypal import PaypalLine
from farebox.rails.stripe import StripeConnector
from farebox.rails.web.guard import open_guarded_session
from farebox.settings import load_settings
from farebox.stores.sqlite import SqliteStore
from farebox.testing.asgi import Message, Receive, Scope, Send, read_body, respond, serving
from tests.crash.books import AccountSeen, Books, CrashedSeen, ProofSeen
from tests.crash.points import Kind, Point, read_point

_T = TypeVar("_T")
_R = TypeVar("_R", bound=msgspec.Struct)
_BODY_MAX_BYTES = 1 << 16
_ROUNDS_MAX = 30
_AHEAD_S = 400


class Order(msgspec.Struct, frozen=True):
    """The house to open; `point` arms it before it opens."""

    overrides: dict[str, Any]
    root_key: bytes
    point: str = ""


class Born(msgspec.Struct, frozen=True, tag="born"):
    """A victim listens."""

    pid: int
    url: str


class Dead(msgspec.Struct, frozen=True, tag="dead"):
    """A victim has ended: its exit code, or the negative number of the signal it died of."""

    status: int


class Switch:
    """Counts what passes, and ends the process at its point."""

    def __init__(self) -> None:
        self.passed: defaultdict[Kind, list[str]] = defaultdict(list)
        self._point: Point | None = None

    def arm(self, point: Point | None) -> None:
        """Count anew, up to this point."""
        self.passed.clear()
        self._point = point

    async def around(self, kind: Kind, label: str, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do the work, unless the process ends before it or after it."""
        number = self.enter(kind, label)
        try:
            return await work()
        finally:
            self.strike(Point(kind, number, after=True))

    def enter(self, kind: Kind, label: str) -> int:
        """Count one more of a kind."""
        self.passed[kind].append(label)
        number = len(self.passed[kind])
        self.strike(Point(kind, number, after=False))
        return number

    def strike(self, here: Point) -> None:
        """Die if this is the point. Nothing is flushed, closed or told."""
        if here == self._point:
            os.kill(os.getpid(), signal.SIGKILL)

    def drops(self, number: int) -> bool:
        """Whether this message to a client is to be lost."""
        return self._point == Point(Kind.ANSWER, number, after=False, drops=True)


class AheadClock(SystemClock):
    """The system's clock, and ahead of it as if one had waited, or as if somebody had set it."""

    ahead_s = 0

    def now_ns(self) -> int:
        return super().now_ns() + self.ahead_s * NS_PER_S

    def elapsed_ns(self) -> int:
        return super().elapsed_ns() + self.ahead_s * NS_PER_S


class Victim:
    """The house's door, and a second one for the test behind `/_crash`."""

    def __init__(self, house: Farebox, clock: AheadClock, switch: Switch) -> None:
        self._house = house
        self._clock = clock
        self._switch = switch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if not path.startswith("/_crash/"):
            return await self._house.app(scope, receive, self._counted(scope, send))
        body = await read_body(receive, _BODY_MAX_BYTES)
        match path:
            case "/_crash/arm":
                self._switch.arm(read_point(body.decode()) if body else None)
                answer: object = {}
            case "/_crash/passed":
                answer = self._switch.passed
            case "/_crash/settle":
                answer = await self._settle()
            case "/_crash/jump":
                self._clock.ahead_s += int(body)
                answer = {}
            case "/_crash/recover":
                await self._house.recover()
                answer = {}
            case "/_crash/upkeep":
                await self._house._upkeep.run()
                answer = {}
            case _:
                answer = await _books(self._house)
        return await respond(send, 200, msgspec.json.encode(answer))

    def _counted(self, scope: Scope, send: Send) -> Send:
        async def counted(message: Message) -> None:
            if scope["type"] != "http":
                return await send(message)
            number = self._switch.enter(Kind.ANSWER, message["type"])
            if self._switch.drops(number):
                return await _drop(send)
            await send(message)
            await asyncio.sleep(0)  # let it leave
            return self._switch.strike(Point(Kind.ANSWER, number, after=True))

        return counted

    async def _settle(self) -> dict[str, int]:
        """Recover until nothing is unfinished; returns how many rounds that took."""
        for round_ in range(_ROUNDS_MAX):
            await self._house.recover()
            open_requests = await _open_requests(self._house)
            unfinished = await self._house.operations.unfinished()
            if not unfinished and not open_requests:
                return {"rounds": round_, "unfinished": 0}
            self._clock.ahead_s += _AHEAD_S
            await asyncio.sleep(0.01)
        return {"rounds": _ROUNDS_MAX, "unfinished": len(unfinished) + open_requests}


async def _drop(send: Send) -> None:
    """Break the connection. Uvicorn's `send` belongs to the object that holds it."""
    send.__self__.transport.abort()  # type: ignore[attr-defined]
    for _ in range(3):
        await asyncio.sleep(0)


async def _open_requests(house: Farebox) -> int:
    return len(await _rows(house, REQUEST, {"state": RequestState.AUTHORISED}))


async def _books(house: Farebox) -> Books:
    accounts: list[AccountSeen] = []
    while page := await house.store.accounts(accounts[-1].id if accounts else ""):
        accounts += [
            AccountSeen(
                one.id,
                one.debits_posted,
                one.credits_posted,
                one.debits_pending,
                one.credits_pending,
            )
            for one in page
        ]
    proofs = []
    for place in house.cashu.mints.listed():
        for unit in place.terms.units:
            for use in ProofUse:
                where = {"mint": place.url, "unit": unit, "use": use}
                rows = await _rows(house, PROOF, where)
                proofs += [ProofSeen(key, row.value.amount, use.value) for key, row in rows]
    return Books(
        tuple(accounts),
        tuple(proofs),
        tuple(f"{one.id} {one.state}" for one in await house.operations.unfinished()),
        await _open_requests(house),
        await _crashed(house),
        await asyncio.to_thread(_verified, house),
    )


async def _crashed(house: Farebox) -> tuple[CrashedSeen, ...]:
    rows = await _rows(house, REQUEST, {})  # what has ended is in no index
    return tuple(
        CrashedSeen(row.value.checkpoint_msat, row.value.charged_msat)
        for _, row in rows
        if row.value.state is RequestState.SETTLED and row.value.ended == Ended.CRASHED
    )


async def _rows(
    house: Farebox, record: RecordType[_R], where: Mapping[str, str | int]
) -> list[tuple[str, Row[_R]]]:
    """All of them; a store gives a page at a time."""
    rows: list[tuple[str, Row[_R]]] = []
    while page := await house.store.find(record, where, after=rows[-1][0] if rows else ""):
        rows += page
    return rows


def _verified(house: Farebox) -> str:
    """What `verify` finds wrong; nothing if all is well."""
    with open_audit(house.settings) as reader:
        result = verify(reader)
    return str(result) if isinstance(result, Broken) else ""


def _patch(switch: Switch) -> None:
    """Have the switch see every commit and every call; in this process only."""
    patched: tuple[Any, ...] = (SqliteStore, http_mint, carrier, bootstrap)
    store, mint, gateway, root = patched
    commit, exchange = store.commit, mint.exchange

    async def counted_commit(self: SqliteStore, unit: Unit, *, synced: bool = True) -> Outcome:
        outcome: Outcome = await switch.around(
            Kind.COMMIT, unit.id, lambda: commit(self, unit, synced=synced)
        )
        return outcome

    async def counted_exchange(session: Any, method: str, url: Any, *args: Any, **more: Any) -> Any:
        return await switch.around(
            Kind.MINT, f"{method} {url.path}", lambda: exchange(session, method, url, *args, **more)
        )

    store.commit, mint.exchange = counted_commit, counted_exchange
    _patch_node(switch)
    _patch_chain(switch)
    _patch_cards(switch)
    _patch_evm(switch)
    # Each chunk of a stream is made durable, so that there is something to die between.
    gateway.Supervision = partial(Supervision, checkpoint_s=0, checkpoint_msat=1)
    # The foreign mint of these tests is on loopback too.
    root.open_guarded_session = partial(open_guarded_session, allow_private=True)


def _hurry() -> None:
    """Patience with a database that a test can wait for; in this process only."""
    from farebox.stores.postgres import batch, connection

    connection._TRIP_MAX_S = 2
    batch.FROZEN_S = 1
    batch.SYNCED = batch.SYNCED.replace("'5s'", "'1s'")


def _patch_node(switch: Switch) -> None:
    """The calls to a Lightning node that move something or decide; watching it comes by chance."""
    line: Any = Line
    opened = line._open

    @asynccontextmanager
    async def counted(
        self: Line, method: str, path: str, *rest: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if not path.startswith("/v2/router/") and method != "POST":
            async with opened(self, method, path, *rest) as response:
                yield response
            return
        number = switch.enter(Kind.NODE, f"{method} {path[:16]}")
        async with opened(self, method, path, *rest) as response:
            try:
                yield response
            finally:
                switch.strike(Point(Kind.NODE, number, after=True))

    line._open = counted


def _patch_chain(switch: Switch) -> None:
    """The call that lets a transaction out; it comes from the wallet's own thread."""

    def count(place: Any, name: str) -> None:
        sent = getattr(place, name)

        def counted(*told: Any) -> None:
            number = switch.enter(Kind.NODE, "a transaction")
            try:
                sent(*told)
            finally:
                switch.strike(Point(Kind.NODE, number, after=True))

        setattr(place, name, counted)

    count(Core, "broadcast")
    count(filters, "send")


def _patch_cards(switch: Switch) -> None:
    """The calls to a card provider that move something or make something to be paid."""

    def count(line: Any) -> None:
        exchange = line._exchange

        async def counted(self: Any, method: str, path: str, *rest: Any) -> Any:
            if method != "post" or path.startswith("/v1/notifications/"):
                return await exchange(self, method, path, *rest)
            return await switch.around(
                Kind.NODE, f"{method} {path}", lambda: exchange(self, method, path, *rest)
            )

        line._exchange = counted

    count(StripeConnector)
    count(PaypalLine)


def _patch_evm(switch: Switch) -> None:
    """What is handed to an EVM chain."""
    from farebox.rails.evm.reads import RpcChain

    chain: Any = RpcChain
    broadcast = chain.broadcast

    async def counted(self: RpcChain, raw: str) -> None:
        await switch.around(Kind.NODE, "broadcast", lambda: broadcast(self, raw))

    chain.broadcast = counted


async def _live(order: Order, tell: Callable[[object], None]) -> None:
    switch, clock = Switch(), AheadClock()
    switch.arm(read_point(order.point) if order.point else None)
    _patch(switch)
    if "database.url" in order.overrides:
        _hurry()
    settings = load_settings(None, {}, order.overrides)
    async with Farebox(settings, order.root_key, clock=clock) as house:
        async with serving(Victim(house, clock, switch)) as url:
            # The jobs of a start are over when it is counted what a scenario does.
            await house._upkeep.run()
            tell(Born(os.getpid(), url))
            await asyncio.Event().wait()


#: What a house imports once its settings ask for it: a victim would pay for it at each start.
_IMPORTED_LATE = (
    "farebox.bootstrap.evm",
    "farebox.bootstrap.evm_channels",
    "farebox.gateway.channels",
    "farebox.rails.bitcoin.method",
    "farebox.stores.postgres.audit",
)


def _warm_up() -> None:
    """Open a house and close it: what is imported and built on first use is there for all victims.

    Its loop, its threads and its connections are gone before the first fork.
    """
    for module in _IMPORTED_LATE:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_live_briefly({"data_dir": folder, "upstream": [{"urls": ["http://[::1]:9"]}]}))
    assert threading.active_count() == 1


async def _live_briefly(overrides: Mapping[str, Any]) -> None:
    async with Farebox(load_settings(None, {}, overrides), bytes(32)) as house:
        async with serving(house.app) as url, aiohttp.ClientSession() as session:
            await session.post(f"{url}/create", data=b"{}")
            await session.post(f"{url}/echo", data=b"{}")


def _log_to(path: Path) -> None:
    structlog.configure(
        processors=[
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(path.open("a", buffering=1)),
    )


def _nursery() -> None:
    """Read orders until standard input ends; then end the victim that still lives."""
    answers = os.dup(1)
    os.dup2(2, 1)

    def tell(what: object) -> None:
        os.write(answers, msgspec.json.encode(what) + b"\n")

    _warm_up()
    gc.collect()
    gc.freeze()
    while line := sys.stdin.buffer.readline():
        order = msgspec.json.decode(line, type=Order)
        pid = os.fork()
        if not pid:
            os.close(0)
            _log_to(Path(order.overrides["data_dir"]) / "log")
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_live(order, tell))
            return
        if not _outlives_us(pid):
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        tell(Dead(os.waitstatus_to_exitcode(status)))


def _outlives_us(pid: int) -> bool:
    """Wait for the end of the victim (True), or of whoever orders victims (False)."""
    victim = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([victim, 0], [], [])
    finally:
        os.close(victim)
    return victim in ready


if __name__ == "__main__":
    _nursery()
