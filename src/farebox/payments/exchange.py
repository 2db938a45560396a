"""Conversion between what a rail brings and what accounts are kept in.

An account is kept in millisatoshi. What arrives in another asset is bought at a rate that was
quoted, what leaves in one is sold the same way; both legs are one unit. An asset that the operator
*holds* is not converted: it stays on a balance of its own beside the account (`balance_of`).

| flow          | postings                                                                        |
|---------------|---------------------------------------------------------------------------------|
| USDC arrives  | custody:USDC → exchange:USDC, all; exchange:BTC → account, what it is worth     |
|               | less the spread; → revenue, the spread; → revenue:rounding, the rest            |
| USDC is to go | Hold account → exchange:BTC, its cost; Hold exchange:USDC → custody:USDC        |
| USDC has gone | Post both; exchange:BTC → revenue, the spread; → revenue:rounding, the rest     |
| a reversal    | exchange:USDC → custody:USDC, all; account, then receivable → exchange:BTC;     |
|               | expense:exchange → exchange:BTC, what was ours of it                            |

So each asset balances by itself, and the two exchange accounts show the position that the operator
has taken: what is owed in bitcoin and held in something else. Nothing here buys or sells anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

import msgspec

from farebox.ledger.model import Kind, Open, Step, Transfer
from farebox.money import BTC, Rounding, divide

_MILLION = 1_000_000
#: What was earned and may be withdrawn; the spread of a conversion among it.
REVENUE = "revenue"
ROUNDING = "revenue:rounding"
LOST = "expense:exchange"


class Worths(Protocol):
    """What one smallest unit of an asset is worth now, in msat; None: no rate may be used."""

    def msat_per_unit(self, asset: str) -> Fraction | None:
        """The rate, from memory."""
        ...


class Quoted(msgspec.Struct, frozen=True):
    """A rate that was promised: msat per smallest unit as an exact fraction, and our spread."""

    asset: str
    msat: str
    spread_ppm: int

    @property
    def rate(self) -> Fraction:
        """The rate without the spread."""
        return Fraction(self.msat)


class _NoWorths:
    def msat_per_unit(self, asset: str) -> Fraction | None:
        return None


@dataclass(frozen=True, slots=True)
class Exchange:
    """At what rates assets are converted, and which are not: those are held as they come."""

    worths: Worths = field(default_factory=_NoWorths)
    spread_ppm: int = 0
    held: frozenset[str] = frozenset()

    def converts(self, asset: str) -> bool:
        """Whether an asset becomes msat when it arrives."""
        return asset != BTC.code and asset not in self.held

    def quote(self, asset: str) -> Quoted | None:
        """The rate now; None: there is none that may be used."""
        rate = self.worths.msat_per_unit(asset)
        return None if rate is None else Quoted(asset, str(rate), self.spread_ppm)

    def worth(self, amount: int, asset: str, other: str, rounding: Rounding) -> int | None:
        """What `amount` of an asset is in another's smallest unit, without any spread."""
        if asset == other:
            return amount
        of, to = self._rate(asset), self._rate(other)
        if of is None or to is None:
            return None
        return _whole(amount * of / to, rounding)

    def _rate(self, asset: str) -> Fraction | None:
        return Fraction(1) if asset == BTC.code else self.worths.msat_per_unit(asset)


#: Where no rail brings anything else.
ONLY_BITCOIN = Exchange()


@dataclass(frozen=True, slots=True)
class Split:
    """A conversion in msat: `total` at the bare rate, and who has what of it.

    Bought: total = account + spread + rounding. Sold: account = total + spread + rounding.
    """

    total: int
    account: int
    spread: int
    rounding: int


def bought(quoted: Quoted, amount: int) -> Split:
    """What `amount` of the asset brings an account, rounded in our favour by less than 1 msat."""
    worth = quoted.rate * amount
    total = _whole(worth, Rounding.DOWN)
    account = _whole(worth * (_MILLION - quoted.spread_ppm) / _MILLION, Rounding.DOWN)
    spread = _whole(worth * quoted.spread_ppm / _MILLION, Rounding.DOWN)
    return Split(total, account, spread, total - account - spread)


def sold(quoted: Quoted, amount: int) -> Split:
    """What `amount` of the asset costs an account, rounded in our favour by less than 1 msat."""
    worth = quoted.rate * amount
    total = _whole(worth, Rounding.DOWN)
    account = _whole(worth * (_MILLION + quoted.spread_ppm) / _MILLION, Rounding.UP)
    spread = _whole(worth * quoted.spread_ppm / _MILLION, Rounding.DOWN)
    return Split(total, account, spread, account - total - spread)


def mixed(one: Quoted, amount: int, other: Quoted, rest: int) -> Quoted:
    """The rate of a whole of which `amount` has one rate and the `rest` another; their spreads are
    the operator's, and the same."""
    worth = one.rate * amount + other.rate * rest
    return Quoted(other.asset, str(worth / (amount + rest)), other.spread_ppm)


def affordable(quoted: Quoted, amount_msat: int) -> int:
    """The most of the asset that costs at most `amount_msat`."""
    cost_of_one = quoted.rate * (_MILLION + quoted.spread_ppm) / _MILLION
    return _whole(amount_msat / cost_of_one, Rounding.DOWN)


def _whole(value: Fraction, rounding: Rounding) -> int:
    return divide(value.numerator, value.denominator, rounding)


def exchange_account(asset: str) -> str:
    """The account of an asset's leg of conversions."""
    return f"exchange:{asset}"


def balance_of(account: str, asset: str) -> str:
    """The ledger account of what a customer holds in an asset."""
    return account if asset == BTC.code else f"{account}/{asset}"


def buying(quoted: Quoted, custody: str, amount: int, account: str, code: str) -> tuple[Step, ...]:
    """The postings that convert what lies in custody onto an account."""
    split = bought(quoted, amount)
    return (
        *legs(quoted.asset),
        Transfer(custody, exchange_account(quoted.asset), amount, code),
        Transfer(exchange_account(BTC.code), account, split.account, code),
        *ours(split),
    )


def taking_back(
    quoted: Quoted, custody: str, amount: int, account: str, left_msat: int, owed_by: str
) -> tuple[Step, ...]:
    """The postings that undo `buying`: of the account what is left there, the rest is owed."""
    split, btc = bought(quoted, amount), exchange_account(BTC.code)
    return (
        Open(LOST, BTC.code, Kind.EXPENSE),  # what we earned by it may have been withdrawn
        Transfer(exchange_account(quoted.asset), custody, amount, "reversal"),
        Transfer(account, btc, left_msat, "reversal"),
        Transfer(owed_by, btc, split.account - left_msat, "reversal"),
        Transfer(LOST, btc, split.spread + split.rounding, "reversal"),
    )


def legs(asset: str) -> tuple[Step, ...]:
    """The accounts that a conversion needs."""
    return (
        Open(exchange_account(asset), asset, Kind.EXCHANGE),
        Open(exchange_account(BTC.code), BTC.code, Kind.EXCHANGE),
        Open(REVENUE, BTC.code, Kind.REVENUE),
        Open(ROUNDING, BTC.code, Kind.REVENUE),
    )


def ours(split: Split) -> tuple[Step, ...]:
    """The postings that part what is ours from what a conversion brought."""
    btc = exchange_account(BTC.code)
    return (
        Transfer(btc, REVENUE, split.spread, "spread"),
        Transfer(btc, ROUNDING, split.rounding, "rounding"),
    )
