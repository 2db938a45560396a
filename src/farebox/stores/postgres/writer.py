"""The one task of this process that writes a book: takes what queued up, commits it, tells all.

Other processes write the same book; the book's lock in the database orders the batches. So nothing
is remembered from one batch to the next but the connection, and where the book was last known to
stand: the database must still have that, or somebody was told what is true no more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import psycopg
import structlog

from farebox.clock import running_s
from farebox.errors import StoreBusy, StoreError, StoreRewound
from farebox.ledger.batch import Head
from farebox.ledger.model import Outcome, Unit
from farebox.ledger.store import UNITS_MAX
from farebox.stores.failure import Failure
from farebox.stores.postgres.batch import Decided, decide, decide_expiry, end_frozen, stands, write
from farebox.stores.postgres.connection import Connection, Patience, connect, everybodys, lost
from farebox.tally import Commits

_log = structlog.get_logger("farebox.store")
R = TypeVar("R")

#: Units that may wait; more are refused before anything is done.
QUEUE_MAX = 20_000


class _Units(NamedTuple):
    units: Sequence[Unit]
    synced: bool
    answer: asyncio.Future[Sequence[Outcome]]


class _Expiry(NamedTuple):
    limit: int
    answer: asyncio.Future[int]


class _Failure(Failure):
    """Told apart: what hits every unit of a batch alike, and what may be one unit's own fault."""

    __slots__ = ()

    @property
    def everybodys(self) -> bool:
        return self.unknown or everybodys(self.cause)


class Writer:
    """Owns the connection that writes. Made inside a running event loop."""

    def __init__(self, info: str, book: int, commits: Commits) -> None:
        self._info = info
        self._book = book
        self._connection: Connection | None = None
        #: The last batch that was synced and told.
        self._known = Head()
        self._rewound: StoreRewound | None = None
        self._commits = commits
        self._queue: deque[_Units | _Expiry] = deque()
        self._queued_units = 0
        commits.waiting = lambda: self._queued_units
        self._wake = asyncio.Event()
        self._closed = False
        self._task = asyncio.create_task(self._run(), name="farebox-postgres-writer")

    def write(self, units: Sequence[Unit], synced: bool) -> asyncio.Future[Sequence[Outcome]]:
        """Queue units for one transaction, UNITS_MAX at most.

        Raises StoreBusy when too many wait, StoreError when closed.
        """
        if self._queued_units + len(units) > QUEUE_MAX:
            raise StoreBusy(f"{self._queued_units} units are waiting to be written; try again")
        answer: asyncio.Future[Sequence[Outcome]] = self._answer()
        self._put(_Units(units, synced, answer))
        self._queued_units += len(units)
        return answer

    def expire(self, limit: int) -> asyncio.Future[int]:
        """Queue the release of up to `limit` due holds."""
        answer: asyncio.Future[int] = self._answer()
        self._put(_Expiry(limit, answer))
        return answer

    async def close(self) -> None:
        """Write what is queued, then end. May be called again."""
        self._closed = True
        self._wake.set()
        await asyncio.shield(self._task)

    def _answer(self) -> asyncio.Future[Any]:
        if self._closed:
            raise StoreError("the store is closed, nothing was done")
        return asyncio.get_running_loop().create_future()

    def _put(self, item: _Units | _Expiry) -> None:
        self._queue.append(item)
        self._wake.set()

    # ── the task ─────────────────────────────────────────────────────────────────────────────────

    async def _run(self) -> None:
        try:
            while self._queue or not self._closed:
                if not self._queue:
                    self._wake.clear()
                    await self._wake.wait()
                elif isinstance(self._queue[0], _Expiry):
                    await self._expire(self._queue.popleft())  # type: ignore[arg-type]
                else:
                    await self._write(self._next_units())
        finally:
            await self._drop()

    def _next_units(self) -> list[_Units]:
        work: list[_Units] = []
        room = UNITS_MAX
        while self._queue:
            item = self._queue[0]
            if not isinstance(item, _Units) or len(item.units) > room:
                break
            room -= len(item.units)
            work.append(item)
            self._queue.popleft()
        self._queued_units -= UNITS_MAX - room
        return work

    async def _expire(self, item: _Expiry) -> None:
        result = await self._transaction(
            lambda connection: decide_expiry(connection, self._book, item.limit, self._known)
        )
        _tell(item.answer, result)

    async def _write(self, work: Sequence[_Units]) -> None:
        units = [unit for item in work for unit in item.units]
        synced = any(item.synced for item in work)
        began_s = running_s()
        result = await self._transaction(
            lambda connection: decide(connection, self._book, units, self._known, synced=synced)
        )
        if not isinstance(result, _Failure):
            self._commits.add(len(units), running_s() - began_s)
            first = 0
            for item in work:
                _tell(item.answer, result[first : (first := first + len(item.units))])
        elif len(work) == 1 or result.everybodys:
            self._commits.failed(everybodys=result.everybodys)
            for item in work:
                _tell(item.answer, result, item.units[0].id)
        else:
            # One call's units cannot be stored. It must not fail others: halve until it is alone.
            await self._write(work[: len(work) // 2])
            await self._write(work[len(work) // 2 :])

    async def _transaction(
        self, run: Callable[[Connection], Awaitable[Decided[R]]]
    ) -> R | _Failure:
        """Decide and commit one batch; again on a new connection while patience lasts.

        When the answer to COMMIT was lost, the book is asked before anything is tried again.
        """
        if self._rewound is not None:
            return _Failure(self._rewound)
        patience = Patience()
        #: What may have been committed, by a connection that was lost.
        doubt: Decided[R] | None = None
        while True:
            decided: Decided[R] | None = None
            try:
                connection = await self._connected()
                if doubt is not None and await stands(connection, self._book, doubt.staged.head):
                    return self._stood(doubt)
                doubt = None
                decided = await run(connection)
                await write(connection, self._book, decided.staged)
            except StoreRewound as error:
                _log.error("store.rewound", error=str(error))
                self._rewound = error
                await self._drop()
                return _Failure(error)
            except Exception as error:
                gone = await self._lost(error)
                if gone and decided is not None and decided.staged.units:
                    doubt = decided
                waited = isinstance(error, psycopg.errors.LockNotAvailable)
                if waited:
                    await self._end_frozen()
                if not gone and not waited and doubt is None:
                    return _Failure(error)  # the server said so, and has rolled back
                if not await patience.pause():
                    self._give_up(error)
                    return _Failure(error, unknown=doubt is not None)
            else:
                return self._stood(decided)

    def _stood(self, committed: Decided[R]) -> R:
        head = committed.staged.head
        self._commits.stands(head.seq, head.event, head.at)
        if committed.synced:
            self._known = head
        return committed.told

    async def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = await connect(self._info)
        return self._connection

    async def _lost(self, error: Exception) -> bool:
        """Tidy up after a failure. Whether the connection is gone, and a new one may do."""
        connection = self._connection
        if connection is None or lost(connection, error):
            await self._drop()
            return connection is not None or isinstance(error, psycopg.OperationalError)
        try:
            await connection.rollback()
        except psycopg.Error:
            await self._drop()
        return False

    async def _end_frozen(self) -> None:
        """We waited for the lock: a process that holds it and says nothing shall not keep it."""
        with contextlib.suppress(psycopg.Error):
            if self._connection is not None and await end_frozen(self._connection, self._book):
                _log.error("store.frozen_process_ended", book=self._book)

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                await connection.close()

    def _give_up(self, cause: Exception) -> None:
        """Those who wait behind have waited as long as the batch that could not be written."""
        while self._queue:
            _tell(self._queue.popleft().answer, _Failure(cause))
        self._queued_units = 0


def _tell(answer: asyncio.Future[Any], result: object, unit_id: str = "") -> None:
    if answer.done():
        return  # the caller gave up waiting; what was committed stands
    if isinstance(result, _Failure):
        answer.set_exception(result.told(unit_id))
    else:
        answer.set_result(result)
