"""Today's prices: the book, the rates, and the quotes that were given and must be honoured."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from farebox.pricing.book import NoPrice, PriceBook, Quote
from farebox.pricing.model import Currency
from farebox.pricing.rates import Rate, RateStale
from farebox.pricing.request import RequestFacts

#: Quotes remembered at once; the oldest is forgotten first.
_QUOTES_MAX = 10_000


class Prices:
    """Quotes requests. `book` and `rates` are replaced whole when they are refreshed."""

    def __init__(self, book: PriceBook, rates: Mapping[Currency, Rate] | None = None) -> None:
        self.book = book
        self.rates: Mapping[Currency, Rate] = rates or {}
        self._given: OrderedDict[RequestFacts, Quote] = OrderedDict()

    def quote(
        self, facts: RequestFacts, now_ns: int, quote_id: str, book: PriceBook | None = None
    ) -> Quote | NoPrice | RateStale:
        """The price of a request: of today, or the lower one that was quoted and is still open."""
        fresh = (book or self.book).quote(facts, self.rates, now_ns, quote_id)
        given = self._given.get(facts) if self._given else None
        if given is None or not given.is_open(now_ns):
            return fresh
        if isinstance(fresh, Quote) and fresh.maximum_msat <= given.maximum_msat:
            return fresh
        return given

    def given(self, facts: RequestFacts, quote: Quote) -> None:
        """Remember a quote that a caller was told, until it expires."""
        known = self._given.get(facts)
        if known is not None and known.id == quote.id:
            return
        self._given[facts] = quote
        while len(self._given) > _QUOTES_MAX:
            self._given.popitem(last=False)
