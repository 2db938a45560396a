"""Prices as text and tables: what is read, what is refused, and how it is written back."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.errors import InvalidSettings
from farebox.pricing.model import Component, Currency, Price, Rule, UnitSource, glob
from farebox.pricing.parse import (
    decimal_text,
    format_price,
    parse_price,
    parse_rules,
)

AMOUNTS = st.decimals(min_value=0, max_value=10**9, places=9).map(lambda d: format(d, "f"))
PRICES = st.builds(
    lambda text, currency, per: Price(decimal_text(Decimal(text)) or "0", currency, per),
    AMOUNTS,
    st.sampled_from(Currency),
    st.sampled_from([1, 1_000, 1_000_000]),
)
TOKEN_PRICES = st.dictionaries(
    st.sampled_from([component for component in Component if component is not Component.UNIT]),
    PRICES,
    min_size=1,
).filter(lambda prices: any(price.each for price in prices.values()))


def in_order(prices: dict[Component, Price]) -> tuple[tuple[Component, Price], ...]:
    return tuple((component, prices[component]) for component in Component if component in prices)


@pytest.mark.parametrize(
    ("text", "component", "each", "currency"),
    [
        ("10 sat", Component.REQUEST, Fraction(10), Currency.SAT),
        ("10 SAT", Component.REQUEST, Fraction(10), Currency.SAT),
        ("1500 msat / request", Component.REQUEST, Fraction(1500), Currency.MSAT),
        (
            "0.002 USD / 1k input tokens",
            Component.INPUT_TOKEN,
            Fraction(2, 1_000_000),
            Currency.USD,
        ),
        ("15 usd/1M output token", Component.OUTPUT_TOKEN, Fraction(15, 10**6), Currency.USD),
        ("1 sat / 1 second", Component.SECOND, Fraction(1), Currency.SAT),
        ("1 msat/byte", Component.BYTE, Fraction(1), Currency.MSAT),
    ],
)
def test_short_text_is_an_exact_price(
    text: str, component: Component, each: Fraction, currency: Currency
) -> None:
    ((found, price),) = parse_price(text).prices
    assert (found, price.each, price.currency) == (component, each, currency)


def test_several_prices_are_joined_by_plus() -> None:
    rule = parse_price("1 sat + 0.5 USD / 1M input tokens + 2 USD / 1M output tokens")
    assert [component for component, _ in rule.prices] == [
        Component.REQUEST,
        Component.INPUT_TOKEN,
        Component.OUTPUT_TOKEN,
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sat",
        "10",
        "-1 sat",
        "1e3 sat",
        "NaN sat",
        "01 sat",
        "1 EUR",
        "1 sat / token",
        "1 sat / 1G bytes",
        "1 sat + 2 sat",
        "1 sat +",
        "0 sat",
        "٣ sat",
        "1 sat / unit",
        "9" * 2000,
    ],
)
def test_text_that_is_no_price_is_refused_and_the_key_is_named(text: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        parse_price(text, "gateway.price")
    assert caught.value.key == "gateway.price"


@given(TOKEN_PRICES)
def test_short_text_written_and_read_is_the_same(prices: dict[Component, Price]) -> None:
    written = format_price(Rule(name="any", prices=tuple(prices.items())))
    assert parse_price(written).prices == tuple(prices.items())


def test_units_and_free_rules_are_read_from_tables() -> None:
    tables: list[dict[str, object]] = [
        {"name": "a", "path": "*", "free": True},
        {"name": "b", "path": "*", "per_unit": "1 sat", "unit_header": "X-Units", "max_units": 5},
        {"name": "c", "path": "*", "per_unit": "1 sat", "unit_field": "/usage/n", "max_units": 5},
    ]
    rules = parse_rules(tables)
    assert rules[0].free
    assert rules[1].unit == UnitSource(header="X-Units")
    assert rules[2].unit == UnitSource(field="/usage/n")


@pytest.mark.parametrize(
    ("table", "key", "allowed"),
    [
        ({"per_reqest": "1 sat"}, "price[0].per_reqest", "did you mean per_request?"),
        ({"qqq": 1}, "price[0].qqq", "one of"),
        ({"per_request": 10}, "price[0].per_request", "AMOUNT CURRENCY"),
        ({"per_request": "1 sat / 1k tokens"}, "price[0].per_request", "AMOUNT CURRENCY"),
        ({"per_request": "1 sat", "multiplier": 1.1}, "price[0].multiplier", "in quotes"),
        ({"per_request": "1 sat", "multiplier": "0"}, "price[0].multiplier", "above zero"),
        ({"per_request": "1 sat", "path": "v1"}, "price[0].path", "begins with"),
        ({"per_request": "1 sat", "methods": ["get"]}, "price[0].methods", "capitals"),
        ({"per_request": "1 sat", "minimum_msat": -1}, "price[0].minimum_msat", "whole number"),
        ({"per_request": "1 sat", "max_bytes": True}, "price[0].max_bytes", "whole number"),
        ({"per_request": "1 sat", "free": True}, "price[0]", "not both"),
        ({"per_request": "1 sat", "price": "1 sat"}, "price[0].price", "not both"),
        ({"path": "/v1/*"}, "price[0]", "free = true"),
        ({"per_request": "0 sat"}, "price[0]", "free = true"),
        ({"per_unit": "1 sat"}, "price[0]", "unit_header"),
        ({"per_unit": "1 sat", "unit_header": "x"}, "price[0]", "max_units"),
        ({"per_request": "1 sat", "unit_field": "x"}, "price[0].unit_field", "JSON pointer"),
    ],
)
def test_a_wrong_table_names_the_key_and_what_is_allowed(
    table: dict[str, object], key: str, allowed: str
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        parse_rules([table])
    assert caught.value.key == key
    assert allowed in caught.value.allowed


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("/v1/*", "/v1/a/b", "/v2/a"),
        ("gpt-4*", "gpt-4o", "gpt-3"),
        ("*mini*", "o4-mini-high", "o4"),
        ("a?c", "abc", "ac"),
        ("a*b*c", "aXbYbc", "aXbY"),
        ("*ab", "aab", "aba"),
        ("a.c", "a.c", "abc"),
    ],
)
def test_patterns_match_stars_and_question_marks(pattern: str, matching: str, other: str) -> None:
    assert glob(pattern)(matching)
    assert not glob(pattern)(other)


def test_a_hostile_text_does_not_make_a_pattern_slow() -> None:
    # With a backtracking star this would take years.
    assert not glob("*a" * 40 + "b")("a" * 5_000)


@given(st.text("ab*?", max_size=6), st.text("ab", max_size=8))
def test_patterns_agree_with_the_plain_definition(pattern: str, text: str) -> None:
    def matches(pattern: str, text: str) -> bool:
        if not pattern:
            return not text
        if pattern[0] == "*":
            return any(matches(pattern[1:], text[at:]) for at in range(len(text) + 1))
        return bool(text) and pattern[0] in ("?", text[0]) and matches(pattern[1:], text[1:])

    assert bool(glob(pattern)(text)) == matches(pattern, text)


@pytest.mark.parametrize("text", ["1e-7", "0.00000015", "12.50", "0", "-0", "15", "1E+3"])
def test_decimals_keep_their_exact_value_as_text(text: str) -> None:
    assert Fraction(decimal_text(Decimal(text)) or "missing") == Fraction(text)


@pytest.mark.parametrize("text", ["-1", "NaN", "Infinity", "1e18", "1e-99", "1e999999"])
def test_decimals_out_of_bounds_are_no_price(text: str) -> None:
    assert decimal_text(Decimal(text)) is None
