"""EIP-1559 fees: what to offer, when to wait instead, how much more to offer. Pure arithmetic.

All amounts are wei for one unit of gas. Sources: EIP-1559; go-ethereum's rule that a replacement
offers a tenth more in both of its fields (we offer an eighth, so that no rounding falls short).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from farebox.money import Rounding, divide

GWEI = 10**9
#: What `eth_feeHistory` is asked for: blocks, and percentiles of the tips paid in each.
HISTORY_BLOCKS = 20
HISTORY_PERCENTILES = (10, 50, 90)


@dataclass(frozen=True, slots=True)
class Fees:
    """What one transaction offers: `tip` to the block's maker, at most `max_fee` in all."""

    max_fee: int
    tip: int

    @property
    def price(self) -> int:
        """What a unit of gas costs now: a fresh offer leaves room for the base fee to double."""
        return (self.max_fee - self.tip) // 2 + self.tip


@dataclass(frozen=True, slots=True)
class History:
    """`eth_feeHistory`: base fees, the last of the block to come; tips of each block; fullness.

    `rewards` has one row per block, one column per percentile; `is_empty` one flag per block.
    """

    base_fees: tuple[int, ...]
    rewards: tuple[tuple[int, ...], ...]
    is_empty: tuple[bool, ...]

    @property
    def base_fee(self) -> int:
        """Of the next block."""
        return self.base_fees[-1]


@dataclass(frozen=True, slots=True)
class TooDear:
    """More than the operator's cap: what was to be sent is held until it costs less."""

    needed: int
    cap: int

    @property
    def reason(self) -> str:
        """For people."""
        needed, cap = divide(self.needed, GWEI, Rounding.UP), self.cap // GWEI
        return f"held: gas needs an offer of {needed} gwei, the cap is {cap} gwei"


def median_tip(history: History) -> int | None:
    """The median of the tips that were paid; None where no block with transactions paid any."""
    paid = sorted(
        tip
        for row, empty in zip(history.rewards, history.is_empty, strict=True)
        for tip in row
        if tip > 0 and not empty
    )
    return paid[len(paid) // 2] if paid else None


def fresh_fees(history: History, *, suggested: int | None, floor: int) -> Fees:
    """What to offer now, to be mined soon.

    `suggested` is what `eth_maxPriorityFeePerGas` says, `floor` the chain's least tip; they
    serve where no tips were paid, the floor always.
    """
    tip = median_tip(history)
    if tip is None:
        tip = suggested or floor
    tip = max(tip, floor)
    return Fees(history.base_fee * 2 + tip, tip)


def replacement(old: Fees, fresh: Fees) -> Fees:
    """What takes the place of an earlier offer: an eighth more of both, or what is fresh."""
    return Fees(
        max(divide(old.max_fee * 9, 8, Rounding.UP), fresh.max_fee),
        max(divide(old.tip * 9, 8, Rounding.UP), fresh.tip),
    )


def is_worth(cost: int, amount: int, percent: int) -> bool:
    """Whether a cost is at most so many percent of an amount in the same asset."""
    return amount > 0 and cost * 100 <= amount * percent


def within(fees: Fees, cap: int) -> Fees | TooDear:
    """The fees, unless they exceed the cap: then nothing is sent, rather than for too little."""
    return fees if fees.max_fee <= cap else TooDear(fees.max_fee, cap)


def best(offers: Sequence[Fees]) -> Fees:
    """The most that was offered for one nonce so far, in each of both fields."""
    return Fees(max(one.max_fee for one in offers), max(one.tip for one in offers))
