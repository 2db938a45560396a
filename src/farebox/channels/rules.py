"""Billing rules as operators write them, in YAML or TOML.

rules:
  - id: chat
    when: {path: /chat/completions, method: POST}
    strategy: {type: PerToken, unitPricePicoUSD: 20000000}
  - {id: free, when: {pathRegex: ^/public/}, strategy: {type: PerRequest, price: 0}}
  - {id: rest, default: true, strategy: {type: PerRequest, price: "5e8"}}
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from farebox.channels.billing import BillingRule, FinalCost, PerRequest, PerToken, Strategy
from farebox.errors import InvalidSettings
from farebox.money import AMOUNT_END

_RULES_MAX = 1_000
_FILE_MAX_BYTES = 1 << 20
_REGEX_MAX_CHARS = 256
_PRICE = re.compile(r"([0-9]{1,30})(?:\.0)?(?:[eE]\+?([0-9]{1,2}))?")


class _StrategyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: str
    price: int | str | None = None
    unitPricePicoUSD: int | str | None = None  # noqa: N815


class _RuleFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    strategy: _StrategyFile
    when: dict[str, Any] = {}
    default: bool = False
    authRequired: bool | None = None  # noqa: N815
    adminOnly: bool = False  # noqa: N815


class _RulesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rules: list[_RuleFile]
    version: int = 1
    serviceId: str = ""  # noqa: N815


def load_rules(path: Path) -> list[BillingRule]:
    """Rules of a `.yaml`, `.yml` or `.toml` file. Raises InvalidSettings, which says what to do."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings("rules", str(path), "a readable UTF-8 file") from error
    return parse_rules(text, "toml" if path.suffix == ".toml" else "yaml")


def parse_rules(text: str, form: str) -> list[BillingRule]:
    """Rules written in `yaml` or `toml`. Raises InvalidSettings."""
    if len(text) > _FILE_MAX_BYTES:
        raise InvalidSettings("rules", f"{len(text)} characters", f"at most {_FILE_MAX_BYTES}")
    try:
        document = tomllib.loads(text) if form == "toml" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also a date or number of none
        raise InvalidSettings("rules", f"no {form}: {error}", f"a document in {form}") from None
    try:
        file = msgspec.convert(document, _RulesFile, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InvalidSettings("rules", str(error), "{rules: [{id, when, strategy}, …]}") from None
    if not 0 < len(file.rules) <= _RULES_MAX:
        raise InvalidSettings("rules", f"{len(file.rules)} rules", f"1 to {_RULES_MAX}")
    rules = [_rule(shape) for shape in file.rules]
    if len({rule.id for rule in rules}) < len(rules):
        raise InvalidSettings("rules", "an id twice", "an id of its own for each rule")
    if sum(rule.is_default for rule in rules) > 1:
        raise InvalidSettings("rules", "several defaults", "one default")
    return rules


def _rule(shape: _RuleFile) -> BillingRule:
    when, where = dict(shape.when), f"rules.{shape.id}"
    path, regex, method = (when.pop(name, None) for name in ("path", "pathRegex", "method"))
    for name, value in (("path", path), ("pathRegex", regex), ("method", method)):
        if value is not None and not isinstance(value, str):
            raise InvalidSettings(f"{where}.when.{name}", value, "text")
    if not (shape.default or shape.when):
        raise InvalidSettings(where, "no condition", "`when: …` or `default: true`")
    strategy = _strategy(shape.strategy, where)
    charges = strategy != PerRequest(0)
    if charges and shape.authRequired is False:
        raise InvalidSettings(f"{where}.authRequired", False, "true, for a rule that charges")
    return BillingRule(
        id=shape.id,
        strategy=strategy,
        is_default=shape.default,
        path=path,
        path_regex=None if regex is None else _regex(regex, where),
        method=method,
        equal=when,
        auth_required=charges or shape.adminOnly or bool(shape.authRequired),
        admin_only=shape.adminOnly,
    )


def _regex(text: str, where: str) -> re.Pattern[str]:
    try:
        if len(text) <= _REGEX_MAX_CHARS:
            return re.compile(text)
    except re.error:
        pass
    raise InvalidSettings(
        f"{where}.when.pathRegex", text[:_REGEX_MAX_CHARS], "a short regular expression"
    )


def _strategy(shape: _StrategyFile, where: str) -> Strategy:
    match shape.type:
        case "PerRequest" if shape.unitPricePicoUSD is None:
            return PerRequest(_price(shape.price, f"{where}.strategy.price"))
        case "PerToken" if shape.price is None:
            return PerToken(_price(shape.unitPricePicoUSD, f"{where}.strategy.unitPricePicoUSD"))
        case "FinalCost" if shape.price is None and shape.unitPricePicoUSD is None:
            return FinalCost()
    raise InvalidSettings(
        f"{where}.strategy",
        shape.type,
        "{type: PerRequest, price}, {type: PerToken, unitPricePicoUSD} or {type: FinalCost}",
    )


def _price(value: int | str | None, where: str) -> int:
    match = _PRICE.fullmatch(str(value))
    price = int(match[1]) * 10 ** int(match[2] or 0) if match else AMOUNT_END
    if price >= AMOUNT_END:
        raise InvalidSettings(where, value, 'a whole number of 10^-12 USD, such as 1000 or "5e12"')
    return price


def strategy_from(document: Mapping[str, Any]) -> Strategy:
    """A strategy as one JSON object. Raises InvalidSettings."""
    try:
        shape = msgspec.convert(document, _StrategyFile, strict=True)
    except msgspec.ValidationError as error:
        raise InvalidSettings("strategy", str(error), "{type, …}") from None
    return _strategy(shape, "strategy")
