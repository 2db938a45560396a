"""What a run measured: per kind of request how long, how often, how not, and for how much."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from farebox.cli.bench.histogram import Histogram
from farebox.cli.bench.openloop import Kind

#: A server could answer with any number of different codes.
_ERRORS_MAX = 50
_OTHERS = "others"


@dataclass(slots=True)
class OfKind:
    """The requests of one kind. Latencies are of those that were answered well."""

    whole: Histogram = field(default_factory=Histogram)
    first_byte: Histogram = field(default_factory=Histogram)
    errors: Counter[str] = field(default_factory=Counter)
    charged_msat: int = 0
    #: Requests of which nobody told us what they were charged.
    unknown: int = 0

    def failed(self, how: str, *, is_unknown: bool) -> None:
        """Count one that was not answered well."""
        known = how in self.errors or len(self.errors) < _ERRORS_MAX
        self.errors[how if known else _OTHERS] += 1
        self.unknown += is_unknown


class Tally:
    """All kinds together."""

    def __init__(self) -> None:
        self.kinds: dict[Kind, OfKind] = {}

    def of(self, kind: Kind) -> OfKind:
        """The count of a kind."""
        return self.kinds.setdefault(kind, OfKind())

    @property
    def answered(self) -> int:
        """How many were answered well."""
        return sum(one.whole.count for one in self.kinds.values())

    @property
    def failed(self) -> int:
        """How many were not."""
        return sum(one.errors.total() for one in self.kinds.values())
