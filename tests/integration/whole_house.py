"""The whole house behind its real door: HTTP in, a play mint and a play upstream outside.

Leaving it proves that no harm was done: the book verifies, nothing is left open, the custody
accounts are worth exactly the proofs in the inventory, the mint's audit knows no proof of ours as
spent, and no secret stands in any log line or problem document.
"""

from __future__ import annotations

import enum
import io
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import structlog

from farebox.books import open_audit
from farebox.bootstrap import Farebox
from farebox.clock import Clock, ManualClock, SystemClock
from farebox.ecash.plan import SwapPlan
from farebox.ecash.saga import Done, advance_swap
from farebox.ledger.invariants import AuditReader, verify
from farebox.ledger.replay import Broken
from farebox.rails.cashu import open_session
from farebox.rails.cashu.config import MSAT_PER_UNIT, custody_account
from farebox.rails.cashu.http_mint import HttpMint
from farebox.rails.cashu.records import PROOF, ProofUse
from farebox.settings import load_settings
from farebox.testing.asgi import serving
from farebox.testing.mint import PlayMint, StaysPending
from farebox.testing.upstream import PlayUpstream
from farebox.wire.cashu import crypto
from farebox.wire.cashu.model import Proof, Token
from farebox.wire.cashu.token import decode_token, encode_token
from farebox.wire.cashu.wallet_keys import WalletKeys
from tests.waiting import eventually

ROOT_KEY = b"k" * 32
FUNDED_SAT = 256
PRICE_SAT = 10
CHAT = {"model": "play-small", "max_tokens": 20, "messages": [{"role": "user", "content": "Hi"}]}
PRICES: list[dict[str, object]] = [
    {"path": "/v1/chat/completions", "per_output_token": "1 sat"},
    {"path": "/free", "free": True},
    {"path": "/*", "per_request": f"{PRICE_SAT} sat"},
]


class Door(enum.Enum):
    """Where a token can be handed in."""

    EMBEDDED = "X-Cashu"
    BEARER = "Authorization"
    CREATE = "/create"
    TOPUP = "/topup"


@dataclass
class WholeHouse:
    """A running house, with one key of `FUNDED_SAT` and a payer's purse."""

    farebox: Farebox
    mint: PlayMint
    upstream: PlayUpstream
    clock: ManualClock
    http: httpx.AsyncClient
    url: str
    log: io.StringIO
    key: str = ""
    issued: list[Token] = field(default_factory=list)
    swapped: int = 0

    # ── a payer ──────────────────────────────────────────────────────────────────────────────────

    def money(self, amount: int = 64, unit: str = "sat") -> Token:
        """Play money, remembered: it must never be seen in an answer or a log."""
        token = self.mint.issue(amount, unit)
        self.issued.append(token)
        return token

    def token(self, amount: int = 64, unit: str = "sat") -> str:
        """The same as text."""
        return encode_token(self.money(amount, unit))

    async def present(self, door: Door, token: str | bytes) -> httpx.Response:
        """Hand in a token at one of the doors."""
        raw = token.encode() if isinstance(token, str) else token
        match door:
            case Door.EMBEDDED:
                return await self.http.get("/echo", headers=[(b"X-Cashu", raw)])
            case Door.BEARER:
                return await self.http.get("/echo", headers=[(b"Authorization", b"Bearer " + raw)])
            case Door.CREATE:
                return await self.http.post("/create", content=_body("initial_balance_token", raw))
            case Door.TOPUP:
                body = _body("cashu_token", raw)
                return await self.http.post("/topup", content=body, headers=self.auth())

    def auth(self, secret: str = "") -> dict[str, str]:
        """The headers of a caller with a key, the funded one unless another is named."""
        return {"Authorization": f"Bearer {secret or self.key}"}

    async def chat(
        self, play: str = "", *, stream: bool = False, pay: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """A metered request on the funded key, or on what the headers in `pay` name."""
        given = {"x-play": play, **(pay or self.auth())}
        body = {**CHAT, "stream": stream}
        return await self.http.post("/v1/chat/completions", json=body, headers=given)

    async def balance(self, secret: str = "") -> int:
        """What a key, or a token as a key, can spend, in msat; nothing may be reserved."""
        answer = await self.http.get("/info", headers=self.auth(secret))
        assert answer.status_code == 200, answer.text
        assert answer.json()["reserved"] == 0
        return int(answer.json()["balance"])

    async def still_pays(self, token: Token | str) -> None:
        """Prove that nothing was taken: the token pays for a request, and its change is whole."""
        text = token if isinstance(token, str) else encode_token(token)
        amount = decode_token(text).amount
        paid = await self.present(Door.EMBEDDED, text)
        assert paid.status_code == 200, paid.text
        assert decode_token(paid.headers["x-cashu"]).amount == amount - PRICE_SAT

    # ── the payer's own dealings with the mint ───────────────────────────────────────────────────

    async def spend(self, token: Token) -> None:
        """Swap a token elsewhere, as a payer does who pays twice with the same money."""
        async with open_session() as session:
            mint = HttpMint(token.mint, session, self.clock)
            keyset_id = token.proofs[0].keyset_id
            amounts = tuple(sorted(proof.amount for proof in token.proofs))
            plan = SwapPlan(
                mint=token.mint,
                unit=token.unit,
                keyset_id=keyset_id,
                first_counter=self.swapped,
                inputs=token.proofs,
                amounts=amounts,
            )
            self.swapped += len(amounts)
            keys = WalletKeys(b"payer" * 8)
            done = await advance_swap(plan, mint, keys, asked_before=False)
            assert isinstance(done, Done), done
            self.issued.append(Token(token.mint, token.unit, done.proofs))

    async def make_pending(self, token: Token) -> str:
        """Leave a token in the hands of a Lightning payment; gives the quote to settle."""
        async with open_session() as session:
            mint = HttpMint(token.mint, session, self.clock)
            invoice = await mint.mint_quote(token.amount // 2, token.unit)
            quote = await mint.melt_quote(invoice.request, token.unit)
            self.mint.faults.next("melt", StaysPending())
            await mint.melt(quote.quote, token.proofs, ())
            return quote.quote

    # ── what the house may never do ──────────────────────────────────────────────────────────────

    def problem(self, answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
        """The answer is a whole problem document that tells no secret; gives its members."""
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["cache-control"] == "no-store"
        document: dict[str, Any] = answer.json()
        assert document["code"] == code, document
        assert document["status"] == status
        for sentence in (document["detail"], document["money"]):
            assert sentence[0].isupper() or sentence[0].isdigit() or sentence[0] == "/", sentence
            assert sentence.endswith(".")
            assert not sentence.endswith("..")
        assert "Traceback" not in answer.text
        assert ".py" not in answer.text
        self.keeps_secrets(answer.text + str(answer.headers))
        return document

    def keeps_secrets(self, text: str) -> None:
        """No key and no proof is in `text`."""
        assert not self.key or self.key not in text
        for token in self.issued:
            assert encode_token(token) not in text
            for proof in token.proofs:
                assert proof.secret not in text
                assert proof.C.hex() not in text

    async def recover(self) -> None:
        """Let the time pass after which what is unfinished is looked at again."""
        self.clock.advance(400)
        await self.farebox.recover()

    async def settled(self) -> None:
        """Wait until no request is being carried."""
        await eventually(lambda: not self.farebox.app.running)

    def reader(self) -> AbstractContextManager[AuditReader]:
        """The book as the audit reads it."""
        return open_audit(self.farebox.settings)

    async def assert_whole(self) -> None:
        """Books, inventory, mint and the payers' purses agree to the last unit."""
        await self.settled()
        assert not await self.farebox.operations.unfinished()
        with self.reader() as reader:
            verified = verify(reader)
        assert not isinstance(verified, Broken), str(verified)
        assert verified[0].open_holds == 0
        ours, theirs = await self._proofs()
        audit = self.mint.audit()
        assert not any(y in audit.spent_ys for y, _, _ in ours), "we count a spent proof as money"
        for unit, outstanding in audit.outstanding.items():
            custody = await self._held(unit)
            held = sum(amount for _, of, amount in ours if of == unit)
            purses = {y: amount for y, of, amount in theirs if of == unit}
            unspent = sum(amount for y, amount in purses.items() if y not in audit.spent_ys)
            assert custody == held, f"{unit}: books {custody}, proofs {held}"
            assert outstanding == held + unspent, unit

    async def _proofs(self) -> tuple[list[_Coin], list[_Coin]]:
        """Our proofs, and those that were issued or given to payers."""
        ours: list[_Coin] = []
        theirs = [_coin(proof, token.unit) for token in self.issued for proof in token.proofs]
        for key, row in await self.farebox.store.find(PROOF, {}):
            if row.value.mint != self.mint.url:
                continue
            coin = (bytes.fromhex(key), row.value.unit, row.value.amount)
            if row.value.use in (ProofUse.AVAILABLE, ProofUse.RESERVED):
                ours.append(coin)
            elif row.value.use is ProofUse.GIVEN:
                theirs.append(coin)
        return ours, theirs

    async def _held(self, unit: str) -> int:
        account = await self.farebox.store.account(custody_account(self.mint.url, unit))
        return 0 if account is None else account.held // MSAT_PER_UNIT[unit]


_Coin = tuple[bytes, str, int]


def _coin(proof: Proof, unit: str) -> _Coin:
    return crypto.hash_to_curve(proof.secret), unit, proof.amount


def _body(name: str, token: bytes) -> bytes:
    """A JSON body with a token in it, whatever bytes that is."""
    return b'{"%s": "%s"}' % (name.encode(), token)


@contextmanager
def listening() -> Iterator[io.StringIO]:
    """Everything that we and the libraries log, before secrets are looked for and taken out."""
    heard = io.StringIO()
    before = structlog.get_config()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=lambda *_: structlog.PrintLogger(heard),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(heard)
    logging.getLogger().addHandler(handler)
    try:
        yield heard
    finally:
        logging.getLogger().removeHandler(handler)
        structlog.configure(**before)


def plain_client(url: str) -> httpx.AsyncClient:
    """A client of a house. Reading the machine's certificates would take longer than most tests."""
    return httpx.AsyncClient(base_url=url, timeout=60, verify=False)


@asynccontextmanager
async def whole_house(
    data_dir: Path,
    *,
    mint: PlayMint | None = None,
    mint_terms: Mapping[str, object] | None = None,
    upstream_terms: Mapping[str, object] | None = None,
    upstreams: Sequence[Mapping[str, object]] = (),
    mints: Sequence[Mapping[str, object]] = (),
    limits: Mapping[str, object] | None = None,
) -> AsyncIterator[WholeHouse]:
    """Open the doors; what the tests did is audited when they close."""
    clock = ManualClock(SystemClock().now_ns())
    mint, upstream = mint or PlayMint(units=("sat", "msat")), PlayUpstream()
    async with AsyncExitStack() as open_things:
        heard = open_things.enter_context(listening())
        mint.url = await open_things.enter_async_context(serving(mint))
        upstream_url = await open_things.enter_async_context(serving(upstream))
        settings = {
            "data_dir": str(data_dir),
            "mint": [{"url": mint.url, **(mint_terms or {})}, *mints],
            "upstream": [{"urls": [upstream_url], **(upstream_terms or {})}, *upstreams],
            "price": PRICES,
            "ecash.mint_timeout_s": 60,
            **(limits or {}),
        }
        farebox = await open_things.enter_async_context(_farebox(settings, clock))
        url = await open_things.enter_async_context(serving(farebox.app))
        http = await open_things.enter_async_context(plain_client(url))
        house = WholeHouse(farebox, mint, upstream, clock, http, url, heard)
        made = await house.present(Door.CREATE, house.token(FUNDED_SAT))
        house.key = made.json()["api_key"]
        runs = farebox.worker.runs
        await eventually(lambda: runs["upkeep"].count and runs["sweep"].count)  # they ask mints
        mint.calls.clear()
        yield house
        await house.assert_whole()
        house.keeps_secrets(heard.getvalue())


def _farebox(settings: dict[str, object], clock: Clock) -> Farebox:
    return Farebox(load_settings(None, {}, settings), ROOT_KEY, clock=clock)
