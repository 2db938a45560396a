"""How amounts become proofs: splitting, exact choice, input fees (NUT-02), blanks (NUT-08)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from farebox.errors import InvalidAmount
from farebox.wire.cashu.model import Keyset, Proof

_FEE_DIVISOR = 1_000
#: More parts than any mint takes in one call.
_PARTS_MAX = 1_000


def powers_of_two(amount: int) -> list[int]:
    """The fewest powers of two that sum to `amount`, ascending."""
    return [1 << bit for bit in range(amount.bit_length()) if amount >> bit & 1]


def split(amount: int, available: Collection[int]) -> list[int]:
    """Parts from a keyset's `available` amounts that sum to `amount`, ascending, largest first
    chosen. Raises InvalidAmount where they cannot."""
    if amount < 0:
        raise InvalidAmount("an amount to split is not negative")
    parts: list[int] = []
    rest = amount
    for denomination in sorted(available, reverse=True):
        count, rest = divmod(rest, denomination)
        if count > _PARTS_MAX - len(parts):
            raise InvalidAmount("the keyset's amounts are too small for the wanted one")
        parts.extend([denomination] * count)
    if rest:
        raise InvalidAmount("the keyset has no amounts that sum to the wanted one")
    return parts[::-1]


def binary_parts(maximum: int) -> list[int]:
    """Parts that sum to `maximum`, of which a subset sums to every amount below it, ascending.

    1, 2, 4, … as long as they fit, and what is left in powers of two: whatever part of a maximum
    is charged, the change is there already.
    """
    bits = (maximum + 1).bit_length() - 1
    ladder = (1 << bits) - 1
    return sorted(powers_of_two(ladder) + powers_of_two(maximum - ladder))


def choose_exact(amounts: Sequence[int], target: int) -> list[int] | None:
    """Indices into `amounts` that sum to `target`, or None.

    Takes the largest that fit, which finds a choice whenever there is one as long as each amount
    divides the larger ones, as powers of two do.
    """
    rest = target
    chosen: list[int] = []
    for index in sorted(range(len(amounts)), key=lambda index: -amounts[index]):
        if rest == 0:
            break
        if amounts[index] <= rest:
            rest -= amounts[index]
            chosen.append(index)
    return sorted(chosen) if rest == 0 else None


def fee_of_ppk(total_ppk: int) -> int:
    """Thousandths of a unit, rounded up to whole units as a mint does (NUT-02)."""
    return (total_ppk + _FEE_DIVISOR - 1) // _FEE_DIVISOR


def input_fee(proofs: Iterable[Proof], keysets: Mapping[str, Keyset]) -> int:
    """What the mint takes for spending `proofs` in one call, in their unit (NUT-02).

    Raises KeyError for a proof of a keyset that is not in `keysets`.
    """
    return fee_of_ppk(sum(keysets[proof.keyset_id].input_fee_ppk for proof in proofs))


def blank_output_count(overpaid_max: int) -> int:
    """How many blank outputs hold any change up to `overpaid_max`: ceil(log2), at least 1, or 0
    for 0 (NUT-08)."""
    return max((overpaid_max - 1).bit_length(), 1) if overpaid_max > 0 else 0
