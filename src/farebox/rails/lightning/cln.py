"""Core Lightning over its REST plugin (`clnrest`, as of 24.11): `POST /v1/<method>` with a rune.

Needs a rune that allows getinfo, listpeerchannels, invoice, listinvoices, waitanyinvoice, getroute,
decode, pay, listpays. https://docs.corelightning.org/reference/
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import TypeVar

import msgspec

from farebox.errors import RailError, RailRejected, RailUnavailable
from farebox.rails.lightning.node import (
    Issued,
    NodeInfo,
    Payment,
    PaymentState,
    PayOrder,
    Settled,
)
from farebox.rails.lightning.transport import Answer, Json, Line, decode, refused, said

_NETWORKS = {
    "bitcoin": "bc",
    "testnet": "tb",
    "testnet4": "tb",
    "signet": "tbs",
    "regtest": "bcrt",
}
_T = TypeVar("_T")
_PAY_SLACK_S = 10
#: How long one `waitanyinvoice` waits; then it is asked anew.
_WAIT_S = 60
#: Its code for "waited in vain".
_WAITED = 904
_RISK_FACTOR = 10


class _Info(msgspec.Struct, frozen=True):
    id: str
    version: str
    network: str
    warning_bitcoind_sync: str = ""
    warning_lightningd_sync: str = ""


class _Channel(msgspec.Struct, frozen=True):
    state: str = ""
    spendable_msat: int = 0
    receivable_msat: int = 0


class _Channels(msgspec.Struct, frozen=True):
    channels: tuple[_Channel, ...] = ()


class _Added(msgspec.Struct, frozen=True):
    bolt11: str
    payment_hash: str


class _Invoice(msgspec.Struct, frozen=True):
    payment_hash: str
    status: str
    amount_received_msat: int = 0
    paid_at: int = 0
    pay_index: int = 0


class _Invoices(msgspec.Struct, frozen=True):
    invoices: tuple[_Invoice, ...] = ()


class _Decoded(msgspec.Struct, frozen=True):
    payee: str


class _Hop(msgspec.Struct, frozen=True):
    amount_msat: int


class _Route(msgspec.Struct, frozen=True):
    route: tuple[_Hop, ...] = ()


class _Paid(msgspec.Struct, frozen=True):
    status: str
    amount_msat: int = 0
    amount_sent_msat: int = 0
    payment_preimage: str = ""


class _Pay(msgspec.Struct, frozen=True):
    status: str
    amount_msat: int | None = None
    amount_sent_msat: int = 0
    preimage: str = ""


class _Pays(msgspec.Struct, frozen=True):
    pays: tuple[_Pay, ...] = ()


class _Error(msgspec.Struct, frozen=True):
    code: int = 0
    message: str = ""


class Cln:
    """A Core Lightning node."""

    kind = "cln"
    unit_msat = 1
    caps_fees = True

    def __init__(self, line: Line) -> None:
        self._line = line

    async def info(self) -> NodeInfo:
        """Its key, version, chain and what its channels could carry."""
        info = await self._ask("getinfo", {}, _Info)
        listed = await self._ask("listpeerchannels", {}, _Channels)
        usable = [one for one in listed.channels if one.state == "CHANNELD_NORMAL"]
        return NodeInfo(
            id=info.id,
            version=info.version,
            network=_NETWORKS.get(info.network, info.network),
            is_synced=not (info.warning_bitcoind_sync or info.warning_lightningd_sync),
            send_msat=sum(one.spendable_msat for one in usable),
            receive_msat=sum(one.receivable_msat for one in usable),
        )

    async def make_invoice(self, amount_msat: int | None, memo: str, expiry_s: int) -> Issued:
        """`invoice`, under a label that nobody else uses."""
        asked = {
            "amount_msat": amount_msat or "any",
            "label": f"farebox-{secrets.token_hex(12)}",
            "description": memo,
            "expiry": expiry_s,
        }
        added = await self._ask("invoice", asked, _Added)
        return Issued(added.bolt11, added.payment_hash)

    async def settled(self, payment_hash: str) -> Settled | None:
        """`listinvoices` of one hash."""
        found = await self._ask("listinvoices", {"payment_hash": payment_hash}, _Invoices)
        paid = [one for one in found.invoices if one.status == "paid"]
        return _settled(paid[0]) if paid else None

    async def settled_from(self, cursor: str) -> AsyncGenerator[Settled, None]:
        """`waitanyinvoice` again and again, from a pay index on; "" begins behind the last one."""
        index = int(cursor) if cursor else await self._last_index()
        while True:
            asked = {"lastpay_index": index, "timeout": _WAIT_S}
            answer = await self._call("waitanyinvoice", asked, wait_s=_WAIT_S + _PAY_SLACK_S)
            if not _is_well(answer) and _error(answer).code == _WAITED:
                continue
            paid = _read(answer, _Invoice)
            index = paid.pay_index
            if paid.status == "paid":
                yield _settled(paid)

    async def _last_index(self) -> int:
        listed = await self._ask("listinvoices", {}, _Invoices)
        return max((one.pay_index for one in listed.invoices), default=0)

    async def fee_estimate_msat(self, invoice: str, amount_msat: int) -> int | None:
        """What the first hop of a route by its graph would take in all."""
        with suppress(RailError):
            decoded = await self._ask("decode", {"string": invoice}, _Decoded)
            asked = {"id": decoded.payee, "amount_msat": amount_msat, "riskfactor": _RISK_FACTOR}
            route = await self._ask("getroute", asked, _Route)
            return route.route[0].amount_msat - amount_msat if route.route else None
        return None

    async def pay(self, order: PayOrder) -> Payment:
        """`pay`, to its end. An error it answers with is looked into."""
        asked = {
            "bolt11": order.invoice,
            "maxfee": order.fee_max_msat,
            "retry_for": order.timeout_s,
        }
        answer = await self._call("pay", asked, wait_s=order.timeout_s + _PAY_SLACK_S)
        if _is_well(answer):
            paid = answer.read(_Paid)
            if paid.status == "complete":
                fee_msat = paid.amount_sent_msat - paid.amount_msat
                return Payment(PaymentState.PAID, fee_msat, paid.payment_preimage)
            return Payment(PaymentState.IN_FLIGHT)
        if answer.status in (401, 403):
            raise refused(answer.status, "")
        known = await self.payment(order.payment_hash)
        if known.state is PaymentState.UNKNOWN:
            error = _error(answer)
            if not error.code:  # what stands before the node has said it: the call may yet come
                raise RailUnavailable(f"the node answered with status {answer.status}")
            return Payment(PaymentState.FAILED, reason=said(error.message))
        return known

    async def payment(self, payment_hash: str) -> Payment:
        """`listpays` of one hash: paid if any of them is complete, failed if all of them have."""
        found = await self._ask("listpays", {"payment_hash": payment_hash}, _Pays)
        states = {one.status for one in found.pays}
        if "complete" in states:
            done = next(one for one in found.pays if one.status == "complete")
            fee_msat = done.amount_sent_msat - (done.amount_msat or done.amount_sent_msat)
            return Payment(PaymentState.PAID, fee_msat, done.preimage)
        if not states:
            return Payment(PaymentState.UNKNOWN)
        if states == {"failed"}:
            return Payment(PaymentState.FAILED, reason="the node found no way to pay it")
        return Payment(PaymentState.IN_FLIGHT)

    async def _call(
        self, name: str, asked: Mapping[str, object], wait_s: float | None = None
    ) -> Answer:
        return await self._line.call("POST", f"/v1/{name}", asked, wait_s=wait_s)

    async def _ask(self, name: str, asked: Mapping[str, object], shape: type[_T]) -> _T:
        return _read(await self._call(name, asked), shape)


def _is_well(answer: Answer) -> bool:
    return answer.status in (200, 201)


def _read(answer: Answer, shape: type[_T]) -> _T:
    if _is_well(answer):
        return answer.read(shape)
    if answer.status in (401, 403):
        raise refused(answer.status, "")
    error = _error(answer)
    # A JSON-RPC error document is the node's own no, whatever HTTP status carries it.
    if error.code:
        raise RailRejected(f"the node refused: {said(error.message)}", code=error.code)
    raise refused(answer.status, error.message)


def _error(answer: Answer) -> _Error:
    found = decode(answer.body, Json)
    inner = found.get("error", found)
    try:
        return msgspec.convert(inner, _Error)
    except msgspec.ValidationError:
        raise RailUnavailable(f"the node answered with status {answer.status}") from None


def _settled(invoice: _Invoice) -> Settled:
    return Settled(
        payment_hash=invoice.payment_hash,
        received_msat=invoice.amount_received_msat,
        at_s=invoice.paid_at,
        cursor=str(invoice.pay_index) if invoice.pay_index else "",
    )
