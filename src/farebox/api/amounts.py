"""Amounts as JSON carries them: in an asset's smallest unit, whole.

Bitcoin's are numbers. Those of other assets have more digits than a double holds: they are shown
as decimal text, and taken as either.
"""

from __future__ import annotations

from typing import overload

from farebox.api.problems import bad_request
from farebox.money import AMOUNT_END, BTC
from farebox.payments.exchange import Quoted
from farebox.paywall.model import Answer

_DIGITS_MAX = 39


def shown(amount: int | None, asset: str) -> int | str | None:
    """An amount as it is told."""
    return amount if amount is None or asset == BTC.code else str(amount)


def rate(quoted: Quoted) -> dict[str, object]:
    """A rate as it is told: msat for the smallest unit as an exact fraction, and our spread."""
    return {"msat_per_unit": quoted.msat, "spread_ppm": quoted.spread_ppm}


@overload
def whole(told: None) -> None: ...
@overload
def whole(told: int | str) -> int | Answer: ...
@overload
def whole(told: int | str | None) -> int | Answer | None: ...
def whole(told: int | str | None) -> int | Answer | None:
    """A positive amount as it was told, or what is wrong with it."""
    if isinstance(told, str) and told.isascii() and told.isdigit() and len(told) <= _DIGITS_MAX:
        told = int(told)
    if told is None or (isinstance(told, int) and 0 < told < AMOUNT_END):
        return told
    return bad_request("amount_invalid", "An amount is a positive whole number, or its digits.")
