"""A payee with a book, a play chain and an app that is paid for through channels."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from farebox.channels import (
    RECORDS,
    BillingEngine,
    ClaimPolicy,
    ClaimScheduler,
    CreditPolicy,
    FixedRates,
    PaymentChannelPayeeClient,
    PaymentProcessor,
    PaymentProcessorConfig,
    parse_rules,
)
from farebox.channels.model import accepted_voucher
from farebox.clock import NS_PER_S, Clock, ManualClock
from farebox.gateway.asgi import Receive, Scope, Send, read_body
from farebox.gateway.channels import ChannelPaywall, report_usage
from farebox.ids import new_id
from farebox.ledger.invariants import verify
from farebox.ledger.processes import PROCESS, Processes
from farebox.ledger.replay import Broken
from farebox.ledger.service import Ledger
from farebox.paywall.channel_service import ChannelService
from farebox.stores.sqlite import SqliteStore
from farebox.stores.sqlite.audit import SqliteAuditReader
from farebox.testing.channels import RGAS, PlayContract
from farebox.wire.subrav import rooch
from farebox.wire.subrav.didauth import sign_did_auth
from farebox.wire.subrav.documents import ServiceInfo
from farebox.wire.subrav.keys import KeyType, SigningKey, VerificationKey
from farebox.wire.subrav.model import SignedSubRAV, SubRAV
from farebox.wire.subrav.payload import (
    HEADER_NAME,
    RequestPayload,
    ResponsePayload,
    parse_response_header,
)

PAYER_DID = rooch.address_did(b"\x11" * 32)
PAYEE_DID = rooch.address_did(b"\x22" * 32)
CHANNEL_ID = rooch.channel_id(PAYER_DID, PAYEE_DID, RGAS)
ASSET = rooch.canonical_coin_type(RGAS)
KEY = SigningKey(KeyType.ED25519, b"\x01" * 32)
FRAGMENT = "account-key"

#: The prices of payment-kit's own end-to-end server.
RULES = """
rules:
  - {id: echo, when: {path: /echo}, strategy: {type: PerRequest, price: "1e9"}}
  - {id: expensive, when: {path: /expensive}, strategy: {type: PerRequest, price: "5e10"}}
  - {id: slow, when: {path: /slow}, strategy: {type: PerRequest, price: "1e9"}}
  - {id: broken, when: {path: /broken}, strategy: {type: PerRequest, price: "1e9"}}
  - {id: process, when: {path: /process, method: POST}, strategy: {type: FinalCost}}
  - id: chat
    when: {path: /chat/completions, method: POST}
    strategy: {type: PerToken, unitPricePicoUSD: "2e7"}
  - id: admin
    when: {path: /admin}
    strategy: {type: PerRequest, price: 0}
    adminOnly: true
  - id: members
    when: {path: /members}
    strategy: {type: PerRequest, price: 0}
    authRequired: true
  - {id: free, when: {path: /free}, strategy: {type: PerRequest, price: 0}}
"""
ECHO_COST = 10_000_000


class OfPayment:
    """What an answer says of its payment."""

    payment: ResponsePayload | None

    @property
    def code(self) -> str | None:
        error = None if self.payment is None else self.payment.error
        return None if error is None else error.code

    @property
    def proposal(self) -> SubRAV:
        assert self.payment is not None, self
        assert self.payment.sub_rav is not None, self.payment
        return self.payment.sub_rav


@dataclass(frozen=True)
class Told(OfPayment):
    """An answer, and what it says of its payment."""

    answer: httpx.Response
    payment: ResponsePayload | None

    @property
    def status(self) -> int:
        return self.answer.status_code


@dataclass
class World:
    """One payee. `served` counts what its app did for each path."""

    ledger: Ledger
    contract: PlayContract
    payee: PaymentChannelPayeeClient
    processor: PaymentProcessor
    claims: ClaimScheduler
    app: ChannelPaywall
    clock: Clock
    service: ChannelService
    served: dict[str, int] = field(default_factory=dict)

    async def open(
        self,
        collateral: int = 10**12,
        *,
        payer_did: str = PAYER_DID,
        payee_did: str = PAYEE_DID,
        fragment: str = FRAGMENT,
        key: VerificationKey = KEY.public,
    ) -> str:
        """A channel, or one more key of it; its id."""
        channel = await self.contract.open_channel_with_sub_channel(
            payer_did=payer_did,
            payee_did=payee_did,
            asset_id=RGAS,
            collateral=collateral,
            fragment=fragment,
            key=key,
        )
        return channel.channel_id

    async def asks(
        self,
        path: str = "/echo",
        voucher: SignedSubRAV | None = None,
        *,
        payment: str | None = None,
        auth: str | None = "",
        max_amount: int | None = None,
        method: str = "GET",
        body: Any = None,
    ) -> Told:
        """A request with a voucher; authorized by the payer unless `auth` says otherwise."""
        if payment is None:
            payload = RequestPayload(
                client_tx_ref=new_id("tx"), max_amount=max_amount, signed_sub_rav=voucher
            )
            payment = payload.header()
        headers = {HEADER_NAME: payment} if payment else {}
        if auth is not None:
            headers["Authorization"] = auth or self.authorization(method, path)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://shop"
        ) as client:
            answer = await client.request(
                method, path, headers=headers, content=json.dumps(body) if body else None
            )
        header = answer.headers.get(HEADER_NAME)
        return Told(answer, None if header is None else parse_response_header(header))

    def authorization(
        self,
        method: str,
        path: str,
        *,
        did: str = PAYER_DID,
        fragment: str = FRAGMENT,
        key: SigningKey = KEY,
        nonce: str = "",
        age_s: int = 0,
        operation: str = "http_request",
        audience: str | None = None,
    ) -> str:
        """A fresh `Authorization` of a payer."""
        return sign_did_auth(
            did,
            fragment,
            key,
            operation=operation,
            params={"uri": f"http://shop{path}", "method": method},
            nonce=nonce or new_id("nonce"),
            timestamp_s=self.clock.now_ns() // NS_PER_S - age_s,
            audience=audience,
        ).header()

    async def latest(self, fragment: str = FRAGMENT) -> SignedSubRAV | None:
        """The newest voucher that was taken."""
        row = await self.payee.sub_channels.read(CHANNEL_ID, fragment)
        return None if row is None else accepted_voucher(row, self.contract.chain_id)


@asynccontextmanager
async def world(
    directory: Path,
    *,
    clock: Clock | None = None,
    contract: PlayContract | None = None,
    policy: CreditPolicy | None = None,
    claim_policy: ClaimPolicy | None = None,
    wait_s: int = 30,
) -> AsyncIterator[World]:
    """Open the book in `directory`, as after a restart where there is one already."""
    clock = clock or ManualClock()
    store = SqliteStore(directory / "book.db", [*RECORDS, PROCESS], clock=clock)
    try:
        ledger = Ledger(store, clock)
        processes = Processes(ledger, alone=True)
        await processes.start()
        contract = contract or PlayContract()
        payee = PaymentChannelPayeeClient(
            ledger, processes, contract, PAYEE_DID, policy=policy, wait_s=wait_s
        )
        claims = ClaimScheduler(payee, claim_policy)
        processor = PaymentProcessor(
            PaymentProcessorConfig(
                payee_client=payee,
                billing_engine=BillingEngine(
                    parse_rules(RULES, "yaml"), FixedRates({ASSET: 100, RGAS: 100})
                ),
                service_id="echo-service",
                default_asset_id=RGAS,
                claim_scheduler=claims,
            )
        )
        service = ChannelService(
            processor=processor,
            payee=payee,
            info=ServiceInfo(
                service_id="echo-service",
                service_did=PAYEE_DID,
                network="local",
                default_asset_id=RGAS,
                default_price_pico_usd=500_000_000,
            ),
            channel_id=rooch.channel_id,
            claims=claims,
            admins={f"{PAYEE_DID}#admin": SigningKey(KeyType.ED25519, b"\x09" * 32).public},
            clock=clock,
        )
        served: dict[str, int] = {}
        app = ChannelPaywall(Shop(served), service)
        yield World(ledger, contract, payee, processor, claims, app, clock, service, served)
    finally:
        await store.close()


class Shop:
    """What is sold: the routes of payment-kit's own end-to-end server, and a few bad ones."""

    def __init__(self, served: dict[str, int]) -> None:
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive, 1 << 20)
        path = scope["path"]
        self._served[path] = self._served.get(path, 0) + 1
        asked = json.loads(body) if body else {}
        match path:
            case "/echo" | "/expensive":
                query = scope["query_string"].decode()
                await reply(send, {"echo": query.removeprefix("q=") if query else None})
            case "/slow":
                await asyncio.sleep(0.08)
                await reply(send, {"slow": True})
            case "/broken":
                await reply(send, {"error": "broken"}, 503)
            case "/process":
                report_usage(scope, 10_000_000_000)
                await reply(send, {"processed": asked})
            case "/chat/completions" if asked.get("stream"):
                report_usage(scope, 120)
                await stream(send, is_ndjson=bool(asked.get("ndjson")))
            case "/chat/completions":
                report_usage(scope, 120)
                await reply(send, {"usage": {"total_tokens": 120}})
            case _:
                await reply(send, {"free": True})


async def reply(send: Send, document: Any, status: int = 200) -> None:
    body = json.dumps(document, separators=(",", ":")).encode()
    headers = [
        (b"content-type", b"application/json; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream(send: Send, *, is_ndjson: bool) -> None:
    kind = b"application/x-ndjson" if is_ndjson else b"text/event-stream"
    headers = [(b"content-type", kind)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for part in range(2):
        text = f'{{"t":{part}}}\n' if is_ndjson else f'data: {{"t":{part}}}\n\n'
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def check_books(directory: Path) -> None:
    """Replay the book: every balance, every limit, the chain, custody against what is owed."""
    reader = SqliteAuditReader(directory / "book.db", [*RECORDS, PROCESS])
    try:
        result = verify(reader)
    finally:
        reader.close()
    assert not isinstance(result, Broken), str(result)
