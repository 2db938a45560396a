"""The JSON shapes of NUT-00 and NUT-02 and the values they stand for, in both directions.

A V3 token and every call to a mint use the same shapes. Reading raises InvalidCredential.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from coincurve import PublicKey

from farebox.errors import InvalidCredential
from farebox.wire.cashu.model import (
    AMOUNT_END,
    BlindedMessage,
    BlindSignature,
    Dleq,
    Keyset,
    Proof,
    parse_keyset_id,
    parse_unit,
)

#: A plain secret has 64 characters; a lock with a few keys (NUT-10) has some hundreds.
SECRET_MAX_CHARS = 1024
WITNESS_MAX_CHARS = 4096

_KEYS_MAX = 256
_POINT_BYTES = 33
_SCALAR_BYTES = 32

Amount = Annotated[int, msgspec.Meta(gt=0, le=AMOUNT_END - 1)]
Secret = Annotated[str, msgspec.Meta(min_length=1, max_length=SECRET_MAX_CHARS)]

_T = TypeVar("_T")


class Hidden(msgspec.Struct, frozen=True):
    """A shape that may hold spendable secrets: its repr is its name."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"


class DleqJson(Hidden, frozen=True):
    """`{e, s, r?}` in hex."""

    e: str
    s: str
    r: str | None = None


class ProofJson(Hidden, frozen=True):
    """`{amount, id, secret, C, dleq?, witness?}`."""

    amount: Amount
    id: str
    secret: Secret
    C: str
    dleq: DleqJson | None = None
    witness: str | dict[str, Any] | None = None


class OutputJson(msgspec.Struct, frozen=True):
    """`{amount, id, B_}`; a blank output (NUT-08) may have any amount."""

    amount: Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_END - 1)]
    id: str
    B_: str


class SignatureJson(Hidden, frozen=True):
    """`{amount, id, C_, dleq?}`."""

    amount: Amount
    id: str
    C_: str
    dleq: DleqJson | None = None


class KeysetJson(msgspec.Struct, frozen=True):
    """One entry of `/v1/keysets` or `/v1/keys`; the fields of both are optional here."""

    id: str
    unit: str
    active: bool = True
    input_fee_ppk: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    final_expiry: Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_END - 1)] | None = None
    keys: dict[str, str] | None = None


def convert(item: object, shape: type[_T], what: str) -> _T:
    """`item` read as `shape`, strictly. Raises InvalidCredential that names no value of it."""
    try:
        return msgspec.convert(item, shape, strict=True)
    except (msgspec.ValidationError, RecursionError, OverflowError):
        raise InvalidCredential(f"the {what} does not have the fields it must have") from None


def read_point(raw: bytes, what: str) -> bytes:
    """A compressed point on the curve, 33 bytes. Raises InvalidCredential."""
    if len(raw) != _POINT_BYTES or raw[0] not in (2, 3):
        raise InvalidCredential(f"the {what} is not a compressed point of 33 bytes")
    try:
        PublicKey(raw)
    except ValueError:
        raise InvalidCredential(f"the {what} is not a point on the curve") from None
    return raw


def read_hex(text: str, what: str) -> bytes:
    """Bytes of hex text. Raises InvalidCredential."""
    try:
        # bytes.fromhex skips white space, which no format allows
        return bytes.fromhex(text if text.isalnum() else "?")
    except ValueError:
        raise InvalidCredential(f"the {what} is not hex") from None


def read_dleq(e: bytes, s: bytes, r: bytes | None) -> Dleq:
    """A DLEQ proof; an `r` of nothing or zero is an absent one (some wallets write `00`)."""
    blinding = r if r is not None and any(r) else None
    if any(len(part) != _SCALAR_BYTES for part in (e, s, blinding) if part is not None):
        raise InvalidCredential("a DLEQ proof has parts of 32 bytes")
    return Dleq(e, s, blinding)


def proof_from(shape: ProofJson) -> Proof:
    """The proof that a document stands for. Raises InvalidCredential."""
    return Proof(
        amount=shape.amount,
        keyset_id=parse_keyset_id(shape.id),
        secret=shape.secret,
        C=read_point(read_hex(shape.C, "signature"), "signature"),
        dleq=_dleq_from(shape.dleq),
        witness=read_witness(shape.witness),
    )


def read_witness(witness: str | dict[str, Any] | None) -> str | None:
    """A witness as the JSON text that mints take. Raises InvalidCredential."""
    try:
        text = json.dumps(witness, separators=(",", ":")) if isinstance(witness, dict) else witness
    except RecursionError:
        raise InvalidCredential("a witness is nested too deeply") from None
    if text is not None and len(text) > WITNESS_MAX_CHARS:
        raise InvalidCredential(f"a witness is longer than {WITNESS_MAX_CHARS} characters")
    return text or None


def _dleq_from(shape: DleqJson | None) -> Dleq | None:
    if shape is None:
        return None
    r = read_hex(shape.r, "DLEQ proof") if shape.r else None
    return read_dleq(read_hex(shape.e, "DLEQ proof"), read_hex(shape.s, "DLEQ proof"), r)


def proof_document(proof: Proof, *, with_dleq: bool) -> dict[str, Any]:
    """The JSON object of a proof. To a mint never `with_dleq`: `r` would link it to its swap."""
    document: dict[str, Any] = {
        "amount": proof.amount,
        "id": proof.keyset_id,
        "secret": proof.secret,
        "C": proof.C.hex(),
    }
    if with_dleq and proof.dleq is not None:
        document["dleq"] = dleq_document(proof.dleq)
    if proof.witness is not None:
        document["witness"] = proof.witness
    return document


def dleq_document(dleq: Dleq) -> dict[str, str]:
    """The JSON object of a DLEQ proof."""
    document = {"e": dleq.e.hex(), "s": dleq.s.hex()}
    return document if dleq.r is None else document | {"r": dleq.r.hex()}


def output_from(shape: OutputJson) -> BlindedMessage:
    """The output that a document stands for. Raises InvalidCredential."""
    point = read_point(read_hex(shape.B_, "output"), "output")
    return BlindedMessage(shape.amount, parse_keyset_id(shape.id), point)


def output_document(output: BlindedMessage) -> dict[str, Any]:
    """The JSON object of an output."""
    return {"amount": output.amount, "id": output.keyset_id, "B_": output.B_.hex()}


def signature_from(shape: SignatureJson) -> BlindSignature:
    """The blind signature that a document stands for. Raises InvalidCredential."""
    point = read_point(read_hex(shape.C_, "signature"), "signature")
    return BlindSignature(shape.amount, parse_keyset_id(shape.id), point, _dleq_from(shape.dleq))


def signature_document(signature: BlindSignature) -> dict[str, Any]:
    """The JSON object of a blind signature."""
    document: dict[str, Any] = {
        "amount": signature.amount,
        "id": signature.keyset_id,
        "C_": signature.C_.hex(),
    }
    if signature.dleq is not None:
        document["dleq"] = dleq_document(signature.dleq)
    return document


def keyset_from(shape: KeysetJson) -> Keyset:
    """The keyset that a document stands for; without `keys` it has none. InvalidCredential."""
    return Keyset(
        id=parse_keyset_id(shape.id),
        unit=parse_unit(shape.unit),
        active=shape.active,
        input_fee_ppk=shape.input_fee_ppk or 0,
        final_expiry=shape.final_expiry or None,
        keys=_keys_from(shape.keys or {}),
    )


def _keys_from(keys: Mapping[str, str]) -> dict[int, bytes]:
    if len(keys) > _KEYS_MAX:
        raise InvalidCredential(f"a keyset has more than {_KEYS_MAX} keys")
    # 2^63 itself is a usual amount in keysets; longer numerals are refused before they are parsed
    if any(not (text.isascii() and text.isdigit() and len(text) <= 20) for text in keys):
        raise InvalidCredential("a keyset has an amount that is not a number")
    return {
        int(text): read_point(read_hex(keys[text], "mint key"), "mint key")
        for text in sorted(keys, key=int)
    }


def keyset_document(keyset: Keyset) -> dict[str, Any]:
    """The JSON object of a keyset, with its keys if it has any."""
    document: dict[str, Any] = {
        "id": keyset.id,
        "unit": keyset.unit,
        "active": keyset.active,
        "input_fee_ppk": keyset.input_fee_ppk,
        "final_expiry": keyset.final_expiry,
    }
    if keyset.keys:
        document["keys"] = {str(amount): key.hex() for amount, key in keyset.keys.items()}
    return document
