"""Models and their prices, as upstreams publish them and as callers are shown them.

Read from an upstream's `/v1/models`: OpenAI's plain list (no prices), and the wider form with
`pricing` per model (USD per token or request, decimal text) or `sats_pricing` (sat, numbers).
Shown: the upstream's entries for what can be bought here, each with our own `sats_pricing` beside
what was there. Its prices are JSON numbers, because that is what clients multiply; they are
written out exactly, or rounded up at the twelfth decimal of a satoshi where the exchange rate
leaves a longer fraction. The charge itself is never computed from them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from farebox.errors import InvalidInput
from farebox.money import MSAT_PER_SAT, Rounding, divide, format_decimal
from farebox.pricing.book import Offer, PriceBook, Quote, most_usage
from farebox.pricing.model import Component, Currency, Price, Rule, is_pattern
from farebox.pricing.parse import decimal_text
from farebox.pricing.rates import Rate
from farebox.pricing.request import MODEL_MAX_CHARS, RequestFacts, find_protocol
from farebox.pricing.terms import Terms
from farebox.pricing.usage import Usage

DOCUMENT_MAX_BYTES: Final = 16 * 1024 * 1024
MODELS_MAX: Final = 10_000

#: What is charged, by the names upstreams use. A zero for the last two means "no price of its
#: own", not "free": such tokens are charged as plain input and output.
_PRICED: Final = {
    "request": Component.REQUEST,
    "image": Component.IMAGE,
    "prompt": Component.INPUT_TOKEN,
    "completion": Component.OUTPUT_TOKEN,
    "input_cache_read": Component.CACHED_TOKEN,
    "internal_reasoning": Component.REASONING_TOKEN,
}
#: Where a model may be for sale; the first place with a price is the one that is shown.
_PLACES: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
)
_SAT_DECIMALS: Final = 12


class LeftOut(enum.StrEnum):
    """Why a model of an upstream gets no rule. The value says it in words."""

    NO_PRICE = "it has no price"
    ZERO_PRICE = "its price is zero; to give it away, write a rule with free = true"
    BAD_PRICE = "its price is no decimal of sensible size"
    BAD_NAME = "its name is missing, too long or a pattern"


class UpstreamModels(msgspec.Struct, frozen=True):
    """What an upstream lists: its entries as they came, a rule for each that has a price."""

    entries: tuple[Mapping[str, Any], ...]
    rules: tuple[Rule, ...]
    left_out: tuple[tuple[str, LeftOut], ...]


def read_models(document: bytes, *, multiplier: str = "1", path: str = "*") -> UpstreamModels:
    """Read an upstream's `/v1/models`.

    The rules hold for each model by its exact name under `path`, its prices times `multiplier`
    (decimal text). `sats_pricing` goes before `pricing`: an upstream that states both charges
    the former. Raises InvalidInput where the document is no list of models.
    """
    rules: list[Rule] = []
    left_out: list[tuple[str, LeftOut]] = []
    entries = _read_entries(document)
    for entry in entries:
        rule = _rule(entry, multiplier, path)
        if isinstance(rule, Rule):
            rules.append(rule)
        else:
            left_out.append((str(entry.get("id"))[:MODEL_MAX_CHARS], rule))
    return UpstreamModels(tuple(entries), tuple(rules), tuple(left_out))


def models_document(
    entries: Iterable[Mapping[str, Any]],
    book: PriceBook,
    rates: Mapping[Currency, Rate],
    now_ns: int,
) -> bytes:
    """The `/v1/models` document to show: what has a price here, with that price in sat.

    A model priced in a currency whose rate is stale is left out until there is a rate again.
    """
    shown = [
        {**entry, "sats_pricing": priced}
        for entry in entries
        if (priced := _sats_pricing(entry.get("id"), book, rates, now_ns)) is not None
    ]
    return _encode({"object": "list", "data": shown})


_encode = msgspec.json.Encoder(decimal_format="number").encode
_decode = msgspec.json.Decoder(float_hook=Decimal).decode


def _read_entries(document: bytes) -> list[dict[str, Any]]:
    if len(document) > DOCUMENT_MAX_BYTES:
        raise InvalidInput("the upstream's list of models is too large")
    try:
        decoded = _decode(document)
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError):
        raise InvalidInput("the upstream's list of models is not JSON") from None
    listed = decoded.get("data") if isinstance(decoded, dict) else None
    if not isinstance(listed, list):
        raise InvalidInput("the upstream's list of models has no list named data")
    if len(listed) > MODELS_MAX:
        raise InvalidInput(f"the upstream lists more than {MODELS_MAX} models")
    return [entry for entry in listed if isinstance(entry, dict)]


def _rule(entry: Mapping[str, Any], multiplier: str, path: str) -> Rule | LeftOut:
    name = entry.get("id")
    # A name with a star in it would be a pattern, and price other models.
    if not isinstance(name, str) or not 0 < len(name) <= MODEL_MAX_CHARS or is_pattern(name):
        return LeftOut.BAD_NAME
    if isinstance(entry.get("sats_pricing"), dict):
        prices = _prices(entry["sats_pricing"], Currency.SAT)
    elif isinstance(entry.get("pricing"), dict):
        prices = _prices(entry["pricing"], Currency.USD)
    else:
        return LeftOut.NO_PRICE
    if isinstance(prices, LeftOut):
        return prices
    return Rule(
        name=name,
        path=path,
        model=name,
        prices=prices,
        multiplier=multiplier,
        max_input_tokens=_limit(entry.get("context_length")),
        max_output_tokens=_max_output(entry),
    )


def _prices(
    pricing: Mapping[str, Any], currency: Currency
) -> tuple[tuple[Component, Price], ...] | LeftOut:
    prices: list[tuple[Component, Price]] = []
    for name, component in _PRICED.items():
        if pricing.get(name) is None:
            continue
        amount = _amount(pricing[name])
        # "-1" is how a router says that it depends. That is no price either.
        if amount is None:
            return LeftOut.BAD_PRICE
        if amount != "0":
            prices.append((component, Price(amount, currency)))
    if "prompt" not in pricing and "completion" not in pricing and "request" not in pricing:
        return LeftOut.NO_PRICE
    return tuple(prices) if prices else LeftOut.ZERO_PRICE


def _amount(value: object) -> str | None:
    """A price as decimal text. Numbers were decoded as decimals: nothing was lost on the way."""
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        return None
    if isinstance(value, str) and len(value) > 64:
        return None
    try:
        return decimal_text(Decimal(value))
    except ArithmeticError:
        return None


def _limit(value: object) -> int | None:
    return value if type(value) is int and 0 < value < 10**9 else None


def _max_output(entry: Mapping[str, Any]) -> int | None:
    top = entry.get("top_provider")
    return _limit(top.get("max_completion_tokens")) if isinstance(top, dict) else None


def _sats_pricing(
    name: object, book: PriceBook, rates: Mapping[Currency, Rate], now_ns: int
) -> dict[str, Decimal] | None:
    if not isinstance(name, str):
        return None
    for place in _PLACES:
        # Open input, because the largest cost is meant to hold for any request.
        facts = RequestFacts(
            method="POST",
            path=place,
            protocol=find_protocol("POST", place),
            model=name,
            open_input=True,
        )
        offer = book.offer(facts, rates, now_ns)
        quote = book.quote(facts, rates, now_ns, name)
        if isinstance(offer, Offer) and isinstance(quote, Quote):
            return _shown(offer.terms, most_usage(facts, offer.rule, book.bounds), quote)
    return None


def _shown(terms: Terms, most: Usage, quote: Quote) -> dict[str, Decimal]:
    def sat(price: int, times: int = 1) -> Decimal:
        units = 10**_SAT_DECIMALS * price * times
        rounded = divide(units, terms.denominator * MSAT_PER_SAT, Rounding.UP)
        return Decimal(format_decimal(rounded, _SAT_DECIMALS))

    return {
        "prompt": sat(terms.input_token),
        "completion": sat(terms.output_token),
        "request": sat(terms.request),
        "image": sat(terms.image),
        "input_cache_read": sat(terms.cached_token),
        "internal_reasoning": sat(terms.reasoning_token),
        "max_prompt_cost": sat(terms.input_token, most.input_tokens),
        "max_completion_cost": sat(terms.output_token, most.output_tokens),
        "max_cost": Decimal(format_decimal(quote.maximum_msat, 3)),
    }
