"""A service behind the gateway that is sold through channels, and a payer with an account there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from farebox.books import open_audit
from farebox.bootstrap import Farebox
from farebox.channels.ledger_chain import account_did, ledger_channel_id
from farebox.channels.ledger_desk import LedgerDesk
from farebox.channels.model import SUB_CHANNEL, SubChannel, sub_channel_key
from farebox.clock import NS_PER_S, Clock, ManualClock, SystemClock
from farebox.identity.keys import KeyTerms, NewKey, new_account
from farebox.ids import new_id
from farebox.ledger.invariants import verify
from farebox.ledger.model import Kind, Open, Transfer, Unit
from farebox.ledger.replay import Broken
from farebox.settings import Settings, load_settings
from farebox.testing.asgi import Receive, Scope, Send, respond, serving, start
from farebox.testing.upstream import PlayUpstream
from farebox.wire.subrav.didauth import sign_did_auth
from farebox.wire.subrav.frames import FrameReader, stream_format
from farebox.wire.subrav.keys import KeyType, SigningKey, sign_sub_rav
from farebox.wire.subrav.model import SignedSubRAV, SubRAV
from farebox.wire.subrav.payload import (
    HEADER_NAME,
    RequestPayload,
    ResponsePayload,
    parse_response_header,
)
from tests.integration.channel_world import OfPayment

PRICE_MSAT = 10_000
TOKEN_MSAT = 1_000
DEAR_MSAT = 5_000_000
PRICES: list[dict[str, object]] = [
    {"path": "/v1/chat/completions", "per_output_token": "1 sat"},
    {"path": "/free", "free": True},
    {"path": "/dear", "per_request": "5000 sat"},
    {"path": "/*", "per_request": "10 sat"},
]
HOUSE_DID = "did:farebox:house"
FRAGMENT = "laptop"
KEY = SigningKey(KeyType.ED25519, b"\x01" * 32)
CHAT = {"model": "play-1", "max_tokens": 20, "messages": [{"role": "user", "content": "Hi"}]}
LINES = (b'{"t":0}\n', b'{"t":1}\n')


class Shop:
    """The play upstream, with a few paths more. `served` counts what was asked for."""

    def __init__(self) -> None:
        self.play = PlayUpstream()
        self.served: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.served[path] = self.served.get(path, 0) + 1
        match path:
            case "/free" | "/dear":
                await respond(send, 200, b'{"free":true}')
            case "/slow":
                await asyncio.sleep(0.08)
                await respond(send, 200, b'{"slow":true}')
            case "/broken":
                await respond(send, 503, b'{"error":"broken"}')
            case "/ndjson":
                await start(send, 200, "application/x-ndjson")
                for line in LINES:
                    await send({"type": "http.response.body", "body": line, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            case _:
                await self.play(scope, receive, send)


def key_terms(fragment: str, key: SigningKey, amount_msat: int) -> dict[str, Any]:
    """The body that opens a channel, tops it up, or lets one more key sign."""
    return {
        "amount_msat": amount_msat,
        "fragment": fragment,
        "key_type": key.type.value,
        "public_key": key.public.multibase,
    }


@dataclass
class Told(OfPayment):
    """An answer, and what it says of its payment, in its header or in its last frame."""

    status: int
    body: bytes
    payment: ResponsePayload | None
    headers: Mapping[str, str]


@dataclass
class House:
    """One process of a house, with a payer's account and key."""

    farebox: Farebox
    shop: Shop
    http: httpx.AsyncClient
    url: str
    clock: Clock
    key: str = ""
    account: str = ""

    @property
    def desk(self) -> LedgerDesk:
        """Where accounts of this house back channels."""
        channels = self.farebox.channels
        assert channels is not None
        assert channels.desk is not None
        return channels.desk

    # ── a payer ──────────────────────────────────────────────────────────────────────────────────

    @property
    def auth(self) -> dict[str, str]:
        """The headers of the payer's account."""
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def did(self) -> str:
        """The payer's DID."""
        return account_did(self.account)

    @property
    def channel_id(self) -> str:
        """The payer's channel."""
        return ledger_channel_id(self.did, HOUSE_DID, "BTC")

    async def open(
        self,
        amount_msat: int = 1_000_000,
        fragment: str = FRAGMENT,
        key: SigningKey = KEY,
        name: str = "",
    ) -> httpx.Response:
        """Open the payer's channel, top it up, or let one more key sign."""
        named = {"Idempotency-Key": name} if name else {}
        body = key_terms(fragment, key, amount_msat)
        return await self.http.post("/v1/channels", json=body, headers=self.auth | named)

    def authorization(
        self, method: str, path: str, *, fragment: str = FRAGMENT, key: SigningKey = KEY
    ) -> str:
        """A fresh `Authorization` of the payer."""
        return sign_did_auth(
            self.did,
            fragment,
            key,
            operation="http_request",
            params={"uri": f"{self.url}{path}", "method": method},
            nonce=new_id("nonce"),
            timestamp_s=self.clock.now_ns() // NS_PER_S,
        ).header()

    def payment(
        self,
        path: str,
        voucher: SignedSubRAV | None = None,
        *,
        method: str = "GET",
        max_amount: int | None = None,
        is_named: bool = True,
        fragment: str = FRAGMENT,
        key: SigningKey = KEY,
    ) -> dict[str, str]:
        """The headers that pay: with a voucher, and saying who asks unless told not to."""
        payload = RequestPayload(
            client_tx_ref=new_id("tx"), max_amount=max_amount, signed_sub_rav=voucher
        )
        headers = {HEADER_NAME: payload.header()}
        if is_named:
            headers["Authorization"] = self.authorization(method, path, fragment=fragment, key=key)
        return headers

    async def asks(
        self, path: str = "/echo", voucher: SignedSubRAV | None = None, **more: Any
    ) -> Told:
        """A request paid on the payer's channel."""
        return told(await self.http.get(path, headers=self.payment(path, voucher, **more)))

    async def chats(self, voucher: SignedSubRAV | None = None, *, stream: bool = False) -> Told:
        """A metered one."""
        path = "/v1/chat/completions"
        headers = self.payment(path, voucher, method="POST")
        return told(await self.http.post(path, headers=headers, json=CHAT | {"stream": stream}))

    async def balance(self) -> int:
        """What the payer's account can spend."""
        answer = await self.http.get("/info", headers=self.auth)
        return int(answer.json()["balance"])

    async def row(self, fragment: str = FRAGMENT) -> SubChannel | None:
        """The sub-channel as stored."""
        key = sub_channel_key(self.channel_id, fragment)
        found = await self.farebox.store.get(SUB_CHANNEL, key)
        return None if found is None else found.value

    async def held(self, account: str) -> int:
        """What a debit-normal account holds; 0 where there is none."""
        found = await self.farebox.store.account(account)
        return 0 if found is None else found.held

    async def fund(self, amount_msat: int = 10_000_000) -> None:
        """Give the payer an account with money, and a key to it."""
        self.account = new_account()
        steps = (
            Open("custody:elsewhere", "BTC", Kind.CUSTODY),
            Open(self.account, "BTC", Kind.CUSTOMER),
            Transfer("custody:elsewhere", self.account, amount_msat, "deposit"),
        )
        await self.farebox.store.commit(Unit(new_id("fund"), steps))
        made = await self.farebox.keys.create(self.account, KeyTerms())
        assert isinstance(made, NewKey)
        self.key = made.secret


def told(answer: httpx.Response) -> Told:
    """An answer as its payer reads it."""
    header, body = answer.headers.get(HEADER_NAME), answer.content
    form = stream_format(answer.headers.get("content-type", ""))
    if header is None and form is not None:
        frames = FrameReader(form)
        body = frames.feed(body) + frames.end()
        header = frames.header
    payment = None if header is None else parse_response_header(header)
    return Told(answer.status_code, body, payment, answer.headers)


def sign(proposal: SubRAV, key: SigningKey = KEY) -> SignedSubRAV:
    """Sign what is asked for."""
    return sign_sub_rav(proposal, key)


@asynccontextmanager
async def house(
    directory: Path,
    shop: Shop | None = None,
    *,
    settings: Mapping[str, object] | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[House]:
    """A house in this process; what was done in it is audited when it is left."""
    clock = clock or ManualClock(SystemClock().now_ns())
    shop = shop or Shop()
    async with AsyncExitStack() as open_things:
        upstream = await open_things.enter_async_context(serving(shop))
        given: dict[str, object] = {
            "data_dir": str(directory),
            "upstream": [{"urls": [upstream]}],
            "price": PRICES,
            **(settings or {}),
        }
        read = load_settings(None, {}, given)
        farebox = await open_things.enter_async_context(Farebox(read, b"k" * 32, clock=clock))
        url = await open_things.enter_async_context(serving(farebox.app))
        client = httpx.AsyncClient(base_url=url, timeout=60, verify=False)
        http = await open_things.enter_async_context(client)
        one = House(farebox, shop, http, url, clock)
        await one.fund()
        yield one
    check_book(read)


def check_book(settings: Settings) -> None:
    """Replay the book: every balance, every limit, the chain, custody against what is owed."""
    with open_audit(settings) as reader:
        verified = verify(reader)
    assert not isinstance(verified, Broken), str(verified)
