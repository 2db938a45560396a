"""One batch of units between what a store loads and what it writes. Pure, and the same for each.

A store asks what the units name (`names_of`), fills an `Overlay` with it, lets `Staged` decide the
units in order, writes the rows that it holds then, and commits them in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from farebox.ledger.audit import GENESIS, EventRow, PutDigest, encode_body, extend, value_digest
from farebox.ledger.evaluator import Decision, Overlay, evaluate, expire
from farebox.ledger.model import (
    EXPIRY_PREFIX,
    Account,
    Applied,
    Hold,
    HoldRow,
    Open,
    Outcome,
    Post,
    Put,
    SetCeiling,
    Transfer,
    Unit,
    Void,
)
from farebox.ledger.records import RecordType

#: What one batch releases at most; a hold that is due and waits is refused all the same.
EXPIRED_MAX = 5_000

#: book, seq, id, at, body, digest
UnitColumns = tuple[int, int, str, int, bytes, bytes]
#: book, number, seq, at, name, subject, data
EventColumns = tuple[int, int, int, int, str, str, bytes]
#: book, key, version, seq, value, then the record type's columns
RecordColumns = tuple[Any, ...]

_json = msgspec.json.Encoder().encode


class Head(msgspec.Struct, frozen=True):
    """Where a book stands: last unit, its time, its digest, last event."""

    seq: int = 0
    at: int = 0
    digest: bytes = GENESIS
    event: int = 0


class Pace:
    """How one writer of a book carries its time on.

    Time in a book always rises. Where the clock was ahead and has been set back, the book is ahead
    of it: its time then runs at half the clock's speed until the two meet. So it neither stands
    still for as long as the clock was ahead, and with it everything that times out, nor runs away
    from the clock: a time-out takes twice as long as it should, no more.
    """

    def __init__(self) -> None:
        self._at_ns = self._clock_ns = 0

    def time_ns(self, clock_ns: int, head_at_ns: int) -> int:
        """The time of the next batch."""
        carried_on = self._at_ns + (clock_ns - self._clock_ns) // 2
        self._at_ns = max(clock_ns, head_at_ns + 1, carried_on)
        self._clock_ns = clock_ns
        return self._at_ns


@dataclass(slots=True)
class Names:
    """What some units name: ids of units, accounts and holds, and keys of rows by record type.

    The accounts of the holds are named as well, by the holds' rows, which only the store knows.
    """

    units: set[str] = field(default_factory=set)
    accounts: set[str] = field(default_factory=set)
    holds: set[str] = field(default_factory=set)
    rows: dict[RecordType[Any], set[str]] = field(default_factory=dict)


def names_of(units: Sequence[Unit]) -> Names:
    """Everything that must be in the overlay before these units are decided."""
    names = Names({unit.id for unit in units})
    accounts, holds, rows = names.accounts, names.holds, names.rows
    for unit in units:
        for step in unit.steps:
            match step:
                case Transfer() | Hold():
                    accounts.add(step.debit)
                    accounts.add(step.credit)
                case Post() | Void():
                    holds.add(step.hold)
                case Open() | SetCeiling():
                    accounts.add(step.account)
        for put in unit.puts:
            rows.setdefault(put.record, set()).add(put.key)
        for guard in unit.guards:
            rows.setdefault(guard.record, set()).add(guard.key)
    return names


class Staged:
    """What a batch adds to a book: decided over the overlay, not yet written.

    Appended rows are kept as the tuples that a store writes; what is written over is kept by key,
    as it stands after the batch.
    """

    def __init__(self, book: int, head: Head, now_ns: int, overlay: Overlay) -> None:
        """The store may fill the overlay until `expire` or `decide` is called."""
        #: The time of every unit of the batch: strictly increasing, whatever the clock does.
        self.at = max(now_ns, head.at + 1)
        self.units: list[UnitColumns] = []
        self.events: list[EventColumns] = []
        self.records: dict[RecordType[Any], list[RecordColumns]] = {}
        self.accounts: dict[str, Account] = {}
        self.holds: dict[str, HoldRow] = {}
        self._book = book
        self._overlay = overlay
        self._before = head
        self._seq = head.seq
        self._digest = head.digest
        self._event = head.event

    @property
    def head(self) -> Head:
        """Where the book stands after this batch."""
        return Head(self._seq, self.at, self._digest, self._event) if self.units else self._before

    def expire(self, due: Iterable[HoldRow]) -> None:
        """Release holds that are due at `at`, in this order; the overlay has their accounts."""
        for row in due:
            self._overlay.holds[row.id] = row
            unit = Unit(EXPIRY_PREFIX + row.id)
            self._stage(expire(row, self._overlay, unit, self._seq + 1, self.at))

    def decide(self, units: Sequence[Unit]) -> list[Outcome]:
        """Decide units in order; their outcomes hold once what is staged is committed."""
        outcomes: list[Outcome] = []
        overlay, at = self._overlay, self.at
        for unit in units:
            decided = evaluate(unit, overlay, self._seq + 1, at)
            if isinstance(decided, Decision):
                self._stage(decided)
                outcomes.append(decided.outcome)
            else:
                outcomes.append(decided)
        return outcomes

    def _stage(self, decision: Decision) -> None:
        unit, outcome = decision.unit, decision.outcome
        self._seq = seq = self._seq + 1
        puts: tuple[PutDigest, ...] = ()
        events: tuple[EventRow, ...] = ()
        if isinstance(outcome, Applied):
            puts = tuple(self._put(put, seq) for put in unit.puts) if unit.puts else ()
            events = self._events(unit, outcome) if unit.events else ()
        body = encode_body(decision, puts)
        self._digest = extend(self._digest, seq, self.at, unit.id, body, events)
        self.units.append((self._book, seq, unit.id, self.at, body, self._digest))
        for event in events:
            self.events.append(
                (self._book, event.number, seq, self.at, event.name, event.subject, event.data)
            )
        self.accounts.update(decision.accounts)
        if decision.holds:
            self.holds.update(decision.holds)

    def _put(self, put: Put, seq: int) -> PutDigest:
        record = put.record
        raw = record.encode(put.value)
        version = put.expect + 1
        row = (self._book, put.key, version, seq, raw, *record.columns_of(put.value))
        self.records.setdefault(record, []).append(row)
        return PutDigest(record.kind, put.key, version, value_digest(raw))

    def _events(self, unit: Unit, applied: Applied) -> tuple[EventRow, ...]:
        rows = []
        for number, event in enumerate(unit.events, self._event + 1):
            data = dict(event.data)
            for name, step in event.amounts.items():
                data[name] = applied.amounts[step]
            rows.append(EventRow(number, event.name, event.subject, _json(data)))
        self._event += len(rows)
        return tuple(rows)
