"""The port to durable storage of one book. `farebox.stores` holds the implementations.

A store batches what queues up while its last commit ran, evaluates it in order (`evaluator`),
commits it in one transaction, and only then answers everybody in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import msgspec

from farebox.ledger.model import (
    Account,
    Applied,
    Outcome,
    Refused,
    StoredEvent,
    Unit,
    check_unit,
)
from farebox.ledger.records import RecordType, Row

T = TypeVar("T", bound=msgspec.Struct)

#: The most rows one read returns.
PAGE_MAX = 1_000
#: The most units that one call commits, and that one transaction holds.
UNITS_MAX = 1_000


def check_units(units: Sequence[Unit]) -> None:
    """Refuse what `Store.commit_many` takes from nobody. Raises ValueError."""
    if not 0 < len(units) <= UNITS_MAX:
        raise ValueError(f"{len(units)} units at once: 1 to {UNITS_MAX} are allowed")
    for unit in units:
        check_unit(unit)


class Store(Protocol):
    """One book. Reads see committed state only."""

    async def commit(self, unit: Unit, *, synced: bool = True) -> Outcome:
        """Decide and durably store one unit.

        With `synced=False` the answer comes as soon as the unit outlives every process of ours; a
        loss of power may still undo it, with everything after it. That is for units whose loss
        costs nobody anything; whatever leaves the house waits for a synced one.

        Raises StoreBusy (nothing done) when the queue is full, OutcomeUnknown when the answer to
        the commit was lost, StoreError when the store failed and nothing was done, ValueError for
        a unit that no correct program makes (`check_unit`). A caller that is cancelled while it
        waits does not undo the unit: it may still be committed, and its id tells.
        """
        ...

    async def commit_many(self, units: Sequence[Unit], *, synced: bool = True) -> Sequence[Outcome]:
        """Decide and durably store 1 to UNITS_MAX units, in this order, in one transaction.

        Each has an outcome of its own: one that is refused does not touch its neighbours. What
        `commit` raises is raised for all of them. So a StoreError says that nothing was done, even
        where only one of them cannot be stored; OutcomeUnknown names the first. The same call
        again is always safe: what happened is `Replayed`.

        Raises ValueError, before anything is done, also for too many units or none.
        """
        ...

    async def outcome(self, unit_id: str) -> Applied | Refused | None:
        """What became of a unit, or None when no such unit was committed.

        Raises StoreError while a commit that failed leaves that open.
        """
        ...

    async def get(self, record: RecordType[T], key: str) -> Row[T] | None:
        """One domain row."""
        ...

    async def find(
        self,
        record: RecordType[T],
        where: Mapping[str, str | int],
        *,
        at_most: tuple[str, int] | None = None,
        after: str = "",
        limit: int = PAGE_MAX,
    ) -> list[tuple[str, Row[T]]]:
        """Rows whose indexed fields equal `where`, in key order, keys above `after`.

        `at_most=(field, bound)` keeps rows whose integer field is at most the bound. Raises
        ValueError when no index of the record type serves the query.
        """
        ...

    async def account(self, account_id: str) -> Account | None:
        """One account with its balances."""
        ...

    async def accounts(self, after: str = "", limit: int = PAGE_MAX) -> list[Account]:
        """Accounts in id order, ids above `after`."""
        ...

    async def events(
        self, after: int = 0, *, subject: str | None = None, limit: int = PAGE_MAX
    ) -> list[StoredEvent]:
        """Events numbered above `after`, in order; of one subject when given."""
        ...

    async def expire_due(self) -> int:
        """Release every hold that is due; returns how many."""
        ...

    async def close(self) -> None:
        """Finish what is queued, then let go of the book."""
        ...
