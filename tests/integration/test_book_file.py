"""A book as a file: out of one store, into another, proven; or nothing at all."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import psycopg
import pytest

from farebox.books import backup, export_book, import_book, open_audit, open_store, take_back
from farebox.bootstrap import Farebox
from farebox.cli.desk import carry_out
from farebox.cli.requests import Reconcile, Recover
from farebox.clock import SystemClock
from farebox.errors import InvalidInput, StoreError, StoreLocked, StoreMoved, StoreOutdated
from farebox.ledger.invariants import verify
from farebox.ledger.model import Account, Applied, Event, Hold, Kind, Open, Transfer, Unit
from farebox.ledger.replay import Broken
from farebox.ledger.standing import BOOK, KEY, BookState, Standing, change_state
from farebox.settings import Settings, load_settings
from farebox.signer import Signer
from farebox.stores.sqlite.load import SqliteLoader
from farebox.tally import Commits
from tests.peers.postgres import Postgres

ROOT_KEY = b"k" * 32


def silent(_: str) -> None:
    return


def sqlite(folder: Path) -> Settings:
    return load_settings(None, {}, {"data_dir": str(folder)})


@pytest.fixture
def database(postgres: Postgres, tmp_path: Path) -> Iterator[Settings]:
    schema = f"moving_{secrets.token_hex(6)}"
    dsn = postgres.dsn_at(postgres.port, options=f"-csearch_path%3D{schema}")
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute(f"CREATE SCHEMA {schema}")
    yield load_settings(None, {"FAREBOX_DATABASE": dsn}, {"data_dir": str(tmp_path / "pg")})
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("SET client_min_messages = warning")
        db.execute(f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture(params=["sqlite", "postgres"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """An empty book of either store."""
    if request.param == "postgres":
        found: Settings = request.getfixturevalue("database")
        return found
    return sqlite(tmp_path / "target")


async def live(settings: Settings, count: int = 30) -> None:
    """A book with some of everything in it."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    async with Farebox(settings, ROOT_KEY) as house:
        opens = (
            Open("custody:x", "BTC", Kind.CUSTODY),
            Open("a", "BTC", Kind.CUSTOMER),
            Open("wei:c", "WEI", Kind.CUSTODY),
            Open("wei:a", "WEI", Kind.CUSTOMER),
        )
        first = (
            *opens,
            Transfer("custody:x", "a", 1_000_000, "deposit"),
            Transfer("wei:c", "wei:a", 2**126, "deposit"),
        )
        assert isinstance(await house.store.commit(Unit("first", first)), Applied)
        for number in range(count):
            steps = (Hold("a", "revenue", 7, "x", timeout_ns=10**15 * (number % 2)),)
            events = (Event("it.happened", "a", {"said": 'an "ümläut"\n', "n": number}),)
            await house.store.commit(Unit(f"u{number}", steps, events=events))
        refused = await house.store.commit(
            Unit("no", (Transfer("a", "revenue", 10**9, "x"),), sticky=True)
        )
        assert not isinstance(refused, Applied)


async def accounts_of(settings: Settings) -> list[Account]:
    with open_audit(settings) as reader:
        return list(reader.accounts())


async def out(settings: Settings, file: Path, **more: str) -> None:
    await asyncio.to_thread(export_book, settings, ROOT_KEY, file, silent, **more)


async def into(settings: Settings, file: Path, key: bytes = ROOT_KEY) -> bool:
    return (await asyncio.to_thread(import_book, settings, key, file, silent)).is_open


def state_of(settings: Settings) -> BookState:
    with open_audit(settings) as reader:
        found = reader.value(BOOK, KEY)
        assert found is not None
        assert not isinstance(verify(reader), Broken)
        return found[0]


async def test_a_copy_has_every_balance_and_opens_closed(tmp_path: Path, target: Settings) -> None:
    source = sqlite(tmp_path / "source")
    await live(source)
    file = tmp_path / "book.jsonl"
    async with Farebox(source, ROOT_KEY) as house:  # it is being served
        await out(source, file)
        await house.store.commit(Unit("after", (Transfer("a", "revenue", 1, "x"),)))
    assert file.stat().st_mode & 0o777 == 0o600
    assert not await into(target, file)
    before, after = await accounts_of(source), await accounts_of(target)
    changed = [one.id for one, other in zip(before, after, strict=True) if one != other]
    assert changed == ["a", "revenue"]  # by what came after the copy
    assert state_of(target).standing is Standing.CLOSED
    assert state_of(source).standing is Standing.OPEN


async def test_a_move_closes_the_one_and_opens_the_other(tmp_path: Path, target: Settings) -> None:
    source = sqlite(tmp_path / "source")
    await live(source)
    file = tmp_path / "book.jsonl"
    async with Farebox(source, ROOT_KEY):
        with pytest.raises(StoreLocked, match="in use by process"):
            await out(source, file, move_to="PostgreSQL at db1")
    await out(source, file, move_to="PostgreSQL at db1")
    with pytest.raises(StoreMoved, match="to PostgreSQL at db1"):
        await Farebox(source, ROOT_KEY).__aenter__()
    with pytest.raises(InvalidInput, match="this book was moved"):
        await out(source, tmp_path / "copy.jsonl")
    with pytest.raises(InvalidInput, match="make backups there"):
        await asyncio.to_thread(backup, source, ROOT_KEY, tmp_path / "copy.db", silent)
    await out(source, tmp_path / "again.jsonl", move_to="PostgreSQL at db1")  # the file was lost
    assert await into(target, file)
    assert await accounts_of(source) == await accounts_of(target)
    assert state_of(target) == BookState(Standing.OPEN, 2)
    async with Farebox(target, ROOT_KEY) as house:
        assert not house.app.carrier.is_closed
        assert isinstance(await house.store.commit(Unit("goes-on")), Applied)
    with pytest.raises(InvalidInput, match="already"):
        await into(target, file)


async def test_a_move_that_came_to_nothing_is_taken_back(tmp_path: Path) -> None:
    source = sqlite(tmp_path / "source")
    await live(source)
    with pytest.raises(InvalidInput, match="was not moved"):
        await asyncio.to_thread(take_back, source)
    await out(source, tmp_path / "book.jsonl", move_to="nowhere")
    await asyncio.to_thread(take_back, source)
    async with Farebox(source, ROOT_KEY) as house:
        assert house.app.carrier.is_closed
        assert (await house.reconcile()).is_whole
        assert not house.app.carrier.is_closed


async def test_a_served_postgres_database_is_not_moved_and_hears_of_a_move(
    tmp_path: Path, database: Settings
) -> None:
    await live(database, 3)
    async with Farebox(database, ROOT_KEY) as house:
        with pytest.raises(StoreLocked, match="stop them first"):
            await out(database, tmp_path / "book.jsonl", move_to="elsewhere")
        # Whoever enters in the same moment sees it soon after.
        state = BookState(Standing.MOVED, 1, "elsewhere")
        await change_state(house.ledger, state)
        await house._look_at_doors()
        assert house.app.carrier.is_closed
        for request in (Reconcile(claim=True), Recover()):
            with pytest.raises(StoreMoved, match="elsewhere"):
                await carry_out(house, request)


# ── files that are not as they were made ─────────────────────────────────────────────────────────


def lines(raw: bytes) -> list[bytes]:
    return raw.splitlines(keepends=True)


def cut_in_a_line(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def cut_between_lines(raw: bytes) -> bytes:
    return b"".join(lines(raw)[:-1])


def a_line_less(raw: bytes) -> bytes:
    return b"".join(line for line in lines(raw) if not line.startswith(b'["hold","u3'))


def a_line_twice(raw: bytes) -> bytes:
    return b"".join(line * (1 + line.startswith(b'["event",3,')) for line in lines(raw))


def other_money(raw: bytes) -> bytes:
    return raw.replace(b'"1000000"', b'"9000000"')


def more_behind(raw: bytes) -> bytes:
    return raw + b"\n"


def two_files(raw: bytes) -> bytes:
    return cut_between_lines(raw) + raw


def other_order(raw: bytes) -> bytes:
    all_lines = lines(raw)
    return b"".join([all_lines[0], *reversed(all_lines[1:-1]), all_lines[-1]])


def garbage(raw: bytes) -> bytes:
    all_lines = lines(raw)
    all_lines[5] = b"\xff\x00{}\n"
    return b"".join(all_lines)


def nothing(_: bytes) -> bytes:
    return b""


def a_letter(_: bytes) -> bytes:
    return b"Dear book,\n" * 10


def a_later_format(raw: bytes) -> bytes:
    return raw.replace(b'["farebox-book",1,', b'["farebox-book",2,')


def an_unknown_kind(raw: bytes) -> bytes:
    return raw.replace(b'["record","root_seal"', b'["record","later.kind"')


SPOILED: dict[Callable[[bytes], bytes], str] = {
    cut_in_a_line: "cut off",
    cut_between_lines: "cut off",
    a_line_less: "was altered",
    a_line_twice: "does not fit|was altered",
    other_money: "was altered",
    more_behind: "was altered",
    two_files: "cannot be read",
    other_order: "was altered|does not fit",
    garbage: "cannot be read",
    nothing: "cut off",
    a_letter: "no file that",
    a_later_format: "use a newer farebox",
    an_unknown_kind: "does not know",
}


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
async def test_a_spoiled_file_is_refused_and_leaves_nothing(
    tmp_path: Path, store: str, request: pytest.FixtureRequest
) -> None:
    source = sqlite(tmp_path / "source")
    await live(source, 6)
    file = tmp_path / "book.jsonl"
    await out(source, file)
    raw = file.read_bytes()
    settings = (
        sqlite(tmp_path / "target") if store == "sqlite" else request.getfixturevalue("database")
    )
    for spoil, told in SPOILED.items():
        spoiled = spoil(raw)
        assert spoiled != raw, spoil
        file.write_bytes(spoiled)
        with pytest.raises(InvalidInput, match=told):
            await into(settings, file)
    file.write_bytes(raw)
    with pytest.raises(InvalidInput, match="another root key"):
        await into(settings, file, b"x" * 32)
    assert not await into(settings, file)  # nothing was left in the way
    with pytest.raises(InvalidInput, match="already"):
        await into(settings, tmp_path / "book.jsonl") if store == "sqlite" else await into(
            settings, await _other(tmp_path)
        )


async def _other(tmp_path: Path) -> Path:
    other = sqlite(tmp_path / "other")
    await live(other, 2)
    await out(other, tmp_path / "other.jsonl")
    return tmp_path / "other.jsonl"


async def test_who_forges_the_file_with_the_key_still_has_to_balance(tmp_path: Path) -> None:
    """The chain and every invariant are proven, not only the seal."""
    source = sqlite(tmp_path / "source")
    await live(source, 6)
    file = tmp_path / "book.jsonl"
    await out(source, file)
    forged = other_money(file.read_bytes()).splitlines(keepends=True)
    body = b"".join(forged[:-1])
    end = json.loads(forged[-1])
    end[-1] = hmac.digest(Signer(ROOT_KEY).derive("book-file"), body, hashlib.sha256).hex()
    file.write_bytes(body + json.dumps(end).encode() + b"\n")
    with pytest.raises(StoreError, match="the book is broken"):
        await into(sqlite(tmp_path / "target"), file)
    assert not (tmp_path / "target/farebox.db").exists()


# ── size and places ──────────────────────────────────────────────────────────────────────────────


async def test_a_large_book_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    peaks = []
    for number, count in enumerate((200, 4_000)):
        source = sqlite(tmp_path / f"source{number}")
        await live(source, 2)
        store = await open_store(source, SystemClock(), Commits())
        pay = (Transfer("a", "revenue", 1, "x"),)
        events = (Event("it.happened", "a", {"said": "x" * 500}),)
        await asyncio.gather(
            *(store.commit(Unit(f"p{n}", pay, events=events)) for n in range(count))
        )
        await store.close()
        tracemalloc.start()
        file = tmp_path / f"book{number}.jsonl"
        export_in, import_in = export_book, import_book
        await asyncio.to_thread(export_in, source, ROOT_KEY, file, silent)
        target = sqlite(tmp_path / f"target{number}")
        await asyncio.to_thread(import_in, target, ROOT_KEY, file, silent)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert file.stat().st_size > 3_000_000
    assert peaks[1] < peaks[0] + 1_500_000, peaks


async def test_nothing_is_written_over_a_file_that_is_there(tmp_path: Path) -> None:
    source = sqlite(tmp_path / "source")
    await live(source, 2)
    file = tmp_path / "there"
    file.write_text("mine")
    for write in (backup, export_book):
        with pytest.raises(InvalidInput, match="is there already"):
            await asyncio.to_thread(write, source, ROOT_KEY, file, silent)
    assert file.read_text() == "mine"
    with pytest.raises(StoreError, match="No such file"):
        await asyncio.to_thread(backup, source, ROOT_KEY, tmp_path / "no/where", silent)


async def test_a_book_of_a_newer_version_is_copied_by_that_version_alone(tmp_path: Path) -> None:
    source = sqlite(tmp_path / "source")
    await live(source, 2)
    db = apsw.Connection(str(source.database_path))
    db.execute("INSERT INTO migrations (number, name) VALUES (99, 'what we do not know')")
    db.close()
    for write in (backup, export_book):
        with pytest.raises(StoreOutdated, match="run a newer farebox"):
            await asyncio.to_thread(write, source, ROOT_KEY, tmp_path / "copy", silent)
    assert not (tmp_path / "copy").exists()


async def test_a_backup_that_breaks_off_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sqlite(tmp_path / "source")
    await live(source, 2)
    file = tmp_path / "book.jsonl"
    await out(source, file)

    def break_off(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SqliteLoader, "load", break_off)
    with pytest.raises(StoreError, match="No space left"):
        await into(sqlite(tmp_path / "target"), file)
    assert [one.name for one in (tmp_path / "target").iterdir()] == []


async def test_a_postgres_database_put_back_under_a_running_process_is_written_by_nobody(
    tmp_path: Path, database: Settings
) -> None:
    await live(database, 3)
    assert database.database.postgres is not None
    async with Farebox(database, ROOT_KEY) as house:
        await house.worker.stop()
        with psycopg.connect(database.database.postgres.reveal(), autocommit=True) as db:
            tables = ("units", "events", "holds", "accounts")
            for name in tables:
                db.execute(f"CREATE TABLE old_{name} AS TABLE {name}")
            for number in range(20):
                await house.store.commit(Unit(f"later{number}"))
            await house._look_at_doors()
            await house._look_at_doors()  # it vouches for what it saw the time before
            for name in tables:
                db.execute(f"TRUNCATE {name}; INSERT INTO {name} TABLE old_{name}".encode())
        with pytest.raises(StoreError, match="has lost its end"):
            await house.store.commit(Unit("here-again"))
    async with Farebox(database, ROOT_KEY) as house:
        assert house.app.carrier.is_closed
        assert "old copy" in house.doors.state.reason
