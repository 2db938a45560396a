"""Payment in the tool calls of the Model Context Protocol, as payment-kit has it.

The caller adds two arguments, which the tool's schema must admit and the tool never sees; the
answer, error or not, comes as one more content item of an ordinary result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from farebox.errors import InvalidCredential
from farebox.wire.subrav import multibase
from farebox.wire.subrav.didauth import DidAuth, parse_did_auth
from farebox.wire.subrav.payload import (
    HEADER_MAX_CHARS,
    RequestPayload,
    ResponsePayload,
    request_from,
    response_from,
)

AUTH_ARGUMENT = "__nuwa_auth"
PAYMENT_ARGUMENT = "__nuwa_payment"
#: A tool tells its usage under this key of its result.
USAGE_KEY = "__usage"
PAYMENT_URI = "nuwa:payment"
PAYMENT_MIME_TYPE = "application/vnd.nuwa.payment+json"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call's own arguments, and the two reserved ones taken out of them."""

    arguments: dict[str, Any]
    auth: DidAuth | None
    payment: RequestPayload | None


def take_arguments(arguments: Mapping[str, Any]) -> ToolCall:
    """Part a call's arguments from its payment. Raises InvalidCredential."""
    own = dict(arguments)
    auth, payment = own.pop(AUTH_ARGUMENT, None), own.pop(PAYMENT_ARGUMENT, None)
    if auth is not None and not isinstance(auth, str):
        raise InvalidCredential(f"{AUTH_ARGUMENT} is text")
    return ToolCall(
        own,
        None if auth is None else parse_did_auth(auth),
        None if payment is None else request_from(payment),
    )


def give_arguments(
    arguments: Mapping[str, Any], auth: DidAuth | None, payment: RequestPayload
) -> dict[str, Any]:
    """A call's arguments with its payment. Undoes `take_arguments`."""
    given = {**arguments, PAYMENT_ARGUMENT: payment.document()}
    return given if auth is None else given | {AUTH_ARGUMENT: auth.header()}


def payment_item(payload: ResponsePayload) -> dict[str, Any]:
    """The content item that tells a payment's outcome."""
    return {
        "type": "resource",
        "resource": {
            "uri": PAYMENT_URI,
            "mimeType": PAYMENT_MIME_TYPE,
            "text": msgspec.json.encode(payload.document()).decode(),
        },
    }


def find_payment_item(content: Sequence[Any]) -> ResponsePayload | None:
    """The payment told in a result's content; None: it holds none. Raises InvalidCredential."""
    for item in content:
        resource = item.get("resource") if isinstance(item, Mapping) else None
        if isinstance(resource, Mapping) and (
            resource.get("uri") == PAYMENT_URI or resource.get("mimeType") == PAYMENT_MIME_TYPE
        ):
            text = resource.get("text")
            if not isinstance(text, str) or len(text) > HEADER_MAX_CHARS:
                raise InvalidCredential("the payment item of a result holds no text, or too much")
            return response_from(multibase.read_json(text, "payment item"))
    return None


def argument_schemas() -> dict[str, Any]:
    """JSON schemas of the two reserved arguments, for a tool's `properties`."""
    return {AUTH_ARGUMENT: {"type": "string"}, PAYMENT_ARGUMENT: {"type": "object"}}
