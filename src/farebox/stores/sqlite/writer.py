"""The one thread that writes a book: takes what queued up, commits it, tells everybody."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import apsw

from farebox.clock import Clock, running_s
from farebox.errors import OutcomeUnknown, StoreBusy, StoreError
from farebox.ledger.audit import GENESIS
from farebox.ledger.model import Account, Outcome, Unit
from farebox.stores.sqlite.batch import Batch, Head
from farebox.tally import Commits

R = TypeVar("R")

#: Units that may wait; more are refused before anything is done.
QUEUE_MAX = 20_000
_BATCH_MAX = 2_000
_ACCOUNTS_MAX = 50_000

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
)


class _Unit(NamedTuple):
    unit: Unit
    answer: asyncio.Future[Outcome]


class _Expiry(NamedTuple):
    limit: int
    answer: asyncio.Future[int]


class _Settling(NamedTuple):
    answer: asyncio.Future[None]


_Item = _Unit | _Expiry | _Settling


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a transaction was not committed; or may have been, when `unknown`."""

    cause: Exception
    unknown: bool = False

    @property
    def everybodys(self) -> bool:
        return self.unknown or isinstance(self.cause, _EVERYBODYS)

    def told(self, unit_id: str = "") -> StoreError:
        """An exception of its own for each caller."""
        error = (
            OutcomeUnknown(unit_id)
            if self.unknown and unit_id
            else StoreError(f"the book could not be written, nothing was done: {self.cause}")
        )
        error.__cause__ = self.cause
        return error


class Writer:
    """Owns the connection that writes. Made and called in the event loop's thread."""

    def __init__(self, db: apsw.Connection, book: int, clock: Clock, commits: Commits) -> None:
        self._db = db
        self._book = book
        self._clock = clock
        self._commits = commits
        self._head = read_head(db, book)
        commits.stands(self._head.seq, self._head.event, self._head.at)
        #: Accounts as they stand; nobody else writes them while this process owns the book.
        self._accounts: dict[str, Account] = {}
        #: A COMMIT failed and what it left in the log is not yet overwritten.
        self.unsettled = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        commits.waiting = self._queue.qsize
        self._thread = threading.Thread(target=self._run, name="farebox-writer", daemon=True)
        self._thread.start()

    def write(self, unit: Unit) -> asyncio.Future[Outcome]:
        """Queue a unit. Raises StoreBusy when too many wait, StoreError when closed."""
        if self._queue.qsize() >= QUEUE_MAX:
            raise StoreBusy(f"{QUEUE_MAX} units are waiting to be written; try again")
        answer: asyncio.Future[Outcome] = self._answer()
        self._queue.put(_Unit(unit, answer))
        return answer

    def expire(self, limit: int) -> asyncio.Future[int]:
        """Queue the release of up to `limit` due holds."""
        answer: asyncio.Future[int] = self._answer()
        self._queue.put(_Expiry(limit, answer))
        return answer

    def settle(self) -> asyncio.Future[None]:
        """Queue the end of a failed COMMIT's doubt. Raises StoreError while it stays."""
        answer: asyncio.Future[None] = self._answer()
        self._queue.put(_Settling(answer))
        return answer

    async def close(self) -> None:
        """Write what is queued, then end. May be called again."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _answer(self) -> asyncio.Future[Any]:
        if self._closed:
            raise StoreError("the store is closed, nothing was done")
        return self._loop.create_future()

    # ── in the thread ────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        open_ = True
        while open_:
            items: list[_Item] = []
            item = self._queue.get()
            while item is not None:
                items.append(item)
                if len(items) == _BATCH_MAX:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            open_ = item is not None
            try:
                self._handle(items)
            except RuntimeError:
                return  # the event loop is closed: nobody is left to be told

    def _handle(self, items: Sequence[_Item]) -> None:
        units = [item for item in items if isinstance(item, _Unit)]
        if units:
            self._write(units)
        for item in items:
            if isinstance(item, _Expiry):
                self._expire(item)
            elif isinstance(item, _Settling):
                self._tell([(item.answer, self._settled())])

    def _expire(self, item: _Expiry) -> None:
        expired = self._transaction(lambda batch: batch.run_expiry(item.limit), 0)
        self._tell([(item.answer, expired)])

    def _write(self, work: Sequence[_Unit]) -> None:
        units = [item.unit for item in work]
        result = self._transaction(lambda batch: batch.run(units), len(units))
        if not isinstance(result, _Failure):
            self._tell([(item.answer, told) for item, told in zip(work, result, strict=True)])
        elif len(work) == 1 or result.everybodys:
            self._commits.failed(everybodys=result.everybodys)
            self._tell([(item.answer, result.told(item.unit.id)) for item in work])
        else:
            # One unit cannot be stored. It must not fail its neighbours: halve until it is alone.
            self._write(work[: len(work) // 2])
            self._write(work[len(work) // 2 :])

    def _tell(self, answers: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
        self._loop.call_soon_threadsafe(_resolve, answers)

    def _transaction(self, run: Callable[[Batch], R], size: int) -> R | _Failure:
        """Run one batch of `size` units in one transaction."""
        failure = self._settled()
        if failure is not None:
            return failure
        began_s = running_s()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            now_ns = self._clock.now_ns()
            batch = Batch(self._db, self._book, self._head, now_ns, self._accounts)
            result = run(batch)
        except Exception as error:
            self._roll_back()
            return _Failure(error)
        evaluated_s = running_s()
        try:
            self._db.execute("COMMIT")
        except apsw.Error as error:
            return self._after_failed_commit(error, batch.head) or result
        self._head = head = batch.head
        self._commits.stands(head.seq, head.event, head.at)
        if size:
            durable_s = running_s()
            self._commits.add(size, durable_s - began_s, durable_s - evaluated_s)
        self._remember(batch.accounts)
        return result

    def _after_failed_commit(self, error: apsw.Error, hoped: Head) -> _Failure | None:
        """What a failed COMMIT means; None when it happened all the same.

        The frames of a failed COMMIT may stand whole in the log, so that a crash right now would
        bring them to life. The next commit overwrites them: only then is the outcome certain.
        """
        self._roll_back()
        self.unsettled = True
        if self._settled() is not None:
            return _Failure(error, unknown=True)
        return None if self._head == hoped else _Failure(error)

    def _settled(self) -> _Failure | None:
        """End the doubt of a failed COMMIT by committing something harmless over it."""
        if not self.unsettled:
            return None
        self._accounts = {}
        try:
            self._roll_back()
            self._db.execute("BEGIN IMMEDIATE")
            self._db.pragma("user_version", self._db.pragma("user_version"))
            self._db.execute("COMMIT")
            self._head = read_head(self._db, self._book)
        except apsw.Error as error:
            self._roll_back()
            return _Failure(error)
        self.unsettled = False
        return None

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            # A rollback that fails leaves the transaction open, and the next BEGIN says so.
            with contextlib.suppress(apsw.Error):
                self._db.execute("ROLLBACK")

    def _remember(self, accounts: dict[str, Account]) -> None:
        self._accounts.update(accounts)
        if len(self._accounts) > _ACCOUNTS_MAX:
            self._accounts = {}


def _resolve(answers: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in answers:
        if future.done():
            continue  # the caller gave up waiting; what was committed stands
        if isinstance(result, _Failure):
            future.set_exception(result.told())
        elif isinstance(result, StoreError):
            future.set_exception(result)
        else:
            future.set_result(result)


def read_head(db: apsw.Connection, book: int) -> Head:
    """Where the book stands."""
    row = db.execute(
        "SELECT seq, at, digest FROM units WHERE book = ? ORDER BY seq DESC LIMIT 1", (book,)
    ).fetchone()
    event = db.execute("SELECT max(number) FROM events WHERE book = ?", (book,)).fetchone()
    seq, at, digest = row or (0, 0, GENESIS)
    return Head(seq, at, digest, (event and event[0]) or 0)
