"""LNbits over its API (as of 1.0): a wallet on somebody's node.

Needs the wallet's admin key. LNbits counts in whole satoshi and sets its own reserve for fees: what
a payment may cost is asked before it is paid, and nothing holds it to that. Its websocket is open
to anybody who knows the wallet's invoice key, so what comes over it is a hint to ask, never news.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import TypeVar

import aiohttp
import msgspec

from farebox.errors import RailRejected, RailUnavailable
from farebox.rails.lightning.node import (
    Issued,
    NodeInfo,
    Payment,
    PaymentState,
    PayOrder,
    Settled,
)
from farebox.rails.lightning.transport import Answer, Line, decode, refused, said
from farebox.wire.bolt11 import decode_invoice

_T = TypeVar("_T")
_MSAT = 1_000
_NOT_FOUND = 404
#: What LNbits says to a key that opens nothing.
_NO_WALLET = "Wallet not found."
_PAYMENTS = "/api/v1/payments"


class _Wallet(msgspec.Struct, frozen=True):
    name: str
    balance: int = 0


class _Added(msgspec.Struct, frozen=True):
    payment_hash: str
    bolt11: str = ""


class _Details(msgspec.Struct, frozen=True):
    payment_hash: str
    amount: int  # msat, negative for what went out
    fee: int = 0
    status: str = ""
    bolt11: str = ""
    updated_at: str = ""
    extra: dict[str, object] = {}


class _Known(msgspec.Struct, frozen=True):
    paid: bool
    status: str = ""
    preimage: str | None = None
    details: _Details | None = None


class _Reserve(msgspec.Struct, frozen=True):
    fee_reserve: int


class _Error(msgspec.Struct, frozen=True):
    detail: object = ""


class _Hinted(msgspec.Struct, frozen=True):
    payment_hash: str = ""


class _Hint(msgspec.Struct, frozen=True):
    payment: _Hinted | None = None


class Lnbits:
    """A wallet at an LNbits server. `invoice_key` is where its websocket tells of payments."""

    kind = "lnbits"
    unit_msat = _MSAT
    caps_fees = False

    def __init__(self, line: Line, *, invoice_key: str = "") -> None:
        self._line = line
        self._invoice_key = invoice_key
        self._network = ""

    async def info(self) -> NodeInfo:
        """The wallet's name; its network is told by an invoice, since nothing else tells it."""
        wallet = _read(await self._line.call("GET", "/api/v1/wallet"), _Wallet)
        if not self._network:
            probe = await self.make_invoice(_MSAT, "Farebox asks which network this is", 60)
            self._network = decode_invoice(probe.text).network
        return NodeInfo(
            id=wallet.name,
            version="",
            network=self._network,
            is_synced=True,
            send_msat=wallet.balance,
        )

    async def make_invoice(self, amount_msat: int | None, memo: str, expiry_s: int) -> Issued:
        """An invoice of whole satoshi; LNbits makes none without an amount."""
        if not amount_msat or amount_msat % _MSAT:
            raise RailRejected("LNbits asks for a whole number of sat")
        asked = {"out": False, "amount": amount_msat // _MSAT, "memo": memo, "expiry": expiry_s}
        added = _read(await self._line.call("POST", _PAYMENTS, asked), _Added)
        return Issued(added.bolt11, added.payment_hash)

    async def settled(self, payment_hash: str) -> Settled | None:
        """The payment of this hash, if it came in."""
        known = await self._known(payment_hash)
        if known is None or not known.paid or known.details is None or known.details.amount <= 0:
            return None
        return Settled(payment_hash, known.details.amount, _unix(known.details.updated_at))

    async def settled_from(self, cursor: str) -> AsyncGenerator[Settled, None]:
        """What the websocket hints at, each asked for before it is believed; without a cursor."""
        if not self._invoice_key:
            raise RailUnavailable("without the wallet's invoice key, LNbits is only polled")
        async with self._line.websocket(f"/api/v1/ws/{self._invoice_key}") as socket:
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                try:
                    hint = decode(str(message.data).encode(), _Hint)
                except RailUnavailable:
                    continue  # a stranger's words
                if hint.payment is not None and _is_hash(hint.payment.payment_hash):
                    paid = await self.settled(hint.payment.payment_hash)
                    if paid is not None:
                        yield paid
        raise RailUnavailable("the node has ended the subscription")

    async def fee_estimate_msat(self, invoice: str, amount_msat: int) -> int | None:
        """What LNbits sets aside for fees, which is the most it may take."""
        answer = await self._line.call(
            "GET", f"{_PAYMENTS}/fee-reserve", query={"invoice": invoice}
        )
        return abs(_read(answer, _Reserve).fee_reserve)

    async def pay(self, order: PayOrder) -> Payment:
        """Pay, and look at what became of it: the answer may come before the end."""
        asked = {"out": True, "bolt11": order.invoice}
        answer = await self._line.call("POST", _PAYMENTS, asked, wait_s=order.timeout_s)
        if answer.status in (401, 403, _NOT_FOUND):
            raise refused(401, "")  # whatever is not there, the payment was not made
        known = await self.payment(order.payment_hash)
        if known.state is PaymentState.UNKNOWN:
            if answer.status in (200, 201):
                raise RailUnavailable("the node has taken a payment that it does not know")
            detail = answer.read(_Error).detail
            if not detail:  # what stands before the node has said it: the call may yet come
                raise RailUnavailable(f"the node answered with status {answer.status}")
            return Payment(PaymentState.FAILED, reason=said(detail))
        return known

    async def payment(self, payment_hash: str) -> Payment:
        """The payment of this hash, if it went out."""
        known = await self._known(payment_hash)
        if known is None or (known.details is not None and known.details.amount > 0):
            return Payment(PaymentState.UNKNOWN)
        if known.paid and known.details is not None:
            fee_msat = abs(known.details.fee)
            return Payment(PaymentState.PAID, fee_msat, known.preimage or "")
        if known.status == "failed":
            return Payment(PaymentState.FAILED, reason="the node could not pay it")
        return Payment(PaymentState.IN_FLIGHT)

    async def _known(self, payment_hash: str) -> _Known | None:
        answer = await self._line.call("GET", f"{_PAYMENTS}/{payment_hash}")
        return None if answer.status == _NOT_FOUND else _read(answer, _Known)


def _read(answer: Answer, shape: type[_T]) -> _T:
    if answer.status in (200, 201):
        return answer.read(shape)
    detail = answer.read(_Error).detail
    if answer.status == _NOT_FOUND and detail == _NO_WALLET:
        raise refused(401, detail)
    raise refused(answer.status, detail)


def _is_hash(text: str) -> bool:
    return len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)


def _unix(text: str) -> int:
    """LNbits writes UTC without always saying so."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return 0
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
