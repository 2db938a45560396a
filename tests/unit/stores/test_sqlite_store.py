"""What only a SQLite book can suffer: full disks, failing disks, locks, foreign files."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from farebox.clock import ManualClock
from farebox.errors import (
    OutcomeUnknown,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreLocked,
    StoreOutdated,
)
from farebox.ledger.invariants import Verified, verify
from farebox.ledger.model import (
    ABSENT,
    Applied,
    Hold,
    Kind,
    Open,
    Outcome,
    Put,
    Replayed,
    Transfer,
    Unit,
)
from farebox.ledger.records import RecordType
from farebox.ledger.replay import Broken
from farebox.stores.sqlite import SqliteStore, disk, writer
from farebox.stores.sqlite.audit import SqliteAuditReader
from farebox.tally import Commits
from tests.contract.store.books import COUNTER, JOB, RECORDS, Job, available, fund


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "book.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, RECORDS)
    yield store
    await store.close()


def verified(path: Path) -> Verified:
    with SqliteAuditReader(path, RECORDS) as reader:
        result = verify(reader)
    assert not isinstance(result, Broken), str(result)
    return result[0]


def size(path: Path) -> int:
    return path.stat().st_size


def pay(number: int | str) -> Unit:
    return Unit(f"p:{number}", (Transfer("a", "b", 1, "x"),))


# ── a full disk ──────────────────────────────────────────────────────────────────────────────────


async def test_a_full_disk_stores_nothing_and_later_it_works_again(
    path: Path, store: SqliteStore
) -> None:
    await fund(store)
    before = verified(path)
    pages = store._writer._db.pragma("page_count")
    store._writer._db.pragma("max_page_count", pages)
    large = [
        Unit(
            f"l:{n}", (Transfer("a", "b", 1, "x"),), (Put(JOB, f"{n}", Job(owner="x" * 9_000), 0),)
        )
        for n in range(40)
    ]
    told = await asyncio.gather(*(store.commit(unit) for unit in large), return_exceptions=True)
    assert all(type(outcome) is StoreError for outcome in told)
    assert verified(path) == before
    assert await available(store, "b") == 0
    assert store._writer._commits.is_failing
    store._writer._db.pragma("max_page_count", 1_000_000)
    told = await asyncio.gather(*(store.commit(unit) for unit in large))
    assert all(isinstance(outcome, Applied) for outcome in told)
    assert await available(store, "b") == 40
    assert verified(path).seq == before.seq + 40
    assert not store._writer._commits.is_failing


async def test_commits_are_counted_with_where_the_book_stands(path: Path) -> None:
    commits = Commits()
    store = SqliteStore(path, RECORDS, commits=commits)
    await fund(store)
    await asyncio.gather(*(store.commit(pay(number)) for number in range(20)))
    await store.expire_due()  # what finds nothing to do is no commit
    assert commits.sizes.sum == 21
    assert sum(commits.sizes.buckets) == sum(commits.took.buckets)
    assert 1 <= sum(commits.synced.buckets) <= 2
    assert (commits.unit, commits.waiting()) == (21, 0)
    await store.close()
    again = Commits()
    await SqliteStore(path, RECORDS, commits=again).close()
    assert (again.unit, again.event, again.at_ns) == (21, commits.event, commits.at_ns)


# ── a failing disk ───────────────────────────────────────────────────────────────────────────────


class Disk:
    """Writes to the log fail, though done, once `writes_left` have passed; `failing` of them."""

    def __init__(self) -> None:
        self.writes_left = 0
        self.failing = 0

    def check_write(self) -> None:
        if self.writes_left:
            self.writes_left -= 1
        elif self.failing:
            self.failing -= 1
            raise apsw.IOError("the disk says no")


class FaultyFile(apsw.VFSFile):
    def __init__(self, disk: Disk, name: str | apsw.URIFilename, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        path = name if isinstance(name, str) else name.filename()
        self._disk = disk if str(path).endswith("-wal") else Disk()

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        super().xWrite(data, offset)
        self._disk.check_write()


class FaultyVFS(apsw.VFS):
    """The machine's own file system, with a disk that fails when told to."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        super().__init__("faulty", "unix", makedefault=True)

    def xOpen(  # noqa: N802
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        return FaultyFile(self._disk, name or "", flags)


@contextmanager
def failing_disk() -> Iterator[Disk]:
    disk = Disk()
    vfs = FaultyVFS(disk)
    try:
        yield disk
    finally:
        vfs.unregister()


async def test_a_commit_that_fails_and_is_overwritten_did_not_happen(path: Path) -> None:
    with failing_disk() as faulty:
        store = SqliteStore(path, RECORDS)
        await fund(store)
        faulty.failing = 1
        with pytest.raises(StoreError) as told:
            await store.commit(pay(1))
        assert not isinstance(told.value, OutcomeUnknown)
        assert await store.outcome("p:1") is None
        assert await available(store, "b") == 0
        assert isinstance(await store.commit(pay(1)), Applied)
        await store.close()
    assert verified(path).seq == 2


async def test_a_commit_whose_answer_is_lost_is_unknown_until_it_is_known(path: Path) -> None:
    with failing_disk() as faulty:
        store = SqliteStore(path, RECORDS)
        await fund(store)
        faulty.failing = 1_000
        with pytest.raises(OutcomeUnknown) as unknown:
            await store.commit(pay(0))
        assert unknown.value.unit_id == "p:0"
        with pytest.raises(StoreError):
            await store.outcome("p:0")
        with pytest.raises(StoreError) as refused:
            await store.commit(pay(9))
        assert not isinstance(refused.value, OutcomeUnknown)
        faulty.failing = 0
        assert await store.outcome("p:0") is None
        assert isinstance(await store.commit(pay(0)), Applied)
        assert await available(store, "b") == 1
        await store.close()
    assert verified(path).seq == 2


@pytest.mark.parametrize("writes_left", range(6))
async def test_a_crash_in_doubt_leaves_a_whole_book(
    path: Path, tmp_path: Path, writes_left: int
) -> None:
    """The frames of the failed COMMIT may come to life: whole, and under the same id."""
    with failing_disk() as faulty:
        store = SqliteStore(path, RECORDS)
        await fund(store)
        faulty.writes_left, faulty.failing = writes_left, 1_000
        with pytest.raises(OutcomeUnknown):
            await store.commit(pay(1))
        for name in ("book.db", "book.db-wal"):
            shutil.copy(tmp_path / name, tmp_path / name.replace("book", "crashed"))
        faulty.failing = 0
        await store.close()
    again = SqliteStore(tmp_path / "crashed.db", RECORDS)
    known = await again.outcome("p:1")
    assert await available(again, "b") == (1 if known else 0)
    assert isinstance(await again.commit(pay(1)), Replayed if known else Applied)
    assert await available(again, "b") == 1
    await again.close()
    verified(tmp_path / "crashed.db")


# ── syncs ────────────────────────────────────────────────────────────────────────────────────────


class Syncs:
    """Counts the syncs of the log; fails them, or keeps them waiting, when told to."""

    def __init__(self) -> None:
        self.count = 0
        self.fail = False
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self._begun = threading.Event()

    def stop(self) -> None:
        self._begun.clear()
        self.may_go_on.clear()

    async def begun(self) -> None:
        """Wait until a sync has begun since they were stopped."""
        assert await asyncio.to_thread(self._begun.wait, 60)

    def __call__(self, log: int) -> None:
        self.count += 1
        self._begun.set()
        assert self.may_go_on.wait(60)
        if self.fail:
            raise OSError(errno.EIO, "the disk says no")
        os.fdatasync(log)


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    syncs = Syncs()
    monkeypatch.setattr(disk, "sync", syncs)
    return syncs


async def test_a_unit_is_told_when_the_disk_has_it_and_not_before(
    syncs: Syncs, store: SqliteStore
) -> None:
    await fund(store)
    syncs.stop()
    paid = asyncio.ensure_future(store.commit(pay(1)))
    await syncs.begun()
    seen = asyncio.ensure_future(available(store, "b"))
    asked = asyncio.ensure_future(store.outcome("p:1"))
    again = asyncio.ensure_future(store.commit(pay(1)))
    done, _ = await asyncio.wait((paid, seen, asked, again), timeout=0.1)
    assert not done
    syncs.may_go_on.set()
    assert isinstance(await paid, Applied)
    assert isinstance(await again, Replayed)
    assert await asked == await paid
    await seen


async def test_one_sync_serves_everybody_who_waits(syncs: Syncs, store: SqliteStore) -> None:
    await fund(store)
    before = syncs.count
    await asyncio.gather(*(store.commit(pay(n)) for n in range(500)))
    assert syncs.count - before <= 2


async def test_a_unit_that_need_not_be_synced_waits_for_no_disk_and_reaches_it_soon(
    syncs: Syncs, path: Path, store: SqliteStore
) -> None:
    await fund(store)
    syncs.stop()  # whoever waited for one would wait in vain
    assert isinstance(await store.commit(pay(1), synced=False), Applied)
    assert await available(store, "b") == 1
    crashed = path.with_name("crashed.db")
    for end in ("", "-wal"):
        shutil.copy(f"{path}{end}", f"{crashed}{end}")
    await syncs.begun()
    syncs.may_go_on.set()
    assert verified(crashed).seq == 2  # a process that dies before the sync loses nothing


async def test_after_a_failed_sync_nothing_goes_on_and_a_restart_knows(
    syncs: Syncs, path: Path, store: SqliteStore
) -> None:
    await fund(store)
    syncs.fail = True
    told = await asyncio.gather(*(store.commit(pay(n)) for n in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in told] == [OutcomeUnknown] * 3
    syncs.fail = False  # the system now says "done" to any sync, whatever the disk has
    for refused in (store.commit(pay(9)), store.outcome("p:0"), store.account("b")):
        with pytest.raises(StoreError, match="restart farebox") as error:
            await refused
        assert not isinstance(error.value, OutcomeUnknown)
    before = size(path)
    await store.close()
    assert size(path) == before, "closing moved what may not be on the disk"
    again = SqliteStore(path, RECORDS)
    assert isinstance(await again.outcome("p:0"), Applied)
    assert isinstance(await again.commit(pay(9)), Applied)
    await again.close()
    assert verified(path).seq == 5


async def test_the_log_is_emptied_while_units_are_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_LOG_PAGES", 50)
    store = SqliteStore(path, RECORDS)
    await fund(store, 10_000)
    for start in range(0, 4_000, 20):
        await asyncio.gather(*(store.commit(pay(start + n)) for n in range(20)))
        while store._writer._is_moving:  # noqa: ASYNC110  # a thread, on a busy machine
            await asyncio.sleep(0.001)
    log = size(path.with_name("book.db-wal"))
    await store.close()
    assert log < 1_000 * 4_096
    assert verified(path).seq == 4_001


# ── the queue ────────────────────────────────────────────────────────────────────────────────────


async def test_a_full_queue_refuses_before_anything_is_done(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fund(store)
    monkeypatch.setattr(writer, "QUEUE_MAX", 10)
    told = await asyncio.gather(*(store.commit(pay(n)) for n in range(400)), return_exceptions=True)
    done = [n for n, outcome in enumerate(told) if isinstance(outcome, Applied)]
    busy = [n for n, outcome in enumerate(told) if isinstance(outcome, StoreBusy)]
    assert len(done) + len(busy) == 400
    assert busy
    assert await available(store, "b") == len(done)
    assert await store.outcome(f"p:{busy[0]}") is None


async def test_many_due_holds_slow_down_no_batch_that_does_not_touch_them(path: Path) -> None:
    """The scan for due holds must not read those of other accounts."""
    clock = ManualClock()
    store = SqliteStore(path, RECORDS, clock=clock)
    await fund(store, 10_000)
    await fund(store, 10_000, "b")
    holds = tuple(Hold("a", "revenue", 1, "x", 1_000) for _ in range(5_000))
    await store.commit(Unit("h", holds))
    clock.advance(10)
    read = 0

    def count(_: object) -> None:
        nonlocal read
        read += 1

    store._writer._db.trace_v2(apsw.SQLITE_TRACE_ROW, count)
    other = (Open("z", "BTC", Kind.CUSTOMER), Transfer("b", "z", 1, "x"))
    assert isinstance(await store.commit(Unit("u", other)), Applied)
    store._writer._db.trace_v2(0, None)
    assert 0 < read < 20
    assert await store.expire_due() == 5_000
    await store.close()
    verified(path)


async def test_a_batch_reads_what_it_needs_and_not_the_whole_book(
    path: Path, store: SqliteStore
) -> None:
    await fund(store)
    await asyncio.gather(*(store.commit(pay(n)) for n in range(900)))
    steps: list[str] = []
    db = store._writer._db
    for sql in (
        "SELECT at FROM units INDEXED BY units_id WHERE book = 1 AND id IN carray(?)",
        "SELECT id FROM accounts WHERE book = 1 AND id IN carray(?)",
        "SELECT id FROM holds WHERE book = 1 AND id IN carray(?)",
        "SELECT key FROM record_test_job WHERE book = 1 AND key IN carray(?)",
        "SELECT id FROM holds INDEXED BY holds_debit WHERE book = 1 AND debit IN carray(?) "
        "AND state = 'open' AND expires_at > 0 AND expires_at <= 9",
    ):
        plan = db.execute(f"EXPLAIN QUERY PLAN {sql}", (apsw.carray(("x",)),)).fetchall()
        steps.append(str(plan[0][3]))
    assert all(
        step.startswith("SEARCH ") and ("=? AND " in step) and "(book=?)" not in step
        for step in steps
    ), steps


# ── whose book it is ─────────────────────────────────────────────────────────────────────────────


async def test_a_book_that_is_open_is_nobody_elses(path: Path, store: SqliteStore) -> None:
    with pytest.raises(StoreLocked, match=str(os.getpid())):
        SqliteStore(path, RECORDS)
    code = (
        "import asyncio, pathlib, sys\n"
        "from farebox.errors import StoreLocked\n"
        "from farebox.stores.sqlite import SqliteStore\n"
        "async def main():\n"
        "    try: SqliteStore(pathlib.Path(sys.argv[1]), ())\n"
        "    except StoreLocked: print('locked')\n"
        "asyncio.run(main())\n"
    )
    run = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, str(path)], capture_output=True, check=True
    )
    assert run.stdout == b"locked\n"


async def test_a_closed_book_may_be_opened_again(path: Path) -> None:
    for _ in range(3):
        store = SqliteStore(path, RECORDS)
        await store.close()


async def test_a_newer_schema_is_refused_and_the_file_let_go(path: Path) -> None:
    await SqliteStore(path, RECORDS).close()
    db = apsw.Connection(str(path))
    db.execute("INSERT INTO migrations (number, name) VALUES (9999, 'later')")
    db.close()
    for _ in range(2):
        with pytest.raises(StoreOutdated, match="run a newer farebox"):
            SqliteStore(path, RECORDS)
    db = apsw.Connection(str(path))
    db.execute("DELETE FROM migrations WHERE number = 9999")
    db.close()
    await SqliteStore(path, RECORDS).close()


@pytest.fixture
def letter(path: Path) -> Path:
    path.write_bytes(b"hello, I am a letter" * 500)
    return path


async def test_what_is_no_database_is_refused(letter: Path) -> None:
    with pytest.raises(StoreCorrupt, match="no database"):
        SqliteStore(letter, RECORDS)
    with pytest.raises(StoreError, match="cannot open"):
        SqliteStore(letter / "beneath", RECORDS)


async def test_a_book_is_readable_by_its_owner_alone(path: Path, store: SqliteStore) -> None:
    await fund(store)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


async def test_two_kinds_of_row_never_share_a_table(path: Path) -> None:
    with pytest.raises(ValueError, match="share a table"):
        SqliteStore(path, (JOB, RecordType("test_job", Job)))
    await SqliteStore(path, RECORDS).close()


async def test_a_kind_that_was_not_declared_fails_its_caller_alone(store: SqliteStore) -> None:
    await fund(store)
    stranger = Unit("s", puts=(Put(RecordType("test.stranger", Job), "k", Job(), ABSENT),))
    told: list[Outcome | BaseException] = await asyncio.gather(
        *(store.commit(pay(n)) for n in range(20)), store.commit(stranger), return_exceptions=True
    )
    assert all(isinstance(outcome, Applied) for outcome in told[:-1])
    assert isinstance(told[-1], StoreError)
    with pytest.raises(StoreError):
        await store.get(RecordType("test.stranger", Job), "k")
    assert await store.get(COUNTER, "k") is None
