"""A book, a way to pay that fails when told to, and the API in front of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from farebox.api import ApiContext, create_api
from farebox.clock import ManualClock
from farebox.errors import InvalidCredential, RailUnavailable
from farebox.identity import RECORDS, FailureLimit, Idempotency, Keys
from farebox.ids import derived_id, new_id
from farebox.ledger.model import Event, Kind, Open, Transfer, Unit
from farebox.ledger.processes import PROCESS, Processes
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger
from farebox.payments import (
    AbstractPaymentMethod,
    PaymentCredentials,
    PaymentMethods,
    PaymentResult,
    RefundPlan,
    RefundRequest,
    RefundResult,
    Refusal,
    Rejected,
    Unresolved,
)
from farebox.payments.cards.gateway import PaymentGateway
from farebox.payments.conversions import CONVERSION, Conversions
from farebox.payments.deposits import DEPOSIT, DEPOSIT_REQUEST, Deposits
from farebox.payments.exchange import ONLY_BITCOIN, Exchange
from farebox.payments.links import WITHDRAW_LINK, WithdrawLinks
from farebox.payments.maturity import MATURING
from farebox.payments.model import OPERATION
from farebox.payments.operations import Operations
from farebox.payments.requests import DepositRequests
from farebox.payments.service import Payments
from farebox.payments.totals import TOTALS
from farebox.paywall import dialects
from farebox.paywall.model import Answer, NothingPresented, Presented
from farebox.signer import Signer
from farebox.stores.sqlite import SqliteStore

ADDRESS = "192.0.2.1"


class _Out(msgspec.Struct):
    token: str
    amount_msat: int
    destination: str


class PlayMoney(AbstractPaymentMethod):
    """`play:<name>:<msat>` tokens of a place that keeps its own books, outside of ours."""

    payment_type = "play"
    credential_hint = "play money (play:NAME:MSAT)"

    def __init__(self) -> None:
        self.spent: set[str] = set()
        self.sent: dict[str, int] = {}
        self.made: set[str] = set()
        self.is_down = False
        self.is_silent = False  # executes, and its answer is lost
        self.gate = asyncio.Event()
        self.gate.set()
        self.receives = 0
        self.plans = 0

    def can_handle(self, credential: str) -> bool:
        return credential.startswith("play:")

    async def parse_credential(self, credential: str) -> PaymentCredentials:
        name, _, amount = credential.removeprefix("play:").partition(":")
        if not name or not amount.isdigit() or len(amount) > 15 or int(amount) == 0:
            raise InvalidCredential("play money is play:NAME:MSAT")
        identity = derived_id("play", credential)
        return PaymentCredentials(credential, "play", {"amount": int(amount)}, identity)

    async def receive_payment(
        self, payload: bytes, *, asked_before: bool
    ) -> PaymentResult | Rejected | Unresolved:
        self.receives += 1
        await self.gate.wait()
        token = payload.decode()
        if self.is_down:
            return Unresolved("no answer")
        if token in self.spent and not asked_before:
            return Rejected("token_spent", "the token was spent before")
        self.spent.add(token)
        if self.is_silent:
            raise RailUnavailable("the answer was lost")
        amount_msat = int(token.rpartition(":")[2])
        return PaymentResult(amount_msat, "play", "play", token, amount=amount_msat)

    async def plan_refund(self, request: RefundRequest) -> RefundPlan | Refusal:
        if request.destination == "nobody@example.com":
            raise InvalidCredential("nobody can be paid there")
        self.plans += 1
        token = f"play:{new_id('out')}:{request.amount}"
        out = _Out(token, request.amount, request.destination)
        return RefundPlan(msgspec.json.encode(out), "custody:play", request.amount)

    async def refund_payment(
        self, payload: bytes, *, asked_before: bool
    ) -> RefundResult | Rejected | Unresolved:
        await self.gate.wait()
        out = msgspec.json.decode(payload, type=_Out)
        if self.is_down:
            return Unresolved("no answer")
        if out.destination:
            self.sent.setdefault(out.token, out.amount_msat)
            reply = {"recipient": out.destination, "msats": str(out.amount_msat)}
        else:
            self.made.add(out.token)
            reply = {"token": out.token, "msats": str(out.amount_msat)}
        if self.is_silent:
            raise RailUnavailable("the answer was lost")
        return RefundResult(out.amount_msat, out.token, reply)

    def get_refund_metadata(self, credentials: PaymentCredentials) -> dict[str, str]:
        return {"refund_currency": "msat"}


class Desk:
    """The paywall's part, with requests it never heard of."""

    def __init__(self, methods: PaymentMethods) -> None:
        self._methods = methods

    def read(self, headers: Iterable[tuple[bytes, bytes]]) -> Presented | Answer:
        found = dialects.read(headers, self._methods.accepted)
        return NothingPresented() if isinstance(found, dialects.ChannelFound) else found

    async def change(self, request_id: str, presented: Presented) -> Answer:
        body = msgspec.json.encode({"request_id": request_id, "by": type(presented).__name__})
        return Answer(200, ((b"content-type", b"application/json"),), body)


class World:
    """One process; `restarted` is the next one on the same book."""

    def __init__(
        self,
        path: Path,
        methods: PaymentMethods,
        clock: ManualClock,
        exchange: Exchange = ONLY_BITCOIN,
    ) -> None:
        self.clock = clock
        records: list[RecordType[Any]] = [
            *RECORDS,
            PROCESS,
            TOTALS,
            OPERATION,
            DEPOSIT,
            MATURING,
            DEPOSIT_REQUEST,
            WITHDRAW_LINK,
            CONVERSION,
        ]
        self.store = SqliteStore(path, records, clock=clock)
        self.ledger = Ledger(self.store, clock)
        signer = Signer(bytes(32))
        self.processes = Processes(self.ledger, alone=True)
        self.operations = Operations(self.ledger, self.processes)
        self.payments = Payments(self.ledger, self.operations, methods, signer, exchange)
        self.deposits = DepositRequests(self.ledger, Deposits(self.ledger), methods, exchange)
        self.keys = Keys(self.ledger, keys_max=1_000)
        self.context = ApiContext(
            ledger=self.ledger,
            operations=self.operations,
            payments=self.payments,
            keys=self.keys,
            paywall=Desk(methods),
            idempotency=Idempotency(self.ledger, signer, self.processes),
            failures=FailureLimit(clock, failures_max=5, window_s=60),
            askings=FailureLimit(clock, failures_max=20, window_s=60),
            deposits=self.deposits,
            cards=PaymentGateway(
                {},
                self.deposits,
                self.ledger,
                self.operations,
                signer,
                self.payments.exchange,
            ),
            conversions=Conversions(self.ledger, self.payments.exchange),
            links=WithdrawLinks(self.ledger, self.operations, self.payments),
            public_url="http://farebox.test",
            body_bytes_max=10_000,
            header_bytes_max=5_000,
        )
        transport = httpx.ASGITransport(
            create_api(self.context),  # type: ignore[arg-type]
            raise_app_exceptions=False,
            client=(ADDRESS, 1234),
        )
        self.http = httpx.AsyncClient(transport=transport, base_url="http://farebox.test")

    async def close(self) -> None:
        await self.http.aclose()
        await self.store.close()

    async def post(
        self, path: str, body: object = None, *, bearer: str = "", name: str = ""
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        if name:
            headers["Idempotency-Key"] = name
        return await self.http.post(path, json={} if body is None else body, headers=headers)

    async def get(self, path: str, bearer: str = "") -> httpx.Response:
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        return await self.http.get(path, headers=headers)

    async def created(self, token: str = "play:first:5000", **terms: object) -> str:
        answer = await self.post("/create", {"initial_balance_token": token, **terms})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["api_key"])

    async def balance(self, bearer: str) -> int:
        answer = await self.get("/info", bearer)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["balance"])

    async def charge(self, bearer: str, request_id: str, charged_msat: int) -> None:
        """What a paid request leaves in the books."""
        key = await self.keys.authenticate(bearer)
        account = key.account  # type: ignore[union-attr]
        data = {"request_id": request_id, "charged_msat": charged_msat, "returned_msat": 0}
        steps = (
            Open("revenue", "BTC", Kind.REVENUE),
            Transfer(account, "revenue", charged_msat, "request"),
        )
        events = (Event("payment.completed", account, data),)
        await self.store.commit(Unit(f"{request_id}:settle", steps=steps, events=events))

    async def held_and_owed(self, custody: str = "custody:play") -> tuple[int, int]:
        """What lies at the place, and what is owed for it to customers and ourselves."""
        accounts = await self.store.accounts()
        held = sum(one.held for one in accounts if one.id == custody)
        owed = sum(one.credits_posted - one.debits_posted for one in accounts if one.id != custody)
        return held, owed


@asynccontextmanager
async def world_of(path: Path, methods: PaymentMethods, clock: ManualClock) -> AsyncIterator[World]:
    """A world that is closed behind you."""
    world = World(path, methods, clock)
    try:
        await world.processes.start()
        yield world
    finally:
        await world.close()


def methods_of(*methods: AbstractPaymentMethod) -> PaymentMethods:
    """A registry of these."""
    registry = PaymentMethods()
    for method in methods:
        registry.register(method)
    return registry


def problem_of(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document that an answer must be."""
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    problem = dict(answer.json())
    assert problem["status"] == status
    assert problem["money"]
    assert "Traceback" not in answer.text
    return problem
