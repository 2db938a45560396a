"""Power is lost: what was not synced is gone, whole, in part, or in any order; what was is there.

A file system of ours passes everything on to the machine's, and keeps for each file of the book
what the disk is sure to have and every write since. A loss of power is then a copy of the book
with the sure part, and of the writes since a random choice, some of them torn in mid-sector.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import pytest

from farebox.ledger.invariants import verify
from farebox.ledger.model import Applied, Event, Transfer, Unit
from farebox.ledger.replay import Broken
from farebox.stores.sqlite import SqliteStore, disk, writer
from farebox.stores.sqlite.audit import SqliteAuditReader
from tests.contract.store.books import RECORDS, available, fund

_SECTOR = 512


@dataclass
class Medium:
    """One file: what survives for certain, and what was written since."""

    sure: bytearray = field(default_factory=bytearray)
    since: list[tuple[int, bytes | None]] = field(default_factory=list)

    def write(self, offset: int, data: bytes) -> None:
        self.since.append((offset, data))

    def truncate(self, size: int) -> None:
        self.since.append((size, None))

    def sync(self, count: int | None = None) -> None:
        done, self.since = self.since[:count], self.since[len(self.since[:count]) :]
        for offset, data in done:
            _apply(self.sure, offset, data)

    def after_power_loss(self, draw: random.Random) -> bytes:
        left = bytearray(self.sure)
        survives = draw.choice((0.0, 0.5, 0.9, 1.0))
        for offset, data in self.since:
            if draw.random() >= survives:
                continue
            if data is not None and draw.random() < 0.1:
                data = data[: draw.randrange(len(data) // _SECTOR + 1) * _SECTOR]
            _apply(left, offset, data)
        return bytes(left)


def _apply(image: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del image[offset:]
        return
    if len(image) < offset:
        image.extend(bytes(offset - len(image)))
    image[offset : offset + len(data)] = data


class Machine:
    """The files of a book by their names, and the lock that orders what happens to them."""

    def __init__(self) -> None:
        self.media = {"book.db": Medium(), "book.db-wal": Medium()}
        self.lock = threading.RLock()

    def medium(self, path: str) -> Medium | None:
        return self.media.get(Path(path).name)

    def lose_power(self, folder: Path, draw: random.Random) -> Path:
        """The book as it would be found afterwards."""
        with self.lock:
            for name, medium in self.media.items():
                (folder / f"found-{name}").write_bytes(medium.after_power_loss(draw))
        return folder / "found-book.db"


class _File(apsw.VFSFile):
    def __init__(self, machine: Machine, name: str | apsw.URIFilename, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self._lock = machine.lock
        self._medium = machine.medium(name if isinstance(name, str) else name.filename())

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        with self._lock:
            super().xWrite(data, offset)
            if self._medium:
                self._medium.write(offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        with self._lock:
            super().xTruncate(newsize)
            if self._medium:
                self._medium.truncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        with self._lock:
            if self._medium:
                self._medium.sync()


class _VFS(apsw.VFS):
    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        super().__init__("powered", "unix", makedefault=True)

    def xOpen(  # noqa: N802
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        return _File(self._machine, name or "", flags)


@contextmanager
def powered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine()

    def sync(log: int) -> None:
        medium = machine.media["book.db-wal"]
        with machine.lock:
            begun = len(medium.since)
        os.fdatasync(log)
        with machine.lock:
            # What was written while it ran may or may not be on the disk: it is not counted on.
            medium.sync(min(begun, len(medium.since)))

    monkeypatch.setattr(disk, "sync", sync)
    vfs = _VFS(machine)
    try:
        yield machine
    finally:
        vfs.unregister()


@pytest.mark.parametrize("seed", range(6))
async def test_what_was_told_survives_a_loss_of_power_and_the_book_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The log is small, so that it is emptied and begun anew many times meanwhile."""
    draw = random.Random(seed)
    monkeypatch.setattr(writer, "_LOG_PAGES", draw.choice((30, 200, 4_000)))
    told: set[str] = set()
    with powered(monkeypatch) as machine:
        store = SqliteStore(tmp_path / "book.db", RECORDS)
        await fund(store, 100_000)

        async def pay(caller: int) -> None:
            for number in range(60):
                unit = Unit(
                    f"p:{caller}:{number}",
                    (Transfer("a", "b", 1, "x"),),
                    events=(Event("paid", "a", {"filler": "x" * draw.randrange(2_000)}),),
                )
                synced = draw.random() < 0.5
                assert isinstance(await store.commit(unit, synced=synced), Applied)
                if synced:
                    told.add(unit.id)

        paying = asyncio.gather(*(pay(caller) for caller in range(8)))
        found: list[tuple[Path, set[str]]] = []
        while not paying.done():
            more = len(told) + draw.randrange(40)
            while len(told) < more and not paying.done():  # noqa: ASYNC110  # by work done
                await asyncio.sleep(draw.random() * 0.002)
            sure = set(told)  # whatever was told until now is there, and perhaps more
            folder = tmp_path / str(len(found))
            folder.mkdir()
            found.append((machine.lose_power(folder, draw), sure))
        await paying
        await store.close()
    assert len(found) > 3
    for book, sure in found:
        await _check(book, sure)


async def _check(found: Path, told: set[str]) -> None:
    with SqliteAuditReader(found, RECORDS) as reader:
        result = verify(reader)
    assert not isinstance(result, Broken), str(result)
    book = SqliteStore(found, RECORDS)
    try:
        paid = await available(book, "b")
        assert paid == result[0].events
        lost = [unit_id for unit_id in told if not isinstance(await book.outcome(unit_id), Applied)]
        assert not lost, f"told and lost: {sorted(lost)}"
    finally:
        await book.close()
