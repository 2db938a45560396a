"""How a channel speaks HTTP: payment-kit's header, who asks, and what to sign next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from farebox.errors import InvalidCredential
from farebox.ids import new_id
from farebox.paywall.dialects import CHANNEL_HEADER, Problem, problem, sentence
from farebox.paywall.model import Answer, ChannelPresented, Headers
from farebox.wire.subrav.didauth import parse_did_auth
from farebox.wire.subrav.model import ErrorCode, SubRAV, http_status
from farebox.wire.subrav.payload import (
    HEADER_NAME,
    PaymentError,
    ResponsePayload,
    parse_request_header,
)

_EXPOSED: tuple[bytes, bytes] = (b"access-control-expose-headers", HEADER_NAME.encode())


def read(
    payments: Sequence[bytes], auths: Sequence[bytes], method: str, target: str
) -> ChannelPresented | Answer:
    """What a payer sent, at most one of each; or why it cannot be read."""
    payload, auth = None, None
    try:
        if payments:
            payload = parse_request_header(payments[0].decode("latin-1"))
        if auths:
            auth = parse_did_auth(auths[0].decode("latin-1"))
    except InvalidCredential as error:
        code = ErrorCode.AUTH_INVALID if payload or not payments else ErrorCode.INVALID_PAYMENT
        reference = "" if payload is None else payload.client_tx_ref
        return refusal(code, sentence(str(error)), reference)
    return ChannelPresented(payload, auth, method, target)


def proposal(
    reference: str, request_id: str, sub_rav: SubRAV, cost: int, cost_pico_usd: int
) -> str:
    """What the payer of a served request is told."""
    return ResponsePayload(
        client_tx_ref=reference,
        service_tx_ref=request_id,
        sub_rav=sub_rav,
        cost=cost,
        cost_usd=cost_pico_usd,
    ).header()


def headers(value: str) -> Headers:
    """A payee's part as headers, which scripts in a browser may read."""
    return ((CHANNEL_HEADER, value.encode()), _EXPOSED)


def refusal(
    code: ErrorCode,
    message: str,
    reference: str,
    sub_rav: SubRAV | None = None,
    details: Mapping[str, str] | None = None,
) -> Answer:
    """A refusal as payment-kit reads it and as everybody else does; `sub_rav` is to be signed."""
    error = PaymentError(code.value, message, details)
    told = ResponsePayload(client_tx_ref=reference or new_id("tx"), sub_rav=sub_rav, error=error)
    money = "No money moved." if sub_rav is None else "A request before this one is not paid yet."
    return problem(
        Problem(
            http_status(code),
            code.value.lower(),
            "Channel payment refused",
            message,
            money,
            {**(details or {}), "channel_error": code.value},
            headers(told.header()),
        )
    )


def stranger(answer: Answer, reference: str) -> Answer:
    """A challenge, told to a channel's client that has not said who it is."""
    message = "Say who pays, by a voucher or by Authorization: DIDAuthV1."
    error = PaymentError(ErrorCode.PAYMENT_REQUIRED.value, message)
    told = ResponsePayload(client_tx_ref=reference or new_id("tx"), error=error)
    return Answer(
        answer.status, (*answer.headers, *headers(told.header())), answer.body, answer.code
    )
