"""What became of the requests that came in: plain counts, for whoever reports them."""

from __future__ import annotations

from farebox.paywall.model import Answer, Ended
from farebox.tally import Counts, Spread


class RequestTally:
    """The requests of one gateway since it started.

    Each is admitted, challenged (402) or refused. An admitted one ends as the books say, or is
    left for recovery to settle when they cannot be written.
    """

    def __init__(self) -> None:
        self.admitted = 0
        #: By the stable code of the answer.
        self.challenged = Counts()
        self.refused = Counts()
        #: Admitted, and then answered with a problem: mostly the upstream's.
        self.failed = Counts()
        self.ended = Counts()
        #: From a request read to its hold in the books, or its refusal.
        self.authorising = Spread()
        #: From a request sent on to the head of its answer.
        self.first_byte = Spread()
        #: The settling commit, with what it waited for.
        self.settling = Spread()
        #: From an admission to the last byte.
        self.delivering = Spread()

    def answered(self, answer: Answer) -> None:
        """A request ended before it was admitted."""
        if answer.status == 402:
            self.challenged.add(answer.code)
        elif answer.code:  # a list of models and the like are no refusals
            self.refused.add(answer.code)

    def settled(self, ended: Ended, took_s: float) -> None:
        """An admitted request is in the books, or left to recovery."""
        self.ended.add(ended.value)
        self.settling.add(took_s)
