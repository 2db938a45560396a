"""DIDAuthV1: who asks, proven by a signature in `Authorization` (NIP-2 as payment-kit has it).

    DIDAuthV1 u<base64url JSON {signed_data: {operation, params, nonce, timestamp},
                                signature: {signer_did, key_id, value}}>

**The quirk.** What is signed is `DIDAuthV1:` and `JSON.stringify(signed_data, sorted top-level
keys)`. JavaScript applies that list of keys at *every* level, so of `params` only keys that also
stand at the top level are signed: of `{uri, method}` nothing. Whoever has seen such a header can
put it before another URI. Compare `params` with the request all the same, take each nonce once,
and never let it authorise more than telling a payer about its own channel.

`audience` stands at the top level, where it is signed: the DID of the one service that this is for.
payment-kit 0.7.0 leaves it out and does not read it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from farebox.errors import InvalidCredential
from farebox.wire.subrav import multibase
from farebox.wire.subrav.documents import convert
from farebox.wire.subrav.keys import SigningKey, VerificationKey
from farebox.wire.subrav.model import SIGNATURE_BYTES, check_fragment

SCHEME = "DIDAuthV1"
#: A signature is good for so many seconds before and after its timestamp.
WINDOW_S = 300
HTTP_OPERATION = "http_request"
MCP_OPERATION = "mcp_tool_call"
#: Asks a payee to close a channel at once: ours, and good only with an audience.
CLOSE_OPERATION = "channel_close"

_HEADER_MAX_CHARS = 16_384
_NONCE_MAX_CHARS = 256
_OPERATION_MAX_CHARS = 128
_SAFE_INTEGER_MAX = 2**53 - 1
_DID = re.compile(r"did:[a-z0-9]{1,32}:[A-Za-z0-9._:%-]{1,192}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DidAuth:
    """A claim to be `signer_did`, not yet verified. `params` is not what was signed: `text` is.

    `audience` is the only service it is for; None: it doesn't say.
    """

    signer_did: str
    fragment: str
    operation: str
    params: Mapping[str, Any]
    nonce: str
    timestamp_s: int
    audience: str | None = None
    signed_data: Mapping[str, Any] = field(repr=False)
    text: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @property
    def key_id(self) -> str:
        """The DID URL of the key."""
        return f"{self.signer_did}#{self.fragment}"

    def verifies(self, key: VerificationKey) -> bool:
        """Whether the key signed this. Time, nonce and params are for the caller to judge."""
        return key.verifies(self.signature, self.text)

    def header(self) -> str:
        """The value of `Authorization`."""
        document = {
            "signed_data": dict(self.signed_data),
            "signature": {
                "signer_did": self.signer_did,
                "key_id": self.key_id,
                "value": multibase.encode(self.signature),
            },
        }
        return f"{SCHEME} {multibase.encode_json(document)}"


class _SignedDataJson(msgspec.Struct, frozen=True):
    operation: str
    nonce: str
    timestamp: int
    params: dict[str, Any] = {}
    audience: str | None = None


class _SignatureJson(msgspec.Struct, frozen=True):
    signer_did: str
    key_id: str
    value: str


class _AuthJson(msgspec.Struct, frozen=True):
    signed_data: dict[str, Any]
    signature: _SignatureJson


def sign_did_auth(
    did: str,
    fragment: str,
    key: SigningKey,
    *,
    operation: str,
    params: Mapping[str, Any],
    nonce: str,
    timestamp_s: int,
    audience: str | None = None,
) -> DidAuth:
    """Say that `did` asks for this, now; of nobody but `audience`, where it is given."""
    signed_data = {
        "operation": operation,
        "params": dict(params),
        "nonce": nonce,
        "timestamp": timestamp_s,
    }
    if audience is not None:
        signed_data["audience"] = audience
    text = signed_text(signed_data).encode()
    return DidAuth(
        signer_did=did,
        fragment=check_fragment(fragment),
        operation=operation,
        params=params,
        nonce=nonce,
        timestamp_s=timestamp_s,
        audience=audience,
        signed_data=signed_data,
        text=text,
        signature=key.sign(text),
    )


def parse_did_auth(header: str) -> DidAuth:
    """Read the value of `Authorization`, or of MCP's `__nuwa_auth`. Raises InvalidCredential."""
    scheme, _, text = header.partition(" ")
    if scheme != SCHEME:
        raise InvalidCredential(f"the authorization is no {SCHEME}")
    shape = convert(
        multibase.decode_json(text, _HEADER_MAX_CHARS, "authorization"), _AuthJson, "authorization"
    )
    data = convert(shape.signed_data, _SignedDataJson, "authorization")
    did, _, fragment = shape.signature.key_id.partition("#")
    if did != shape.signature.signer_did or not _DID.fullmatch(did):
        raise InvalidCredential("the authorization's key is not its signer's")
    if not 0 < len(data.nonce) <= _NONCE_MAX_CHARS or len(data.operation) > _OPERATION_MAX_CHARS:
        raise InvalidCredential("the authorization's nonce or operation is missing or too long")
    return DidAuth(
        signer_did=did,
        fragment=check_fragment(fragment),
        operation=data.operation,
        params=data.params,
        nonce=data.nonce,
        timestamp_s=data.timestamp,
        audience=data.audience,
        signed_data=shape.signed_data,
        text=signed_text(shape.signed_data).encode(),
        signature=multibase.decode(shape.signature.value, SIGNATURE_BYTES * 2, "signature"),
    )


def signed_text(signed_data: Mapping[str, Any]) -> str:
    """The text under the signature, quirk and all. Raises InvalidCredential."""
    keys = sorted(signed_data)
    try:
        return f"{SCHEME}:{_as_javascript(_kept(signed_data, keys))}"
    except RecursionError:
        raise InvalidCredential("the authorization is nested too deeply") from None


_as_javascript = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def _kept(value: object, keys: list[str]) -> Any:
    """What `JSON.stringify(value, keys)` writes: the same keys, in that order, at every level."""
    if isinstance(value, Mapping):
        return {key: _kept(value[key], keys) for key in keys if key in value}
    if isinstance(value, list):
        return [_kept(item, keys) for item in value]
    if isinstance(value, float) or (type(value) is int and abs(value) > _SAFE_INTEGER_MAX):
        raise InvalidCredential("the authorization holds a number that JavaScript rounds")
    return value
