"""Money: integer amounts of a named asset, with every rounding spelled out.

Promises: an amount is an `int` in the asset's smallest unit; a division says which way it rounds.
Never: a float, an implicit conversion between assets.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from farebox.errors import InvalidAmount

#: One past the largest amount: amounts fit a signed 128-bit integer in every store.
AMOUNT_END = 2**127

#: Long enough for 2^127 with a sign to spare; longer text is refused before it is parsed.
_DECIMAL_MAX_CHARS = 60

_DECIMAL = re.compile(r"(0|[1-9][0-9]*)(?:\.([0-9]+))?")


class Rounding(enum.Enum):
    """Which way a division goes when it does not come out even."""

    DOWN = "down"
    UP = "up"


@dataclass(frozen=True, slots=True)
class Asset:
    """Something countable. `scale` is the number of decimals of its everyday unit, frozen for ever.

    BTC is kept in millisatoshi: scale 11, so 1 BTC = 10**11.
    """

    code: str
    scale: int


BTC = Asset("BTC", 11)
USD = Asset("USD", 6)

MSAT_PER_SAT = 1_000
MSAT_PER_BTC = 100_000_000_000


def check_amount(amount: int) -> int:
    """Return `amount` if it is an integer in [0, 2^127), else raise InvalidAmount."""
    if type(amount) is not int or not 0 <= amount < AMOUNT_END:
        raise InvalidAmount(f"an amount is an integer from 0 to 2^127-1, not {amount!r}")
    return amount


def divide(numerator: int, denominator: int, rounding: Rounding) -> int:
    """Divide two non-negative integers, rounding as told."""
    if rounding is Rounding.DOWN:
        return numerator // denominator
    return -(-numerator // denominator)


def sat_to_msat(amount_sat: int) -> int:
    """Exact: 1 sat is 1,000 msat."""
    return amount_sat * MSAT_PER_SAT


def parse_decimal(text: str, scale: int) -> int:
    """Read a non-negative decimal string into units of 10**-scale, exactly.

    More decimals than the scale holds is an error, never a rounding. Raises InvalidAmount.
    """
    match = _DECIMAL.fullmatch(text) if len(text) <= _DECIMAL_MAX_CHARS else None
    if match is None:
        raise InvalidAmount(f"not a decimal amount: {text[:_DECIMAL_MAX_CHARS]!r}")
    whole, fraction = match.group(1), match.group(2) or ""
    if len(fraction.rstrip("0")) > scale:
        raise InvalidAmount(f"{text!r} has more than {scale} decimals")
    return check_amount(int(whole + fraction[:scale].ljust(scale, "0")))


def format_decimal(amount: int, scale: int) -> str:
    """Write an amount in units of 10**-scale as a decimal string without trailing zeros."""
    whole, fraction = divmod(amount, 10**scale)
    digits = str(fraction).rjust(scale, "0").rstrip("0") if fraction else ""
    return f"{whole}.{digits}" if digits else str(whole)
