"""Writes a book: what queued up in a turn of the event loop is one transaction."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import apsw
import msgspec

from farebox.clock import Clock, running_s
from farebox.errors import StoreBusy, StoreError
from farebox.ledger.audit import GENESIS
from farebox.ledger.batch import Head, Pace
from farebox.ledger.model import Outcome, Unit
from farebox.ledger.store import UNITS_MAX
from farebox.stores.failure import Failure
from farebox.stores.sqlite.batch import Batch, Known
from farebox.stores.sqlite.disk import Disk
from farebox.tally import Commits

R = TypeVar("R")

#: Units that may wait; more are refused before anything is done.
QUEUE_MAX = 20_000
#: How long a unit that nobody waits for may stay unsynced.
_SYNC_AFTER_S = 0.05
#: Pages of the log at which it is moved into the database file: 16 MiB.
_LOG_PAGES = 4_000

#: Failures of the disk or the database: they hit every unit of a batch alike.
_EVERYBODYS = (
    apsw.FullError,
    apsw.IOError,
    apsw.BusyError,
    apsw.CantOpenError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.ReadOnlyError,
    apsw.NoMemError,
    OSError,
    StoreError,
)


class _Waiting(msgspec.Struct, frozen=True):
    """Somebody who is to be told `outcomes` once they are certain; None stands for "synced"."""

    answer: asyncio.Future[Any]
    outcomes: Sequence[Outcome] | None = None
    unit_id: str = ""


class _Queued(msgspec.Struct, frozen=True):
    units: Sequence[Unit]
    synced: bool
    answer: asyncio.Future[Sequence[Outcome]]


class _Failure(Failure):
    """Told apart: what hits every unit of a batch alike, and what may be one unit's own fault."""

    __slots__ = ()

    @property
    def everybodys(self) -> bool:
        return self.unknown or isinstance(self.cause, _EVERYBODYS)


class Writer:
    """Owns the connection that writes. All of it runs in the event loop's thread.

        queued ──(a turn of the loop)──► written ──(one sync for all)──► synced

    A transaction takes all that was queued in one turn of the loop, or while the last sync ran. It
    is written when it returns (a process that dies loses nothing of it) and synced when the disk
    has it (nor does a machine that loses its power). Syncs run in a thread while the loop goes on,
    one for everything that was written before it. So a lone unit changes threads only for its
    sync, or not at all if its caller asks for none; and many share transaction and sync.

    | what fails       | what holds                                                         |
    |------------------|--------------------------------------------------------------------|
    | the process      | all that was written; who was not told asks by the unit's id       |
    | the power        | all that was synced, and perhaps the first of what came after      |
    | a transaction    | nothing of it; its callers hear so                                 |
    | a COMMIT         | the same, once another commit has overwritten what it left         |
    | a sync           | nobody knows, until the book is opened anew: nothing more is done  |
    """

    def __init__(
        self, db: apsw.Connection, book: int, clock: Clock, disk: Disk, commits: Commits
    ) -> None:
        self._db = db
        self._book = book
        self._clock = clock
        self._pace = Pace()
        self._disk = disk
        self._commits = commits
        self._loop = asyncio.get_running_loop()
        self._head = read_head(db, book)
        self._known = Known()
        #: A COMMIT failed and what it left in the log is not yet overwritten.
        self._unsettled = False
        self._broken: _Failure | None = None
        self._closed = False
        self._queue: deque[_Queued] = deque()
        self._queued_units = 0
        commits.waiting = lambda: self._queued_units
        commits.stands(self._head.seq, self._head.event, self._head.at)
        self._turn_due = False
        # Transactions by number: the last that was written, that must be synced before anybody
        # hears of it, and that is synced.
        self._written = self._owed = self._synced = 0
        self._waiting: list[_Waiting] = []
        self._is_syncing = False
        self._sync_timer: asyncio.TimerHandle | None = None
        self._is_moving = False
        self._move_at_pages = _LOG_PAGES
        db.set_wal_hook(self._after_commit)

    def write(self, units: Sequence[Unit], *, synced: bool) -> asyncio.Future[Sequence[Outcome]]:
        """Queue units for one transaction, UNITS_MAX at most.

        Raises StoreBusy when too many wait, StoreError when closed.
        """
        self._check_open()
        if self._queued_units + len(units) > QUEUE_MAX:
            raise StoreBusy(f"{self._queued_units} units are waiting to be written; try again")
        answer: asyncio.Future[Sequence[Outcome]] = self._loop.create_future()
        self._queue.append(_Queued(units, synced, answer))
        self._queued_units += len(units)
        self._take_turn()
        return answer

    async def expire(self, limit: int) -> int:
        """Release up to `limit` due holds; returns how many."""
        self._check_open()
        expired = self._transaction(lambda batch: batch.run_expiry(limit))
        if isinstance(expired, _Failure):
            raise expired.told()
        self._owed = self._written
        await self.synced()
        return expired

    async def synced(self) -> None:
        """Wait until no loss of power can take back what others were, or will be, told.

        Whoever reads the book waits for this before he acts on what he read. Raises StoreError
        when the disk does not take it.
        """
        if self._synced >= self._owed and self._broken is None:
            return
        answer: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(_Waiting(answer))
        self._sync()
        await answer

    async def settled(self) -> None:
        """End the doubt that a failed COMMIT left. Raises StoreError while it stays."""
        failure = self._settled()
        if failure is not None:
            raise failure.told()

    async def close(self) -> None:
        """Write and sync what is queued, then end. May be called again."""
        if self._closed:
            return
        self._closed = True
        while self._queue:
            self._turn()
        self._owed = self._written
        with contextlib.suppress(StoreError):  # whoever has something to lose was told
            await self.synced()
        await asyncio.to_thread(self._disk.close)
        if self._broken is not None:
            # What SQLite sees in the log may never have reached the disk. Closing must not build
            # on it; opening reads what is there.
            self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed, nothing was done")

    # ── a turn of the loop ───────────────────────────────────────────────────────────────────────

    def _take_turn(self) -> None:
        # What comes while the disk is busy is written together when it is not: many small
        # transactions would cost more than their head start is worth.
        if not self._turn_due and not self._is_syncing:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        queue = self._queue
        if queue:
            self._write(self._next())
        if self._waiting:
            self._sync()
        elif self._synced < self._written and self._sync_timer is None:
            self._sync_timer = self._loop.call_later(_SYNC_AFTER_S, self._sync)
        if queue:
            self._take_turn()

    def _next(self) -> list[_Queued]:
        work, room = [], UNITS_MAX
        while self._queue and len(self._queue[0].units) <= room:
            room -= len(self._queue[0].units)
            work.append(self._queue.popleft())
        self._queued_units -= UNITS_MAX - room
        return work

    def _write(self, work: Sequence[_Queued]) -> None:
        units = [unit for queued in work for unit in queued.units]
        before, began_s = self._written, running_s()
        result = self._transaction(lambda batch: batch.run(units))
        if not isinstance(result, _Failure):
            self._commits.add(len(units), running_s() - began_s)
            if self._written > before and any(queued.synced for queued in work):
                self._owed = self._written
            self._tell(work, result)
        elif len(work) == 1 or result.everybodys:
            self._commits.failed(everybodys=result.everybodys)
            for queued in work:
                _resolve(queued.answer, result.told(queued.units[0].id))
        else:
            # One call's units cannot be stored. It must not fail others: halve until it is alone.
            self._write(work[: len(work) // 2])
            self._write(work[len(work) // 2 :])

    def _tell(self, work: Sequence[_Queued], outcomes: Sequence[Outcome]) -> None:
        certain = self._synced >= self._owed
        first = 0
        for one in work:
            told = outcomes[first : (first := first + len(one.units))]
            # A refusal waits as well: it may rest on what a loss of power would take back.
            if certain or not one.synced:
                _resolve(one.answer, told)
            else:
                self._waiting.append(_Waiting(one.answer, told, one.units[0].id))

    # ── the disk ─────────────────────────────────────────────────────────────────────────────────

    def _sync(self) -> None:
        """Begin a sync for everybody who waits; if one runs, its end begins the next."""
        if self._sync_timer is not None:
            self._sync_timer.cancel()
            self._sync_timer = None
        if self._is_syncing:
            return
        waiting, self._waiting = self._waiting, []
        if self._broken is not None:
            for one in waiting:
                _resolve(one.answer, self._broken.told(one.unit_id))
            return
        self._is_syncing = True
        self._disk.sync(partial(self._sync_ended, waiting, self._written, running_s()))

    def _sync_ended(
        self, waiting: Sequence[_Waiting], written: int, began_s: float, error: Exception | None
    ) -> None:
        self._is_syncing = False
        if error is None:
            self._commits.add_sync(running_s() - began_s)
            self._synced = written
            for one in waiting:
                _resolve(one.answer, one.outcomes)
        else:
            # After a sync that failed the system may call the same pages clean: to sync again
            # and be told "done" proves nothing.
            self._commits.failed(everybodys=True)
            why = f"{error}; restart farebox, which reads what the disk has"
            self._broken = _Failure(StoreError(why), unknown=True)
            self._waiting += waiting
        if self._queue:
            self._take_turn()
        elif self._waiting:
            self._sync()

    def _after_commit(self, _: apsw.Connection, __: str, log_pages: int) -> int:
        if log_pages >= self._move_at_pages and not self._is_moving:
            self._is_moving = True
            self._disk.move(self._moved)
        return apsw.SQLITE_OK

    def _moved(self, error: Exception | None) -> None:
        """Most of the log is in the database file. With what came meanwhile it is all of it, and
        the next commit begins the log anew; unless somebody reads from it."""
        self._is_moving = False
        pages = done = 0
        if error is None and self._broken is None and not self._closed:
            with contextlib.suppress(apsw.Error):  # it is tried again, as is what failed before
                pages, done = self._db.wal_checkpoint(None, apsw.SQLITE_CHECKPOINT_PASSIVE)
        self._move_at_pages = _LOG_PAGES + (pages if done < pages else 0)

    # ── a transaction ────────────────────────────────────────────────────────────────────────────

    def _transaction(self, run: Callable[[Batch], R]) -> R | _Failure:
        """Run one batch in one transaction."""
        failure = self._settled()
        if failure is not None:
            return failure
        try:
            self._db.execute("BEGIN IMMEDIATE")
            now_ns = self._pace.time_ns(self._clock.now_ns(), self._head.at)
            batch = Batch(self._db, self._book, self._head, now_ns, self._known)
            result = run(batch)
        except Exception as error:
            self._roll_back()
            return _Failure(error)
        try:
            self._db.execute("COMMIT")
        except apsw.Error as error:
            failure = self._after_failed_commit(error, batch.head)
            if failure is not None:
                return failure
        self._written += self._head is not batch.head
        self._head = head = batch.committed()
        self._commits.stands(head.seq, head.event, head.at)
        return result

    def _after_failed_commit(self, error: apsw.Error, hoped: Head) -> _Failure | None:
        """What a failed COMMIT means; None when it happened all the same.

        The frames of a failed COMMIT may stand whole in the log, so that a crash right now would
        bring them to life. The next commit overwrites them: only then is the outcome certain.
        """
        self._roll_back()
        self._unsettled = True
        if self._settled() is not None:
            return _Failure(error, unknown=True)
        return None if self._head == hoped else _Failure(error)

    def _settled(self) -> _Failure | None:
        """End the doubt of a failed COMMIT by committing something harmless over it."""
        if self._broken is not None:
            return _Failure(self._broken.cause)
        if not self._unsettled:
            return None
        self._known = Known()
        try:
            self._roll_back()
            self._db.execute("BEGIN IMMEDIATE")
            self._db.pragma("user_version", self._db.pragma("user_version"))
            self._db.execute("COMMIT")
            self._disk.sync_now()  # or a loss of power might bring back the frames below
            self._head = read_head(self._db, self._book)
        except (apsw.Error, OSError) as error:
            self._roll_back()
            return _Failure(error)
        self._unsettled = False
        return None

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            # A rollback that fails leaves the transaction open, and the next BEGIN says so.
            with contextlib.suppress(apsw.Error):
                self._db.execute("ROLLBACK")


def _resolve(answer: asyncio.Future[Any], told: Sequence[Outcome] | StoreError | None) -> None:
    if answer.done():
        return  # the caller gave up waiting; what was committed stands
    if isinstance(told, StoreError):
        answer.set_exception(told)
    else:
        answer.set_result(told)


def read_head(db: apsw.Connection, book: int) -> Head:
    """Where the book stands."""
    row = db.execute(
        "SELECT seq, at, digest FROM units WHERE book = ? ORDER BY seq DESC LIMIT 1", (book,)
    ).fetchone()
    event = db.execute("SELECT max(number) FROM events WHERE book = ?", (book,)).fetchone()
    seq, at, digest = row or (0, 0, GENESIS)
    return Head(seq, at, digest, (event and event[0]) or 0)
