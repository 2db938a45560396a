"""The processes that share a book, and which of them have ended.

    running ──► ended      by itself when it stops, or by another that saw it beat no more

A process has a row of its own and rewrites it every `BEAT_EVERY_S`. What it is at work on (a
request, an operation, a named call, a job) carries its name; once its row says `ended`, anyone
may take that over. A name is used for one start only, and an ended one never runs again.

Nobody compares clocks. A process counts how often *it* has beaten and seen another's row unchanged
in between; after `LAPSE_BEATS` it writes `ended` over the very version it saw.

| what happens                           | then                                                    |
|----------------------------------------|---------------------------------------------------------|
| a process is killed                    | ended by the first that counts to LAPSE_BEATS           |
| two count to the end at once           | one write applies, the other is Stale; both see `ended` |
| a clock jumps, forwards or back        | nothing: only versions and beats of one's own count     |
| the store is away for all              | nobody beats, so nobody counts                          |
| whoever counts is paused, or suspended | it counts no beats meanwhile, and reads afresh after    |
| one is paused until it is ended, then  | its next beat is Stale and it goes on under a new name; |
| goes on                                | whatever it writes of its old work expects the versions |
|                                        | from before, so each piece is ended by one of the two   |
| it beats, but its row came too late    | as above: an ended name is never taken back             |
| it would admit a request before that   | it beats first, where its last beat was long ago        |

On SQLite a lock file says that no other process is alive: `alone` ends all others at the start,
and a process that nobody watches does not beat.
"""

from __future__ import annotations

import asyncio
import enum

import msgspec
import structlog

from farebox.clock import NS_PER_S
from farebox.errors import StoreError
from farebox.ids import new_id
from farebox.ledger.model import ABSENT, Applied, Put, Replayed, Unit
from farebox.ledger.records import RecordType, Row
from farebox.ledger.service import Ledger

_log = structlog.get_logger("farebox.processes")

#: Seconds between two beats.
BEAT_EVERY_S = 2
#: Beats of one's own during which another did not beat once: it has ended.
LAPSE_BEATS = 4
#: Whoever has not beaten for so long may be taken for dead soon.
_LATE_NS = (LAPSE_BEATS - 1) * BEAT_EVERY_S * NS_PER_S


class ProcessState(enum.StrEnum):
    """Whether a process may still be at work."""

    RUNNING = "running"
    ENDED = "ended"


class Process(msgspec.Struct, frozen=True):
    """One start of a process; the key is its name. Its version is what others watch."""

    state: ProcessState = ProcessState.RUNNING


PROCESS = RecordType("process", Process, indexes=(("state",),))


class Processes:
    """This process among those that share its book."""

    def __init__(
        self, ledger: Ledger, *, alone: bool = False, lapse_beats: int = LAPSE_BEATS
    ) -> None:
        """`alone`: the store vouches that no other process has this book open."""
        self._ledger = ledger
        self._alone = alone
        self._lapse_beats = lapse_beats
        self._version = ABSENT
        #: How many beats of ours each other process was seen at the same version.
        self._silent: dict[str, tuple[int, int]] = {}
        self._writing = asyncio.Lock()
        self._beaten_ns = 0
        self.name = new_id("proc")

    async def start(self) -> None:
        """Enter the book, before anything is written under this name. Raises StoreError."""
        await self._write(ProcessState.RUNNING)
        if self._alone:
            for name, row in await self._running():
                if name != self.name:
                    await self._end(name, row)

    async def beat(self) -> None:
        """Show that this process is alive, and end those that were silent for too long.

        Raises StoreError; such a beat counts against nobody.
        """
        if self._alone:
            return
        await self._write(ProcessState.RUNNING)
        seen = {name: row for name, row in await self._running() if name != self.name}
        before, self._silent = self._silent, {}
        for name, row in seen.items():
            version, beats = before.get(name, (row.version, -1))
            silent = beats + 1 if version == row.version else 0
            if silent >= self._lapse_beats:
                _log.error("process.lapsed", process=name)
                await self._end(name, row)
            else:
                self._silent[name] = (row.version, silent)

    async def ensure_name(self) -> None:
        """Beat first, if the last beat was so long ago that this name may be an ended one.

        Ask before beginning what others would settle at once under an ended name. Raises
        StoreError.
        """
        now_ns = self._ledger.clock.elapsed_ns()
        if not self._alone and now_ns - self._beaten_ns > _LATE_NS:
            await self._write(ProcessState.RUNNING)

    async def stop(self) -> None:
        """Say that this process has ended; what it left open may be taken up at once."""
        try:
            await self._write(ProcessState.ENDED)
        except StoreError as error:  # the others will find out by themselves
            _log.warning("process.end_not_stored", error=str(error))

    async def others(self) -> frozenset[str]:
        """The names of other processes that may still be at work.

        Ask after reading whose work it is, never before: a process enters the book before it
        begins anything, so a name found in a row and missing here has ended, or is our own.
        """
        return frozenset(name for name, _ in await self._running()) - {self.name}

    async def _running(self) -> list[tuple[str, Row[Process]]]:
        return await self._ledger.store.find(PROCESS, {"state": ProcessState.RUNNING})

    async def _write(self, state: ProcessState) -> None:
        async with self._writing:
            began_ns = self._ledger.clock.elapsed_ns()
            if await self._put(self.name, state, self._version):
                self._version += 1
            elif state is ProcessState.RUNNING:
                name = new_id("proc")
                if not await self._put(name, state, ABSENT):
                    raise StoreError("this process cannot enter the book")
                _log.error("process.was_taken_for_dead", process=self.name, now=name)
                self.name, self._version = name, ABSENT + 1  # only now, that it is in the book
            self._beaten_ns = began_ns

    async def _put(self, name: str, state: ProcessState, version: int) -> bool:
        put = Put(PROCESS, name, Process(state), version)
        outcome = await self._ledger.store.commit(Unit(f"{name}:{version + 1}", puts=(put,)))
        # Replayed: this very beat was committed before, and its answer lost.
        return isinstance(outcome, Applied | Replayed)

    async def _end(self, name: str, row: Row[Process]) -> None:
        put = Put(PROCESS, name, Process(ProcessState.ENDED), row.version)
        await self._ledger.store.commit(Unit(f"{name}:end:{row.version}", puts=(put,)))
