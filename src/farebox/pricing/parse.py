"""Prices as operators write them: short text, and tables in the settings. Both ways.

Short text: `10 sat`, `0.002 USD / 1k input tokens`, several joined by `+`. A table says the same
with a key per component (`per_input_token = "0.15 USD / 1M"`) and where the rule holds.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Final, TypeVar

from farebox.errors import InvalidSettings
from farebox.money import AMOUNT_END
from farebox.pricing.model import PER_SCALES, Component, Currency, Price, Rule, UnitSource

T = TypeVar("T")

#: Longer texts are refused before they are looked at.
_TEXT_MAX_CHARS: Final = 1_000
_PATTERN_MAX_CHARS: Final = 512
_LIMIT_END: Final = 10**12

_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,17})(?:\.([0-9]{1,40}))?")
_TERM = re.compile(r"(\S+)\s+(\S+?)(?:\s*/\s*(?:(1k|1M|1)(?:\s+|$))?(.*))?")
_METHOD = re.compile(r"[A-Z]{1,20}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")

#: What short text calls each component, after "1k " or alone; a final "s" is the plural.
_WORDS: Final = {
    "request": Component.REQUEST,
    "image": Component.IMAGE,
    "input token": Component.INPUT_TOKEN,
    "output token": Component.OUTPUT_TOKEN,
    "cached token": Component.CACHED_TOKEN,
    "reasoning token": Component.REASONING_TOKEN,
    "second": Component.SECOND,
    "byte": Component.BYTE,
    "unit": Component.UNIT,
}
_NAMES: Final = {component: word for word, component in _WORDS.items()}
_CURRENCIES: Final = {currency.lower(): currency for currency in Currency}
_SHORT_FORM: Final = (
    '"AMOUNT CURRENCY", or "AMOUNT CURRENCY / [1k|1M] THING" with sat, msat or USD and one of '
    + ", ".join(_WORDS)
    + ', such as "10 sat" or "0.15 USD / 1M input tokens"; join several with +'
)
_RATE_FORM: Final = '"AMOUNT CURRENCY" or "AMOUNT CURRENCY / 1k" or "… / 1M", in sat, msat or USD'


def parse_price(text: str, key: str = "price") -> Rule:
    """Read short text into a rule that holds for every request.

    Raises InvalidSettings naming `key`.
    """
    prices = _parse_terms(text, key)
    rule = Rule(name=text.strip(), prices=prices)
    _check_priced(rule, key, text)
    return rule


def parse_rules(tables: Sequence[Mapping[str, object]]) -> tuple[Rule, ...]:
    """Read the `[[price]]` tables of a settings file, in order. Raises InvalidSettings."""
    return tuple(parse_rule(table, f"price[{index}]") for index, table in enumerate(tables))


def parse_rule(table: Mapping[str, object], key: str = "price") -> Rule:
    """Read one table. Raises InvalidSettings naming the key under `key`, found and allowed."""
    for name in table:
        if name not in _KEYS:
            raise InvalidSettings(f"{key}.{name}", table[name], _suggest(name))

    def get(name: str, read: Callable[[object, str], T], default: T) -> T:
        return read(table[name], f"{key}.{name}") if name in table else default

    rule = Rule(
        name=get("name", _text, key),
        methods=get("methods", _methods, ()),
        path=get("path", _pattern, "*"),
        model=get("model", _pattern, None),
        prices=_prices(table, key),
        free=get("free", _flag, False),
        minimum_msat=get("minimum_msat", _minimum, 0),
        multiplier=get("multiplier", _multiplier, "1"),
        max_input_tokens=get("max_input_tokens", _limit, None),
        max_output_tokens=get("max_output_tokens", _limit, None),
        max_seconds=get("max_seconds", _limit, None),
        max_bytes=get("max_bytes", _limit, None),
        max_units=get("max_units", _limit, None),
        unit=_unit_source(table, key),
    )
    _check_priced(rule, key, dict(table))
    return rule


def format_price(rule: Rule) -> str:
    """A rule's prices as short text; `parse_price` reads it back."""
    return " + ".join(
        _format_rate(price)
        if component is Component.REQUEST and price.per == 1
        else _format_term(component, price)
        for component, price in rule.prices
    )


def decimal_text(amount: Decimal) -> str | None:
    """A non-negative decimal as the text prices are kept in, or None if it is out of bounds."""
    if not amount.is_finite() or (amount.is_signed() and amount != 0) or amount.adjusted() > 17:
        return None
    if -int(amount.as_tuple().exponent) > 60:
        return None
    text = format(abs(amount), "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text if _DECIMAL.fullmatch(text) else None


_KEYS: Final = (
    "name",
    "methods",
    "path",
    "price",
    *(component.value for component in Component),
    "model",
    "free",
    "minimum_msat",
    "multiplier",
    "max_input_tokens",
    "max_output_tokens",
    "max_seconds",
    "max_bytes",
    "max_units",
    "unit_header",
    "unit_field",
)


def _suggest(name: str) -> str:
    near = difflib.get_close_matches(name[:128].lower(), _KEYS, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"one of {', '.join(_KEYS)}"


def _parse_terms(text: object, key: str) -> tuple[tuple[Component, Price], ...]:
    if not isinstance(text, str) or len(text) > _TEXT_MAX_CHARS:
        raise InvalidSettings(key, text, _SHORT_FORM)
    prices: dict[Component, Price] = {}
    for term in text.split("+"):
        match = _TERM.fullmatch(term.strip())
        if match is None:
            raise InvalidSettings(key, text, _SHORT_FORM)
        amount, currency, scale, thing = match.groups()
        component = _component(thing)
        if component is None or component in prices:
            raise InvalidSettings(key, text, _SHORT_FORM)
        prices[component] = _price(amount, currency, scale, text, key)
    return tuple(prices.items())


def _component(thing: str | None) -> Component | None:
    if thing is None:
        return Component.REQUEST
    words = " ".join(thing.lower().split())
    return _WORDS.get(words) or _WORDS.get(words.removesuffix("s"))


def _price(amount: str, currency: str, scale: str | None, found: object, key: str) -> Price:
    match = _DECIMAL.fullmatch(amount)
    known = _CURRENCIES.get(currency.lower())
    if match is None or known is None:
        raise InvalidSettings(key, found, _SHORT_FORM)
    whole, fraction = match.group(1), (match.group(2) or "").rstrip("0")
    text = f"{whole}.{fraction}" if fraction else whole
    return Price(text, known, PER_SCALES["" if scale in (None, "1") else str(scale)])


def _rate(value: object, key: str) -> Price:
    """Read `0.15 USD / 1M`: the key has said of what."""
    match = _TERM.fullmatch(value.strip()) if isinstance(value, str) and len(value) < 200 else None
    if match is None or (match.group(4) or "").strip():
        raise InvalidSettings(key, value, _RATE_FORM)
    try:
        return _price(match.group(1), match.group(2), match.group(3), value, key)
    except InvalidSettings:
        raise InvalidSettings(key, value, _RATE_FORM) from None


def _prices(table: Mapping[str, object], key: str) -> tuple[tuple[Component, Price], ...]:
    listed = tuple(
        (component, _rate(table[component.value], f"{key}.{component.value}"))
        for component in Component
        if component.value in table
    )
    if "price" not in table:
        return listed
    if listed:
        raise InvalidSettings(f"{key}.price", table["price"], "price, or keys per_…, not both")
    return _parse_terms(table["price"], f"{key}.price")


def _check_priced(rule: Rule, key: str, found: object) -> None:
    """Nothing is free by accident, and a price by the unit says where units are reported."""
    charges = rule.minimum_msat > 0 or any(price.each for _, price in rule.prices)
    if rule.free and (rule.prices or rule.minimum_msat):
        raise InvalidSettings(key, found, "a price, or free = true, not both")
    if not rule.free and not charges:
        raise InvalidSettings(key, found, "a price above zero, or free = true")
    by_unit = any(component is Component.UNIT for component, _ in rule.prices)
    if by_unit != (rule.unit is not None) or (by_unit and rule.max_units is None):
        allowed = "per_unit together with max_units and one of unit_header and unit_field"
        raise InvalidSettings(key, found, allowed)


def _unit_source(table: Mapping[str, object], key: str) -> UnitSource | None:
    header, pointer = table.get("unit_header"), table.get("unit_field")
    if header is None and pointer is None:
        return None
    if header is not None and pointer is not None:
        raise InvalidSettings(f"{key}.unit_field", pointer, "unit_header or unit_field, not both")
    if header is not None:
        if not isinstance(header, str) or not _HEADER.fullmatch(header):
            raise InvalidSettings(f"{key}.unit_header", header, "the name of a header")
        return UnitSource(header=header)
    if not isinstance(pointer, str) or not pointer.startswith("/") or len(pointer) > 512:
        allowed = 'a JSON pointer such as "/usage/images"'
        raise InvalidSettings(f"{key}.unit_field", pointer, allowed)
    return UnitSource(field=pointer)


def _text(value: object, key: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise InvalidSettings(key, value, "a text of up to 200 characters")
    return value


def _methods(value: object, key: str) -> tuple[str, ...]:
    names = value if isinstance(value, list | tuple) else (value,)
    if not names or not all(isinstance(name, str) and _METHOD.fullmatch(name) for name in names):
        raise InvalidSettings(key, value, 'methods in capitals, such as ["GET", "POST"]')
    return tuple(names)


def _pattern(value: object, key: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _PATTERN_MAX_CHARS:
        raise InvalidSettings(key, value, 'a pattern with * and ?, such as "/v1/*" or "gpt-4*"')
    if key.endswith(".path") and not value.startswith(("/", "*")):
        raise InvalidSettings(key, value, 'a pattern that begins with "/" or "*"')
    return value


def _flag(value: object, key: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidSettings(key, value, "true or false")
    return value


def _minimum(value: object, key: str) -> int:
    if type(value) is not int or not 0 <= value < AMOUNT_END:
        raise InvalidSettings(key, value, "a whole number of millisatoshi")
    return value


def _limit(value: object, key: str) -> int:
    if type(value) is not int or not 0 < value < _LIMIT_END:
        raise InvalidSettings(key, value, "a whole number above zero")
    return value


def _multiplier(value: object, key: str) -> str:
    text = str(value) if type(value) is int else value
    # A float is refused: 1.1 in a settings file is not 1.1 in memory.
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text) or not Decimal(text):
        raise InvalidSettings(key, value, 'a decimal above zero in quotes, such as "1.10"')
    return text


def _format_rate(price: Price) -> str:
    scale = next(text for text, per in PER_SCALES.items() if per == price.per)
    return f"{price.amount} {price.currency}" + (f" / {scale}" if scale else "")


def _format_term(component: Component, price: Price) -> str:
    scale = next(text for text, per in PER_SCALES.items() if per == price.per)
    thing = f"{scale} {_NAMES[component]}s" if scale else _NAMES[component]
    return f"{price.amount} {price.currency} / {thing}"
