"""The terms of a quote: a rule's prices as integers over one denominator.

Fractions are slow and integers are not: the terms are compiled once per rule and rate, and a
charge is then a few multiplications and one division.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import lcm

import msgspec

from farebox.clock import NS_PER_S
from farebox.money import MSAT_PER_SAT
from farebox.pricing.model import Component, Currency, Rule

#: Units are counted in millionths, so that an upstream may report 12.5 of them.
MICROS_PER_UNIT = 1_000_000

_THINGS = {Component.SECOND: NS_PER_S, Component.UNIT: MICROS_PER_UNIT}


class Terms(msgspec.Struct, frozen=True, omit_defaults=True):
    """Prices in msat of one thing each, all over `denominator`.

    `cached_token` and `reasoning_token` hold the price of an input and output token where a rule
    has none for them.
    """

    denominator: int = 1
    request: int = 0
    image: int = 0
    input_token: int = 0
    output_token: int = 0
    cached_token: int = 0
    reasoning_token: int = 0
    nanosecond: int = 0
    byte: int = 0
    micro_unit: int = 0
    minimum_msat: int = 0

    @property
    def by_token(self) -> bool:
        """Whether it matters how many tokens a request uses."""
        tokens = (self.input_token, self.output_token, self.cached_token, self.reasoning_token)
        return any(tokens)

    @property
    def is_fixed(self) -> bool:
        """Whether a request costs the same whatever it uses."""
        return not (self.image or self.by_token or self.nanosecond or self.byte or self.micro_unit)


def compile_terms(rule: Rule, msat_per_usd: Fraction | None) -> Terms:
    """Turn a rule's prices into integers. `msat_per_usd` is needed where a price is in USD."""
    worth: Mapping[Currency, Fraction | None] = {
        Currency.MSAT: Fraction(1),
        Currency.SAT: Fraction(MSAT_PER_SAT),
        Currency.USD: msat_per_usd,
    }
    multiplier = Fraction(rule.multiplier)
    each: dict[Component, Fraction] = {}
    for component, price in rule.prices:
        currency_msat = worth[price.currency]
        assert currency_msat is not None, "a rule with a price in USD is compiled with a rate"
        each[component] = price.each * currency_msat * multiplier / _THINGS.get(component, 1)
    return _over_one_denominator(each, rule.minimum_msat)


def _over_one_denominator(each: Mapping[Component, Fraction], minimum_msat: int) -> Terms:
    denominator = lcm(*(price.denominator for price in each.values()))

    def whole(*components: Component) -> int:
        price = next((each[component] for component in components if component in each), None)
        return 0 if price is None else price.numerator * (denominator // price.denominator)

    return Terms(
        denominator=denominator,
        request=whole(Component.REQUEST),
        image=whole(Component.IMAGE),
        input_token=whole(Component.INPUT_TOKEN),
        output_token=whole(Component.OUTPUT_TOKEN),
        cached_token=whole(Component.CACHED_TOKEN, Component.INPUT_TOKEN),
        reasoning_token=whole(Component.REASONING_TOKEN, Component.OUTPUT_TOKEN),
        nanosecond=whole(Component.SECOND),
        byte=whole(Component.BYTE),
        micro_unit=whole(Component.UNIT),
        minimum_msat=minimum_msat,
    )
