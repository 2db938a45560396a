"""A store whose disk is a dictionary: the real evaluator and the real audit chain on top of it.

A batch is decided on what is on the disk, then written, then synced; only then it can be seen, and
only then its units are answered. What the units chose not to wait for (`synced=False`) can be seen
once it is written; losing the power loses it, with everything after it.

| stopped                       | by a kill               | by losing the power           |
|-------------------------------|-------------------------|-------------------------------|
| while units wait              | they never happened     | the same                      |
| while a batch is written      | it happened, or did not | the same                      |
| after it was synced           | it happened             | the same                      |
| after it was written unsynced | it happened             | it happened, or it and all    |
|                               |                         | that came after it did not    |

Several processes may share a disk, each with a store of its own: they take turns, as the lock of a
book has them do. One that does not move in its turn loses it, and finds out when it goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

import msgspec

from farebox.clock import Clock
from farebox.errors import OutcomeUnknown, StoreBusy, StoreError
from farebox.ledger.audit import decode_body, known_from
from farebox.ledger.batch import Pace, Staged, names_of
from farebox.ledger.evaluator import Known, Overlay
from farebox.ledger.model import (
    ABSENT,
    Account,
    Applied,
    HoldRow,
    HoldState,
    Outcome,
    Refused,
    StoredEvent,
    Unit,
)
from farebox.ledger.records import RecordType, Row
from farebox.ledger.store import PAGE_MAX, check_units
from tests.simulation.disk import Disk, Turn
from tests.simulation.loop import Gate
from tests.simulation.weather import DiskWeather

T = TypeVar("T", bound=msgspec.Struct)

_QUEUE_MAX = 1_024
_COLUMN_END = 1 << 63


@dataclass(slots=True)
class _Waiting:
    units: Sequence[Unit]
    is_synced: bool
    answer: asyncio.Future[Sequence[Outcome]]


class SimulatedStore:
    """One process's store over a disk. Implements `farebox.ledger.store.Store`."""

    def __init__(
        self,
        disk: Disk,
        clock: Clock,
        weather: Callable[[], DiskWeather],
        chance: Random,
        *,
        is_shared: bool = False,
    ) -> None:
        """`is_shared`: other processes write too, and a database's server ends every doubt."""
        self._is_shared = is_shared
        self._is_in_doubt = False
        self._disk = disk
        self._clock = clock
        self._pace = Pace()
        self._weather = weather
        self._chance = chance
        self._queue: list[_Waiting] = []
        self._queued = Gate()
        self._closed = self._is_writing = False
        self._writer = asyncio.get_running_loop().create_task(self._write_for_ever())

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    async def commit(self, unit: Unit, *, synced: bool = True) -> Outcome:
        """Decide and store one unit."""
        (outcome,) = await self.commit_many((unit,), synced=synced)
        return outcome

    async def commit_many(self, units: Sequence[Unit], *, synced: bool = True) -> Sequence[Outcome]:
        """Decide and store units in one write."""
        check_units(units)
        self._check_open()
        for unit in units:
            if not _fits_columns(unit):
                raise StoreError(f"unit {unit.id} cannot be stored, nothing was done")
        if len(self._queue) >= _QUEUE_MAX or self._happens(self._weather().busy):
            raise StoreBusy("the simulated queue is full")
        answer: asyncio.Future[Sequence[Outcome]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(tuple(units), synced, answer))
        self._queued.open()
        return await answer

    async def expire_due(self) -> int:
        """Release every hold that is due."""
        self._check_open()
        async with self._disk.turn() as turn:
            await self._certain(turn)
            staged, overlay = self._staged()
            due = self._due(staged.at)
            self._load_accounts(overlay, {id_ for row in due for id_ in (row.debit, row.credit)})
            staged.expire(due)
            await self._send(turn, staged, is_synced=True)
        return len(due)

    async def close(self) -> None:
        """Write what is queued, then let go."""
        self._closed = True
        while (self._queue or self._is_writing) and not self._writer.done():
            await self._pause()
        self._writer.cancel()
        await asyncio.wait([self._writer])

    async def _write_for_ever(self) -> None:
        while True:
            while not self._queue:
                await self._queued
            size = self._weather().batch_max
            batch, self._queue = self._queue[:size], self._queue[size:]
            self._is_writing = True
            try:
                outcomes = await self._write(batch)
            except OutcomeUnknown:
                for one in batch:
                    _answer(one.answer, OutcomeUnknown(one.units[0].id))
            except StoreError as error:
                for one in batch:
                    _answer(one.answer, StoreError(str(error)))
            else:
                first = 0
                for one in batch:
                    _answer(one.answer, outcomes[first : (first := first + len(one.units))])
            self._is_writing = False

    async def _write(self, waiting: Sequence[_Waiting]) -> list[Outcome]:
        async with self._disk.turn() as turn:
            await self._certain(turn)
            if self._happens(self._weather().fails):
                raise StoreError("the simulated disk failed, nothing was done")
            staged, overlay = self._staged()
            units = [unit for one in waiting for unit in one.units]
            self._load(overlay, units)
            touched = set(overlay.accounts)
            due = [row for row in self._due(staged.at) if {row.debit, row.credit} & touched]
            self._load_accounts(overlay, {id_ for row in due for id_ in (row.debit, row.credit)})
            staged.expire(due)
            outcomes = staged.decide(units)
            await self._send(turn, staged, is_synced=any(one.is_synced for one in waiting))
            return outcomes

    async def _send(self, turn: Turn, staged: Staged, *, is_synced: bool) -> None:
        """Have a batch committed. Raises OutcomeUnknown where that is not told."""
        turn.staged = staged
        await self._pause()
        turn.staged = None
        if turn.is_broken:
            self._is_in_doubt = True
            raise OutcomeUnknown("a batch")
        if self._happens(self._weather().loses_answer):
            self._is_in_doubt = True
            self._disk.in_doubt = staged
            if self._is_shared:
                self._disk.settle_doubt()
            # Alone, the doubt lasts: nobody can write until the disk is asked again.
            raise OutcomeUnknown("a batch")
        self._disk.write(staged, is_synced=is_synced)

    async def _certain(self, turn: Turn) -> None:
        """End the doubt that a lost answer left. Raises StoreError while it stays."""
        if not self._is_in_doubt:
            return
        await self._pause()
        if turn.is_broken:
            raise StoreError("the connection broke, nothing was done")
        if self._happens(self._weather().stays_in_doubt):
            raise StoreError("the simulated disk does not tell yet what it has")
        self._is_in_doubt = False
        self._disk.settle_doubt()

    def _staged(self) -> tuple[Staged, Overlay]:
        overlay = Overlay()
        head = self._disk.head
        return Staged(1, head, self._pace.time_ns(self._clock.now_ns(), head.at), overlay), overlay

    def _due(self, at: int) -> list[HoldRow]:
        timed = filter(None, map(self._disk.holds.get, self._disk.timed_holds))
        due = [row for row in timed if row.state is HoldState.OPEN and 0 < row.expires_at <= at]
        return sorted(due, key=lambda row: (row.expires_at, row.id))

    def _load(self, overlay: Overlay, units: Sequence[Unit]) -> None:
        names, disk = names_of(units), self._disk
        for unit_id in names.units & disk.by_id.keys():
            overlay.units[unit_id] = self._known(unit_id)
        overlay.holds.update((key, disk.holds.get(key)) for key in names.holds)
        for hold in filter(None, overlay.holds.values()):
            names.accounts.update((hold.debit, hold.credit))
        self._load_accounts(overlay, names.accounts)
        for record, keys in names.rows.items():
            for key in keys:
                row = disk.rows[record.kind].get(key)
                overlay.versions[record.kind, key] = ABSENT if row is None else row.version

    def _load_accounts(self, overlay: Overlay, ids: set[str]) -> None:
        overlay.accounts.update((key, self._disk.accounts.get(key)) for key in ids)

    def _known(self, unit_id: str) -> Known:
        unit = self._disk.by_id[unit_id].unit
        return known_from(unit.seq, unit.at, decode_body(unit.body))

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    async def outcome(self, unit_id: str) -> Applied | Refused | None:
        """What became of a unit."""
        self._check_open()
        async with self._disk.turn() as turn:
            await self._certain(turn)
        return self._known(unit_id).outcome if unit_id in self._disk.by_id else None

    async def get(self, record: RecordType[T], key: str) -> Row[T] | None:
        """One row."""
        await self._read()
        row = self._disk.rows[record.kind].get(key)
        return None if row is None else Row(row.value, row.version)

    async def find(
        self,
        record: RecordType[T],
        where: Mapping[str, str | int],
        *,
        at_most: tuple[str, int] | None = None,
        after: str = "",
        limit: int = PAGE_MAX,
    ) -> list[tuple[str, Row[T]]]:
        """Rows by their indexed fields, in key order."""
        record.check_query(where, at_most and at_most[0])
        await self._read()
        rows = self._disk.rows[record.kind]
        keys = sorted(
            key
            for key in self._disk.keys(record, where)
            if key > after and _fits(rows[key].value, at_most)
        )
        found = ((key, rows[key]) for key in keys[: min(limit, PAGE_MAX)])
        return [(key, Row(row.value, row.version)) for key, row in found]

    async def account(self, account_id: str) -> Account | None:
        """One account."""
        await self._read()
        return self._disk.accounts.get(account_id)

    async def accounts(self, after: str = "", limit: int = PAGE_MAX) -> list[Account]:
        """Accounts in id order."""
        await self._read()
        ids = sorted(one for one in self._disk.accounts if one > after)
        return [self._disk.accounts[one] for one in ids[: min(limit, PAGE_MAX)]]

    async def events(
        self, after: int = 0, *, subject: str | None = None, limit: int = PAGE_MAX
    ) -> list[StoredEvent]:
        """Events in order."""
        await self._read()
        found = [
            StoredEvent(
                event.number,
                written.unit.seq,
                written.unit.at,
                event.name,
                event.subject,
                msgspec.json.decode(event.data),
            )
            for written, event in self._disk.events[after:]
            if subject is None or event.subject == subject
        ]
        return found[: min(limit, PAGE_MAX)]

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed, nothing was done")

    async def _read(self) -> None:
        self._check_open()
        if self._happens(self._weather().cannot_read):
            raise StoreError("the simulated disk could not be read")
        if self._weather().is_remote:
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self._weather().pause_s(self._chance))

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._chance.random() < probability


def _answer(
    future: asyncio.Future[Sequence[Outcome]], told: Sequence[Outcome] | StoreError
) -> None:
    if future.done():
        return  # the caller gave up waiting; what was committed stands
    if isinstance(told, StoreError):
        future.set_exception(told)
    else:
        future.set_result(told)


def _fits_columns(unit: Unit) -> bool:
    """As much as every database holds: signed integers of 64 bits."""
    fields = (getattr(put.value, name) for put in unit.puts for name in put.record.columns)
    return all(-_COLUMN_END <= one < _COLUMN_END for one in fields if isinstance(one, int))


def _fits(value: Any, at_most: tuple[str, int] | None) -> bool:
    if at_most is None:
        return True
    bound = getattr(value, at_most[0])
    return bound is not None and bound <= at_most[1]
