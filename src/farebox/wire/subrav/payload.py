"""What payer and payee tell each other with each request: in a header, a frame or an argument.

    X-Payment-Channel-Data: u<base64url of compact UTF-8 JSON>

Requests and responses are one JSON object each; over HTTP it travels as multibase text, over MCP
as it is.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from farebox.errors import InvalidCredential
from farebox.wire.subrav import multibase
from farebox.wire.subrav.documents import (
    Number,
    SignedSubRavJson,
    SubRavJson,
    convert,
    read_number,
    signed_document,
    signed_from,
    sub_rav_document,
    sub_rav_from,
)
from farebox.wire.subrav.model import SignedSubRAV, SubRAV

HEADER_NAME = "X-Payment-Channel-Data"
#: A header with the longest fragment, reference and error has about 3,000 characters.
HEADER_MAX_CHARS = 8_192

_TX_REF = re.compile(r"[!-~]{1,128}")
_CODE_MAX_CHARS = 64


class RequestPayload(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A payer's part. `max_amount` is what this request may cost; None: the payer names no limit.

    Without a voucher it asks to be served on credit, or for free.
    """

    client_tx_ref: str
    max_amount: int | None = None
    signed_sub_rav: SignedSubRAV | None = None

    def document(self) -> dict[str, Any]:
        """The JSON object."""
        document: dict[str, Any] = {"version": 1, "clientTxRef": self.client_tx_ref}
        if self.max_amount is not None:
            document["maxAmount"] = str(self.max_amount)
        if self.signed_sub_rav is not None:
            document["signedSubRav"] = signed_document(self.signed_sub_rav)
        return document

    def header(self) -> str:
        """The value of the header."""
        return multibase.encode_json(self.document())


class PaymentError(msgspec.Struct, frozen=True):
    """Why a payee refuses; codes it may not know are for the payer to pass on."""

    code: str
    message: str
    details: Any = None


class ResponsePayload(msgspec.Struct, frozen=True, kw_only=True):
    """A payee's part: the proposal to sign next and what this request cost, or an error.

    `cost` is in base units of the asset, `cost_usd` in 10^-12 USD. An error wins over all else.
    """

    client_tx_ref: str
    service_tx_ref: str | None = None
    sub_rav: SubRAV | None = None
    cost: int | None = None
    cost_usd: int | None = None
    error: PaymentError | None = None

    def document(self) -> dict[str, Any]:
        """The JSON object."""
        document: dict[str, Any] = {"version": 1, "clientTxRef": self.client_tx_ref}
        if self.service_tx_ref is not None:
            document["serviceTxRef"] = self.service_tx_ref
        if self.sub_rav is not None:
            document["subRav"] = sub_rav_document(self.sub_rav)
        if self.cost is not None:
            document["cost"] = str(self.cost)
        if self.cost_usd is not None:
            document["costUsd"] = str(self.cost_usd)
        if self.error is not None:
            error = {"code": self.error.code, "message": self.error.message}
            details = {} if self.error.details is None else {"details": self.error.details}
            document["error"] = error | details
        return document

    def header(self) -> str:
        """The value of the header."""
        return multibase.encode_json(self.document())


class _RequestJson(msgspec.Struct, frozen=True):
    version: int
    clientTxRef: str  # noqa: N815
    maxAmount: Number | None = None  # noqa: N815
    signedSubRav: SignedSubRavJson | None = None  # noqa: N815


class _ErrorJson(msgspec.Struct, frozen=True):
    code: str
    message: str = ""
    details: Any = None


class _ResponseJson(msgspec.Struct, frozen=True):
    version: int
    clientTxRef: str  # noqa: N815
    serviceTxRef: str | None = None  # noqa: N815
    subRav: SubRavJson | None = None  # noqa: N815
    cost: Number | None = None
    costUsd: Number | None = None  # noqa: N815
    error: _ErrorJson | None = None


_REQUEST = msgspec.json.Decoder(_RequestJson)


def parse_request_header(text: str) -> RequestPayload:
    """Read a payer's header. Raises InvalidCredential."""
    return _request(multibase.decode_shape(text, HEADER_MAX_CHARS, _REQUEST, "payment header"))


def parse_response_header(text: str) -> ResponsePayload:
    """Read a payee's header. Raises InvalidCredential."""
    return response_from(multibase.decode_json(text, HEADER_MAX_CHARS, "payment header"))


def request_from(document: object) -> RequestPayload:
    """A payer's part that came as a JSON object. Raises InvalidCredential."""
    return _request(convert(document, _RequestJson, "payment of a request"))


def _request(shape: _RequestJson) -> RequestPayload:
    _check_version(shape.version)
    limit = 0 if shape.maxAmount is None else read_number(shape.maxAmount, "maxAmount")
    signed = shape.signedSubRav
    return RequestPayload(
        client_tx_ref=check_tx_ref(shape.clientTxRef),
        max_amount=None if shape.maxAmount is None else limit,
        signed_sub_rav=None if signed is None else signed_from(signed),
    )


def response_from(document: object) -> ResponsePayload:
    """A payee's part that came as a JSON object. Raises InvalidCredential."""
    shape = convert(document, _ResponseJson, "payment of a response")
    _check_version(shape.version)
    error = shape.error
    if error is not None and not 0 < len(error.code) <= _CODE_MAX_CHARS:
        raise InvalidCredential("an error code is a short word")
    return ResponsePayload(
        client_tx_ref=check_tx_ref(shape.clientTxRef),
        service_tx_ref=None if shape.serviceTxRef is None else check_tx_ref(shape.serviceTxRef),
        sub_rav=None if shape.subRav is None else sub_rav_from(shape.subRav),
        cost=None if shape.cost is None else read_number(shape.cost, "cost"),
        cost_usd=None if shape.costUsd is None else read_number(shape.costUsd, "costUsd"),
        error=None if error is None else PaymentError(error.code, error.message, error.details),
    )


def check_tx_ref(text: str) -> str:
    """A reference as either side makes one: 1 to 128 visible ASCII characters."""
    if not _TX_REF.fullmatch(text):
        raise InvalidCredential("a transaction reference has 1 to 128 visible ASCII characters")
    return text


def _check_version(version: int) -> None:
    if version != 1:
        raise InvalidCredential("the payment is of a version that is not known")
