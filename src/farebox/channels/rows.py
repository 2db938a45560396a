"""The rows of sub-channels, as this process wrote or read them last.

A decision is made on the row that is remembered, and committed only if the book has that very
version; what it would refuse is decided again on the row as it is stored. So a sub-channel that one
process serves is read once, and one that several serve is never decided on a row that is gone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from farebox.channels.model import SUB_CHANNEL, SubChannel
from farebox.errors import StoreBusy
from farebox.ledger.model import Applied, Outcome, Stale, Taken, Unit
from farebox.ledger.records import Row
from farebox.ledger.service import Ledger

R = TypeVar("R")

_REMEMBERED_MAX = 10_000
_ATTEMPTS_MAX = 16


class SubChannelRows:
    """Reads a row, lets a pure function decide, commits; again while another was faster."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._known: OrderedDict[str, Row[SubChannel]] = OrderedDict()

    def knows(self, key: str) -> bool:
        """Whether this process wrote a row before, or read it."""
        return key in self._known

    async def decide(
        self,
        key: str,
        whole: Callable[[Row[SubChannel] | None, int], Unit | R],
        *,
        synced: bool = True,
    ) -> Outcome | R:
        """Commit what `whole(row, now_ns)` makes of a row; its first put is that row's next.

        What is not a Unit is returned and changes nothing. A row of somebody else's that was in
        the way is told as the store tells it. Raises StoreBusy after too many races.
        """
        store, clock = self._ledger.store, self._ledger.clock
        found = self._known.get(key)
        is_fresh = found is None
        if found is None:
            found = await store.get(SUB_CHANNEL, key)
        for _ in range(_ATTEMPTS_MAX):
            decision = whole(found, clock.now_ns())
            if isinstance(decision, Unit):
                outcome: Outcome | None = None
                try:
                    outcome = await store.commit(decision, synced=synced)
                finally:
                    if not isinstance(outcome, Applied):
                        self._known.pop(key, None)
                if isinstance(outcome, Applied):
                    put = decision.puts[0]
                    self._remember(key, Row(put.value, put.expect + 1))
                    return outcome
                if not isinstance(outcome, Stale | Taken) or outcome.key != key:
                    return outcome
            elif is_fresh:
                return decision
            self._known.pop(key, None)
            found, is_fresh = await store.get(SUB_CHANNEL, key), True
        raise StoreBusy(f"lost {_ATTEMPTS_MAX} races for the sub-channel {key}; try again")

    def _remember(self, key: str, row: Row[SubChannel]) -> None:
        known = self._known.get(key)
        if known is None or known.version < row.version:
            self._known[key] = row
        if len(self._known) > _REMEMBERED_MAX:
            self._known.popitem(last=False)
