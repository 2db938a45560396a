"""The price book: from the facts of a request to a quote, and from a quote to a charge.

    quote   = first matching rule's terms, frozen, with the most the request can cost
    charge  = min(maximum, max(minimum, ceil(sum of price x usage)))      in msat, rounded once

A quote is a value: stored with its request it is honoured when rules and rates have changed.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from farebox.clock import NS_PER_S
from farebox.money import AMOUNT_END, Rounding, divide
from farebox.pricing.model import Component, Currency, Glob, Rule, UnitSource, glob, is_pattern
from farebox.pricing.rates import Rate, RateStale, StaleReason
from farebox.pricing.request import ApiProtocol, RequestFacts
from farebox.pricing.terms import MICROS_PER_UNIT, Terms, compile_terms
from farebox.pricing.usage import Usage

_CACHE_MAX: Final = 1_024


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What a request can use at most where neither it nor its rule says so.

    They make holds larger or smaller, never charges: what is held and not used comes back.

    max_output_tokens: for a request that sets no limit. max_input_tokens: for input that is not
    in the body. image_tokens: a picture. overhead_tokens: what a service adds to a prompt of its
    own (templates, instructions for tools).
    """

    max_input_tokens: int = 200_000
    max_output_tokens: int = 4_096
    image_tokens: int = 6_000
    overhead_tokens: int = 512
    max_seconds: int = 600
    max_bytes: int = 64 * 1024 * 1024


DEFAULT_BOUNDS: Final = Bounds()


class QuotedRate(msgspec.Struct, frozen=True):
    """The exchange rate a quote was made at. `msat_per_unit` is an exact fraction as text."""

    currency: Currency
    msat_per_unit: str
    as_of_ns: int


class Quote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A price offer: no charge under it exceeds `maximum_msat`.

    unit: where the upstream reports its units, where the price is by the unit. rate: None where
    no price was in a foreign currency. free: the rule says so; the maximum is zero then.
    """

    id: str
    rule: str
    terms: Terms
    maximum_msat: int
    expires_at_ns: int
    rate: QuotedRate | None = None
    unit: UnitSource | None = None
    free: bool = False

    def is_open(self, now_ns: int) -> bool:
        """Whether it can still be accepted. Once accepted it is honoured for good."""
        return now_ns < self.expires_at_ns


class NoPriceReason(enum.StrEnum):
    """Why a request has no price. The value says it in words."""

    NO_RULE = "no price is set for this method, path and model"
    UNREADABLE = "the request cannot be read for its price"
    TOO_LARGE = "the request could cost more than can be counted"
    CAPITALS = "it has another price when it is written in other capitals"
    UNCOUNTED = "the price is by the token, and nothing counts the tokens of such a request"


class NoPrice(msgspec.Struct, frozen=True):
    """The request is refused: what has no price is not free. `facts.problem` says more."""

    reason: NoPriceReason


class Offer(msgspec.Struct, frozen=True):
    """A rule with its terms at today's rate, before anything is known about a request's size."""

    rule: Rule
    terms: Terms
    rate: QuotedRate | None


class Charge(msgspec.Struct, frozen=True):
    """What a request cost. `capped`: the usage was worth more than the quote's maximum."""

    amount_msat: int
    capped: bool = False


class _Entry:
    """A rule, compiled: its patterns, and its terms at the rate they were last asked for."""

    __slots__ = (
        "_compiled_with",
        "_folded",
        "_matches_model",
        "_matches_path",
        "_offer",
        "fixed_msat",
        "is_counted",
        "rule",
    )

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.is_counted = rule.is_counted
        self._matches_path: Glob | None = glob(rule.path) if rule.path != "*" else None
        self._matches_model = glob(rule.model) if rule.model is not None else None
        path, model = rule.path.casefold(), rule.model and rule.model.casefold()
        is_folded = (path, model) == (rule.path, rule.model)
        #: The same with capitals and small letters taken for one another.
        self._folded = self if is_folded else _Entry(replace(rule, path=path, model=model))
        self._compiled_with: Rate | None = None
        self._offer: Offer | None = None
        self.fixed_msat: int | None = None
        if Currency.USD not in rule.currencies:
            self._compile(None)

    @property
    def reads_body(self) -> bool:
        """Whether its price can depend on the body of a request it holds for."""
        rule = self.rule
        return rule.model is not None or any(
            component is not Component.REQUEST for component, _ in rule.prices
        )

    def matches_place(self, method: str, path: str) -> bool:
        """Whether it holds for this method and path, the model left aside."""
        methods = self.rule.methods
        if methods and method not in methods:
            return False
        return self._matches_path is None or bool(self._matches_path(path))

    def matches(self, method: str, path: str, model: str | None) -> bool:
        """Whether it holds for this request."""
        if not self.matches_place(method, path):
            return False
        wanted = self._matches_model
        return wanted is None or (model is not None and bool(wanted(model)))

    def costs_as(self, other: _Entry) -> bool:
        """Whether it has the price of another one, wherever the two hold."""
        return self is other or _priced(self.rule) == _priced(other.rule)

    def folds_place(self, method: str, path: str) -> bool:
        """Whether a service that does not tell capitals takes it for this method and path."""
        return self._folded.matches_place(method, path.casefold())

    def folds(self, method: str, path: str, model: str | None) -> bool:
        """Whether a service that does not tell capitals takes it for this request."""
        return self._folded.matches(method, path.casefold(), model and model.casefold())

    def offer(self, rates: Mapping[Currency, Rate], now_ns: int) -> Offer | RateStale:
        """Its terms at today's rate, compiled anew only when the rate has changed."""
        if self._offer is not None and self._compiled_with is None:
            return self._offer
        rate = rates.get(Currency.USD)
        if rate is None or not rate.holds(now_ns):
            return RateStale(Currency.USD, StaleReason.EXPIRED)
        if self._offer is None or rate is not self._compiled_with:
            return self._compile(rate)
        return self._offer

    def _compile(self, rate: Rate | None) -> Offer:
        terms = compile_terms(self.rule, None if rate is None else rate.msat_per_unit)
        quoted = None
        if rate is not None:
            quoted = QuotedRate(Currency.USD, str(rate.msat_per_unit), rate.as_of_ns)
        self._offer, self._compiled_with = Offer(self.rule, terms, quoted), rate
        self.fixed_msat = _charge_msat(terms, _NO_USAGE) if terms.is_fixed else None
        return self._offer


def _priced(rule: Rule) -> Rule:
    return replace(rule, name="", methods=(), path="*", model=None)


class PriceBook:
    """An ordered list of rules. The first that matches a request is its price."""

    def __init__(
        self, rules: Sequence[Rule], *, bounds: Bounds = DEFAULT_BOUNDS, quote_ttl_s: int = 60
    ) -> None:
        """A quote can be accepted for `quote_ttl_s` seconds after it was given."""
        self.rules = tuple(rules)
        self.bounds = bounds
        self._ttl_ns = quote_ttl_s * NS_PER_S
        # A list of models has hundreds of rules that each name one: those are looked up.
        self._entries = tuple(map(_Entry, self.rules))
        self._patterned: list[tuple[int, _Entry]] = []
        self._by_model: dict[str, list[tuple[int, _Entry]]] = {}
        for position, entry in enumerate(self._entries):
            model = entry.rule.model
            named = model is not None and not is_pattern(model)
            group = self._patterned
            if named and model is not None:
                group = self._by_model.setdefault(model.casefold(), [])
            group.append((position, entry))
        # Bounded, because callers choose the keys.
        self._found: dict[tuple[str, str, str | None], _Entry | NoPrice | None] = {}
        self._body_needed: dict[tuple[str, str], bool] = {}

    def with_rules(self, rules: Sequence[Rule]) -> PriceBook:
        """The same book with other rules."""
        return PriceBook(rules, bounds=self.bounds, quote_ttl_s=self._ttl_ns // NS_PER_S)

    def quote(
        self, facts: RequestFacts, rates: Mapping[Currency, Rate], now_ns: int, quote_id: str
    ) -> Quote | NoPrice | RateStale:
        """Say what a request can cost at most, and on what terms it is charged.

        `rates` are the last ones that the feed gave; one that does not hold any more is refused.
        `quote_id` is the request's id, or any other that is unique.
        """
        entry = self._entry(facts)
        if isinstance(entry, NoPrice):
            return entry
        # Neither a batch nor a download tells its tokens: it would be served for nothing.
        if entry.is_counted and facts.protocol is ApiProtocol.OTHER:
            return NoPrice(NoPriceReason.UNCOUNTED)
        offer = entry.offer(rates, now_ns)
        if isinstance(offer, RateStale):
            return offer
        rule, terms, maximum_msat = offer.rule, offer.terms, entry.fixed_msat
        if maximum_msat is None:
            terms = _with_images(terms, facts.images)
            maximum_msat = _maximum_msat(terms, most_usage(facts, rule, self.bounds))
        if maximum_msat >= AMOUNT_END:
            return NoPrice(NoPriceReason.TOO_LARGE)
        return Quote(
            id=quote_id,
            rule=rule.name,
            terms=terms,
            maximum_msat=maximum_msat,
            expires_at_ns=now_ns + self._ttl_ns,
            rate=offer.rate,
            unit=rule.unit,
            free=rule.free,
        )

    def needs_body(self, method: str, path: str) -> bool:
        """Whether a price at this canonical path can depend on the body.

        Where it cannot, the facts may be read with no body, which spares parsing it.
        """
        key = (method, path)
        if key not in self._body_needed:
            if len(self._body_needed) >= _CACHE_MAX:
                self._body_needed.clear()
            self._body_needed[key] = self._needs_body(*key)
        return self._body_needed[key]

    def _needs_body(self, method: str, path: str) -> bool:
        for entry in self._entries:
            if entry.reads_body and entry.folds_place(method, path):
                return True
            if entry.matches_place(method, path):
                return False
        return False

    def offer(
        self, facts: RequestFacts, rates: Mapping[Currency, Rate], now_ns: int
    ) -> Offer | NoPrice | RateStale:
        """The rule that holds for a request, and its terms today."""
        entry = self._entry(facts)
        return entry if isinstance(entry, NoPrice) else entry.offer(rates, now_ns)

    def _entry(self, facts: RequestFacts) -> _Entry | NoPrice:
        if not facts.is_readable:
            return NoPrice(NoPriceReason.UNREADABLE)
        key = (facts.method, facts.path, facts.model)
        if key not in self._found:
            candidates = self._in_order(facts.model)
            if len(self._found) >= _CACHE_MAX:
                self._found.clear()
            found = next((entry for _, entry in candidates if entry.matches(*key)), None)
            folded = next((entry for _, entry in candidates if entry.folds(*key)), None)
            # Many services take /Render for /render: it must not be had at another's price.
            slips = found is not None and folded is not None and not found.costs_as(folded)
            self._found[key] = _CAPITALS if slips else found
        return self._found[key] or _NO_RULE

    def _in_order(self, model: str | None) -> list[tuple[int, _Entry]]:
        named = self._by_model.get(model.casefold(), []) if model is not None else []
        if not named:
            return self._patterned
        return sorted([*self._patterned, *named], key=lambda placed: placed[0])


def charge(quote: Quote, usage: Usage) -> Charge:
    """What usage costs under a quote: never more than its maximum, whatever was reported."""
    amount_msat = _charge_msat(quote.terms, usage)
    if amount_msat > quote.maximum_msat:
        return Charge(quote.maximum_msat, capped=True)
    return Charge(amount_msat)


def most_usage(facts: RequestFacts, rule: Rule, bounds: Bounds) -> Usage:
    """The most that a request can use: its own limits first, then its rule's, then `bounds`."""
    output_tokens = rule.max_output_tokens or bounds.max_output_tokens
    if facts.max_output_tokens is not None:
        known = rule.max_output_tokens
        asked = facts.max_output_tokens
        output_tokens = asked if known is None else min(asked, known)
    if facts.open_input:
        input_tokens = rule.max_input_tokens or bounds.max_input_tokens
    else:
        # No tokenizer makes more tokens than bytes of what it reads.
        held = facts.text_bytes + facts.images * bounds.image_tokens + bounds.overhead_tokens
        input_tokens = min(held, rule.max_input_tokens or held)
    no_output = facts.protocol is ApiProtocol.EMBEDDINGS
    return Usage(
        input_tokens=input_tokens,
        output_tokens=0 if no_output else output_tokens * facts.choices,
        duration_ns=(rule.max_seconds or bounds.max_seconds) * NS_PER_S,
        body_bytes=rule.max_bytes or bounds.max_bytes,
        micro_units=(rule.max_units or 0) * MICROS_PER_UNIT,
    )


def _charge_msat(terms: Terms, usage: Usage) -> int:
    """Rounded up to a whole msat, once: the sum may be short of it by less than one msat."""
    cached = min(usage.cached_tokens, usage.input_tokens)
    reasoning = min(usage.reasoning_tokens, usage.output_tokens)
    over_denominator = (
        terms.request
        + terms.input_token * (usage.input_tokens - cached)
        + terms.cached_token * cached
        + terms.output_token * (usage.output_tokens - reasoning)
        + terms.reasoning_token * reasoning
        + terms.nanosecond * usage.duration_ns
        + terms.byte * usage.body_bytes
        + terms.micro_unit * usage.micro_units
    )
    return max(terms.minimum_msat, divide(over_denominator, terms.denominator, Rounding.UP))


def _maximum_msat(terms: Terms, most: Usage) -> int:
    """The dearest way to use that much: every token at the higher of its two prices."""
    dearest = msgspec.structs.replace(
        terms,
        input_token=max(terms.input_token, terms.cached_token),
        output_token=max(terms.output_token, terms.reasoning_token),
    )
    return _charge_msat(dearest, most)


def _with_images(terms: Terms, images: int) -> Terms:
    """How many pictures there are is known beforehand: their price joins the request's."""
    if not terms.image:
        return terms
    return msgspec.structs.replace(terms, request=terms.request + terms.image * images, image=0)


_NO_USAGE: Final = Usage()
_NO_RULE: Final = NoPrice(NoPriceReason.NO_RULE)
_CAPITALS: Final = NoPrice(NoPriceReason.CAPITALS)
