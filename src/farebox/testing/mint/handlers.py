"""The calls of the NUTs as JSON in, JSON out. Raises RailRejected and InvalidCredential."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec

from farebox.ecash.codes import NutError
from farebox.ecash.mint import ProofState
from farebox.errors import InvalidCredential, RailRejected
from farebox.testing.mint.bank import PARTS_MAX, Bank
from farebox.testing.mint.books import MeltQuoteRow, MintQuoteRow
from farebox.wire.cashu.documents import (
    OutputJson,
    ProofJson,
    keyset_document,
    output_document,
    output_from,
    proof_from,
    read_hex,
    read_point,
    signature_document,
)
from farebox.wire.cashu.model import BlindedMessage, BlindSignature, parse_keyset_id

Document = dict[str, Any]
_T = TypeVar("_T")

# One more than is allowed, so that too many get the code for it and not a shrug.
_Inputs = Annotated[list[ProofJson], msgspec.Meta(max_length=PARTS_MAX + 1)]
_Outputs = Annotated[list[OutputJson], msgspec.Meta(max_length=PARTS_MAX + 1)]


class _Swap(msgspec.Struct, frozen=True):
    inputs: _Inputs
    outputs: _Outputs


class _CheckState(msgspec.Struct, frozen=True):
    Ys: Annotated[list[str], msgspec.Meta(max_length=PARTS_MAX)]


class _Restore(msgspec.Struct, frozen=True):
    outputs: _Outputs


class _MintQuote(msgspec.Struct, frozen=True):
    amount: int
    unit: str
    description: str | None = None
    pubkey: str | None = None


class _Mint(msgspec.Struct, frozen=True):
    quote: str
    outputs: _Outputs
    signature: str | None = None


class _MeltQuote(msgspec.Struct, frozen=True):
    request: str
    unit: str


class _Melt(msgspec.Struct, frozen=True):
    quote: str
    inputs: _Inputs
    outputs: _Outputs | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its body, the end of its path, and whether it is to stay pending."""

    body: bytes
    tail: str
    stays_pending: bool

    def read(self, shape: type[_T]) -> _T:
        """The body as `shape`. Raises InvalidCredential."""
        try:
            return msgspec.json.decode(self.body, type=shape)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            raise InvalidCredential("the body does not have the fields it must have") from None


Handler = Callable[[Bank, Call], Document]


def info(bank: Bank, call: Call) -> Document:
    """NUT-06."""
    units = sorted({keyset.public.unit for keyset in bank.keyring})
    methods = {"methods": [{"method": "bolt11", "unit": unit} for unit in units], "disabled": False}
    supported = {str(nut): {"supported": True} for nut in (7, 8, 9, 10, 11, 12, 20)}
    return {
        "name": "Play money",
        "version": "Farebox-Play/1",
        "description": "Worth nothing, on purpose",
        "nuts": {"4": methods, "5": methods, **supported},
    }


def keysets(bank: Bank, call: Call) -> Document:
    """NUT-02: all keysets, without keys."""
    documents = [keyset_document(keyset.public) for keyset in bank.keyring]
    return {"keysets": [{k: v for k, v in one.items() if k != "keys"} for one in documents]}


def keys(bank: Bank, call: Call) -> Document:
    """NUT-01 and 02: the active keysets, or the one that the path names."""
    if not call.tail:
        active = [keyset.public for keyset in bank.keyring if keyset.public.active]
        return {"keysets": [keyset_document(keyset) for keyset in active]}
    keyset = bank.keyring.get(parse_keyset_id(call.tail))
    if keyset is None:
        raise RailRejected("keyset unknown", code=int(NutError.KEYSET_UNKNOWN))
    return {"keysets": [keyset_document(keyset.public)]}


def swap(bank: Bank, call: Call) -> Document:
    """NUT-03."""
    body = call.read(_Swap)
    inputs = [proof_from(proof) for proof in body.inputs]
    return _signatures(bank.swap(inputs, _outputs(body.outputs)))


def checkstate(bank: Bank, call: Call) -> Document:
    """NUT-07."""
    ys = [read_point(read_hex(y, "Y"), "Y") for y in call.read(_CheckState).Ys]
    states = [ProofState.PENDING] * len(ys) if call.stays_pending else bank.check_state(ys)
    pairs = zip(ys, states, strict=True)
    return {"states": [{"Y": y.hex(), "state": s.value, "witness": None} for y, s in pairs]}


def restore(bank: Bank, call: Call) -> Document:
    """NUT-09."""
    found = bank.restore(_outputs(call.read(_Restore).outputs))
    return {
        "outputs": [output_document(output) for output, _ in found],
        "signatures": [signature_document(signature) for _, signature in found],
    }


def mint_quote(bank: Bank, call: Call) -> Document:
    """NUT-04, 20 and 23."""
    body = call.read(_MintQuote)
    key = None
    if body.pubkey is not None:
        try:
            key = read_point(read_hex(body.pubkey, "public key"), "public key")
        except InvalidCredential as error:
            raise RailRejected(str(error), code=int(NutError.QUOTE_KEY_REQUIRED)) from None
    return _mint_quote(bank.mint_quote(body.amount, body.unit, key))


def mint_quote_state(bank: Bank, call: Call) -> Document:
    """NUT-04."""
    return _mint_quote(bank.mint_quote_state(call.tail))


def mint(bank: Bank, call: Call) -> Document:
    """NUT-04 and 20."""
    body = call.read(_Mint)
    return _signatures(bank.mint(body.quote, _outputs(body.outputs), body.signature))


def melt_quote(bank: Bank, call: Call) -> Document:
    """NUT-05 and 23."""
    body = call.read(_MeltQuote)
    return _melt_quote(bank.melt_quote(body.request, body.unit))


def melt_quote_state(bank: Bank, call: Call) -> Document:
    """NUT-05."""
    return _melt_quote(bank.melt_quote_state(call.tail))


def melt(bank: Bank, call: Call) -> Document:
    """NUT-05 and 08."""
    body = call.read(_Melt)
    inputs = [proof_from(proof) for proof in body.inputs]
    outputs = _outputs(body.outputs or [])
    return _melt_quote(bank.melt(body.quote, inputs, outputs, stays_pending=call.stays_pending))


def _outputs(shapes: Sequence[OutputJson]) -> list[BlindedMessage]:
    return [output_from(shape) for shape in shapes]


def _signatures(signatures: Iterable[BlindSignature]) -> Document:
    return {"signatures": [signature_document(signature) for signature in signatures]}


def _mint_quote(row: MintQuoteRow) -> Document:
    return {
        "quote": row.quote,
        "request": row.request,
        "amount": row.amount,
        "unit": row.unit,
        "state": row.state.value,
        "expiry": row.expiry_s,
        "pubkey": row.public_key.hex() if row.public_key else None,
    }


def _melt_quote(row: MeltQuoteRow) -> Document:
    return {
        "quote": row.quote,
        "request": row.request,
        "amount": row.amount,
        "fee_reserve": row.fee_reserve,
        "unit": row.unit,
        "state": row.state.value,
        "expiry": row.expiry_s,
        "payment_preimage": row.preimage.hex() if row.preimage else None,
        "change": [signature_document(signature) for signature in row.change] or None,
    }


#: By method and path; a path that ends in a slash goes on with an id.
ROUTES: dict[tuple[str, str], tuple[str, Handler]] = {
    ("GET", "/v1/info"): ("info", info),
    ("GET", "/v1/keysets"): ("keysets", keysets),
    ("GET", "/v1/keys"): ("keys", keys),
    ("GET", "/v1/keys/"): ("keys", keys),
    ("POST", "/v1/swap"): ("swap", swap),
    ("POST", "/v1/checkstate"): ("checkstate", checkstate),
    ("POST", "/v1/restore"): ("restore", restore),
    ("POST", "/v1/mint/quote/bolt11"): ("mint_quote", mint_quote),
    ("GET", "/v1/mint/quote/bolt11/"): ("mint_quote_state", mint_quote_state),
    ("POST", "/v1/mint/bolt11"): ("mint", mint),
    ("POST", "/v1/melt/quote/bolt11"): ("melt_quote", melt_quote),
    ("GET", "/v1/melt/quote/bolt11/"): ("melt_quote_state", melt_quote_state),
    ("POST", "/v1/melt/bolt11"): ("melt", melt),
}
