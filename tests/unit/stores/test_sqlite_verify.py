"""`verify` finds each kind of tampering with a SQLite book, and none in a healthy one."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from farebox.clock import NS_PER_S, ManualClock
from farebox.errors import SignerError, StoreError
from farebox.ledger.audit import GENESIS, extend
from farebox.ledger.checkpoint import Checkpoint, open_checkpoint, seal_checkpoint
from farebox.ledger.invariants import Verified, verify
from farebox.ledger.model import (
    ABSENT,
    Applied,
    Event,
    Hold,
    Kind,
    Open,
    Post,
    Put,
    SetCeiling,
    Transfer,
    Unit,
    Void,
)
from farebox.ledger.records import RecordType
from farebox.ledger.replay import Broken, Invariant
from farebox.stores.sqlite import SqliteStore
from farebox.stores.sqlite.audit import SqliteAuditReader

KEY = bytes(range(32))
PAGE = 4_096


class State(enum.StrEnum):
    OPEN = "open"
    DONE = "done"


class Job(msgspec.Struct, frozen=True):
    state: State
    due_at: int
    note: str = ""


JOB = RecordType("test.job", Job, indexes=(("state", "due_at"),))
RECORDS = (JOB,)


@asynccontextmanager
async def opened(path: Path, clock: ManualClock | None = None) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, RECORDS, clock=clock)
    try:
        yield store
    finally:
        await store.close()


def units() -> list[Unit]:
    """A day in the life of a book, with everything in it that can be stored."""
    moved = Event("deposit.credited", "a", {"rail": "play"}, {"amount": 3})
    return [
        Unit(
            "u1",
            (
                Open("custody:m", "BTC", Kind.CUSTODY),
                SetCeiling("custody:m", 10**30),
                Open("customer:a", "BTC", Kind.CUSTOMER),
                Transfer("custody:m", "customer:a", 10**25, "deposit"),
                Open("revenue", "BTC", Kind.REVENUE),
            ),
            events=(moved,),
            reply=b"hello",
        ),
        Unit("u2", (Hold("customer:a", "revenue", 500, "request"),)),
        Unit("u3", (Post("u2/0", 300),), events=(Event("request.paid", "a", {}, {"amount": 0}),)),
        Unit("u4", puts=(Put(JOB, "j1", Job(State.OPEN, 5), ABSENT),)),
        Unit("u5", puts=(Put(JOB, "j1", Job(State.OPEN, 6), 1),)),
        Unit(
            "u6",
            puts=(Put(JOB, "j1", Job(State.DONE, 7), 2), Put(JOB, "j2", Job(State.OPEN, 1), 0)),
        ),
        Unit("u7", (Hold("customer:a", "revenue", 70, "request", 10 * NS_PER_S),)),
        Unit("u8", (Transfer("revenue", "customer:a", 10**9, "x"),), sticky=True),
        Unit("u9", (Hold("customer:a", "revenue", 9, "request"),)),
        Unit("u10", (Void("u9/0"),), events=(Event("request.dropped", "a"),)),
        Unit("u11", (Hold("customer:a", "revenue", 11, "request"),)),
    ]


@pytest.fixture
async def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.db"
    clock = ManualClock()
    async with opened(path, clock) as store:
        for unit in units():
            await store.commit(unit)
            clock.advance(1)
        clock.advance(60)
        assert await store.expire_due() == 1
    return path


def audit(path: Path, start: Checkpoint | None = None) -> tuple[Verified, Checkpoint] | Broken:
    with SqliteAuditReader(path, RECORDS) as reader:
        return verify(reader, start)


def passed(path: Path, start: Checkpoint | None = None) -> tuple[Verified, Checkpoint]:
    result = audit(path, start)
    assert not isinstance(result, Broken), str(result)
    return result


#: Where the parts of a unit's body are, and those of a movement.
REFUSED, MOVEMENTS = 2, 4
STEP, KIND, DEBIT, CREDIT, AMOUNT, HOLD = 0, 1, 2, 3, 4, 6


def told(body: bytes, part: int, value: object) -> bytes:
    """A body that says something else."""
    parts = msgspec.msgpack.decode(body)
    parts[part] = value
    return msgspec.msgpack.encode(parts)


def moved(body: Any, part: Any, value: Any) -> bytes:
    """A body whose first movement says something else."""
    parts = msgspec.msgpack.decode(body)
    parts[MOVEMENTS][0][part] = value
    return msgspec.msgpack.encode(parts)


def moving(body: Any, *amounts: Any) -> bytes:
    """A body with these movements instead, one an amount."""
    parts = msgspec.msgpack.decode(body)
    parts[MOVEMENTS] = [
        [step, "transfer", "a", "b", amount, "x", "", 0] for step, amount in enumerate(amounts)
    ]
    return msgspec.msgpack.encode(parts)


def edit(path: Path, *statements: str) -> None:
    db = apsw.Connection(str(path))
    db.create_scalar_function("moved", lambda *given: moved(*given))
    db.create_scalar_function("moving", lambda *given: moving(*given))
    with db:
        for statement in statements:
            db.execute(statement)
            assert db.changes(), statement
    db.close()


def test_a_healthy_book_is_verified(book: Path) -> None:
    verified, checkpoint = passed(book)
    assert (verified.seq, verified.events, verified.accounts) == (12, 3, 3)
    assert verified.open_holds == 1
    assert verified.cover["BTC"].custody == 10**25
    assert verified.cover["BTC"].owed == 10**25 - 300
    assert (checkpoint.seq, checkpoint.digest) == (12, verified.digest)


def test_an_empty_book_is_verified(tmp_path: Path) -> None:
    async def make() -> None:
        async with opened(tmp_path / "empty.db"):
            pass

    asyncio.run(make())
    assert passed(tmp_path / "empty.db")[0].seq == 0


TAMPERINGS: dict[str, tuple[Invariant, str, list[str]]] = {
    "amount of a movement": (
        Invariant.CHAIN,
        "unit 3 (u3)",
        [f"UPDATE units SET body = moved(body, {AMOUNT}, '1') WHERE seq = 3"],
    ),
    "account of a movement": (
        Invariant.CHAIN,
        "unit 2 (u2)",
        [f"UPDATE units SET body = moved(body, {DEBIT}, 'customer:b') WHERE seq = 2"],
    ),
    "movement dropped": (
        Invariant.CHAIN,
        "unit 3",
        ["UPDATE units SET body = moving(body) WHERE seq = 3"],
    ),
    "movement inserted": (
        Invariant.CHAIN,
        "unit 4",
        ["UPDATE units SET body = moving(body, '1') WHERE seq = 4"],
    ),
    "unit deleted": (Invariant.ORDER, "after unit 4", ["DELETE FROM units WHERE seq = 5"]),
    "first unit deleted": (Invariant.ORDER, "after unit 0", ["DELETE FROM units WHERE seq = 1"]),
    "last unit deleted": (
        Invariant.ACCOUNTS,
        "account customer:a",
        ["DELETE FROM units WHERE seq = 12"],
    ),
    "unit inserted at the end": (
        Invariant.CHAIN,
        "unit 13 (u13)",
        ["INSERT INTO units SELECT 1, 13, 'u13', at + 1, body, digest FROM units WHERE seq = 12"],
    ),
    "units exchanged": (
        Invariant.CHAIN,
        "unit 4",
        [
            "UPDATE units SET seq = 99 WHERE seq = 4",
            "UPDATE units SET seq = 4 WHERE seq = 5",
            "UPDATE units SET seq = 5 WHERE seq = 99",
        ],
    ),
    "unit renamed": (Invariant.CHAIN, "unit 3", ["UPDATE units SET id = 'z' WHERE seq = 3"]),
    "time of a unit": (Invariant.CHAIN, "unit 4", ["UPDATE units SET at = at + 1 WHERE seq = 4"]),
    "time that goes back": (Invariant.ORDER, "unit 3", ["UPDATE units SET at = 5 WHERE seq = 3"]),
    "body": (
        Invariant.CHAIN,
        "unit 2",
        ["UPDATE units SET body = (SELECT body FROM units WHERE seq = 4) WHERE seq = 2"],
    ),
    "reply": (
        Invariant.CHAIN,
        "unit 1 (u1)",
        ["UPDATE units SET body = CAST(replace(body, 'hello', 'jello') AS BLOB) WHERE seq = 1"],
    ),
    "digest": (
        Invariant.CHAIN,
        "unit 6",
        ["UPDATE units SET digest = (SELECT digest FROM units WHERE seq = 5) WHERE seq = 6"],
    ),
    "last digest": (
        Invariant.CHAIN,
        "unit 12",
        ["UPDATE units SET digest = zeroblob(32) WHERE seq = 12"],
    ),
    "data of an event": (
        Invariant.CHAIN,
        "unit 3",
        ["""UPDATE events SET data = CAST('{"amount":1}' AS BLOB) WHERE number = 2"""],
    ),
    "subject of an event": (
        Invariant.CHAIN,
        "unit 3",
        ["UPDATE events SET subject = 'b' WHERE number = 2"],
    ),
    "time of an event": (
        Invariant.ORDER,
        "event 2",
        ["UPDATE events SET at = at + 1 WHERE number = 2"],
    ),
    "event dropped": (Invariant.CHAIN, "unit 3", ["DELETE FROM events WHERE number = 2"]),
    "event renumbered": (
        Invariant.ORDER,
        "unit 10",
        ["UPDATE events SET number = 9 WHERE number = 3"],
    ),
    "event of another unit": (
        Invariant.CHAIN,
        "unit 3",
        ["UPDATE events SET seq = 4 WHERE number = 2"],
    ),
    "event of no unit": (
        Invariant.ORDER,
        "an event of unit 99",
        ["INSERT INTO events VALUES (1, 4, 99, 1, 'x', 'y', CAST('{}' AS BLOB))"],
    ),
    "balance": (
        Invariant.ACCOUNTS,
        "credits_posted of account customer:a",
        ["UPDATE accounts SET credits_posted = '7' WHERE id = 'customer:a'"],
    ),
    "pending balance": (
        Invariant.ACCOUNTS,
        "debits_pending of account customer:a",
        ["UPDATE accounts SET debits_pending = '0' WHERE id = 'customer:a'"],
    ),
    "ceiling": (
        Invariant.ACCOUNTS,
        "ceiling of account custody:m",
        ["UPDATE accounts SET ceiling = NULL WHERE id = 'custody:m'"],
    ),
    "kind of an account": (
        Invariant.ACCOUNTS,
        "kind of account revenue",
        ["UPDATE accounts SET kind = 'clearing' WHERE id = 'revenue'"],
    ),
    "balance that is no number": (
        Invariant.UNIT,
        "accounts customer:a",
        ["UPDATE accounts SET credits_posted = 'lots' WHERE id = 'customer:a'"],
    ),
    "account deleted": (
        Invariant.ACCOUNTS,
        "account revenue",
        ["DELETE FROM accounts WHERE id = 'revenue'"],
    ),
    "account inserted": (
        Invariant.ACCOUNTS,
        "account thief",
        ["INSERT INTO accounts VALUES (1, 'thief', 'BTC', 'customer', '0', '0', '0', '5', NULL)"],
    ),
    "value of a row": (
        Invariant.ROWS,
        "row test.job j1",
        [
            "UPDATE record_test_job SET value = CAST(replace(value, '7', '8') AS BLOB) "
            "WHERE key = 'j1'"
        ],
    ),
    "index of a row": (
        Invariant.ROWS,
        "row test.job j1",
        ["UPDATE record_test_job SET f_state = 'open' WHERE key = 'j1'"],
    ),
    "row deleted": (
        Invariant.ROWS,
        "row test.job j1",
        ["DELETE FROM record_test_job WHERE key = 'j1'"],
    ),
    "row inserted": (
        Invariant.ROWS,
        "row test.job j9",
        [
            "INSERT INTO record_test_job SELECT 1, 'j9', version, seq, value, f_state, f_due_at "
            "FROM record_test_job WHERE key = 'j1'"
        ],
    ),
    "row rolled back": (
        Invariant.ROWS,
        "row test.job j1",
        [
            "UPDATE record_test_job SET version = 2, seq = 5, value = "
            """CAST('{"state":"open","due_at":6,"note":""}' AS BLOB), f_state = 'open', """
            "f_due_at = 6 WHERE key = 'j1'"
        ],
    ),
    "row newer than the log": (
        Invariant.ROWS,
        "row test.job j1",
        ["UPDATE record_test_job SET version = 9 WHERE key = 'j1'"],
    ),
    "row ascribed to another unit": (
        Invariant.ROWS,
        "row test.job j1",
        ["UPDATE record_test_job SET seq = 3 WHERE key = 'j1'"],
    ),
    "rows renamed": (
        Invariant.ROWS,
        "row test.job j2",
        ["UPDATE record_test_job SET key = 'j3' WHERE key = 'j2'"],
    ),
    "amount of an open hold": (
        Invariant.HOLDS,
        "amount of hold u11/0",
        ["UPDATE holds SET amount = '1' WHERE id = 'u11/0'"],
    ),
    "hold opened again": (
        Invariant.HOLDS,
        "state of hold u2/0",
        ["UPDATE holds SET state = 'open' WHERE id = 'u2/0'"],
    ),
    "hold closed": (
        Invariant.HOLDS,
        "state of hold u11/0",
        ["UPDATE holds SET state = 'voided' WHERE id = 'u11/0'"],
    ),
    "hold deleted": (Invariant.HOLDS, "hold u11/0", ["DELETE FROM holds WHERE id = 'u11/0'"]),
    "hold inserted": (
        Invariant.HOLDS,
        "hold u3/0",
        ["INSERT INTO holds VALUES (1, 'u3/0', 'customer:a', 'revenue', '1', 'x', 0, 'posted')"],
    ),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_found_and_named(book: Path, name: str) -> None:
    invariant, where, statements = TAMPERINGS[name]
    edit(book, *statements)
    result = audit(book)
    assert isinstance(result, Broken)
    assert result.invariant is invariant, str(result)
    assert where in result.where


def rechain(path: Path, forged: int, forge: Callable[[bytes], bytes]) -> None:
    """Hash the whole log anew, as someone would who knows how; one unit with another body."""
    db = apsw.Connection(str(path))
    with SqliteAuditReader(path, RECORDS) as reader:
        digest = GENESIS
        for unit in reader.units(0):
            body = forge(unit.body) if unit.seq == forged else unit.body
            events = [event for seq, _, event in reader.events(0) if seq == unit.seq]
            digest = extend(digest, unit.seq, unit.at, unit.id, body, events)
            db.execute("UPDATE units SET body=?, digest=? WHERE seq=?", (body, digest, unit.seq))
    db.close()


#: The unit, the part of its first movement, or of its body, that is forged, and with what.
FORGERIES: dict[str, tuple[Invariant, str, int, int, Any]] = {
    "more taken than was held": (Invariant.HOLDS, "hold u2/0, post by unit 3", 3, AMOUNT, "501"),
    "more held than there is": (
        Invariant.LIMITS,
        "account customer:a after unit 2",
        2,
        AMOUNT,
        str(10**26),
    ),
    "more in custody than the ceiling": (
        Invariant.LIMITS,
        "account custody:m after unit 1",
        1,
        AMOUNT,
        str(10**31),
    ),
    "negative amount": (Invariant.UNIT, "unit 2", 2, AMOUNT, "-5"),
    "amount that is no number": (Invariant.UNIT, "unit 2", 2, AMOUNT, "1e3"),
    "hold resolved twice": (Invariant.HOLDS, "hold u2/0, void by unit 10", 10, HOLD, "u2/0"),
    "expiry before its time": (
        Invariant.HOLDS,
        "hold u9/0, expire by unit 10",
        10,
        KIND,
        "expire",
    ),
    "unknown movement": (Invariant.HOLDS, "hold u9/0, steal by unit 10", 10, KIND, "steal"),
    "account to itself": (Invariant.BALANCE, "step 0 of unit 2", 2, CREDIT, "customer:a"),
    "account that is not there": (Invariant.ACCOUNTS, "unit 2", 2, CREDIT, "customer:z"),
    "step left out": (Invariant.UNIT, "unit 2", 2, STEP, 1),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_with_a_new_chain_breaks_the_rules_all_the_same(book: Path, name: str) -> None:
    invariant, where, seq, part, value = FORGERIES[name]
    rechain(book, seq, lambda body: moved(body, part, value))
    result = audit(book)
    assert isinstance(result, Broken)
    assert result.invariant is invariant, str(result)
    assert where in result.where


@pytest.mark.parametrize("refused", [[0, "exceeds_credits"], [], "yes"])
def test_a_refusal_that_did_something_is_no_unit(book: Path, refused: object) -> None:
    rechain(book, 2, lambda body: told(body, REFUSED, refused))
    result = audit(book)
    assert isinstance(result, Broken)
    assert result.invariant is Invariant.UNIT
    assert "unit 2" in result.where


def test_rows_that_were_written_before_their_type_said_what_rests_are_whole(book: Path) -> None:
    rests = RecordType("test.job", Job, JOB.indexes, resting=frozenset({State.DONE.value}))
    with SqliteAuditReader(book, (rests,)) as reader:
        assert not isinstance(verify(reader), Broken)
    edit(book, "UPDATE record_test_job SET f_state = NULL WHERE key = 'j1'")
    with SqliteAuditReader(book, (rests,)) as reader:  # neither as it was, nor as it should be
        assert isinstance(verify(reader), Broken)


async def test_custody_that_does_not_cover_what_is_owed_is_told(book: Path) -> None:
    """Balanced books can still promise more than is there: a loss must not hide in an expense."""
    loss = (Open("expense", "BTC", Kind.EXPENSE), Transfer("expense", "custody:m", 301, "loss"))
    async with opened(book) as store:
        assert isinstance(await store.commit(Unit("loss", loss)), Applied)
    result = audit(book)
    assert isinstance(result, Broken)
    assert result.invariant is Invariant.COVER
    assert str(result) == (
        f"custody of BTC: expected at least {10**25 - 300}, found {10**25 - 301}"
    )


def test_a_book_that_is_torn_is_told_as_broken(book: Path) -> None:
    raw = bytearray(book.read_bytes())
    raw[4096:] = b"\xff" * (len(raw) - 4096)
    book.write_bytes(raw)
    assert isinstance(audit(book), Broken)


def overwrite(path: Path, page: int, raw: bytes = b"") -> None:
    """Put other bytes into a page of the file, which counts its pages from 1."""
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(raw.ljust(PAGE, b"\x00"))


def test_whichever_page_of_the_file_is_lost_it_is_told(book: Path) -> None:
    whole = book.read_bytes()
    for page in range(2, len(whole) // PAGE + 1):
        overwrite(book, page)
        found = audit(book)
        assert isinstance(found, Broken), f"page {page}"
        assert found.invariant is Invariant.MEDIUM
        assert "\n" not in found.found
        book.write_bytes(whole)
    passed(book)


def test_a_row_that_an_index_lost_is_told(book: Path) -> None:
    """Whoever asks the index for what is due would never find that row."""
    db = apsw.Connection(str(book))
    root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'record_test_job_0'").get
    db.close()
    assert isinstance(root, int)
    overwrite(book, root, b"\x0a" + bytes(4) + (PAGE).to_bytes(2, "big"))  # a leaf with no entry
    found = audit(book)
    assert isinstance(found, Broken)
    assert "missing from index record_test_job_0" in str(found)
    with contextlib.closing(apsw.Connection(str(book))) as db:
        db.execute("REINDEX")  # the way out that the operator is told
    passed(book)


def test_what_is_no_book_is_refused(tmp_path: Path) -> None:
    for name, raw in (("text", b"hello" * 500), ("empty", b"")):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(StoreError):
            SqliteAuditReader(tmp_path / name, RECORDS)
    with pytest.raises(StoreError, match="there is no book"):
        SqliteAuditReader(tmp_path / "absent", RECORDS)


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────


async def go_on(book: Path, *more: Unit) -> None:
    async with opened(book, ManualClock(1_760_000_000 * NS_PER_S)) as store:
        for unit in more:
            assert isinstance(await store.commit(unit), Applied)


MORE = (
    Unit("v1", (Post("u11/0"), Open("customer:b", "BTC", Kind.CUSTOMER))),
    Unit("v2", (Hold("customer:a", "revenue", 5, "request"),), events=(Event("e", "b"),)),
    Unit("v3", puts=(Put(JOB, "j2", Job(State.DONE, 2), 1), Put(JOB, "j3", Job(State.OPEN, 3), 0))),
)


async def test_verifying_from_a_checkpoint_ends_where_verifying_whole_ends(book: Path) -> None:
    _, checkpoint = passed(book)
    await go_on(book, *MORE)
    assert passed(book, checkpoint) == passed(book)


LATER = {
    "verified units cut off": ["DELETE FROM units WHERE seq > 8"],
    "old balance": ["UPDATE accounts SET credits_posted = '7' WHERE id = 'customer:a'"],
    "old ceiling": ["UPDATE accounts SET ceiling = '7' WHERE id = 'custody:m'"],
    "old account deleted": ["DELETE FROM accounts WHERE id = 'custody:m'"],
    "old row deleted": ["DELETE FROM record_test_job WHERE key = 'j1'"],
    "new row": ["UPDATE record_test_job SET version = 7 WHERE key = 'j2'"],
    "old row ascribed to a new unit": ["UPDATE record_test_job SET seq = 15 WHERE key = 'j1'"],
    "old hold deleted": ["DELETE FROM holds WHERE id = 'u2/0'"],
    "new hold": ["UPDATE holds SET amount = '1' WHERE id = 'v2/0'"],
    "new movement": [f"UPDATE units SET body = moved(body, {AMOUNT}, '1') WHERE seq = 14"],
    "new event": ["DELETE FROM events WHERE number = 4"],
}


@pytest.mark.parametrize("name", LATER)
async def test_tampering_is_found_from_a_checkpoint(book: Path, name: str) -> None:
    _, checkpoint = passed(book)
    await go_on(book, *MORE)
    edit(book, *LATER[name])
    assert isinstance(audit(book, checkpoint), Broken)


async def test_a_history_written_anew_is_found_from_a_checkpoint(
    book: Path, tmp_path: Path
) -> None:
    _, checkpoint = passed(book)
    other = tmp_path / "other.db"
    async with opened(other, ManualClock(1)) as store:
        for unit in units():
            await store.commit(unit)
        await store.commit(Unit("u12"))
    passed(other)
    result = audit(other, checkpoint)
    assert isinstance(result, Broken)
    assert result.invariant is Invariant.CHAIN


def test_a_sealed_checkpoint_opens_as_it_was(book: Path) -> None:
    _, checkpoint = passed(book)
    sealed = seal_checkpoint(checkpoint, KEY)
    assert open_checkpoint(sealed, KEY) == checkpoint
    assert passed(book, open_checkpoint(sealed, KEY))[1] == checkpoint


@pytest.mark.parametrize("position", [0, 31, 32, 60, -1])
def test_a_checkpoint_that_was_altered_is_refused(book: Path, position: int) -> None:
    sealed = bytearray(seal_checkpoint(passed(book)[1], KEY))
    sealed[position] ^= 1
    with pytest.raises(SignerError):
        open_checkpoint(bytes(sealed), KEY)


def test_a_checkpoint_of_another_key_or_shape_is_refused(book: Path) -> None:
    with pytest.raises(SignerError):
        open_checkpoint(seal_checkpoint(passed(book)[1], KEY), bytes(32))
    for raw in (b"", b"short"):
        with pytest.raises(SignerError):
            open_checkpoint(raw, KEY)


# ── live ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_live_book_is_verified_while_it_is_written(book: Path) -> None:
    async with opened(book) as store:
        stop = asyncio.Event()

        async def write(caller: int) -> int:
            number = 0
            while not stop.is_set():
                steps: tuple[Any, ...] = (Transfer("customer:a", "revenue", 1, "charge"),)
                puts = (Put(JOB, f"live:{caller}", Job(State.OPEN, number), number),)
                unit = Unit(f"live:{caller}:{number}", steps, puts, events=(Event("e", "s"),))
                assert isinstance(await store.commit(unit), Applied)
                number += 1
            return number

        writers = [asyncio.create_task(write(caller)) for caller in range(20)]
        ends = [(await asyncio.to_thread(passed, book))[0].seq]
        for _ in range(200):
            ends.append((await asyncio.to_thread(passed, book))[0].seq)
            if len(ends) >= 5 and ends[-1] > ends[0] + 20:
                break
        stop.set()
        assert sum(await asyncio.gather(*writers)) > 20
        assert ends == sorted(ends)
        assert ends[0] < ends[-1]
    passed(book)
