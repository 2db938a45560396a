"""What mints answer, in the specifications' JSON, and the port's values that it stands for.

Reading raises InvalidCredential for anything else; `HttpMint` maps it.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from farebox.ecash.mint import (
    MeltQuote,
    MeltQuoteState,
    MintInfo,
    MintQuote,
    MintQuoteState,
    ProofState,
)
from farebox.wire.cashu.documents import (
    KeysetJson,
    OutputJson,
    SignatureJson,
    read_hex,
    read_point,
    signature_from,
)
from farebox.wire.cashu.model import AMOUNT_END, BlindSignature, parse_unit

_KEYSETS_MAX = 1_000
_Amount = Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_END - 1)]
_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Text = Annotated[str, msgspec.Meta(max_length=8_192)]
_Seconds = Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_END - 1)]


class ErrorJson(msgspec.Struct, frozen=True):
    """`{detail, code}`; some refusals have no code, some a `detail` that is no text."""

    detail: Any
    code: int | None = None


class InfoJson(msgspec.Struct, frozen=True):
    """NUT-06, what we need of it."""

    name: _Text | None = None
    version: _Text | None = None
    nuts: dict[str, Any] = {}


class KeysetsJson(msgspec.Struct, frozen=True):
    """NUT-01 and NUT-02."""

    keysets: Annotated[list[KeysetJson], msgspec.Meta(max_length=_KEYSETS_MAX)]


class SignaturesJson(msgspec.Struct, frozen=True):
    """NUT-03 and NUT-04."""

    signatures: list[SignatureJson]


class StateJson(msgspec.Struct, frozen=True):
    """One entry of NUT-07."""

    Y: str
    state: ProofState


class StatesJson(msgspec.Struct, frozen=True):
    """NUT-07."""

    states: list[StateJson]


class RestoreJson(msgspec.Struct, frozen=True):
    """NUT-09."""

    outputs: list[OutputJson]
    signatures: list[SignatureJson]


class MintQuoteJson(msgspec.Struct, frozen=True):
    """NUT-04, 20 and 23."""

    quote: _Id
    request: _Text
    unit: str
    state: MintQuoteState
    amount: _Amount | None = None
    expiry: _Seconds | None = None
    pubkey: str | None = None


class MeltQuoteJson(msgspec.Struct, frozen=True):
    """NUT-05, 08 and 23."""

    quote: _Id
    amount: _Amount
    fee_reserve: _Amount
    unit: str
    state: MeltQuoteState
    expiry: _Seconds | None = None
    payment_preimage: _Text | None = None
    change: list[SignatureJson] | None = None


def info_from(shape: InfoJson) -> MintInfo:
    """The mint's description; a NUT counts unless it is switched off."""
    nuts = frozenset(
        int(number)
        for number, setting in shape.nuts.items()
        if number.isascii() and number.isdigit() and len(number) <= 4 and _is_on(setting)
    )
    return MintInfo(shape.name or "", shape.version or "", nuts)


def _is_on(setting: object) -> bool:
    if isinstance(setting, dict):
        return setting.get("supported") is not False and setting.get("disabled") is not True
    return bool(setting)


def signatures_from(shapes: list[SignatureJson]) -> tuple[BlindSignature, ...]:
    """Blind signatures in the mint's order."""
    return tuple(signature_from(shape) for shape in shapes)


def mint_quote_from(shape: MintQuoteJson) -> MintQuote:
    """A mint quote."""
    key = read_point(read_hex(shape.pubkey, "public key"), "public key") if shape.pubkey else None
    return MintQuote(
        quote=shape.quote,
        request=shape.request,
        amount=shape.amount,
        unit=parse_unit(shape.unit),
        state=shape.state,
        expiry_s=shape.expiry or None,
        public_key=key,
    )


def melt_quote_from(shape: MeltQuoteJson) -> MeltQuote:
    """A melt quote."""
    return MeltQuote(
        quote=shape.quote,
        amount=shape.amount,
        fee_reserve=shape.fee_reserve,
        unit=parse_unit(shape.unit),
        state=shape.state,
        expiry_s=shape.expiry or None,
        preimage=shape.payment_preimage or None,
        change=None if shape.change is None else signatures_from(shape.change),
    )
