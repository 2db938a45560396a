"""Cashu tokens as text: V3 `cashuA` (JSON) and V4 `cashuB` (CBOR), NUT-00."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import cbor2
import msgspec

from farebox.errors import InvalidCredential
from farebox.wire.cashu.documents import (
    Amount,
    Hidden,
    ProofJson,
    Secret,
    convert,
    proof_document,
    proof_from,
    read_dleq,
    read_point,
    read_witness,
)
from farebox.wire.cashu.envelope import decode_base64, decode_cbor, encode_base64, read_text
from farebox.wire.cashu.model import (
    AMOUNT_END,
    SHORT_ID_CHARS,
    Proof,
    Token,
    normalize_mint_url,
    parse_keyset_id,
    parse_unit,
)

MAX_PROOFS = 1_000
_MEMO_MAX_CHARS = 4096
_URI_SCHEME = "cashu:"
_Memo = Annotated[str, msgspec.Meta(max_length=_MEMO_MAX_CHARS)]


@dataclass(frozen=True, slots=True)
class UnknownKeyset:
    """No known keyset of the mint has this id. The mint's list may have grown: ask it again."""

    keyset_id: str


class _V3Entry(Hidden, frozen=True):
    mint: str
    proofs: Annotated[list[ProofJson], msgspec.Meta(max_length=MAX_PROOFS)]


class _V3(Hidden, frozen=True):
    token: Annotated[list[_V3Entry], msgspec.Meta(min_length=1, max_length=MAX_PROOFS)]
    unit: str | None = None
    memo: _Memo | None = None


class _V4Dleq(Hidden, frozen=True):
    e: bytes
    s: bytes
    r: bytes | None = None


class _V4Proof(Hidden, frozen=True):
    a: Amount
    s: Secret
    c: bytes
    d: _V4Dleq | None = None
    w: str | None = None


class _V4Group(Hidden, frozen=True):
    i: bytes
    p: Annotated[list[_V4Proof], msgspec.Meta(max_length=MAX_PROOFS)]


class _V4(Hidden, frozen=True):
    m: str
    u: str
    t: Annotated[list[_V4Group], msgspec.Meta(min_length=1, max_length=MAX_PROOFS)]
    d: _Memo | None = None


_V3_DECODER = msgspec.json.Decoder(_V3)


def decode_token(text: str | bytes) -> Token:
    """Read a token of either version. Keyset ids stay as written: see `resolve_keyset_ids`.

    Raises InvalidCredential, whose sentence never contains any part of the token.
    """
    body = read_text(text, "token").removeprefix(_URI_SCHEME)
    version, payload = body[:6], body[6:]
    if version == "cashuA":
        return _checked(_from_v3(decode_base64(payload, "token")))
    if version == "cashuB":
        return _checked(_from_v4(decode_base64(payload, "token")))
    raise InvalidCredential("a Cashu token starts with cashuA or cashuB")


def _from_v3(raw: bytes) -> Token:
    try:
        shape = _V3_DECODER.decode(raw)
    except (msgspec.DecodeError, RecursionError, OverflowError, UnicodeError):
        raise InvalidCredential("the token is not the JSON document of a V3 token") from None
    mints = {normalize_mint_url(entry.mint) for entry in shape.token}
    if len(mints) > 1:
        raise InvalidCredential("the token holds proofs of several mints; send one token per mint")
    proofs = tuple(proof_from(proof) for entry in shape.token for proof in entry.proofs)
    return Token(mints.pop(), parse_unit(shape.unit or "sat"), proofs, shape.memo)


def _from_v4(raw: bytes) -> Token:
    shape = convert(decode_cbor(raw, "token"), _V4, "token")
    if sum(len(group.p) for group in shape.t) > MAX_PROOFS:
        raise InvalidCredential(f"the token holds more than {MAX_PROOFS} proofs")
    proofs = tuple(
        _v4_proof(parse_keyset_id(group.i.hex()), proof) for group in shape.t for proof in group.p
    )
    return Token(normalize_mint_url(shape.m), parse_unit(shape.u), proofs, shape.d)


def _v4_proof(keyset_id: str, shape: _V4Proof) -> Proof:
    dleq = None if shape.d is None else read_dleq(shape.d.e, shape.d.s, shape.d.r)
    point = read_point(shape.c, "signature")
    return Proof(shape.a, keyset_id, shape.s, point, dleq, read_witness(shape.w))


def _checked(token: Token) -> Token:
    """What holds for tokens of both versions."""
    if not token.proofs:
        raise InvalidCredential("the token holds no proofs")
    if len(token.proofs) > MAX_PROOFS:
        raise InvalidCredential(f"the token holds more than {MAX_PROOFS} proofs")
    if len({proof.secret for proof in token.proofs}) < len(token.proofs):
        raise InvalidCredential("the token holds the same proof twice")
    if token.amount >= AMOUNT_END:
        raise InvalidCredential("the token's amount is too large")
    return token


def encode_token(token: Token) -> str:
    """A V4 token with whole keyset ids, proofs grouped by keyset, DLEQ proofs included."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for proof in token.proofs:
        groups.setdefault(proof.keyset_id, []).append(_v4_document(proof))
    listed = [{"i": bytes.fromhex(keyset_id), "p": group} for keyset_id, group in groups.items()]
    document: dict[str, Any] = {"m": token.mint, "u": token.unit, "t": listed}
    if token.memo is not None:
        document["d"] = token.memo
    return "cashuB" + encode_base64(cbor2.dumps(document))


def _v4_document(proof: Proof) -> dict[str, Any]:
    document: dict[str, Any] = {"a": proof.amount, "s": proof.secret, "c": proof.C}
    if proof.dleq is not None and proof.dleq.r is not None:
        document["d"] = {"e": proof.dleq.e, "s": proof.dleq.s, "r": proof.dleq.r}
    if proof.witness is not None:
        document["w"] = proof.witness
    return document


def encode_token_v3(token: Token) -> str:
    """A deprecated V3 token, for wallets that know nothing newer."""
    proofs = [proof_document(proof, with_dleq=True) for proof in token.proofs]
    document: dict[str, Any] = {
        "token": [{"mint": token.mint, "proofs": proofs}],
        "unit": token.unit,
    }
    if token.memo is not None:
        document["memo"] = token.memo
    return "cashuA" + encode_base64(msgspec.json.encode(document))


def resolve_keyset_ids(token: Token, keyset_ids: Iterable[str]) -> Token | UnknownKeyset:
    """The token with every short keyset id replaced by the mint's whole one.

    Raises InvalidCredential where a short id fits several keysets: guessing could burn the proof.
    """
    known = set(keyset_ids)
    whole: dict[str, str] = {}
    for written in {proof.keyset_id for proof in token.proofs}:
        found = _matching(written, known)
        if not found:
            return UnknownKeyset(written)
        if len(found) > 1:
            raise InvalidCredential("a short keyset id in the token fits several keysets")
        whole[written] = found[0]
    proofs = tuple(replace(proof, keyset_id=whole[proof.keyset_id]) for proof in token.proofs)
    return replace(token, proofs=proofs)


def _matching(written: str, known: set[str]) -> list[str]:
    if written in known:
        return [written]
    if len(written) != SHORT_ID_CHARS:
        return []
    return [keyset_id for keyset_id in known if keyset_id.startswith(written)]
