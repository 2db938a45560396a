"""One book as it lies on a disk, whoever lives or dies above it; and how it is audited."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, TypeVar

from farebox.errors import StoreError
from farebox.ledger.audit import EventRow, value_digest
from farebox.ledger.batch import Head, Staged
from farebox.ledger.invariants import StoredRow
from farebox.ledger.model import Account, HoldRow
from farebox.ledger.records import RecordType
from farebox.ledger.replay import StoredUnit
from tests.simulation.loop import Process, current_process

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Written:
    """A unit on the disk, with all that it told."""

    unit: StoredUnit
    events: tuple[EventRow, ...]


@dataclass(frozen=True, slots=True)
class DiskRow:
    """A domain row on the disk, read once."""

    raw: bytes
    value: Any
    version: int
    seq: int


class Turn:
    """One process's turn at the book, as the book's lock gives it: nobody else writes meanwhile.

    It is broken where the process was stopped in it, or did not move for long: what it had sent is
    committed or is not, and whoever goes on after it does not wait.
    """

    def __init__(self, process: Process | None) -> None:
        self.process = process
        self.is_broken = False
        #: What was sent and is not known to be committed.
        self.staged: Staged | None = None


class Disk:
    """The tables. What was written since the last sync can be taken back, youngest first.

    `on_change` hears of every batch, `on_loss` of every loss of what had been written.
    """

    def __init__(self, records: Sequence[RecordType[Any]], chance: Random) -> None:
        self.units: list[Written] = []
        self.by_id: dict[str, Written] = {}
        self.accounts: dict[str, Account] = {}
        self.holds: dict[str, HoldRow] = {}
        self.rows: dict[str, dict[str, DiskRow]] = {record.kind: {} for record in records}
        #: Holds that may time out; some of them are closed by now, or gone.
        self.timed_holds: dict[str, None] = {}
        #: Which rows have these values in the leading fields of an index.
        self.index: dict[tuple[str, tuple[str, ...], tuple[Any, ...]], dict[str, None]] = {}
        #: Which rows were written, in order.
        self.row_log: list[tuple[int, str, str]] = []
        self.events: list[tuple[Written, EventRow]] = []
        self.on_change: Callable[[Staged], None] = lambda _: None
        self.on_loss: Callable[[], None] = lambda: None
        self.head = Head()
        #: A batch whose answer was lost: it is there, or it is not.
        self.in_doubt: Staged | None = None
        self._chance = chance
        self._turn: Turn | None = None
        self._queue: deque[tuple[Turn, asyncio.Future[None]]] = deque()
        self._unsynced: list[Callable[[], None]] = []

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Wait for one's turn. Raises StoreError where the process was cut off while it waited."""
        turn = Turn(current_process())
        if self._turn is None:
            self._turn = turn
        else:
            given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append((turn, given))
            try:
                await given
            except asyncio.CancelledError:
                if turn is self._turn:
                    self._next()
                self._queue = deque(one for one in self._queue if one[0] is not turn)
                raise
        try:
            if turn.is_broken:
                raise StoreError("the connection broke, nothing was done")
            yield turn
        finally:
            if turn is self._turn:
                self._next()

    def _next(self) -> None:
        self._turn = None
        if self._queue:
            self._turn, given = self._queue.popleft()
            given.set_result(None)

    def break_off(self, process: Process) -> None:
        """End the turn of a process that does not go on, and those that it waits for."""
        for turn, given in self._queue:
            if turn.process is process:
                given.set_exception(StoreError("the connection broke, nothing was done"))
        self._queue = deque(one for one in self._queue if one[0].process is not process)
        turn_now = self._turn
        if turn_now is not None and turn_now.process is process:
            turn_now.is_broken = True
            self.in_doubt = turn_now.staged or self.in_doubt
            self.settle_doubt()
            self._next()

    def write(self, staged: Staged, *, is_synced: bool) -> None:
        """Make a batch part of the book; a sync takes all before it along."""
        undo = self._undo(staged)
        self.head = staged.head
        for written in _written(staged):
            self.units.append(written)
            self.by_id[written.unit.id] = written
            self.events.extend((written, event) for event in written.events)
        self.accounts.update(staged.accounts)
        self.holds.update(staged.holds)
        self.timed_holds.update((key, None) for key, row in staged.holds.items() if row.expires_at)
        for record, rows in staged.records.items():
            for _, key, version, seq, raw, *_columns in rows:
                self._set(record, key, DiskRow(raw, record.decode(raw), version, seq))
                self.row_log.append((seq, record.kind, key))
        self._unsynced = [] if is_synced else [*self._unsynced, undo]
        if staged.units:
            self.on_change(staged)

    def stop(self, *, loses_power: bool) -> None:
        """What becomes of the disk when its machine stops, in whatever it was doing."""
        self.settle_doubt()
        if loses_power and self._unsynced:
            for undo in reversed(self._unsynced[self._chance.randrange(len(self._unsynced) + 1) :]):
                undo()
            self._unsynced = []
            self.on_loss()

    def settle_doubt(self) -> None:
        """Find out whether the batch in doubt is there."""
        staged, self.in_doubt = self.in_doubt, None
        if staged is not None and self._chance.random() < 0.5:
            self.write(staged, is_synced=True)

    def keys(self, record: RecordType[Any], where: Mapping[str, Any]) -> Iterable[str]:
        """The keys of rows by the leading fields of an index, in no order."""
        for names in _prefixes(record) if where else ():
            if set(names) == set(where):
                return self.index.get(
                    (record.kind, names, tuple(map(where.__getitem__, names))), ()
                )
        return self.rows[record.kind]

    def _set(self, record: RecordType[Any], key: str, row: DiskRow | None) -> None:
        before = self.rows[record.kind].pop(key, None)
        for names in _prefixes(record):
            if before is not None:
                del self.index[record.kind, names, _fields(record, before.value, names)][key]
            if row is not None:
                at = (record.kind, names, _fields(record, row.value, names))
                self.index.setdefault(at, {})[key] = None
        if row is not None:
            self.rows[record.kind][key] = row

    def _undo(self, staged: Staged) -> Callable[[], None]:
        head, units, events, log = (
            self.head,
            len(self.units),
            len(self.events),
            len(self.row_log),
        )
        accounts = {key: self.accounts.get(key) for key in staged.accounts}
        holds = {key: self.holds.get(key) for key in staged.holds}
        rows = {
            (record, row[1]): self.rows[record.kind].get(row[1])
            for record, written in staged.records.items()
            for row in written
        }

        def undo() -> None:
            self.head = head
            for written in self.units[units:]:
                del self.by_id[written.unit.id]
            del self.units[units:], self.events[events:], self.row_log[log:]
            _put_back(self.accounts, accounts)
            _put_back(self.holds, holds)
            for (record, key), row in rows.items():
                self._set(record, key, row)

        return undo


@cache
def _prefixes(record: RecordType[Any]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        dict.fromkeys(
            index[:count] for index in record.indexes for count in range(1, len(index) + 1)
        )
    )


def _fields(record: RecordType[Any], value: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    columns = dict(zip(record.columns, record.columns_of(value), strict=True))
    return tuple(columns[name] for name in names)


def _put_back(table: dict[str, V], before: Mapping[str, V | None]) -> None:
    for key, value in before.items():
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value


def _written(staged: Staged) -> Iterator[Written]:
    events: dict[int, list[EventRow]] = {}
    for _, number, seq, _at, name, subject, data in staged.events:
        events.setdefault(seq, []).append(EventRow(number, name, subject, data))
    for _, seq, unit_id, at, body, digest in staged.units:
        unit = StoredUnit(seq, unit_id, at, body, digest)
        yield Written(unit, tuple(events.get(seq, ())))


class DiskReader:
    """The disk as `farebox.ledger.invariants` reads a book."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def damage(self) -> str:
        """Nothing: it is memory."""
        return ""

    def last_seq(self) -> int:
        """The last unit's number."""
        return len(self._disk.units)

    def units(self, after: int) -> Iterator[StoredUnit]:
        """Units above a number."""
        return (written.unit for written in self._disk.units[after:])

    def unit(self, seq_or_id: int | str) -> StoredUnit | None:
        """One unit."""
        if isinstance(seq_or_id, str):
            found = self._disk.by_id.get(seq_or_id)
            return None if found is None else found.unit
        return self._disk.units[seq_or_id - 1].unit if seq_or_id <= self.last_seq() else None

    def events(self, after: int) -> Iterator[tuple[int, int, EventRow]]:
        """Events above a number."""
        return (
            (written.unit.seq, written.unit.at, event)
            for written, event in self._disk.events[after:]
        )

    def accounts(self) -> Iterator[Account]:
        """Every account."""
        return iter(self._disk.accounts.values())

    def hold(self, hold_id: str) -> HoldRow | None:
        """One hold."""
        return self._disk.holds.get(hold_id)

    def holds(self) -> Iterator[HoldRow]:
        """Every hold."""
        return iter(self._disk.holds.values())

    def holds_count(self) -> int:
        """How many holds there are."""
        return len(self._disk.holds)

    def kinds(self) -> frozenset[str]:
        """The record types of the program."""
        return frozenset(self._disk.rows)

    def row(self, kind: str, key: str) -> StoredRow | None:
        """One row."""
        row = self._disk.rows[kind].get(key)
        return None if row is None else _stored(kind, key, row)

    def rows(self, kind: str, after: int | None) -> Iterator[StoredRow]:
        """Rows of a kind that were written after a unit."""
        return (
            _stored(kind, key, row)
            for key, row in self._disk.rows[kind].items()
            if row.seq > (after or 0)
        )

    def rows_count(self, kind: str, after: int | None) -> int:
        """How many those are."""
        if not after:
            return len(self._disk.rows[kind])
        written = set()
        for seq, of, key in reversed(self._disk.row_log):
            if seq <= after:
                break
            if of == kind:
                written.add(key)
        return len(written)


def _stored(kind: str, key: str, row: DiskRow) -> StoredRow:
    return StoredRow(kind, key, row.version, row.seq, value_digest(row.raw), indexed=True)
