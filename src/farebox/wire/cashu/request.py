"""Payment requests as text: `creqA…` (NUT-18) and `CREQB1…` (NUT-26)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import cbor2
import msgspec

from farebox.errors import InvalidCredential
from farebox.wire.cashu import request_tlv
from farebox.wire.cashu.documents import Amount, convert
from farebox.wire.cashu.envelope import decode_base64, decode_cbor, encode_base64, read_text
from farebox.wire.cashu.model import normalize_mint_url, parse_unit

_LIST_MAX = 100
_TEXT_MAX = 4096
_Text = Annotated[str, msgspec.Meta(max_length=_TEXT_MAX)]
_Texts = Annotated[list[_Text], msgspec.Meta(max_length=_LIST_MAX)]
_Tags = Annotated[list[_Texts], msgspec.Meta(max_length=_LIST_MAX)]

Tags = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Transport:
    """Where to send the payment: `nostr` or `post`, a target, and tags."""

    kind: str
    target: str
    tags: Tags = ()


@dataclass(frozen=True, slots=True)
class LockOption:
    """The lock that the payee wants on the proofs (NUT-10): kind, data, tags."""

    kind: str
    data: str
    tags: Tags = ()


@dataclass(frozen=True, slots=True)
class PaymentRequest:
    """What a payee asks for. No transport means in-band: in the answer to this very request."""

    amount: int | None = None
    unit: str | None = None
    mints: tuple[str, ...] = ()
    payment_id: str | None = None
    single_use: bool | None = None
    description: str | None = None
    transports: tuple[Transport, ...] = ()
    lock: LockOption | None = None


class _TransportShape(msgspec.Struct, frozen=True):
    t: _Text
    a: _Text
    g: _Tags | None = None


class _LockShape(msgspec.Struct, frozen=True):
    k: _Text
    d: _Text
    t: _Tags | None = None


class _Shape(msgspec.Struct, frozen=True):
    i: _Text | None = None
    a: Amount | None = None
    u: str | None = None
    s: bool | None = None
    m: _Texts | None = None
    d: _Text | None = None
    t: Annotated[list[_TransportShape], msgspec.Meta(max_length=_LIST_MAX)] | None = None
    nut10: _LockShape | None = None


def decode_request(text: str | bytes) -> PaymentRequest:
    """Read a payment request of either form. Raises InvalidCredential."""
    body = read_text(text, "payment request")
    if body[:5].lower() == "creqa":
        document = decode_cbor(decode_base64(body[5:], "payment request"), "payment request")
        return _request_of(document)
    if body[:6].lower() == "creqb1":
        return _request_of(request_tlv.decode(body))
    raise InvalidCredential("a payment request starts with creqA or creqB1")


def encode_request(request: PaymentRequest) -> str:
    """The `creqA…` form (NUT-18)."""
    return "creqA" + encode_base64(cbor2.dumps(_document_of(request)))


def encode_request_bech32(request: PaymentRequest) -> str:
    """The `CREQB1…` form (NUT-26), in upper case for QR codes.

    Raises InvalidCredential for a transport, lock or text that this form cannot hold.
    """
    return request_tlv.encode(_document_of(request))


def _request_of(document: Any) -> PaymentRequest:
    shape = convert(document, _Shape, "payment request")
    if shape.a is not None and shape.u is None:
        raise InvalidCredential("a payment request with an amount must name its unit")
    return PaymentRequest(
        amount=shape.a,
        unit=None if shape.u is None else parse_unit(shape.u),
        mints=tuple(normalize_mint_url(mint) for mint in shape.m or ()),
        payment_id=shape.i,
        single_use=shape.s,
        description=shape.d,
        transports=tuple(Transport(one.t, one.a, _tags(one.g)) for one in shape.t or ()),
        lock=None
        if shape.nut10 is None
        else LockOption(shape.nut10.k, shape.nut10.d, _tags(shape.nut10.t)),
    )


def _tags(raw: list[list[str]] | None) -> Tags:
    return tuple(tuple(tag) for tag in raw or ())


def _document_of(request: PaymentRequest) -> dict[str, Any]:
    """The fields of NUT-18, absent ones left out."""
    lock = request.lock
    fields: dict[str, Any] = {
        "i": request.payment_id,
        "a": request.amount,
        "u": request.unit,
        "s": request.single_use,
        "m": list(request.mints) or None,
        "d": request.description,
        "t": [
            _with_tags({"t": one.kind, "a": one.target}, "g", one.tags)
            for one in request.transports
        ]
        or None,
        "nut10": lock and _with_tags({"k": lock.kind, "d": lock.data}, "t", lock.tags),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _with_tags(fields: dict[str, Any], name: str, tags: Tags) -> dict[str, Any]:
    return fields | {name: [list(tag) for tag in tags]} if tags else fields
