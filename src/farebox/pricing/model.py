"""What a price is made of: components, prices, and the rules that say where they hold."""

from __future__ import annotations

import enum
import re
from fractions import Fraction
from typing import Final, Protocol

import msgspec

#: What a price may be multiplied into: one of the thing, a thousand or a million of it.
PER_SCALES = {"": 1, "1k": 1_000, "1M": 1_000_000}


class Currency(enum.StrEnum):
    """What prices are written in. USD needs a rate; the others are bitcoin."""

    SAT = "sat"
    MSAT = "msat"
    USD = "USD"


class Component(enum.StrEnum):
    """What can be charged for. The value is the key in a settings table.

    Cached tokens are part of the input and reasoning tokens part of the output: one with a price
    of its own is charged at that price instead, never at both.
    """

    REQUEST = "per_request"
    IMAGE = "per_image"
    INPUT_TOKEN = "per_input_token"  # noqa: S105
    OUTPUT_TOKEN = "per_output_token"  # noqa: S105
    CACHED_TOKEN = "per_cached_token"  # noqa: S105
    REASONING_TOKEN = "per_reasoning_token"  # noqa: S105
    SECOND = "per_second"
    BYTE = "per_byte"
    UNIT = "per_unit"


#: What only the protocols that are understood tell, and nothing else can be counted by.
COUNTED: Final = frozenset(
    {
        Component.IMAGE,
        Component.INPUT_TOKEN,
        Component.OUTPUT_TOKEN,
        Component.CACHED_TOKEN,
        Component.REASONING_TOKEN,
    }
)


class Price(msgspec.Struct, frozen=True):
    """`amount` (decimal text) of `currency` for `per` of the thing: 1, 1,000 or 1,000,000."""

    amount: str
    currency: Currency
    per: int = 1

    @property
    def each(self) -> Fraction:
        """The exact price of one, in the currency."""
        return Fraction(self.amount) / self.per


class UnitSource(msgspec.Struct, frozen=True):
    """Where an upstream reports the units it used: a response header, or a JSON field.

    `field` is a JSON pointer (RFC 6901) into the answer's body. Exactly one of the two is set.
    """

    header: str | None = None
    field: str | None = None


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A price and where it holds. Of a book's rules the first that matches counts.

    methods: empty for every method. path, model: patterns in which `*` is any text (slashes
    too) and `?` one character; without `model` a rule holds for requests that name none as well.
    multiplier: decimal text by which all prices, but not the minimum, are multiplied.
    max_…: what a request of this rule can use at most; they bound the hold.
    """

    name: str
    methods: tuple[str, ...] = ()
    path: str = "*"
    model: str | None = None
    prices: tuple[tuple[Component, Price], ...] = ()
    free: bool = False
    minimum_msat: int = 0
    multiplier: str = "1"
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    max_seconds: int | None = None
    max_bytes: int | None = None
    max_units: int | None = None
    unit: UnitSource | None = None

    @property
    def currencies(self) -> frozenset[Currency]:
        """The currencies its prices are written in."""
        return frozenset(price.currency for _, price in self.prices)

    @property
    def is_counted(self) -> bool:
        """Whether its price is by what only an understood protocol tells."""
        return any(component in COUNTED and price.each for component, price in self.prices)


class Glob(Protocol):
    """Says whether a text matches a pattern."""

    def __call__(self, text: str, /) -> object:
        """A truthy value if the whole text matches."""
        ...


def is_pattern(text: str) -> bool:
    """Whether a pattern matches more than itself."""
    return "*" in text or "?" in text


def glob(pattern: str) -> Glob:
    """Compile a pattern of `*` (any text) and `?` (one character); case counts.

    Callers choose the text, so matching must not backtrack: each star but the last takes the
    first place where the literal after it fits and never reconsiders, which loses no match.
    """
    first, *rest = (
        "".join("." if char == "?" else re.escape(char) for char in literal)
        for literal in re.split(r"\*+", pattern)
    )
    if rest:
        first += "".join(f"(?>.*?{literal})" for literal in rest[:-1]) + f".*{rest[-1]}"
    return re.compile(first, re.DOTALL).fullmatch
