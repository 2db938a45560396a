"""Models and prices as upstreams publish them, and as callers are shown them."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.clock import NS_PER_S
from farebox.errors import InvalidInput
from farebox.pricing.book import PriceBook, Quote, charge
from farebox.pricing.model import Component, Currency, Price
from farebox.pricing.models import LeftOut, models_document, read_models
from farebox.pricing.parse import parse_price, parse_rule
from farebox.pricing.rates import Rate
from farebox.pricing.request import read_request
from farebox.pricing.usage import Usage

NOW_NS = 1_750_000_000 * NS_PER_S
RATES = {
    Currency.USD: Rate(
        currency=Currency.USD,
        msat_per_unit=Fraction(1_000_000),
        as_of_ns=NOW_NS,
        valid_until_ns=NOW_NS + NS_PER_S,
        sources=("test",),
    )
}
ROUTER = {
    "id": "vendor/model",
    "name": "A model",
    "context_length": 8000,
    "top_provider": {"max_completion_tokens": 1000},
    "pricing": {
        "prompt": "0.00000015",
        "completion": "0.0000006",
        "request": "0",
        "image": "0.002",
        "input_cache_read": "0.00000005",
        "internal_reasoning": "0",
    },
}


def listed(*entries: Any) -> bytes:
    return json.dumps({"object": "list", "data": entries}).encode()


def test_prices_per_token_become_rules_by_exact_name() -> None:
    models = read_models(listed(ROUTER), multiplier="1.10", path="/v1/*")
    (rule,) = models.rules
    assert (rule.model, rule.path, rule.multiplier) == ("vendor/model", "/v1/*", "1.10")
    assert (rule.max_input_tokens, rule.max_output_tokens) == (8000, 1000)
    # A zero for reasoning is no price of its own: it must not make reasoning free.
    assert dict(rule.prices) == {
        Component.INPUT_TOKEN: Price("0.00000015", Currency.USD),
        Component.OUTPUT_TOKEN: Price("0.0000006", Currency.USD),
        Component.IMAGE: Price("0.002", Currency.USD),
        Component.CACHED_TOKEN: Price("0.00000005", Currency.USD),
    }


def test_a_model_s_price_is_charged_with_the_multiplier() -> None:
    book = PriceBook(read_models(listed(ROUTER), multiplier="1.10").rules)
    request = read_request(
        "POST", "/v1/chat/completions", b'{"model":"vendor/model","max_tokens":10000}'
    )
    quote = book.quote(request, RATES, NOW_NS, "q")
    assert isinstance(quote, Quote)
    usage = Usage(input_tokens=1000, cached_tokens=400, output_tokens=100, reasoning_tokens=50)
    exact = (600 * Fraction("0.15") + 400 * Fraction("0.05") + 100 * Fraction("0.6")) * Fraction(
        "1.1"
    )
    assert charge(quote, usage).amount_msat == -(-exact.numerator // exact.denominator)


def test_prices_in_sats_go_before_prices_in_dollars() -> None:
    raw = b'{"data":[{"id":"m","pricing":{"prompt":1},"sats_pricing":{"prompt":1.5e-7}}]}'
    ((component, price),) = read_models(raw).rules[0].prices
    assert (component, price) == (Component.INPUT_TOKEN, Price("0.00000015", Currency.SAT))


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"id": "m"}, LeftOut.NO_PRICE),
        ({"id": "m", "pricing": None}, LeftOut.NO_PRICE),
        ({"id": "m", "pricing": {"image": "1"}}, LeftOut.NO_PRICE),
        ({"id": "m", "pricing": {"prompt": "0", "completion": "0"}}, LeftOut.ZERO_PRICE),
        ({"id": "m", "pricing": {"prompt": "-1", "completion": "-1"}}, LeftOut.BAD_PRICE),
        ({"id": "m", "pricing": {"prompt": "1", "completion": "NaN"}}, LeftOut.BAD_PRICE),
        ({"id": "m", "pricing": {"prompt": True}}, LeftOut.BAD_PRICE),
        ({"id": "m", "pricing": {"prompt": "9" * 100}}, LeftOut.BAD_PRICE),
        ({"id": "m", "pricing": {"prompt": ["1"]}}, LeftOut.BAD_PRICE),
        ({"id": "*", "pricing": {"prompt": "1"}}, LeftOut.BAD_NAME),
        ({"id": "", "pricing": {"prompt": "1"}}, LeftOut.BAD_NAME),
        ({"id": 5, "pricing": {"prompt": "1"}}, LeftOut.BAD_NAME),
    ],
)
def test_a_model_without_a_sensible_price_is_left_out_with_the_reason(
    entry: dict[str, Any], reason: LeftOut
) -> None:
    models = read_models(listed(entry))
    assert models.rules == ()
    assert [why for _, why in models.left_out] == [reason]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"data":{}}',
        b"\xff",
        b"[" * 10_000,
        b'{"data":[' + b",".join([b"{}"] * 10_001) + b"]}",
    ],
)
def test_what_is_no_list_of_models_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_models(document)


def shown(book: PriceBook, *entries: dict[str, Any], now_ns: int = NOW_NS) -> list[dict[str, Any]]:
    raw = models_document(read_models(listed(*entries)).entries, book, RATES, now_ns)
    document = json.loads(raw, parse_float=Decimal)
    assert document["object"] == "list"
    data = document["data"]
    assert isinstance(data, list)
    return data


def test_callers_see_prices_in_sats_beside_the_original() -> None:
    book = PriceBook(read_models(listed(ROUTER), multiplier="1.10").rules)
    (entry,) = shown(book, ROUTER)
    assert {key: entry[key] for key in ROUTER} == ROUTER
    sats = entry["sats_pricing"]
    assert sats["prompt"] == Decimal("0.000165")
    assert sats["completion"] == Decimal("0.00066")
    assert sats["internal_reasoning"] == sats["completion"]
    assert (sats["request"], sats["image"]) == (0, Decimal("2.2"))
    assert sats["max_prompt_cost"] == Decimal("1.32")
    assert sats["max_completion_cost"] == Decimal("0.66")
    assert sats["max_cost"] == Decimal("1.98")


def test_a_fixed_price_is_shown_for_a_plain_list() -> None:
    plain = {"id": "m", "object": "model", "created": 1, "owned_by": "me"}
    (entry,) = shown(PriceBook([parse_price("10 sat")]), plain)
    assert entry["owned_by"] == "me"
    assert (entry["sats_pricing"]["request"], entry["sats_pricing"]["max_cost"]) == (10, 10)


def test_models_that_cannot_be_bought_are_not_shown() -> None:
    rule = parse_rule({"path": "/v1/*", "model": "m", "per_request": "1 USD"})
    book = PriceBook([rule])
    entries = ({"id": "m"}, {"id": "other"}, {"id": None})
    assert [entry["id"] for entry in shown(book, *entries)] == ["m"]
    assert shown(book, *entries, now_ns=NOW_NS + NS_PER_S) == []


def test_a_price_with_endless_decimals_is_shown_rounded_up() -> None:
    (entry,) = shown(
        PriceBook([parse_rule({"per_request": "1 sat", "multiplier": "0.3333333333333"})]),
        {"id": "m"},
    )
    assert entry["sats_pricing"]["request"] == Decimal("0.333333333334")


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["id", "pricing", "sats_pricing", "context_length", "top_provider"]),
            st.none()
            | st.integers()
            | st.text(max_size=3)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.dictionaries(
                st.sampled_from(["prompt", "completion", "request"]),
                st.integers()
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.text(max_size=4),
            ),
        ),
        max_size=4,
    )
)
def test_whatever_an_upstream_lists_is_read_and_shown(entries: list[dict[str, Any]]) -> None:
    models = read_models(listed(*entries))
    assert len(models.rules) + len(models.left_out) == len(entries)
    book = PriceBook(models.rules)
    assert len(shown(book, *entries)) >= len({rule.model for rule in models.rules})
