"""Plans: the whole of what must be stored before a call to a mint, as data.

No output secret is in a plan: seed, keyset and counter make it anew. The inputs are in it, and
they are money: whoever stores a plan's bytes seals them.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from farebox.errors import StoreCorrupt
from farebox.wire.cashu.amounts import blank_output_count
from farebox.wire.cashu.model import Proof

_P = TypeVar("_P", bound="_Plan")


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What every plan has. Counters run from `first_counter`, one per output, in order."""

    mint: str
    unit: str
    keyset_id: str
    first_counter: int

    def to_bytes(self) -> bytes:
        """Bytes to seal and store before the call."""
        return msgspec.json.encode(self)

    @classmethod
    def from_bytes(cls: type[_P], raw: bytes) -> _P:
        """The plan again. Raises StoreCorrupt."""
        try:
            return msgspec.json.decode(raw, type=cls)
        except msgspec.DecodeError:
            raise StoreCorrupt("a stored eCash plan cannot be read") from None


class SwapPlan(_Plan, frozen=True, kw_only=True, tag="swap"):
    """Exchange `inputs` for outputs of `amounts`, ascending (NUT-03)."""

    inputs: tuple[Proof, ...]
    amounts: tuple[int, ...]

    @property
    def output_count(self) -> int:
        """How many counters it uses."""
        return len(self.amounts)


class MintPlan(_Plan, frozen=True, kw_only=True, tag="mint"):
    """Turn a paid quote into outputs of `amounts`, ascending (NUT-04).

    `key_label` names the key that the quote is locked to (`WalletKeys.quote_key`), None if it is
    not: then whoever learns the quote's id can take the money.
    """

    quote: str
    amounts: tuple[int, ...]
    key_label: str | None = None

    def __repr__(self) -> str:
        return f"MintPlan(mint={self.mint!r}, quote=…, amounts={self.amounts})"

    @property
    def output_count(self) -> int:
        """How many counters it uses."""
        return len(self.amounts)


class MeltPlan(_Plan, frozen=True, kw_only=True, tag="melt"):
    """Pay a melt quote with `inputs`; change comes back in blank outputs (NUT-05, NUT-08)."""

    quote: str
    amount: int
    input_fee: int
    inputs: tuple[Proof, ...]

    def __repr__(self) -> str:
        return f"MeltPlan(mint={self.mint!r}, quote=…, amount={self.amount})"

    @property
    def output_count(self) -> int:
        """How many blank outputs, so counters, it uses: enough for the most that can come back."""
        overpaid_max = sum(proof.amount for proof in self.inputs) - self.amount - self.input_fee
        return blank_output_count(max(overpaid_max, 0))
