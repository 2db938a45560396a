"""What the operator decides about mints, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from farebox.rails.cashu.transport import MintLimits

#: The units we take, and what one is worth. All of them are one asset in the ledger.
MSAT_PER_UNIT = {"sat": 1_000, "msat": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class MintTerms:
    """One mint that we know. `url` is normalised (`normalize_mint_url`).

    A refused mint's tokens are never taken, not even across Lightning. `ceiling_msat` is the most
    we are ready to hold there in each unit; None is without limit. `offline_max_msat` is the most
    of locked proofs, in each unit, that we credit before the mint has swapped them; 0 is none.
    """

    url: str
    trusted: bool = True
    units: tuple[str, ...] = ("sat",)
    ceiling_msat: int | None = None
    require_dleq: bool = False
    offline_max_msat: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CashuConfig:
    """How eCash is received and returned.

    `swap_foreign` takes tokens of mints nobody listed by paying ourselves over Lightning.
    `allow_private` lets addresses that a caller chose lie in private ranges: for tests only.
    """

    mints: tuple[MintTerms, ...]
    swap_foreign: bool = False
    small_change_msat: int = 0
    consolidate_proofs: int = 64
    limits: MintLimits = field(default_factory=MintLimits)
    allow_private: bool = False


def custody_account(mint: str, unit: str) -> str:
    """The ledger account of what we hold at a mint in one unit."""
    return f"custody:cashu:{mint}:{unit}"


def unswapped_account(mint: str, unit: str) -> str:
    """The ledger account of proofs locked to us that were credited and are not swapped yet."""
    return f"custody:cashu-unswapped:{mint}:{unit}"
