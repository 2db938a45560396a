"""A model of an LND node, spoken to over its REST API, and whoever is at the far ends of it.

Written from LND's reference and held to a real node by the node contract
(`tests/contract/rail`): the real `farebox.rails.lightning.Lnd` speaks to it, in the simulation
through the faulty network, in the contract over a socket. What a payment does on its way (hold,
fail, cost a fee) is the `Moods`' choice.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from farebox.clock import NS_PER_S, Clock
from farebox.errors import InvalidCredential
from farebox.testing.asgi import Receive, Scope, Send, drop, read_body, respond, start
from farebox.testing.mint.lightning import encode_invoice
from farebox.wire.bolt11 import decode_invoice

Document = dict[str, Any]

NODE: Final = "node.sim"
#: Where Lightning addresses of those whom the node can pay are looked up.
PAYEES: Final = "payees.sim"
_NOT_FOUND, _EXISTS, _UNKNOWN = 5, 6, 2
_BYTES_MAX = 1 << 16
#: What the model's channels hold at first, either way.
CAPACITY_MSAT = 10**12


@dataclass
class Moods:
    """How the network beyond the node behaves; the defaults never fail and take no time."""

    chance: Random = field(default_factory=lambda: Random(0))
    #: How often a payment fails, hangs (for up to `hangs_s`), or costs all that it may.
    fails: float = 0
    hangs: float = 0
    hangs_s: float = 0
    costs: float = 0
    #: How often what comes in is held for a while before it is settled, or fails.
    held_in: float = 0
    #: How often a call that waits for a payment's end is ended before that.
    hangs_up: float = 0
    is_down: bool = False

    def happens(self, probability: float) -> bool:
        """Whether it does this time."""
        return probability > 0 and self.chance.random() < probability


@dataclass
class Incoming:
    """An invoice of the node."""

    text: str
    payment_hash: str
    amount_msat: int | None
    expires_at_s: int
    state: str = "OPEN"
    received_msat: int = 0
    settle_index: int = 0
    settled_at_s: int = 0

    @property
    def is_held(self) -> bool:
        """Whether its payment is here and not yet ours."""
        return self.state == "ACCEPTED"


@dataclass
class Outgoing:
    """A payment of the node: INITIATED or IN_FLIGHT, then SUCCEEDED or FAILED."""

    payment_hash: str
    amount_msat: int
    status: str = "IN_FLIGHT"
    fee_msat: int = 0
    preimage: str = ""
    reason: str = "FAILURE_REASON_NONE"
    #: How often it was carried to its end as paid. More than once is what must never be.
    times_paid: int = 0

    def document(self) -> Document:
        """As SendPaymentV2 and TrackPaymentV2 tell it."""
        return {
            "payment_hash": self.payment_hash,
            "status": self.status,
            "value_msat": str(self.amount_msat),
            "fee_msat": str(self.fee_msat),
            "payment_preimage": self.preimage,
            "failure_reason": self.reason,
        }


@dataclass
class Payee:
    """Somebody's invoice at the other end. `on_paid` is told when it is."""

    preimage: bytes
    on_paid: Callable[[int], None]
    is_dead: bool = False


class ModelLnd:
    """The node, its channels, and the invoices of those it can pay."""

    def __init__(
        self,
        clock: Clock,
        moods: Moods | None = None,
        spawn: Callable[[Any], Any] = asyncio.ensure_future,
        *,
        network: str = "bcrt",
        macaroon: str = "00" * 16,
    ) -> None:
        """`spawn` runs what the network does by itself, whoever calls."""
        self.moods = moods or Moods()
        self.macaroon = macaroon
        self.network = network
        self.invoices: dict[str, Incoming] = {}
        self.payments: dict[str, Outgoing] = {}
        self.payees: dict[str, Payee] = {}
        self.received_msat = 0
        self.sent_msat = 0
        self._clock = clock
        self._spawn = spawn
        self._settled = 0
        self._changed: list[asyncio.Future[None]] = []
        self._ends: dict[str, list[asyncio.Future[None]]] = {}
        self._background: set[Any] = set()

    # ── what others do ───────────────────────────────────────────────────────────────────────────

    def pay_in(self, text: str, amount_msat: int | None = None) -> bool:
        """Somebody pays an invoice of the node: settled at once, or False."""
        invoice = self._payable(text)
        if invoice is None:
            return False
        self._settle(invoice, invoice.amount_msat or amount_msat or 0)
        return True

    async def pay_in_slowly(self, text: str, amount_msat: int | None = None) -> bool:
        """The same, held on its way for as long as the network pleases."""
        moods = self.moods
        invoice = self._payable(text)
        if invoice is None or moods.is_down or moods.happens(moods.fails / 2):
            return False
        if not moods.happens(moods.held_in):
            return self.pay_in(text, amount_msat)
        invoice.state = "ACCEPTED"
        self._tell()
        await asyncio.sleep(moods.chance.uniform(0, 40))
        self._settle(invoice, invoice.amount_msat or amount_msat or 0)
        return True

    def payee_invoice(
        self, amount_msat: int, on_paid: Callable[[int], None] = lambda _: None
    ) -> str:
        """An invoice of somebody whom the node can pay."""
        preimage = os.urandom(32)
        text = self._encoded(amount_msat, hashlib.sha256(preimage).digest(), 3_600)
        self.payees[decode_invoice(text).payment_hash.hex()] = Payee(preimage, on_paid)
        return text

    def dead_invoice(self, amount_msat: int) -> str:
        """One that its payee has cancelled."""
        text = self.payee_invoice(amount_msat)
        self.payees[decode_invoice(text).payment_hash.hex()].is_dead = True
        return text

    async def address_book(self, scope: Scope, _: Receive, send: Send) -> None:
        """LNURL-pay for anybody at `PAYEES`."""
        asked = parse_qs(scope["query_string"].decode())
        if "amount" in asked:
            text = self.payee_invoice(int(asked["amount"][0]))
            return await _tell(send, {"pr": text, "routes": []})
        offer = {"tag": "payRequest", "callback": f"https://{PAYEES}/pay"}
        return await _tell(send, offer | {"minSendable": 1_000, "maxSendable": 10**9})

    def end_all(self) -> None:
        """Whatever hangs hangs no more, from now on."""
        self.moods.hangs = self.moods.fails = self.moods.held_in = self.moods.hangs_up = 0
        self.moods.is_down = False
        for waiters in list(self._ends.values()):
            _wake(waiters)

    def _payable(self, text: str) -> Incoming | None:
        invoice = self.invoices.get(decode_invoice(text).payment_hash.hex())
        if invoice is None or invoice.state != "OPEN" or self._now_s() >= invoice.expires_at_s:
            return None
        return invoice

    def _settle(self, invoice: Incoming, amount_msat: int) -> None:
        self._settled += 1
        invoice.state = "SETTLED"
        invoice.received_msat = amount_msat
        invoice.settle_index = self._settled
        invoice.settled_at_s = self._now_s()
        self.received_msat += amount_msat
        self._tell()

    def _tell(self) -> None:
        _wake(self._changed)

    # ── the calls ────────────────────────────────────────────────────────────────────────────────

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if self.moods.is_down:
            return await drop(send)
        headers = {bytes(name).lower(): bytes(value) for name, value in scope["headers"]}
        if headers.get(b"grpc-metadata-macaroon", b"").decode() != self.macaroon:
            said = "verification failed: signature mismatch after caveat verification"
            return await _fail(send, 500, _UNKNOWN, said)
        body = await read_body(receive, _BYTES_MAX)
        asked = msgspec.json.decode(body) if body else {}
        query = {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}
        match scope["path"].strip("/").split("/"):
            case ["v1", "getinfo"]:
                return await _tell(send, self._info())
            case ["v1", "balance", "channels"]:
                return await _tell(send, self._balance())
            case ["v1", "invoices"]:
                return await _tell(send, self._add_invoice(asked))
            case ["v1", "invoices", "subscribe"]:
                return await self._subscribe(int(query.get("settle_index", "0")), receive, send)
            case ["v1", "invoice", payment_hash]:
                return await self._lookup(payment_hash, send)
            case ["v1", "payreq", _]:
                return await _tell(send, {"destination": "02" + "11" * 32})
            case ["v2", "router", "route", "estimatefee"]:
                return await _tell(send, {"routing_fee_msat": "0"})
            case ["v2", "router", "send"]:
                return await self._pay(asked, send)
            case ["v2", "router", "track", payment_hash]:
                return await self._track(payment_hash, receive, send)
            case _:
                return await _fail(send, 404, _NOT_FOUND, "Not Found")

    def _info(self) -> Document:
        name = {"bcrt": "regtest", "sb": "simnet"}[self.network]
        return {
            "identity_pubkey": "02" + "22" * 32,
            "version": "0.20.1-beta model",
            "synced_to_chain": True,
            "chains": [{"chain": "bitcoin", "network": name}],
        }

    def _balance(self) -> Document:
        local = CAPACITY_MSAT + self.received_msat - self.sent_msat
        return {
            "local_balance": {"msat": str(local)},
            "remote_balance": {"msat": str(2 * CAPACITY_MSAT - local)},
        }

    def _add_invoice(self, asked: Document) -> Document:
        amount_msat = int(asked.get("value_msat", "0")) or None
        expiry_s = int(asked.get("expiry", "0")) or 86_400
        payment_hash = hashlib.sha256(os.urandom(32)).digest()
        text = self._encoded(amount_msat, payment_hash, expiry_s)
        self.invoices[payment_hash.hex()] = Incoming(
            text, payment_hash.hex(), amount_msat, self._now_s() + expiry_s
        )
        self._tell()
        return {"r_hash": base64.b64encode(payment_hash).decode(), "payment_request": text}

    async def _lookup(self, payment_hash: str, send: Send) -> None:
        invoice = self.invoices.get(payment_hash)
        if invoice is None:
            return await _fail(send, 404, _NOT_FOUND, "unable to locate invoice")
        return await _tell(send, _invoice(invoice))

    async def _subscribe(self, index: int, receive: Receive, send: Send) -> None:
        """What was settled behind `index` (0: nothing), then what is added or settled."""
        await start(send, 200, "application/json")
        told = {key for key, one in self.invoices.items() if one.state != "SETTLED"}
        at = index or self._settled
        left = asyncio.ensure_future(_left(receive))
        try:
            while not left.done() and not self.moods.is_down:
                for key, one in list(self.invoices.items()):
                    if key not in told and one.state == "OPEN":
                        told.add(key)
                        await _line(send, _invoice(one))
                behind = [one for one in self.invoices.values() if one.settle_index > at]
                for one in sorted(behind, key=lambda one: one.settle_index):
                    at = one.settle_index
                    await _line(send, _invoice(one))
                changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._changed.append(changed)
                await asyncio.wait([left, changed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()

    async def _pay(self, asked: Document, send: Send) -> None:
        """SendPaymentV2: one line at the end. A hash that is paid or under way is refused."""
        try:
            invoice = decode_invoice(asked["payment_request"])
        except InvalidCredential as error:
            return await _fail(send, 400, _UNKNOWN, str(error))
        payment_hash = invoice.payment_hash.hex()
        before = self.payments.get(payment_hash)
        if before is not None and before.status != "FAILED":
            is_over = before.status == "SUCCEEDED"
            said = "invoice is already paid" if is_over else "payment is in transition"
            return await _fail(send, 409, _EXISTS, said)
        if self._now_s() >= invoice.expires_at_s:
            return await _fail(send, 400, _UNKNOWN, "invoice expired")
        payment = before or Outgoing(payment_hash, invoice.amount_msat or 0)
        payment.status, payment.reason = "IN_FLIGHT", "FAILURE_REASON_NONE"
        self.payments[payment_hash] = payment
        fee_max_msat = int(asked.get("fee_limit_msat", "0"))
        # It goes on whatever becomes of the caller.
        carrying = self._spawn(self._carry(payment, fee_max_msat))
        self._background.add(carrying)
        carrying.add_done_callback(self._background.discard)
        await start(send, 200, "application/json")
        if self.moods.happens(self.moods.hangs_up):
            return await send({"type": "http.response.body", "body": b""})
        while payment.status == "IN_FLIGHT":
            await self._end_of(payment)
        return await _line(send, payment.document(), more=False)

    async def _carry(self, payment: Outgoing, fee_max_msat: int) -> None:
        moods, payee = self.moods, self.payees.get(payment.payment_hash)
        if moods.happens(moods.hangs):
            hanging: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._ends.setdefault(f"hangs {payment.payment_hash}", []).append(hanging)
            await asyncio.wait([hanging], timeout=moods.chance.uniform(0, moods.hangs_s))
        local = CAPACITY_MSAT + self.received_msat - self.sent_msat
        if payee is None:
            self._fail(payment, "FAILURE_REASON_NO_ROUTE")
        elif payee.is_dead:
            self._fail(payment, "FAILURE_REASON_INCORRECT_PAYMENT_DETAILS")
        elif payment.amount_msat > local or moods.happens(moods.fails):
            self._fail(payment, "FAILURE_REASON_INSUFFICIENT_BALANCE")
        else:
            costs = fee_max_msat if moods.happens(moods.costs) else min(fee_max_msat, 1)
            payment.fee_msat = costs if moods.costs else 0
            payment.preimage = payee.preimage.hex()
            payment.status = "SUCCEEDED"
            payment.times_paid += 1
            self.sent_msat += payment.amount_msat + payment.fee_msat
            payee.on_paid(payment.amount_msat)
        _wake(self._ends.get(payment.payment_hash, []))

    def _fail(self, payment: Outgoing, reason: str) -> None:
        payment.status, payment.reason = "FAILED", reason

    async def _end_of(self, payment: Outgoing) -> None:
        if payment.status == "IN_FLIGHT":
            end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._ends.setdefault(payment.payment_hash, []).append(end)
            await end

    async def _track(self, asked: str, receive: Receive, send: Send) -> None:
        """TrackPaymentV2: how it stands, then its end."""
        payment_hash = base64.urlsafe_b64decode(asked).hex()
        payment = self.payments.get(payment_hash)
        if payment is None:
            return await _fail(send, 404, _NOT_FOUND, "payment isn't initiated")
        await start(send, 200, "application/json")
        if payment.status != "IN_FLIGHT":
            return await _line(send, payment.document(), more=False)
        await _line(send, payment.document())
        left = asyncio.ensure_future(_left(receive))
        end = asyncio.ensure_future(self._end_of(payment))
        try:
            await asyncio.wait([left, end], return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
            end.cancel()
        return await _line(send, payment.document(), more=False)

    def _encoded(self, amount_msat: int | None, payment_hash: bytes, expiry_s: int) -> str:
        return encode_invoice(
            amount_msat, payment_hash, self._now_s(), network=self.network, expiry_s=expiry_s
        )

    def _now_s(self) -> int:
        return self._clock.now_ns() // NS_PER_S


def _invoice(invoice: Incoming) -> Document:
    return {
        "r_hash": base64.b64encode(bytes.fromhex(invoice.payment_hash)).decode(),
        "payment_request": invoice.text,
        "state": invoice.state,
        "amt_paid_msat": str(invoice.received_msat),
        "settle_date": str(invoice.settled_at_s),
        "settle_index": str(invoice.settle_index),
    }


def _wake(waiters: list[asyncio.Future[None]]) -> None:
    woken, waiters[:] = list(waiters), []
    for waiter in woken:
        if not waiter.done():
            waiter.set_result(None)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _tell(send: Send, document: Document) -> None:
    await respond(send, 200, msgspec.json.encode(document))


async def _fail(send: Send, status: int, code: int, said: str) -> None:
    """An error as the REST proxy tells it: as it is, and below `error` where it streams."""
    error = {"code": code, "message": said, "details": []}
    await respond(send, status, msgspec.json.encode(error | {"error": error}))


async def _line(send: Send, document: Document, *, more: bool = True) -> None:
    line = msgspec.json.encode({"result": document}) + b"\n"
    await send({"type": "http.response.body", "body": line, "more_body": more})
