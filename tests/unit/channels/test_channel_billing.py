"""Rules match, strategies price, rates convert; what cannot be priced is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.channels import (
    BillingContextBuilder,
    BillingEngine,
    BillingRule,
    FinalCost,
    FixedRates,
    PaymentUtils,
    PerRequest,
    PerToken,
    RequestMetadata,
    load_rules,
    parse_rules,
)
from farebox.channels.billing import Cost, RateUnknown, Unpriced
from farebox.channels.rules import strategy_from
from farebox.errors import InvalidSettings
from farebox.wire.subrav.documents import SubRavJson, convert, sub_rav_from
from farebox.wire.subrav.model import ErrorCode, SignedSubRAV
from farebox.wire.subrav.payload import RequestPayload

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "subrav.json").read_text())

YAML = """
rules:
  - id: chat
    when: {path: /chat, method: POST, tier: gold}
    strategy: {type: PerToken, unitPricePicoUSD: 20000000}
  - {id: rest, default: true, strategy: {type: PerRequest, price: "5e8"}}
  - {id: public, when: {pathRegex: ^/public/}, strategy: {type: PerRequest, price: 0}}
  - {id: own, when: {path: /own}, strategy: {type: FinalCost}, adminOnly: true}
"""
TOML = """
[[rules]]
id = "chat"
when = {path = "/chat", method = "POST", tier = "gold"}
strategy = {type = "PerToken", unitPricePicoUSD = 20_000_000}
[[rules]]
id = "rest"
default = true
strategy = {type = "PerRequest", price = "5e8"}
[[rules]]
id = "public"
when = {pathRegex = "^/public/"}
strategy = {type = "PerRequest", price = 0}
[[rules]]
id = "own"
when = {path = "/own"}
strategy = {type = "FinalCost"}
adminOnly = true
"""


async def price(rules: list[BillingRule], units: int = 0, **facts: Any) -> Cost | Unpriced:
    engine = BillingEngine(rules, FixedRates({"A": 100}))
    meta = RequestMetadata(operation="op", asset_id="A", facts=facts)
    return await engine.calc_cost(BillingContextBuilder.build("s", meta), units)


@pytest.mark.parametrize("vector", VECTORS["billing"], ids=lambda v: json.dumps(v["strategy"]))
async def test_strategies_price_as_payment_kit_does(vector: dict[str, Any]) -> None:
    rule = BillingRule(id="a", strategy=strategy_from(vector["strategy"]), is_default=True)
    cost = await price([rule], vector["units"])
    assert isinstance(cost, Cost)
    assert cost.amount == int(vector["costAsset"])
    if "costPicoUSD" in vector:
        assert cost.pico_usd == int(vector["costPicoUSD"])
        after = sub_rav_from(convert(vector["nextSubRav"], SubRavJson, "SubRAV"))
        assert after.accumulated_amount == 500 + cost.amount
    else:  # whether it is within the limit is for the processor to say
        assert cost.amount > int(vector["maxAmount"])


@pytest.mark.parametrize(("text", "form"), [(YAML, "yaml"), (TOML, "toml")])
async def test_rules_are_read_alike_from_yaml_and_toml(
    text: str, form: str, tmp_path: Path
) -> None:
    rules = parse_rules(text, form)
    (tmp_path / f"rules.{form}").write_text(text)
    assert load_rules(tmp_path / f"rules.{form}") == rules == parse_rules(YAML, "yaml")
    gold = {"path": "/chat", "method": "POST", "tier": "gold"}
    assert await price(rules, 3, **gold) == Cost(600_000, 60_000_000)
    assert await price(rules, 0, **gold | {"tier": "tin"}) == Cost(5_000_000, 500_000_000)
    assert await price(rules, path="/public/x") == Cost(0, 0)
    assert await price(rules, 12_345, path="/own") == Cost(124, 12_345)
    charges = [(rule.id, rule.payment_required, rule.auth_required) for rule in rules]
    assert charges == [
        ("chat", True, True),
        ("rest", True, True),
        ("public", False, False),
        ("own", True, True),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rules: []",
        "[1]",
        "rules: {",
        "rules: [{id: a, strategy: {type: PerRequest, price: 1}}]",
        "rules: [{id: a, default: true, strategy: {type: PerRequest}}]",
        "rules: [{id: a, default: true, strategy: {type: PerRequest, price: -1}}]",
        "rules: [{id: a, default: true, strategy: {type: PerRequest, price: 1.5}}]",
        "rules: [{id: a, default: true, strategy: {type: PerRequest, price: 5e99}}]",
        "rules: [{id: a, default: true, strategy: {type: PerToken, price: 1}}]",
        "rules: [{id: a, default: true, strategy: {type: FinalCost, price: 1}}]",
        "rules: [{id: a, default: true, strategy: {type: Other}}]",
        "rules: [{id: a, default: true, strategy: {type: FinalCost}, authRequired: false}]",
        "rules: [{id: a, default: true, price: 3, strategy: {type: FinalCost}}]",
        "rules: [{id: a, when: {pathRegex: '('}, strategy: {type: FinalCost}}]",
        "rules: [{id: a, when: {path: 3}, strategy: {type: FinalCost}}]",
        "rules: [&a {id: a, default: true, strategy: {type: FinalCost}}, *a]",
        "rules: [{id: a, default: true, strategy: &s {type: FinalCost}},"
        " {id: b, default: true, strategy: *s}]",
        "rules: [{id: 2026-99-99, default: true, strategy: {type: FinalCost}}]",
        f"rules: [{{id: a, default: true, strategy: {{type: PerRequest, price: {'9' * 5000}}}}}]",
    ],
)
def test_rules_that_could_mean_anything_are_refused(text: str) -> None:
    with pytest.raises(InvalidSettings):
        parse_rules(text, "yaml")


def test_a_rules_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="readable"):
        load_rules(tmp_path / "none.yaml")


async def test_what_has_no_rule_or_no_rate_has_no_price() -> None:
    none = await price([], path="/x")
    assert isinstance(none, Unpriced)
    assert none.code is ErrorCode.BILLING_CONFIG_ERROR

    class Broken:
        async def price_pico_usd(self, asset_id: str) -> int:
            raise RateUnknown(asset_id, fetched=True)

    rule = BillingRule(id="a", strategy=PerRequest(5), is_default=True)
    context = BillingContextBuilder.from_http_request("s", "GET", "/", "A")
    for rates, code in (
        (FixedRates({}), ErrorCode.BILLING_RATE_NOT_AVAILABLE),
        (FixedRates({"A": 0}), ErrorCode.BILLING_RATE_NOT_AVAILABLE),
        (Broken(), ErrorCode.BILLING_RATE_FETCH_FAILED),
    ):
        told = await BillingEngine([rule], rates).calc_cost(context)
        assert isinstance(told, Unpriced)
        assert told.code is code


@given(
    st.sampled_from([PerRequest, PerToken]),
    st.integers(0, 10**15),
    st.integers(0, 10**9),
    st.integers(1, 10**9),
)
async def test_a_cost_is_rounded_up_once(
    strategy: type[PerRequest | PerToken], unit: int, units: int, rate: int
) -> None:
    rule = BillingRule(id="a", strategy=strategy(unit), is_default=True)
    context = BillingContextBuilder.from_http_request("s", "GET", "/", "A")
    cost = await BillingEngine([rule], FixedRates({"A": rate})).calc_cost(context, units)
    assert isinstance(cost, Cost)
    assert 0 <= cost.amount * rate - cost.pico_usd < rate
    assert cost.pico_usd == unit * max(units, 1)


def test_the_context_of_an_http_request_has_the_channel_of_its_voucher() -> None:
    shape = convert(VECTORS["subravs"][0]["subRav"], SubRavJson, "SubRAV")
    voucher = SignedSubRAV(sub_rav_from(shape), bytes(64))
    payment = RequestPayload(client_tx_ref="r", signed_sub_rav=voucher)
    context = BillingContextBuilder.from_http_request("s", "GET", "/a", "A", payment, model="m")
    assert context.channel_id == voucher.sub_rav.channel_id
    assert context.vm_id_fragment == voucher.sub_rav.vm_id_fragment
    facts = {"operation": "GET:/a", "method": "GET", "path": "/a", "model": "m"}
    assert (context.operation, context.facts) == ("GET:/a", facts)


def test_a_final_cost_is_never_negative() -> None:
    assert FinalCost().pico_usd(-5) == 0


def test_small_questions_about_payments() -> None:
    shape = convert(VECTORS["subravs"][1]["subRav"], SubRavJson, "SubRAV")
    zero, basic = sub_rav_from(shape), VECTORS["subravs"][0]["subRav"]
    other = sub_rav_from(convert(basic, SubRavJson, "SubRAV"))
    assert PaymentUtils.is_handshake(zero)
    assert not PaymentUtils.is_handshake(other)
    assert PaymentUtils.sub_ravs_match(zero, zero)
    assert not PaymentUtils.sub_ravs_match(zero, other)
    assert PaymentUtils.extract_error_code("UNKNOWN_SUBRAV: never proposed") == "UNKNOWN_SUBRAV"
    assert PaymentUtils.extract_error_code("broken") == "PAYMENT_ERROR"
    assert PaymentUtils.generate_tx_ref() != PaymentUtils.generate_tx_ref()
