"""Verifies a book: replays every unit from the log and compares the books with the result.

Streams; keeps in memory one balance per account and the holds that are open. From a checkpoint it
replays only what came after, and then trusts rows and resolved holds that are older; balances, open
holds and counts are compared in full either way. Whole, it also asks whether what the book is kept
in is sound: an index that lost an entry hides an operation from who looks for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from farebox.errors import StoreCorrupt
from farebox.ledger.audit import Body, EventRow, PutDigest, decode_body, extend
from farebox.ledger.checkpoint import Checkpoint, checkpoint_of
from farebox.ledger.cover import Cover, Covers
from farebox.ledger.model import Account, HoldRow
from farebox.ledger.replay import Broken, BrokenError, Invariant, StoredUnit

T = TypeVar("T")

_PROGRESS_EVERY = 1_000


class StoredRow(msgspec.Struct, frozen=True, gc=False):
    """A domain row as stored: who wrote it, its hash, and whether its index fields are its own."""

    kind: str
    key: str
    version: int
    seq: int
    digest: bytes
    indexed: bool


class AuditReader(Protocol):
    """One consistent snapshot of a book. Blocking: verify in a thread of its own.

    Every method raises StoreCorrupt, which names the place, for what cannot be read.
    """

    def damage(self) -> str:
        """The first thing wrong with what the book is kept in, below its rows; "" for nothing."""
        ...

    def last_seq(self) -> int:
        """The number of the last unit, 0 when there is none."""
        ...

    def units(self, after: int) -> Iterator[StoredUnit]:
        """Units above number `after`, in order."""
        ...

    def unit(self, seq_or_id: int | str) -> StoredUnit | None:
        """One unit, by its number or its id."""
        ...

    def events(self, after: int) -> Iterator[tuple[int, int, EventRow]]:
        """(unit number, time, event) of events above number `after`, in order."""
        ...

    def accounts(self) -> Iterator[Account]:
        """Every account, once."""
        ...

    def hold(self, hold_id: str) -> HoldRow | None:
        """One hold."""
        ...

    def holds(self) -> Iterator[HoldRow]:
        """Every hold."""
        ...

    def holds_count(self) -> int:
        """How many holds there are, resolved ones too."""
        ...

    def kinds(self) -> frozenset[str]:
        """The record types that this program declares."""
        ...

    def row(self, kind: str, key: str) -> StoredRow | None:
        """One domain row; None also when there is no such kind."""
        ...

    def rows(self, kind: str, after: int | None) -> Iterator[StoredRow]:
        """Rows of a kind last written by units above number `after`; None: all of them."""
        ...

    def rows_count(self, kind: str, after: int | None) -> int:
        """How many rows `rows` would give."""
        ...


class Verified(msgspec.Struct, frozen=True):
    """Everything holds, up to unit `seq` with this digest."""

    seq: int
    digest: bytes
    events: int
    accounts: int
    open_holds: int
    cover: dict[str, Cover]


def verify(
    reader: AuditReader,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], None] = lambda _: None,
    *,
    may_lack_cover: bool = False,
) -> tuple[Verified, Checkpoint] | Broken:
    """Check every invariant; from `checkpoint` on, or whole.

    With `may_lack_cover` all but the last, COVER: a copy is whole when it says what the book says.

    Returns what was verified and the checkpoint to start from next time, or the first thing wrong.
    `progress` hears the number of the unit now and then.
    """
    audit = _Audit(reader, checkpoint or Checkpoint())
    try:
        audit.check_start()
        audit.check_medium()
        audit.check_units(progress)
        audit.check_accounts()
        audit.check_holds()
        audit.check_rows()
        return audit.verified(may_lack_cover=may_lack_cover)
    except BrokenError as error:
        return error.broken
    except StoreCorrupt as error:
        return Broken(Invariant.UNIT, str(error), "something readable", "something else")


class _Audit:
    def __init__(self, reader: AuditReader, start: Checkpoint) -> None:
        self.reader = reader
        self.start = start
        self.seq, self.at, self.digest = start.seq, start.at, start.digest
        self.event = start.event
        self.books = start.replay()
        self.rows_made = Counter(start.rows_made)
        #: Rows whose current version was written after the start, by kind.
        self.rows_seen: Counter[str] = Counter()

    # ── the log ──────────────────────────────────────────────────────────────────────────────────

    def check_start(self) -> None:
        """The checkpoint speaks of this book, and the book has not lost its end since."""
        if not self.seq:
            return
        unit = self.reader.unit(self.seq)
        if unit is None:
            raise BrokenError(
                Invariant.ORDER,
                "the end of the book",
                f"unit {self.seq}, which was verified before",
                f"unit {self.reader.last_seq()} as the last",
            )
        if unit.digest != self.digest:
            raise BrokenError(
                Invariant.CHAIN, unit.name, self.digest.hex(), f"{unit.digest.hex()} as its digest"
            )

    def check_medium(self) -> None:
        """Every page can be read, and every index has its rows; only when verifying whole."""
        if not self.seq and (found := self.reader.damage()):
            raise BrokenError(Invariant.MEDIUM, "the database file", "sound pages", found)

    def check_units(self, progress: Callable[[int], None]) -> None:
        """Numbers, times, chain and replay of every unit."""
        after = self.start.seq
        events = _Grouped(self.reader.events(self.start.event), "an event")
        for unit in self.reader.units(after):
            if unit.seq != self.seq + 1:
                where, expected = f"after unit {self.seq}", f"unit {self.seq + 1}"
                raise BrokenError(Invariant.ORDER, where, expected, unit.name)
            if unit.at < self.at:
                where = f"the time of {unit.name}"
                raise BrokenError(Invariant.ORDER, where, f"at least {self.at}", unit.at)
            happened = [self._event(unit, *row) for row in events.of(unit.seq)]
            digest = extend(self.digest, unit.seq, unit.at, unit.id, unit.body, happened)
            if digest != unit.digest:
                where = f"{unit.name} with its events"
                raise BrokenError(Invariant.CHAIN, where, unit.digest.hex(), digest.hex())
            self.seq, self.at, self.digest = unit.seq, unit.at, digest
            self._replay(unit)
            if not unit.seq % _PROGRESS_EVERY:
                progress(unit.seq)
        events.check_end()

    def _event(self, unit: StoredUnit, _: int, at: int, event: EventRow) -> EventRow:
        self.event += 1
        if event.number != self.event:
            where, found = f"events of {unit.name}", f"event {event.number}"
            raise BrokenError(Invariant.ORDER, where, f"event {self.event}", found)
        if at != unit.at:
            raise BrokenError(Invariant.ORDER, f"the time of event {event.number}", unit.at, at)
        return event

    def _replay(self, unit: StoredUnit) -> None:
        body = _body_of(unit)
        try:
            resolved = self.books.apply(unit, body)
        except (ValueError, TypeError, IndexError) as error:
            raise BrokenError(
                Invariant.UNIT, unit.name, "a unit that can be read", error
            ) from error
        for hold in resolved:
            self._check_hold(hold)
        for put in body.puts:
            self._check_put(unit, put)

    def _check_put(self, unit: StoredUnit, put: PutDigest) -> None:
        """What a unit wrote is there, or something newer, which a later unit answers for."""
        self.rows_made[put.kind] += put.version == 1
        where = f"row {put.kind} {put.key}"
        row = self.reader.row(put.kind, put.key)
        if row is None:
            raise BrokenError(Invariant.ROWS, where, f"version {put.version}", "no such row")
        if row.version < put.version:
            expected = f"version {put.version}, written by {unit.name}"
            raise BrokenError(Invariant.ROWS, where, expected, f"version {row.version}")
        if row.version > put.version:
            return
        self.rows_seen[put.kind] += 1
        if row.seq != unit.seq:
            raise BrokenError(Invariant.ROWS, where, f"written by {unit.name}", f"unit {row.seq}")
        if row.digest != put.digest:
            expected = f"{put.digest.hex()}, as {unit.name} wrote it"
            raise BrokenError(Invariant.ROWS, where, expected, row.digest.hex())
        if not row.indexed:
            raise BrokenError(Invariant.ROWS, where, "the index of its value", "another index")

    # ── the books ────────────────────────────────────────────────────────────────────────────────

    def check_accounts(self) -> None:
        """Stored balances are the replayed ones, and debits equal credits."""
        balances = self.books.accounts
        posted: Counter[str] = Counter()
        pending: Counter[str] = Counter()
        seen = 0
        for stored in self.reader.accounts():
            seen += 1
            balance = balances.get(stored.id)
            where = f"account {stored.id}"
            if balance is None:
                raise BrokenError(
                    Invariant.ACCOUNTS, where, "no such account", "one no unit opened"
                )
            _compare(Invariant.ACCOUNTS, where, balance.account(stored.id), stored)
            posted[stored.asset] += stored.debits_posted - stored.credits_posted
            pending[stored.asset] += stored.debits_pending - stored.credits_pending
        if seen != len(balances):
            missing = min(balances.keys() - {stored.id for stored in self.reader.accounts()})
            raise BrokenError(Invariant.ACCOUNTS, f"account {missing}", "the account", "nothing")
        for name, sums in (("posted", posted), ("pending", pending)):
            for asset, surplus in sums.items():
                if surplus:
                    where = f"{name} debits less credits of {asset}"
                    raise BrokenError(Invariant.BALANCE, where, 0, surplus)

    def check_holds(self) -> None:
        """The holds that are open are stored as open, and there are no others."""
        for hold in self.books.open_holds.values():
            self._check_hold(hold)
        count = self.reader.holds_count()
        if count != self.books.holds_made:
            stray = next((hold.id for hold in self.reader.holds() if not self._made(hold)), "?")
            expected = f"{self.books.holds_made} holds"
            where = f"hold {stray}" if count > self.books.holds_made else "holds"
            raise BrokenError(Invariant.HOLDS, where, expected, f"{count}, one made by no unit")

    def _check_hold(self, hold: HoldRow) -> None:
        stored = self.reader.hold(hold.id)
        if stored is None:
            raise BrokenError(Invariant.HOLDS, f"hold {hold.id}", hold.state, "no such hold")
        _compare(Invariant.HOLDS, f"hold {hold.id}", hold, stored)

    def _made(self, hold: HoldRow) -> bool:
        unit = self.reader.unit(hold.id.rpartition("/")[0])
        moves = _body_of(unit).movements if unit else ()
        return any(move.kind == "hold" and move.hold == hold.id for move in moves)

    def check_rows(self) -> None:
        """There are no rows but those that units wrote."""
        for kind in sorted(self.reader.kinds() | self.rows_made.keys()):
            self._check_count(kind, self.start.seq, self.rows_seen[kind])
            self._check_count(kind, None, self.rows_made[kind])

    def _check_count(self, kind: str, after: int | None, expected: int) -> None:
        found = self.reader.rows_count(kind, after)
        if found == expected:
            return
        for row in self.reader.rows(kind, after):
            unit = self.reader.unit(row.seq)
            puts = _body_of(unit).puts if unit else ()
            if not any((p.kind, p.key, p.version) == (kind, row.key, row.version) for p in puts):
                where, stray = f"row {kind} {row.key}", f"version {row.version}, written by none"
                raise BrokenError(Invariant.ROWS, where, "a version that a unit wrote", stray)
        raise BrokenError(Invariant.ROWS, f"rows of kind {kind}", f"{expected} rows", found)

    def verified(self, *, may_lack_cover: bool) -> tuple[Verified, Checkpoint]:
        """What held; refuses at last when custody does not cover what is owed."""
        covers = Covers()
        covers.add(self.books.accounts.values())
        cover = covers.told()
        for asset, side in cover.items():
            if side.surplus < 0 and not may_lack_cover:
                least = side.owed - side.exchanged
                raise BrokenError(
                    Invariant.COVER, f"custody of {asset}", f"at least {least}", side.custody
                )
        checkpoint = checkpoint_of(
            self.books, self.seq, self.at, self.digest, self.event, dict(self.rows_made)
        )
        accounts, holds = len(self.books.accounts), len(self.books.open_holds)
        result = Verified(self.seq, self.digest, self.event, accounts, holds, cover)
        return result, checkpoint


Numbered = TypeVar("Numbered", bound=tuple[Any, ...])


class _Grouped(Generic[Numbered]):
    """Rows in the order of their units, handed out unit by unit; none may be left between."""

    def __init__(self, rows: Iterator[Numbered], what: str) -> None:
        self._rows = rows
        self._what = what
        self._next = next(rows, None)

    def of(self, seq: int) -> list[Numbered]:
        """The rows of unit `seq`."""
        found: list[Numbered] = []
        while self._next is not None and self._next[0] <= seq:
            if self._next[0] < seq:
                self.check_end()
            found.append(self._next)
            self._next = next(self._rows, None)
        return found

    def check_end(self) -> None:
        """Nothing is left."""
        if self._next is not None:
            where = f"{self._what} of unit {self._next[0]}"
            raise BrokenError(Invariant.ORDER, where, "a unit of that number", "none")


def _body_of(unit: StoredUnit) -> Body:
    try:
        return decode_body(unit.body)
    except msgspec.DecodeError as error:
        raise BrokenError(Invariant.UNIT, unit.name, "a body that can be read", error) from error


def _compare(
    invariant: Invariant, where: str, expected: msgspec.Struct, found: msgspec.Struct
) -> None:
    if expected == found:
        return
    for name in expected.__struct_fields__:
        wanted, there = getattr(expected, name), getattr(found, name)
        if wanted != there:
            raise BrokenError(invariant, f"{name} of {where}", wanted, there)
