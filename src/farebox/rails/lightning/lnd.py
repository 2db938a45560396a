"""LND over REST (its `lnrpc`, `invoicesrpc` and `routerrpc`, as of 0.18 to 0.20).

Needs a macaroon with invoices:read, invoices:write, offchain:read, offchain:write, info:read:
`lncli bakemacaroon` prints one. https://lightning.engineering/api-docs/api/lnd/
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import TypeVar

import msgspec

from farebox.errors import RailError, RailUnavailable
from farebox.rails.lightning.node import (
    Issued,
    NodeInfo,
    Payment,
    PaymentState,
    PayOrder,
    Settled,
)
from farebox.rails.lightning.transport import Answer, Line, decode, refused, said

_NETWORKS = {
    "mainnet": "bc",
    "testnet": "tb",
    "testnet4": "tb",
    "signet": "tbs",
    "simnet": "sb",
    "regtest": "bcrt",
}
#: After its own time-out LND still has to fail what is on its way.
_PAY_SLACK_S = 10
_NOT_FOUND = 5  # gRPC's code
_IN_VAIN = ("unable to locate invoice", "there are no existing invoices")
_SHUT_OUT = ("permission denied", "verification failed", "macaroon", "unmarshal")


_T = TypeVar("_T")


class _Chain(msgspec.Struct, frozen=True):
    network: str


class _Info(msgspec.Struct, frozen=True):
    identity_pubkey: str
    version: str
    synced_to_chain: bool = False
    chains: tuple[_Chain, ...] = ()


class _Amount(msgspec.Struct, frozen=True):
    msat: str = "0"


class _Balance(msgspec.Struct, frozen=True):
    local_balance: _Amount = _Amount()
    remote_balance: _Amount = _Amount()


class _Added(msgspec.Struct, frozen=True):
    r_hash: str
    payment_request: str


class _Invoice(msgspec.Struct, frozen=True):
    r_hash: str
    state: str = "OPEN"
    amt_paid_msat: str = "0"
    settle_date: str = "0"
    settle_index: str = "0"


class _Payment(msgspec.Struct, frozen=True):
    status: str
    fee_msat: str = "0"
    payment_preimage: str = ""
    failure_reason: str = ""


class _Error(msgspec.Struct, frozen=True):
    code: int = 0
    message: str = ""


class _Streamed(msgspec.Struct, frozen=True):
    result: msgspec.Raw = msgspec.Raw()
    error: _Error | None = None
    code: int = 0
    message: str = ""


class _Request(msgspec.Struct, frozen=True):
    destination: str


class _Estimate(msgspec.Struct, frozen=True):
    routing_fee_msat: str = "0"


class Lnd:
    """An LND node."""

    kind = "lnd"
    unit_msat = 1
    caps_fees = True

    def __init__(self, line: Line) -> None:
        self._line = line

    async def info(self) -> NodeInfo:
        """Its key, version, chain and what its channels hold."""
        info = _read(await self._line.call("GET", "/v1/getinfo"), _Info)
        balance = _read(await self._line.call("GET", "/v1/balance/channels"), _Balance)
        network = info.chains[0].network if info.chains else ""
        return NodeInfo(
            id=info.identity_pubkey,
            version=info.version.partition(" ")[0],
            network=_NETWORKS.get(network, network),
            is_synced=info.synced_to_chain,
            send_msat=int(balance.local_balance.msat),
            receive_msat=int(balance.remote_balance.msat),
        )

    async def make_invoice(self, amount_msat: int | None, memo: str, expiry_s: int) -> Issued:
        """AddInvoice."""
        body = {"value_msat": str(amount_msat or 0), "memo": memo, "expiry": str(expiry_s)}
        added = _read(await self._line.call("POST", "/v1/invoices", body), _Added)
        return Issued(added.payment_request, _hex(added.r_hash))

    async def settled(self, payment_hash: str) -> Settled | None:
        """LookupInvoice."""
        answer = await self._line.call("GET", f"/v1/invoice/{payment_hash}")
        error = _error(answer)
        if error is not None and (error.code == _NOT_FOUND or _says(error, _IN_VAIN)):
            return None
        invoice = _read(answer, _Invoice)
        return _settled(invoice) if invoice.state == "SETTLED" else None

    async def settled_from(self, cursor: str) -> AsyncGenerator[Settled, None]:
        """SubscribeInvoices from a settle index on."""
        query = {"settle_index": cursor or "0"}
        lines = self._line.lines("GET", "/v1/invoices/subscribe", query=query)
        async with aclosing(lines):
            async for line in lines:
                invoice = decode(_result(line), _Invoice)
                if invoice.state == "SETTLED":
                    yield _settled(invoice)
        raise RailUnavailable("the node has ended the subscription")

    async def fee_estimate_msat(self, invoice: str, amount_msat: int) -> int | None:
        """EstimateRouteFee by its graph: nothing is sent to anybody."""
        with suppress(RailError, ValueError):
            asked = _read(await self._line.call("GET", f"/v1/payreq/{invoice}"), _Request)
            to = base64.b64encode(bytes.fromhex(asked.destination)).decode()
            body = {"dest": to, "amt_sat": str(-(-amount_msat // 1_000))}
            answer = await self._line.call("POST", "/v2/router/route/estimatefee", body)
            return int(_read(answer, _Estimate).routing_fee_msat)
        return None

    async def pay(self, order: PayOrder) -> Payment:
        """SendPaymentV2, to its last update. An error it answers with is looked into."""
        body = {
            "payment_request": order.invoice,
            "fee_limit_msat": str(order.fee_max_msat),
            "timeout_seconds": order.timeout_s,
            "no_inflight_updates": True,
        }
        lines = self._line.lines(
            "POST", "/v2/router/send", body, wait_s=order.timeout_s + _PAY_SLACK_S
        )
        error = _Error()
        async with aclosing(lines):
            async for line in lines:
                streamed = decode(line, _Streamed)
                if streamed.result:
                    return _payment(decode(bytes(streamed.result), _Payment))
                error = streamed.error or _Error(streamed.code, streamed.message)
                if _says(error, _SHUT_OUT):
                    raise _let_in()
        # The call has ended, and with an error. Whether anything was begun only the node can tell.
        known = await self.payment(order.payment_hash)
        if known.state is PaymentState.UNKNOWN:
            if not error.code:  # what stands before the node has said it: the call may yet come
                raise _failed(error)
            return Payment(PaymentState.FAILED, reason=said(error.message))
        return known

    async def payment(self, payment_hash: str) -> Payment:
        """TrackPaymentV2, its first update."""
        path = base64.urlsafe_b64encode(bytes.fromhex(payment_hash)).decode()
        lines = self._line.lines(
            "GET", f"/v2/router/track/{path}", query={"no_inflight_updates": "false"}, wait_s=15
        )
        async with aclosing(lines):
            async for line in lines:
                streamed = decode(line, _Streamed)
                if streamed.result:
                    return _payment(decode(bytes(streamed.result), _Payment))
                error = streamed.error or _Error(streamed.code, streamed.message)
                if error.code == _NOT_FOUND:
                    return Payment(PaymentState.UNKNOWN)
                raise _failed(error)
        raise RailUnavailable("the node said nothing of the payment")


def _read(answer: Answer, shape: type[_T]) -> _T:
    error = _error(answer)
    if error is None:
        return answer.read(shape)
    if _says(error, _SHUT_OUT):
        raise _let_in()
    raise refused(answer.status, error.message)


def _error(answer: Answer) -> _Error | None:
    return None if answer.status == 200 else answer.read(_Error)


def _result(line: bytes) -> bytes:
    streamed = decode(line, _Streamed)
    if not streamed.result:
        raise _failed(streamed.error or _Error(streamed.code, streamed.message))
    return bytes(streamed.result)


def _failed(error: _Error) -> RailUnavailable:
    if _says(error, _SHUT_OUT):
        return _let_in()
    return RailUnavailable(f"the node failed: {said(error.message)}")


def _let_in() -> RailUnavailable:
    return RailUnavailable("the node does not let us in: check its macaroon and what it permits")


def _says(error: _Error, words: tuple[str, ...]) -> bool:
    return any(word in error.message for word in words)


def _hex(b64: str) -> str:
    try:
        return base64.b64decode(b64, validate=True).hex()
    except ValueError:
        raise RailUnavailable("the node's answer has no payment hash") from None


def _settled(invoice: _Invoice) -> Settled:
    return Settled(
        payment_hash=_hex(invoice.r_hash),
        received_msat=int(invoice.amt_paid_msat),
        at_s=int(invoice.settle_date),
        cursor=invoice.settle_index,
    )


_STATES = {"SUCCEEDED": PaymentState.PAID, "FAILED": PaymentState.FAILED}


def _payment(told: _Payment) -> Payment:
    # INITIATED, IN_FLIGHT, and whatever a later version may call it: not yet at its end.
    state = _STATES.get(told.status, PaymentState.IN_FLIGHT)
    reason = told.failure_reason.removeprefix("FAILURE_REASON_").lower().replace("_", " ")
    return Payment(state, int(told.fee_msat), told.payment_preimage, reason)
