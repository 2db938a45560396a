"""The port to a mint: what the wallet needs of one, in the specifications' own steps.

Every method raises `RailRejected` (with the NUT error code) only where the mint answered with an
error document, and `RailUnavailable` for everything else that is not an answer: time-outs, broken
connections, 5xx, bodies that cannot be read.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from farebox.wire.cashu.model import BlindedMessage, BlindSignature, Keyset, Proof


class ProofState(enum.Enum):
    """What a mint says of a proof (NUT-07)."""

    UNSPENT = "UNSPENT"
    PENDING = "PENDING"
    SPENT = "SPENT"


class MintQuoteState(enum.Enum):
    """What became of a mint quote (NUT-04); some mints also say PENDING while they sign."""

    UNPAID = "UNPAID"
    PENDING = "PENDING"
    PAID = "PAID"
    ISSUED = "ISSUED"


class MeltQuoteState(enum.Enum):
    """What became of a melt quote (NUT-05)."""

    UNPAID = "UNPAID"
    PENDING = "PENDING"
    PAID = "PAID"


@dataclass(frozen=True, slots=True)
class MintInfo:
    """Who the mint says it is, and the numbers of the NUTs it says it supports (NUT-06)."""

    name: str
    version: str
    nuts: frozenset[int]


@dataclass(frozen=True, slots=True, repr=False)
class MintQuote:
    """An invoice to pay for new proofs. Without a public key its id is a bearer secret."""

    quote: str
    request: str
    amount: int | None
    unit: str
    state: MintQuoteState
    expiry_s: int | None
    public_key: bytes | None = None

    def __repr__(self) -> str:
        return f"MintQuote(quote=…, amount={self.amount}, state={self.state.value})"


@dataclass(frozen=True, slots=True, repr=False)
class MeltQuote:
    """What paying `request` costs, or has cost. `change` is None where the mint did not say."""

    quote: str
    amount: int
    fee_reserve: int
    unit: str
    state: MeltQuoteState
    expiry_s: int | None
    preimage: str | None = None
    change: tuple[BlindSignature, ...] | None = None

    def __repr__(self) -> str:
        return f"MeltQuote(quote=…, amount={self.amount}, state={self.state.value})"


class Mint(Protocol):
    """One mint. Amounts are in the unit of the keyset or quote they belong to."""

    async def info(self) -> MintInfo:
        """`GET /v1/info`."""
        ...

    async def keysets(self) -> tuple[Keyset, ...]:
        """`GET /v1/keysets`: all of them, without their keys."""
        ...

    async def keys(self, keyset_id: str) -> Keyset:
        """The keyset with its keys, its id checked. From memory once known: keys never change,
        and a paid request must cost one call to the mint."""
        ...

    async def swap(
        self, inputs: Sequence[Proof], outputs: Sequence[BlindedMessage]
    ) -> tuple[BlindSignature, ...]:
        """`POST /v1/swap`: signatures in the order of `outputs`."""
        ...

    async def check_state(self, ys: Sequence[bytes]) -> tuple[ProofState, ...]:
        """`POST /v1/checkstate`: states in the order of `ys`, at most about 100 of them."""
        ...

    async def restore(self, outputs: Sequence[BlindedMessage]) -> Mapping[bytes, BlindSignature]:
        """`POST /v1/restore`: the signatures once given, by `B_`; nothing for outputs unsigned."""
        ...

    async def mint_quote(
        self, amount: int, unit: str, public_key: bytes | None = None
    ) -> MintQuote:
        """`POST /v1/mint/quote/bolt11`, locked to `public_key` (NUT-20) where given."""
        ...

    async def mint_quote_state(self, quote: str) -> MintQuote:
        """`GET /v1/mint/quote/bolt11/{quote}`."""
        ...

    async def mint_tokens(
        self, quote: str, outputs: Sequence[BlindedMessage], signature: str | None
    ) -> tuple[BlindSignature, ...]:
        """`POST /v1/mint/bolt11`: signatures in the order of `outputs`."""
        ...

    async def melt_quote(self, request: str, unit: str) -> MeltQuote:
        """`POST /v1/melt/quote/bolt11`."""
        ...

    async def melt_quote_state(self, quote: str) -> MeltQuote:
        """`GET /v1/melt/quote/bolt11/{quote}`."""
        ...

    async def melt(
        self, quote: str, inputs: Sequence[Proof], outputs: Sequence[BlindedMessage]
    ) -> MeltQuote:
        """`POST /v1/melt/bolt11`: may take as long as a Lightning payment does."""
        ...
