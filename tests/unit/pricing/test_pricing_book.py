"""Quotes and charges: what holds, what is refused, and that no charge exceeds its quote."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.clock import NS_PER_S
from farebox.money import AMOUNT_END
from farebox.pricing.book import (
    DEFAULT_BOUNDS,
    Charge,
    NoPrice,
    NoPriceReason,
    PriceBook,
    Quote,
    charge,
    most_usage,
)
from farebox.pricing.model import Component, Currency, Price, Rule, UnitSource
from farebox.pricing.parse import parse_price, parse_rule
from farebox.pricing.rates import Rate, RateStale
from farebox.pricing.request import RequestFacts, read_request
from farebox.pricing.usage import Usage

NOW_NS = 1_750_000_000 * NS_PER_S
CHAT = "/v1/chat/completions"


def rate(msat_per_usd: Fraction = Fraction(1_000_000), as_of_ns: int = NOW_NS) -> Rate:
    return Rate(
        currency=Currency.USD,
        msat_per_unit=msat_per_usd,
        as_of_ns=as_of_ns,
        valid_until_ns=as_of_ns + 300 * NS_PER_S,
        sources=("test",),
    )


RATES = {Currency.USD: rate()}


def facts(path: str = CHAT, method: str = "POST", **body: Any) -> RequestFacts:
    return read_request(method, path, json.dumps({"model": "m", **body}).encode())


def quoted(rule: Rule, request: RequestFacts | None = None, **changes: Any) -> Quote:
    quote = PriceBook([rule], **changes).quote(request or facts(), RATES, NOW_NS, "req_1")
    assert isinstance(quote, Quote)
    return quote


def test_a_fixed_price_is_its_own_maximum() -> None:
    quote = quoted(parse_price("10 sat"))
    assert (quote.maximum_msat, quote.rate) == (10_000, None)
    assert charge(quote, Usage(input_tokens=10**6, body_bytes=10**6)) == Charge(10_000)


def test_what_has_no_price_is_refused() -> None:
    book = PriceBook([parse_rule({"path": "/v1/*", "methods": ["POST"], "per_request": "1 sat"})])
    for request in (facts("/v2/x"), facts(method="GET"), facts("/v1")):
        assert book.quote(request, RATES, NOW_NS, "q") == NoPrice(NoPriceReason.NO_RULE)
    assert PriceBook([]).quote(facts(), {}, NOW_NS, "q") == NoPrice(NoPriceReason.NO_RULE)


def test_an_explicit_free_rule_is_free() -> None:
    quote = quoted(parse_rule({"free": True}))
    assert (quote.free, quote.maximum_msat, charge(quote, Usage(output_tokens=9))) == (
        *(True, 0),
        Charge(0),
    )


def test_the_first_rule_that_matches_wins_patterned_or_by_name() -> None:
    book = PriceBook(
        [
            parse_rule({"name": "mini", "model": "gpt-*-mini", "per_request": "1 sat"}),
            parse_rule({"name": "exact", "model": "gpt-4", "per_request": "2 sat"}),
            parse_rule({"name": "family", "model": "gpt-*", "per_request": "3 sat"}),
            parse_rule({"name": "late", "model": "gpt-5", "per_request": "4 sat"}),
            parse_rule({"name": "rest", "per_request": "5 sat"}),
        ]
    )

    def name(model: str | None) -> str:
        quote = book.quote(facts(model=model), {}, NOW_NS, "q")
        assert isinstance(quote, Quote)
        return quote.rule

    models = ("gpt-4-mini", "gpt-4", "gpt-5", "claude", None)
    assert [name(model) for model in models] == ["mini", "exact", "family", "rest", "rest"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b"{"),
        (CHAT, b'{"model":"cheap","model":"dear"}'),
        ("/a/../b", b"{}"),
        (CHAT, b'{"max_tokens":-1}'),
    ],
)
def test_what_cannot_be_read_has_no_price(path: str, body: bytes) -> None:
    book = PriceBook([parse_price("1 sat")])
    request = read_request("POST", path, body)
    assert book.quote(request, {}, NOW_NS, "q") == NoPrice(NoPriceReason.UNREADABLE)


def test_a_stale_or_missing_rate_is_refused() -> None:
    book = PriceBook([parse_price("1 USD")])
    assert isinstance(book.quote(facts(), {}, NOW_NS, "q"), RateStale)
    assert isinstance(book.quote(facts(), RATES, NOW_NS, "q"), Quote)
    for later_s in (300, -6):
        assert isinstance(book.quote(facts(), RATES, NOW_NS + later_s * NS_PER_S, "q"), RateStale)


def test_a_quote_is_honoured_after_the_rate_has_changed() -> None:
    book = PriceBook([parse_price("1 USD")])
    first = book.quote(facts(), RATES, NOW_NS, "q")
    second = book.quote(facts(), {Currency.USD: rate(Fraction(10, 3))}, NOW_NS, "q")
    assert isinstance(first, Quote)
    assert isinstance(second, Quote)
    assert (charge(first, Usage()), charge(second, Usage())) == (Charge(1_000_000), Charge(4))
    assert second.rate is not None
    assert second.rate.msat_per_unit == "10/3"


def test_a_quote_expires() -> None:
    quote = quoted(parse_price("1 sat"), quote_ttl_s=30)
    assert quote.is_open(NOW_NS + 30 * NS_PER_S - 1)
    assert not quote.is_open(NOW_NS + 30 * NS_PER_S)


def test_cached_and_reasoning_tokens_are_charged_once() -> None:
    rule = parse_price(
        "10 msat / input token + 1 msat / cached token"
        " + 100 msat / output token + 1000 msat / reasoning token"
    )
    usage = Usage(input_tokens=10, cached_tokens=4, output_tokens=5, reasoning_tokens=2)
    request = facts(max_tokens=100)
    assert charge(quoted(rule, request), usage).amount_msat == 6 * 10 + 4 + 3 * 100 + 2 * 1000
    plain = parse_price("10 msat / input token + 100 msat / output token")
    assert charge(quoted(plain, request), usage).amount_msat == 10 * 10 + 5 * 100


def test_the_charge_is_rounded_up_once() -> None:
    rule = parse_price("0.4 msat / input token + 0.4 msat / output token")
    assert charge(quoted(rule), Usage(input_tokens=1, output_tokens=1)).amount_msat == 1
    assert charge(quoted(rule), Usage(input_tokens=3, output_tokens=3)).amount_msat == 3


def test_minimum_and_multiplier_apply() -> None:
    rule = parse_rule({"per_byte": "1 msat", "multiplier": "1.10", "minimum_msat": 500})
    quote = quoted(rule)
    assert charge(quote, Usage(body_bytes=1)).amount_msat == 500
    assert charge(quote, Usage(body_bytes=1001)).amount_msat == 1102


def test_seconds_units_and_images_are_charged() -> None:
    rule = parse_rule(
        {
            "per_second": "2 sat",
            "per_unit": "1 sat",
            "per_image": "3 sat",
            "unit_header": "X-Units",
            "max_units": 10,
            "max_seconds": 60,
        }
    )
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    request = facts(messages=[{"role": "user", "content": [picture, picture]}])
    quote = quoted(rule, request)
    assert quote.unit == UnitSource(header="X-Units")
    assert quote.maximum_msat == 1000 * (60 * 2 + 10 + 2 * 3)
    usage = Usage(duration_ns=NS_PER_S // 2, micro_units=2_500_000)
    assert charge(quote, usage).amount_msat == 1000 + 2500 + 6000


def test_the_maximum_respects_the_caller_s_limits() -> None:
    rule = parse_price("1 sat / output token")
    assert quoted(rule, facts(max_tokens=7)).maximum_msat == 7_000
    assert quoted(rule, facts(max_tokens=7, n=3)).maximum_msat == 21_000
    assert quoted(rule, facts()).maximum_msat == DEFAULT_BOUNDS.max_output_tokens * 1000
    known = msgspec.structs.replace(rule, max_output_tokens=50)
    assert quoted(known, facts(max_tokens=10**6)).maximum_msat == 50_000
    assert quoted(rule, facts("/v1/embeddings")).maximum_msat == 0


def test_the_maximum_bounds_input_by_its_bytes_or_by_the_model() -> None:
    rule = parse_price("1 sat / input token")
    short = quoted(rule, facts(prompt="x" * 100)).maximum_msat
    long = quoted(rule, facts(prompt="x" * 1100)).maximum_msat
    assert long - short == 1000 * 1000
    known = msgspec.structs.replace(rule, max_input_tokens=200)
    assert quoted(known, facts(prompt="x" * 5000)).maximum_msat == 200_000
    elsewhere = facts("/v1/responses", previous_response_id="r")
    assert quoted(rule, elsewhere).maximum_msat == DEFAULT_BOUNDS.max_input_tokens * 1000


def test_a_price_beyond_what_can_be_counted_is_refused() -> None:
    rule = parse_rule({"per_byte": "999999999 USD", "max_bytes": 10**11})
    huge = {Currency.USD: rate(Fraction(10**29))}
    found = PriceBook([rule]).quote(facts(), huge, NOW_NS, "q")
    assert found == NoPrice(NoPriceReason.TOO_LARGE)


def test_an_upstream_that_reports_too_much_is_capped() -> None:
    quote = quoted(parse_price("1 sat / output token"), facts(max_tokens=5))
    assert charge(quote, Usage(output_tokens=6)) == Charge(5_000, capped=True)
    assert charge(quote, Usage(output_tokens=5)) == Charge(5_000)


def test_no_capitals_slip_past_a_rule() -> None:
    dear = {"path": "/Images/*", "per_request": "9 sat"}
    big = {"path": "/v1/chat/*", "model": "llama:70b", "per_request": "9 sat"}
    book = PriceBook([parse_rule(table) for table in (dear, big, {"per_request": "1 sat"})])

    def quoted(path: str, body: bytes | None = None) -> int | NoPriceReason:
        found = book.quote(read_request("POST", path, body), {}, NOW_NS, "q")
        assert not isinstance(found, RateStale)
        return found.reason if isinstance(found, NoPrice) else found.maximum_msat

    assert [quoted(path) for path in ("/Images/Cat", "/other/Cat")] == [9_000, 1_000]
    assert quoted("/images/Cat") is NoPriceReason.CAPITALS
    assert book.needs_body("POST", "/V1/Chat/x")
    for path, model in (("/V1/Chat/x", "llama:70b"), ("/v1/chat/x", "Llama:70B")):
        assert quoted(path, b'{"model":"%s"}' % model.encode()) is NoPriceReason.CAPITALS
    assert quoted("/v1/chat/x", b'{"model":"llama:70b"}') == 9_000
    assert quoted("/v1/chat/x", b'{"model":"Other"}') == 1_000
    twins = [{"model": name, "per_request": "2 sat"} for name in ("Twin", "twin")]
    book = PriceBook([parse_rule(table) for table in twins])
    assert quoted("/v1/chat/x", b'{"model":"twin"}') == 2_000
    assert quoted("/v1/chat/x", b'{"model":"TWIN"}') is NoPriceReason.NO_RULE


@pytest.mark.parametrize("price", ["1 sat / 1k input tokens", "5 sat + 1 sat / image"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/messages/batches"),
        ("GET", "/v1/responses/resp_1"),
        ("POST", "/api/chat"),
        ("POST", "/V1/Chat/Completions"),
    ],
)
def test_what_tells_no_tokens_has_no_price_by_the_token(method: str, path: str, price: str) -> None:
    facts = read_request(method, path, b"{}")
    quoted = PriceBook([parse_price(price)]).quote(facts, {}, NOW_NS, "q")
    assert quoted == NoPrice(NoPriceReason.UNCOUNTED)


def test_the_body_is_needed_only_where_the_price_depends_on_it() -> None:
    book = PriceBook(
        [
            parse_rule({"path": "/fixed/*", "per_request": "1 sat"}),
            parse_rule({"path": "/metered/*", "per_output_token": "1 sat"}),
            parse_rule({"path": "/models/*", "model": "a", "per_request": "1 sat"}),
            parse_rule({"path": "/models/*", "per_request": "1 sat"}),
        ]
    )
    paths = ("/fixed/a", "/metered/a", "/models/a", "/none")
    assert [book.needs_body("POST", path) for path in paths] == [False, True, True, False]
    unread = read_request("POST", "/fixed/chat/completions", None)
    assert isinstance(book.quote(unread, {}, NOW_NS, "q"), Quote)


def test_callers_cannot_grow_the_book_s_memory() -> None:
    book = PriceBook([parse_price("1 sat")])
    for number in range(3_000):
        request = RequestFacts(method="GET", path=f"/{number}")
        book.quote(request, {}, NOW_NS, "q")
        book.needs_body("GET", f"/{number}")
    assert len(book._found) <= 1_024
    assert len(book._body_needed) <= 1_024


PRICES = st.builds(
    Price,
    st.sampled_from(["0.000001", "0.15", "1", "3.7", "12"]),
    st.sampled_from(Currency),
    st.sampled_from([1, 1_000, 1_000_000]),
)
RULES = st.builds(
    lambda prices, minimum, multiplier: Rule(
        name="any",
        prices=tuple(prices.items()),
        minimum_msat=minimum,
        multiplier=multiplier,
        max_units=1_000,
    ),
    st.dictionaries(st.sampled_from(Component), PRICES, min_size=1),
    st.integers(0, 10_000),
    st.sampled_from(["1", "1.10", "0.333"]),
)
COUNTS = st.integers(0, 10**9)
USAGES = st.builds(
    Usage,
    input_tokens=COUNTS,
    output_tokens=COUNTS,
    cached_tokens=COUNTS,
    reasoning_tokens=COUNTS,
    duration_ns=st.integers(0, 10**15),
    body_bytes=COUNTS,
    micro_units=st.integers(0, 10**18),
)
REQUESTS = st.builds(
    lambda limit, choices, text: facts(max_tokens=limit, n=choices, prompt=text),
    st.none() | st.integers(0, 10_000),
    st.integers(1, 5),
    st.text(max_size=50),
)


@given(RULES, REQUESTS, USAGES)
def test_no_charge_exceeds_its_quote(rule: Rule, request: RequestFacts, usage: Usage) -> None:
    quote = quoted(rule, request)
    cost = charge(quote, usage)
    assert 0 <= cost.amount_msat <= quote.maximum_msat < AMOUNT_END
    assert cost.amount_msat == quote.maximum_msat or not cost.capped


@given(RULES, REQUESTS, st.data())
def test_usage_within_the_limits_is_never_capped(
    rule: Rule, request: RequestFacts, data: st.DataObject
) -> None:
    most = most_usage(request, rule, DEFAULT_BOUNDS)
    bounded = {
        name: data.draw(st.integers(0, getattr(most, name)))
        for name in ("input_tokens", "output_tokens", "duration_ns", "body_bytes", "micro_units")
    }
    usage = msgspec.structs.replace(
        Usage(),
        **bounded,
        cached_tokens=data.draw(st.integers(0, bounded["input_tokens"])),
        reasoning_tokens=data.draw(st.integers(0, bounded["output_tokens"])),
    )
    assert not charge(quoted(rule, request), usage).capped


@given(RULES, REQUESTS)
def test_the_dearest_usage_within_the_limits_is_the_maximum(
    rule: Rule, request: RequestFacts
) -> None:
    most = most_usage(request, rule, DEFAULT_BOUNDS)
    dearest = max(
        charge(
            msgspec.structs.replace(quoted(rule, request), maximum_msat=AMOUNT_END),
            msgspec.structs.replace(most, cached_tokens=cached, reasoning_tokens=reasoning),
        ).amount_msat
        for cached in (0, most.input_tokens)
        for reasoning in (0, most.output_tokens)
    )
    assert quoted(rule, request).maximum_msat == dearest


MORE = (
    {"input_tokens": 1},
    {"output_tokens": 1},
    {"input_tokens": 1, "cached_tokens": 1},
    {"output_tokens": 1, "reasoning_tokens": 1},
    {"duration_ns": 1},
    {"body_bytes": 1},
    {"micro_units": 1},
)


@given(RULES, USAGES, st.sampled_from(MORE), st.integers(1, 10**6))
def test_more_usage_never_costs_less(
    rule: Rule, usage: Usage, more: dict[str, int], times: int
) -> None:
    usage = msgspec.structs.replace(
        usage,
        cached_tokens=min(usage.cached_tokens, usage.input_tokens),
        reasoning_tokens=min(usage.reasoning_tokens, usage.output_tokens),
    )
    larger = msgspec.structs.replace(
        usage, **{name: getattr(usage, name) + step * times for name, step in more.items()}
    )
    quote = quoted(rule)
    assert charge(quote, usage).amount_msat <= charge(quote, larger).amount_msat


@given(RULES, USAGES, st.fractions(Fraction(1, 10**9), 10**12))
def test_a_charge_is_the_exact_sum_rounded_up(rule: Rule, usage: Usage, worth: Fraction) -> None:
    usage = msgspec.structs.replace(usage, cached_tokens=0, reasoning_tokens=0)
    quote = PriceBook([rule]).quote(facts(), {Currency.USD: rate(worth)}, NOW_NS, "q")
    assert isinstance(quote, Quote)
    unlimited = msgspec.structs.replace(quote, maximum_msat=AMOUNT_END)
    each = {Currency.SAT: Fraction(1000), Currency.MSAT: Fraction(1), Currency.USD: worth}
    used = {
        Component.REQUEST: Fraction(1),
        Component.INPUT_TOKEN: Fraction(usage.input_tokens),
        Component.OUTPUT_TOKEN: Fraction(usage.output_tokens),
        Component.SECOND: Fraction(usage.duration_ns, NS_PER_S),
        Component.BYTE: Fraction(usage.body_bytes),
        Component.UNIT: Fraction(usage.micro_units, 10**6),
    }
    total = sum(
        (
            price.each * each[price.currency] * used.get(component, Fraction(0))
            for component, price in rule.prices
        ),
        Fraction(0),
    ) * Fraction(rule.multiplier)
    amount_msat = charge(unlimited, usage).amount_msat
    assert amount_msat == max(rule.minimum_msat, -(-total.numerator // total.denominator))


@given(RULES, REQUESTS, st.fractions(Fraction(1, 10**9), 10**12))
def test_a_stored_quote_is_the_same_quote(
    rule: Rule, request: RequestFacts, worth: Fraction
) -> None:
    quote = PriceBook([rule]).quote(request, {Currency.USD: rate(worth)}, NOW_NS, "q")
    assert isinstance(quote, Quote)
    assert msgspec.json.decode(msgspec.json.encode(quote), type=Quote) == quote
