"""Which of a payer's stored methods is charged, and which next. Decides only: no clock, no call."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from fractions import Fraction

from farebox.payments.cards.method import CardMethod
from farebox.payments.cards.records import StoredMethod

#: So many are tried for one charge.
CANDIDATES_MAX = 3
_REMEMBERED = 100


class Successes:
    """How the last charges at each provider ended, as far as that was its own doing.

    A payer's card that is declined says nothing about a provider. From memory alone: it only
    orders what may be tried anyway.
    """

    def __init__(self) -> None:
        self._ends: dict[str, deque[bool]] = {}

    def note(self, provider: str, *, answered: bool) -> None:
        """Whether the provider could carry out a charge, or say no for its payer's bank."""
        self._ends.setdefault(provider, deque(maxlen=_REMEMBERED)).append(answered)

    def share(self, provider: str) -> Fraction:
        """Of the last charges, those that it could; one that nobody knows has all of them."""
        ends = self._ends.get(provider)
        return Fraction(sum(ends), len(ends)) if ends else Fraction(1)


def route(
    stored: Sequence[StoredMethod],
    rails: Mapping[str, CardMethod],
    successes: Successes,
    asset: str,
    amount: int,
) -> list[StoredMethod]:
    """The methods to try, the first first.

    Out are those whose provider does not take this amount of this currency. What works now comes
    before what does not, then the payer's default, then by how its provider fared, then by age.
    """

    def takes(one: StoredMethod) -> bool:
        rail = rails.get(one.provider)
        limits = rail.card_terms.currencies.get(asset) if rail else None
        return limits is not None and limits.least <= amount <= limits.most

    def rank(one: StoredMethod) -> tuple[bool, bool, Fraction, int]:
        works = rails[one.provider].standing().works
        return not works, not one.is_default, -successes.share(one.provider), one.created_at

    return sorted(filter(takes, stored), key=rank)[:CANDIDATES_MAX]
