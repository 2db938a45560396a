"""What the operator decides about Lightning, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from farebox.payments.rail import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class LightningConfig:
    """How we are paid and pay over Lightning.

    `name` tells this node's money in the books from another's. `network` is the prefix of its
    invoices. With `allowed` only these Lightning addresses and LNURLs are paid, in lower case.
    A payment's fee is at most `fee_base_msat` and `fee_ppm` millionths of its amount.
    `allow_private` lets addresses that a caller chose lie in private ranges: for tests only.
    """

    name: str
    network: str = "bc"
    ceiling_msat: int | None = None
    deposits: Limits
    payouts: Limits
    invoice_expiry_s: int = 3_600
    memo: str = "Top-up"
    fee_base_msat: int = 5_000
    fee_ppm: int = 5_000
    pay_timeout_s: int = 30
    allowed: frozenset[str] = frozenset()
    allow_private: bool = False

    @property
    def custody(self) -> str:
        """The ledger account of what we hold on this node."""
        return f"custody:lightning:{self.name}"

    def fee_limit_msat(self, amount_msat: int) -> int:
        """The most that paying an amount may cost."""
        return self.fee_base_msat + amount_msat * self.fee_ppm // 1_000_000
