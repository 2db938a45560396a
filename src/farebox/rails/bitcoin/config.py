"""What the operator decides about Bitcoin, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from farebox.money import MSAT_PER_SAT
from farebox.payments.rail import Limits


@dataclass(frozen=True, slots=True)
class Depth:
    """From `from_sat` on, an output is credited with so many confirmations."""

    from_sat: int
    confirmations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BitcoinConfig:
    """How we are paid and pay on the Bitcoin chain.

    `name` tells this wallet's money in the books from another's. `network` is bitcoin, testnet,
    testnet4, signet or regtest. `depths` rise by value; the first begins at 0. Fee rates are in
    satoshi per 1,000 virtual bytes. `start_height` is where the wallet began; None: now. Payouts
    wait `batch_window_s` for others, or until `batch_most` of them do. Below `dust_sat` an output
    is neither asked for nor paid. With `allowed` only these addresses are paid.
    """

    name: str
    network: str = "bitcoin"
    start_height: int | None = None
    ceiling_msat: int | None = None
    deposits: Limits
    payouts: Limits
    deposit_expiry_s: int = 86_400
    depths: tuple[Depth, ...] = (Depth(0, 1), Depth(100_000, 3), Depth(10_000_000, 6))
    payout_confirmations: int = 3
    batch_window_s: int = 10
    batch_most: int = 100
    fee_blocks: int = 6
    fee_rate_default: int = 5_000
    fee_rate_max: int = 200_000
    bump_after_blocks: int = 3
    dust_sat: int = 546
    round_s: float = 10
    allowed: tuple[str, ...] = ()

    @property
    def custody(self) -> str:
        """The ledger account of what this wallet holds."""
        return f"custody:bitcoin:{self.name}"

    def confirmations(self, amount_sat: int) -> int:
        """How many an output of this value needs."""
        return max(
            (one.confirmations for one in self.depths if one.from_sat <= amount_sat), default=1
        )

    def fee_msat(self, rate: int, vbytes: int) -> int:
        """What `vbytes` cost at a rate, whole satoshi, rounded up; in msat."""
        return -(-rate * vbytes // 1_000) * MSAT_PER_SAT
