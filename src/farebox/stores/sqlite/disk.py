"""The second half of a commit: what was written to the log reaches the disk, off the event loop.

SQLite in WAL mode with `synchronous = NORMAL` writes a commit to the log and leaves it to the
system when the disk has it. A process that dies loses none of it; a machine that loses its power
may lose the newest commits, always from the end. `Disk` ends that doubt, as `synchronous = FULL`
would, with one `fdatasync` of the log for all commits before it, in a thread that holds no lock.
It also moves what the log has gathered into the database file, for the same reason: so that the
event loop never waits for a disk.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import apsw

Job = tuple[Callable[[], object], Callable[[Exception | None], None]]


def sync_log(path: Path) -> None:
    """Have the disk hold every commit to the book at `path` that was written until now.

    Any process may. Raises OSError.
    """
    try:
        log = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # nobody has written since the book was closed
    try:
        sync(log)
    finally:
        os.close(log)


def sync(log: int) -> None:
    """The system call itself. Lets other threads run. Raises OSError."""
    os.fdatasync(log)


class Disk:
    """Two threads, one that syncs the log of a book and one that empties it."""

    def __init__(self, path: Path, emptier: apsw.Connection) -> None:
        """The log must exist. `emptier` is a connection of its own, used by one thread only."""
        self._log = os.open(f"{path}-wal", os.O_RDWR | os.O_CLOEXEC)
        self._emptier = emptier
        self._syncs = _Thread("farebox-sync")
        self._moves = _Thread("farebox-checkpoint")

    def sync(self, done: Callable[[Exception | None], None]) -> None:
        """Start one sync; `done(error)` is called in the event loop."""
        self._syncs.run(lambda: sync(self._log), done)

    def sync_now(self) -> None:
        """Sync and wait for it, event loop or not. Raises OSError."""
        sync(self._log)

    def move(self, done: Callable[[Exception | None], None]) -> None:
        """Start copying the log into the database file, beside writers and readers."""
        self._moves.run(
            lambda: self._emptier.wal_checkpoint(None, apsw.SQLITE_CHECKPOINT_PASSIVE), done
        )

    def close(self) -> None:
        """End what runs, then both threads. May block for as long as a disk takes."""
        self._moves.end()
        self._syncs.end()
        os.close(self._log)


class _Thread:
    """Jobs one after the other, each one's end told to the event loop that it was made in."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def run(self, job: Callable[[], object], done: Callable[[Exception | None], None]) -> None:
        self._jobs.put((job, done))

    def end(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            error: Exception | None = None
            try:
                job()
            except Exception as raised:
                error = raised
            try:
                self._loop.call_soon_threadsafe(done, error)
            except RuntimeError:
                return  # the event loop is closed: nobody is left to be told
