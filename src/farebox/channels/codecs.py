"""How vouchers and proposals travel: in an HTTP header, or in a tool call's argument and result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec

from farebox.ids import new_id
from farebox.wire.subrav import multibase
from farebox.wire.subrav.model import SignedSubRAV
from farebox.wire.subrav.payload import (
    HEADER_MAX_CHARS,
    HEADER_NAME,
    RequestPayload,
    ResponsePayload,
    parse_request_header,
    parse_response_header,
    request_from,
    response_from,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentMetadata:
    """What goes with a voucher: the payer's reference to the request, and the most it may cost."""

    client_tx_ref: str
    max_amount: int | None = None


@dataclass(frozen=True, slots=True)
class DecodedPayment:
    """A payer's part: a voucher, or None on credit."""

    signed_sub_rav: SignedSubRAV | None
    metadata: PaymentMetadata


class PaymentCodec(Protocol):
    """One protocol's text for each party's part. Reading raises InvalidCredential."""

    def encode(
        self, signed_sub_rav: SignedSubRAV | None, metadata: PaymentMetadata | None = None
    ) -> str:
        """The payer's part."""
        ...

    def decode(self, encoded: str) -> DecodedPayment:
        """Undo `encode`."""
        ...

    def encode_response(self, payload: ResponsePayload) -> str:
        """The payee's part."""
        ...

    def decode_response(self, encoded: str) -> ResponsePayload:
        """Undo `encode_response`."""
        ...


class HttpPaymentCodec:
    """The value of `X-Payment-Channel-Data`, both ways."""

    header_name = HEADER_NAME

    def encode(
        self, signed_sub_rav: SignedSubRAV | None, metadata: PaymentMetadata | None = None
    ) -> str:
        """The payer's header."""
        return _payload(signed_sub_rav, metadata).header()

    def decode(self, encoded: str) -> DecodedPayment:
        """Read the payer's header. Raises InvalidCredential."""
        return _decoded(parse_request_header(encoded))

    def encode_response(self, payload: ResponsePayload) -> str:
        """The payee's header."""
        return payload.header()

    def decode_response(self, encoded: str) -> ResponsePayload:
        """Read the payee's header. Raises InvalidCredential."""
        return parse_response_header(encoded)


class McpPaymentCodec:
    """The JSON of the argument `__nuwa_payment`, and of the content item `nuwa:payment`."""

    def encode(
        self, signed_sub_rav: SignedSubRAV | None, metadata: PaymentMetadata | None = None
    ) -> str:
        """The payer's argument, as JSON text."""
        return _json(_payload(signed_sub_rav, metadata).document())

    def decode(self, encoded: str) -> DecodedPayment:
        """Read the payer's argument. Raises InvalidCredential."""
        return _decoded(self.payload(encoded))

    def payload(self, encoded: str) -> RequestPayload:
        """The payer's argument as it goes into a call. Raises InvalidCredential."""
        return request_from(_bounded(encoded))

    def encode_response(self, payload: ResponsePayload) -> str:
        """The text of the payee's content item."""
        return _json(payload.document())

    def decode_response(self, encoded: str) -> ResponsePayload:
        """Read the text of the payee's content item. Raises InvalidCredential."""
        return response_from(_bounded(encoded))


def _payload(signed: SignedSubRAV | None, metadata: PaymentMetadata | None) -> RequestPayload:
    told = metadata or PaymentMetadata(client_tx_ref=new_id("tx"))
    return RequestPayload(
        client_tx_ref=told.client_tx_ref, max_amount=told.max_amount, signed_sub_rav=signed
    )


def _decoded(payload: RequestPayload) -> DecodedPayment:
    metadata = PaymentMetadata(client_tx_ref=payload.client_tx_ref, max_amount=payload.max_amount)
    return DecodedPayment(payload.signed_sub_rav, metadata)


def _json(document: object) -> str:
    return msgspec.json.encode(document).decode()


def _bounded(encoded: str) -> object:
    return multibase.read_json(encoded[: HEADER_MAX_CHARS + 1], "payment")
