"""All around a victim: mint, upstream, client; and the proof that no unit was lost or made."""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import msgspec

from farebox.clock import SystemClock
from farebox.ecash.mint import MintQuoteState
from farebox.rails.cashu.http_mint import HttpMint
from farebox.testing.asgi import serving
from farebox.testing.mint import PlayLightning, PlayMint
from farebox.testing.upstream import PlayUpstream
from farebox.wire.cashu import crypto
from farebox.wire.cashu.token import decode_token, encode_token
from tests.crash.books import Books
from tests.crash.points import Kind, Point
from tests.crash.victim import Born, Dead, Order

MSAT = 1_000
#: What a play mint takes for a Lightning payment, in sat.
LIGHTNING_FEE = 1
#: The first thing a nursery does is to import everything.
_WAIT_S = 120
#: What is asked where nothing is to go wrong may take so long.
LOOK_S = 120
_TRIES_MAX = 5


class Lost(Exception):
    """The connection broke: nobody told the client what became of its call."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The money at rest: faults in words, what was earned, and what mints kept as fees."""

    faults: list[str]
    revenue_msat: int
    fees: int


class Nursery:
    """The process that victims are forked from; one victim at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.victim"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._told = b""

    async def born(self, order: Order) -> Born | Dead:
        """A victim that listens, or that has died before it did."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()
        return await self.next()

    async def next(self) -> Born | Dead:
        """The next thing to be told. Raises TimeoutError."""
        assert self._process.stdout is not None
        loop, pipe = asyncio.get_running_loop(), self._process.stdout.fileno()
        readable = asyncio.Event()
        loop.add_reader(pipe, readable.set)
        try:
            async with asyncio.timeout(_WAIT_S):
                while b"\n" not in self._told:
                    readable.clear()
                    await readable.wait()
                    piece = os.read(pipe, 65_536)
                    assert piece, "the nursery has ended"
                    self._told += piece
        finally:
            loop.remove_reader(pipe)
        line, _, self._told = self._told.partition(b"\n")
        return msgspec.json.decode(line, type=Born | Dead)

    def close(self) -> None:
        """End the nursery, and with it the victim that still lives."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(_WAIT_S)


@cache
def the_nursery() -> Nursery:
    """The one of this process, which ends with it."""
    nursery = Nursery()
    atexit.register(nursery.close)
    return nursery


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that arrived whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return dict(msgspec.json.decode(self.body))

    def __str__(self) -> str:
        return f"{self.status} {self.body[:300].decode(errors='replace')}"


@dataclass
class Outside:
    """What no crash of the house touches: the mints, the upstream, the client's own connections."""

    mints: Mapping[int, PlayMint]  # by their fee
    other: PlayMint  # at the far end of Lightning
    upstream_url: str
    session: aiohttp.ClientSession


@asynccontextmanager
async def outside() -> AsyncIterator[Outside]:
    """Mints with and without fees, another one beyond Lightning, an upstream."""
    lightning = PlayLightning()
    free, dear, other = (
        PlayMint(fee_ppk=fee, lightning=lightning, invoices_pay_themselves=False)
        for fee in (0, 100, 0)
    )
    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        serving(free) as free.url,
        serving(dear) as dear.url,
        serving(other) as other.url,
        serving(PlayUpstream()) as upstream_url,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        yield Outside({0: free, 100: dear}, other, upstream_url, session)


@dataclass
class Run:
    """One house from its first start to its last check, and the client that it serves."""

    nursery: Nursery
    around: Outside
    mint: PlayMint
    order: Order
    tokens: list[str] = field(default_factory=list)
    bearers: list[str] = field(default_factory=list)
    invoices: list[str] = field(default_factory=list)
    url: str = ""
    pid: int = 0

    def __post_init__(self) -> None:
        audit = self.mint.audit()
        self._owed_before = audit.outstanding.get("sat", 0)
        self._quotes: list[str] = []
        self.issued = 0

    # ── the victim ───────────────────────────────────────────────────────────────────────────────

    async def start(self, point: Point | None = None) -> bool:
        """Open the house; False when it died before it listened."""
        order = msgspec.structs.replace(self.order, point=str(point) if point else "")
        told = await self.nursery.born(order)
        if isinstance(told, Dead):
            assert told.status == -signal.SIGKILL, told
            return False
        self.url, self.pid = told.url, told.pid
        return True

    async def died(self) -> None:
        """Wait for the end of a victim that killed itself."""
        told = await self.nursery.next()
        assert told == Dead(-signal.SIGKILL), told
        self.pid = 0

    async def kill(self) -> None:
        """End the victim, wherever it is."""
        if self.pid:
            with suppress(ProcessLookupError):  # it has killed itself, and we were not told yet
                os.kill(self.pid, signal.SIGKILL)
            await self.died()

    async def arm(self, point: Point | None) -> None:
        """Count from now on, and die at this point."""
        await self.control("arm", str(point) if point else "")

    async def passed(self) -> dict[Kind, list[str]]:
        """What was counted since."""
        return msgspec.json.decode(await self.control("passed"), type=dict[Kind, list[str]])

    def another(self) -> Run:
        """Another client of the same house."""
        client = Run(self.nursery, self.around, self.mint, self.order)
        client.url = self.url
        return client

    def takes_over(self, client: Run) -> None:
        """Hold what another client held, for the last count."""
        self.tokens += client.tokens
        self.bearers += client.bearers
        self._quotes += client._quotes
        self.issued += client.issued

    async def settle(self) -> None:
        """Have the house recover until nothing is unfinished."""
        told = msgspec.json.decode(await self.control("settle"))
        assert told["unfinished"] == 0, "recovery leaves something unfinished"

    async def jump(self, seconds: int) -> None:
        """Set the house's clock forward, or back when negative."""
        await self.control("jump", str(seconds))

    async def books(self) -> Books:
        """The house's own account of what it has."""
        return msgspec.json.decode(await self.control("books"), type=Books)

    async def control(self, what: str, body: str = "") -> bytes:
        """Speak to the victim by its back door, however long it takes to look at its books.

        Its patience with a database is short: where that has ended it is asked again.
        """
        path = f"/_crash/{what}"
        for _ in range(_TRIES_MAX):
            told = await self.call("POST", path, body=body.encode(), patience_s=LOOK_S)
            if told.status == 200:
                return told.body
        raise AssertionError(f"{path} fails: {told}")

    # ── the client ───────────────────────────────────────────────────────────────────────────────

    def token(self, number: int, amount: int, *, foreign: bool = False) -> None:
        """Money in the client's hand: a token of this number, once."""
        if len(self.tokens) == number:
            self.issued += amount
            mint = self.around.other if foreign else self.mint
            self.tokens.append(encode_token(mint.issue(amount)))

    async def invoice(self, amount: int) -> None:
        """An invoice of the client's own at another mint, once."""
        if self.invoices:
            return
        receiver = HttpMint(self.around.other.url, self.around.session, SystemClock())
        quote = await receiver.mint_quote(amount, "sat")
        self.invoices.append(quote.request)
        self._quotes.append(quote.quote)

    def holds(self, token: str | None) -> str | None:
        """Keep a token that was received."""
        if token and token not in self.tokens:
            self.tokens.append(token)
        return token

    async def call(
        self,
        method: str,
        path: str,
        *,
        bearer: str = "",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        patience_s: float | None = None,
    ) -> Reply:
        """One call; raises Lost when no whole answer arrives, or none in time."""
        sent = dict(headers or {})
        if bearer:
            sent["Authorization"] = f"Bearer {bearer}"
        try:
            session = self.around.session
            patience = aiohttp.ClientTimeout(patience_s) if patience_s else session.timeout
            async with session.request(
                method, self.url + path, data=body or None, headers=sent, timeout=patience
            ) as answer:
                return Reply(answer.status, answer.headers, await answer.read())
        except (aiohttp.ClientError, OSError) as error:
            raise Lost(type(error).__name__) from None

    async def post(
        self,
        path: str,
        document: object,
        *,
        bearer: str = "",
        name: str = "",
        patience_s: float | None = None,
    ) -> Reply:
        """One call of the wallet API, named for idempotency."""
        headers = {"Content-Type": "application/json"}
        if name:
            headers["Idempotency-Key"] = name
        body = msgspec.json.encode(document)
        return await self.call(
            "POST", path, bearer=bearer, body=body, headers=headers, patience_s=patience_s
        )

    async def balance_msat(self) -> int:
        """What the client is told it has, on all its accounts."""
        total = 0
        for bearer in self.bearers:
            told = await self.call("GET", "/info", bearer=bearer, patience_s=LOOK_S)
            if told.status == 200:
                total += int(told.json["balance"])
        return total

    # ── the proof ────────────────────────────────────────────────────────────────────────────────

    def client_ys(self) -> dict[bytes, int]:
        """The unspent proofs in the client's hand, with their worth."""
        spent = self.mint.audit().spent_ys
        worth: dict[bytes, int] = {}
        for token in map(decode_token, self.tokens):
            for proof in token.proofs if token.mint == self.mint.url else ():
                y = crypto.hash_to_curve(proof.secret)
                if y not in spent:
                    worth[y] = proof.amount
        return worth

    async def paid_over_lightning(self) -> int:
        """What arrived at the other mint."""
        receiver = HttpMint(self.around.other.url, self.around.session, SystemClock())
        quotes = [await receiver.mint_quote_state(quote) for quote in self._quotes]
        return sum(quote.amount or 0 for quote in quotes if quote.state is MintQuoteState.PAID)

    async def look(self) -> Seen:
        """Everything that is wrong with the money now, what was earned, what mints have kept."""
        books, audit = await self.books(), self.mint.audit()
        client, arrived = self.client_ys(), await self.paid_over_lightning()
        outstanding = audit.outstanding.get("sat", 0) - self._owed_before
        house = {bytes.fromhex(one.y): one for one in books.proofs}
        ours = {y for y, one in house.items() if one.use in ("available", "reserved")}
        given = {y for y, one in house.items() if one.use == "given" and y not in audit.spent_ys}
        ours_msat = books.worth("available", "reserved") * MSAT
        balance_msat = await self.balance_msat()
        checks = {
            f"verify: {books.broken}": not books.broken,
            f"unfinished: {books.unfinished}": not books.unfinished,
            f"{books.open_requests} requests are open": not books.open_requests,
            f"holds are left on {books.pending}": not books.pending,
            "proofs are left reserved": not books.worth("reserved"),
            "a proof of ours is spent": not (ours & audit.spent_ys),
            "a proof is ours and the client's": not (ours & client.keys()),
            "the client lacks proofs that were given": given <= client.keys(),
            f"custody {books.custody_msat} is not our proofs {ours_msat}": books.custody_msat
            == ours_msat,
            "custody is not what is owed": books.custody_msat
            == books.customers_msat + books.revenue_msat,
            f"charged other than what was metered: {books.crashed}": all(
                one.charged_msat == one.checkpoint_msat for one in books.crashed
            ),
            f"told {balance_msat}, owed {books.customers_msat}": balance_msat
            == books.customers_msat,
            f"{outstanding} outstanding, client {sum(client.values())}, house {ours_msat}": (
                outstanding * MSAT == sum(client.values()) * MSAT + ours_msat
            ),
        }
        faults = [fault for fault, holds in checks.items() if not holds]
        return Seen(faults, books.revenue_msat, self.issued - outstanding - arrived)


def new_run(
    nursery: Nursery,
    around: Outside,
    path: Path,
    fee_ppk: int = 0,
    settings: Mapping[str, object] = MappingProxyType({}),
) -> Run:
    """A house that was never opened, on a directory and a seed of its own."""
    mint = around.mints[fee_ppk]
    folder = path / secrets.token_hex(6)
    folder.mkdir()
    overrides: dict[str, Any] = {
        "data_dir": str(folder),
        "mint": [{"url": mint.url}],
        "upstream": [{"urls": [around.upstream_url]}],
        "price": [
            {"path": "/echo", "per_request": "10 sat"},
            {"path": "/v1/*", "per_output_token": "0.3 sat"},
        ],
        **settings,
    }
    return Run(nursery, around, mint, Order(overrides, secrets.token_bytes(32)))
