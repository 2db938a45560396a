"""What the core stores for us before a call: everything needed to make it, or to ask about it.

These bytes hold inputs, which are money: the core seals them. `fee_ppk` is the input fee of the
keyset that outputs are in; it goes into the rows of the new proofs.
"""

from __future__ import annotations

import msgspec

from farebox.ecash.plan import MeltPlan, MintPlan, SwapPlan
from farebox.errors import StoreCorrupt


class ReceiveSwap(msgspec.Struct, frozen=True, kw_only=True, tag="receive_swap"):
    """Swap a token into proofs of ours, reserved for `owner` where that is not empty."""

    reference: str
    owner: str
    swap: SwapPlan
    fee_ppk: int


class ReceiveLocked(msgspec.Struct, frozen=True, kw_only=True, tag="receive_locked"):
    """Credit proofs that only we can spend, claimed for `reference`: no call."""

    reference: str
    unit: str
    amount_msat: int


class ReceiveAcross(msgspec.Struct, frozen=True, kw_only=True, tag="receive_across"):
    """Have a foreign mint pay an invoice of ours: melt the token there, mint here.

    From `gives_up_at_s` (Unix seconds) on the invoice cannot be paid any more. `melt_fee_ppk` is
    the foreign keyset's fee.
    """

    reference: str
    owner: str
    melt: MeltPlan
    mint: MintPlan
    fee_ppk: int
    melt_fee_ppk: int
    gives_up_at_s: int


class Give(msgspec.Struct, frozen=True, kw_only=True, tag="give"):
    """Hand out proofs reserved for the operation, as they are: no call."""

    operation_id: str
    mint: str
    unit: str
    amount: int


class SwapAndGive(msgspec.Struct, frozen=True, kw_only=True, tag="swap_and_give"):
    """Swap proofs of ours, hand out `give` of the result. `amount` is taken: the fee is in it."""

    operation_id: str
    swap: SwapPlan
    fee_ppk: int
    amount: int
    give: int


class Melt(msgspec.Struct, frozen=True, kw_only=True, tag="melt"):
    """Pay an invoice out of proofs of ours; at most `most` is taken, fees included."""

    operation_id: str
    melt: MeltPlan
    fee_ppk: int
    most: int
    recipient: str


Payload = ReceiveSwap | ReceiveLocked | ReceiveAcross | Give | SwapAndGive | Melt

_DECODER: msgspec.json.Decoder[Payload] = msgspec.json.Decoder(Payload)


def to_bytes(payload: Payload) -> bytes:
    """Bytes to seal and store."""
    return msgspec.json.encode(payload)


def from_bytes(raw: bytes) -> Payload:
    """The payload again. Raises StoreCorrupt."""
    try:
        return _DECODER.decode(raw)
    except msgspec.DecodeError:
        raise StoreCorrupt("a stored eCash payload cannot be read") from None
