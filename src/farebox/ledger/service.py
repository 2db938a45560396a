"""Read, then decide: the one way to change the books by what was read from them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec

from farebox.clock import Clock
from farebox.errors import StoreBusy, StoreError
from farebox.ids import new_id
from farebox.ledger.model import (
    ABSENT,
    Applied,
    Guard,
    Kind,
    Open,
    Outcome,
    SetCeiling,
    Stale,
    Taken,
    Transfer,
    Unit,
)
from farebox.ledger.records import RecordType, Row
from farebox.ledger.store import Store

R = TypeVar("R")
S = TypeVar("S", bound=msgspec.Struct)

#: After so many lost races something is wrong, and the caller hears of it.
_ATTEMPTS_MAX = 16

_pack = msgspec.msgpack.Encoder().encode

RowName = tuple[RecordType[Any], str]


class State:
    """The rows that were asked for, as they stood; handed to a pure decision."""

    def __init__(self, rows: Mapping[tuple[str, str], Row[Any] | None]) -> None:
        self._rows = rows

    def row(self, record: RecordType[S], key: str) -> Row[S] | None:
        """One of the rows, or None when it does not exist."""
        return self._rows[record.kind, key]

    def value(self, record: RecordType[S], key: str) -> S | None:
        """The value of a row, or None."""
        row = self.row(record, key)
        return None if row is None else row.value

    def version(self, record: RecordType[S], key: str) -> int:
        """The version a Put of this row must expect; ABSENT when it does not exist."""
        row = self.row(record, key)
        return ABSENT if row is None else row.version


class Ledger:
    """A book and the clock its decisions are made by."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self._locks: dict[tuple[str, str], _KeyLock] = {}

    async def transact(
        self, rows: Sequence[RowName], decide: Callable[[State, int], Unit | R]
    ) -> Outcome | R:
        """Read `rows`, let `decide(state, now_ns)` make a unit, commit it; again while stale.

        `decide` is pure and may answer with anything that is not a Unit, which is returned and
        changes nothing. Rows read and not written are guarded. Concurrent calls of this process
        on one row wait for each other instead of racing. Raises StoreBusy after too many races.
        """
        async with self._locked(rows):
            for _ in range(_ATTEMPTS_MAX):
                state = State(
                    {(record.kind, key): await self.store.get(record, key) for record, key in rows}
                )
                decision = decide(state, self.clock.now_ns())
                if not isinstance(decision, Unit):
                    return decision
                outcome = await self.store.commit(_guarded(decision, rows, state))
                if not isinstance(outcome, Stale | Taken):
                    return outcome
                if (outcome.kind, outcome.key) not in {(r.kind, k) for r, k in rows}:
                    return outcome
        raise StoreBusy(f"lost {_ATTEMPTS_MAX} races for the same rows; try again")

    async def post_many(self, transfers: Mapping[str, Transfer]) -> dict[str, Outcome]:
        """Make 1 to UNITS_MAX transfers in one commit, in this order; tells what became of each.

        The keys are ids for ever, of units that have one step each. The same id with the same
        transfer again is told what it was told first (`Replayed`), with another one `Mismatch`. A
        refused transfer does not touch its neighbours and leaves nothing behind: the same call
        again tries it again, and only it.

        Raises what `Store.commit_many` raises; then too the same call again is safe.
        """
        units = [
            Unit(unit_id, (transfer,), fingerprint=_fingerprint(transfer))
            for unit_id, transfer in transfers.items()
        ]
        outcomes = await self.store.commit_many(units)
        return dict(zip(transfers, outcomes, strict=True))

    async def limit_custody(self, account: str, asset: str, ceiling: int | None) -> None:
        """Make sure a custody account is there and may hold `ceiling` at most; None: any amount.

        What it holds already may stay. Writes nothing where nothing changes. Raises StoreError
        when the books refuse.
        """
        known = await self.store.account(account)
        if known is not None and (known.asset, known.ceiling) == (asset, ceiling):
            return
        steps = (Open(account, asset, Kind.CUSTODY), SetCeiling(account, ceiling))
        outcome = await self.store.commit(Unit(new_id("ceiling"), steps))
        if not isinstance(outcome, Applied):
            raise StoreError(f"the ceiling of {account} cannot be set: {outcome}")

    @asynccontextmanager
    async def _locked(self, rows: Sequence[RowName]) -> AsyncIterator[None]:
        # Sorted, so that two calls that want the same rows never wait for each other for ever.
        names = sorted((record.kind, key) for record, key in rows)
        locks = [self._locks.setdefault(name, _KeyLock()) for name in names]
        for lock in locks:
            lock.users += 1
        taken: list[_KeyLock] = []
        try:
            for lock in locks:
                await lock.acquire()
                taken.append(lock)
            yield
        finally:
            for lock in taken:
                lock.release()
            for name, lock in zip(names, locks, strict=True):
                lock.users -= 1
                if not lock.users:
                    self._locks.pop(name, None)


class _KeyLock(asyncio.Lock):
    def __init__(self) -> None:
        super().__init__()
        self.users = 0


def _fingerprint(transfer: Transfer) -> bytes:
    balancing = transfer.balancing or ""
    return _pack((transfer.debit, transfer.credit, str(transfer.amount), transfer.code, balancing))


def _guarded(unit: Unit, rows: Sequence[RowName], state: State) -> Unit:
    written = {(put.record.kind, put.key) for put in unit.puts}
    guards = tuple(
        Guard(record, key, state.version(record, key))
        for record, key in rows
        if (record.kind, key) not in written
    )
    return msgspec.structs.replace(unit, guards=unit.guards + guards) if guards else unit
