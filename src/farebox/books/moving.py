"""A book on its way: copies to keep, and the move from one store to the other.

    farebox backup          a copy that is closed: a restored book is reconciled first
    farebox export          the same as a file for either store, such as for a rehearsal
    farebox export --move   closes the book for good, says where it goes, then writes the file
    farebox import          into an empty book; what was moved is opened, what was copied is closed

| killed                                     | then                                              |
|--------------------------------------------|---------------------------------------------------|
| while a backup or a file is written        | a draft beside it; under its name is nothing      |
| between the move's commit and its file     | the book is closed, and is exported again         |
| while a file is taken in                   | nothing is in the database: import it again       |
| after that, before the moved book is open  | it is in and closed: import the file again        |
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from farebox import __version__
from farebox.books.places import (
    RECORDS,
    book_place,
    open_audit,
    open_store,
    postgres_address,
    postgres_driver,
    require_schema,
)
from farebox.clock import Clock, SystemClock, iso
from farebox.errors import InvalidInput, StoreCorrupt, StoreLocked
from farebox.ledger.invariants import Verified, verify
from farebox.ledger.processes import BEAT_EVERY_S, LAPSE_BEATS, Processes
from farebox.ledger.replay import Broken
from farebox.ledger.service import Ledger
from farebox.ledger.standing import BOOK, KEY, BookState, Standing, change_state, read_state
from farebox.ledger.store import Store
from farebox.settings import Settings
from farebox.signer import Signer
from farebox.stores.audit import BookReader
from farebox.stores.portable import (
    VERSION,
    BeginLine,
    BookFile,
    Loaded,
    Loader,
    accounts_digest,
    write_book,
)
from farebox.stores.sqlite import SqliteStore
from farebox.stores.sqlite.audit import SqliteAuditReader
from farebox.stores.sqlite.load import SqliteLoader, copy_book, new_book
from farebox.tally import Commits

_BUFFER_BYTES = 1 << 20
_KINDS = {record.kind: record for record in RECORDS}

Progress = Callable[[str], None]


class Exported(msgspec.Struct, frozen=True):
    """What a copy holds: its last unit, and the digest that the chain has there."""

    units: int
    digest: str


class Carried(msgspec.Struct, frozen=True):
    """What was brought in and proven, and whether it may be served at once."""

    verified: Verified
    accounts_digest: str
    is_open: bool


# ── out ──────────────────────────────────────────────────────────────────────────────────────────


def backup(settings: Settings, root_key: bytes, target: Path, say: Progress) -> Exported:
    """A consistent copy of the book, also while it is served, that opens closed; proven whole.

    Of a file a file to put back in its place, of a database a file for `import_book`.
    Raises InvalidInput when `target` is there, StoreError, StoreCorrupt when it is not whole.
    """
    path = settings.database_path
    if path is None:
        return export_book(settings, root_key, target, say)
    clock = SystemClock()
    with new_book(target) as draft:
        copy_book(path, draft)
        asyncio.run(_close_copy(draft, clock))
        say("verifying the copy …")
        with SqliteAuditReader(draft, RECORDS) as reader:
            verified = _proven(reader)
    return Exported(verified.seq, verified.digest.hex())


async def _close_copy(path: Path, clock: Clock) -> None:
    store = SqliteStore(path, RECORDS, clock=clock)
    try:
        ledger = Ledger(store, clock)
        state = await read_state(ledger)
        if state.standing is Standing.MOVED:
            raise InvalidInput(f"this book was moved ({state.reason}): make backups there")
        await change_state(ledger, _copied(state.life, clock))
    finally:
        await store.close()


def _copied(life: int, clock: Clock) -> BookState:
    return BookState(Standing.CLOSED, life, f"it is a copy made at {iso(clock.now_ns())}")


def export_book(
    settings: Settings,
    root_key: bytes,
    target: Path,
    say: Progress,
    *,
    move_to: str = "",
) -> Exported:
    """Write the book as a file for `import_book`; proven whole.

    With `move_to` the book is closed first, for good, and names that as the place where it went.
    Raises InvalidInput when `target` is there, StoreLocked when the book to be moved is served.
    """
    clock = SystemClock()
    with _new_file(target) as file:
        require_schema(settings)
        if move_to:
            asyncio.run(_leave(settings, move_to, clock))
        say(f"writing {book_place(settings)} …")
        begin = BeginLine(VERSION, __version__, iso(clock.now_ns()), bool(move_to))
        with open_audit(settings) as reader:
            state, _ = reader.value(BOOK, KEY) or (BookState(), 0)
            if state.standing is Standing.MOVED and not move_to:
                raise InvalidInput(f"this book was moved: {state.reason}; export it with --move")
            after = _copied(state.life, clock)
            end = write_book(file, reader, begin, after, clock.now_ns(), _key(root_key))
            say("verifying what was written …")
            _proven(reader)
    return Exported(end.seq, end.digest)


@contextmanager
def _new_file(target: Path) -> Iterator[BinaryIO]:
    with new_book(target) as draft, draft.open("wb", _BUFFER_BYTES) as file:
        yield file


async def _leave(settings: Settings, destination: str, clock: Clock) -> None:
    """Close the book for every process, now and later."""
    async with _alone_in(settings, clock) as (ledger, alone):
        state = await read_state(ledger)
        match state.standing:
            case Standing.CLOSED:
                raise InvalidInput(f"the book is closed ({state.reason}): reconcile it first")
            case Standing.OPEN:
                reason = f"at {iso(clock.now_ns())} to {destination}"
                await change_state(ledger, BookState(Standing.MOVED, state.life, reason))
            case Standing.MOVED:
                return
        # Whoever has entered before that commit hears of it within seconds, and serves no more.
        await alone()


async def _take_back(settings: Settings, clock: Clock) -> None:
    async with _alone_in(settings, clock) as (ledger, _):
        state = await read_state(ledger)
        if state.standing is not Standing.MOVED:
            raise InvalidInput("this book was not moved: there is nothing to take back")
        reason = f"it was moved ({state.reason}) and is taken back"
        await change_state(ledger, BookState(Standing.CLOSED, state.life, reason))


def take_back(settings: Settings) -> None:
    """Let a book that was moved be reconciled: for a move that came to nothing. Raises StoreError,
    InvalidInput."""
    asyncio.run(_take_back(settings, SystemClock()))


@asynccontextmanager
async def _alone_in(
    settings: Settings, clock: Clock
) -> AsyncIterator[tuple[Ledger, Callable[[], Awaitable[None]]]]:
    """The book with nobody else in it. Raises StoreLocked while somebody is."""
    store = await open_store(settings, clock, Commits())
    try:
        ledger = Ledger(store, clock)
        processes = Processes(ledger, alone=settings.database_path is not None)
        await processes.start()
        try:
            await _no_others(processes)
            yield ledger, lambda: _no_others(processes)
        finally:
            await processes.stop()
    finally:
        await store.close()


async def _no_others(processes: Processes) -> None:
    """A process that was killed is known to be dead after some beats."""
    for _ in range(LAPSE_BEATS + 2):
        if not await processes.others():
            return
        await processes.beat()
        await asyncio.sleep(BEAT_EVERY_S)
    if others := await processes.others():
        raise StoreLocked(f"{len(others)} processes serve this book: stop them first")


# ── in ───────────────────────────────────────────────────────────────────────────────────────────


def import_book(settings: Settings, root_key: bytes, source: Path, say: Progress) -> Carried:
    """Take a file into the empty book of these settings, proven whole or not at all.

    What was moved is opened, in a new life; what was copied is closed. The same file may be
    imported again after a crash. Raises InvalidInput when the file is not as it was made or the
    book is not empty, StoreCorrupt when what it holds breaks an invariant.
    """
    clock = SystemClock()
    try:
        file = source.open("rb", _BUFFER_BYTES)
    except OSError as error:
        raise InvalidInput(f"cannot read {source}: {error.strerror}") from None
    with file:
        book = BookFile(file, _key(root_key))
        say(f"bringing {source} into {book_place(settings)} …")
        path = settings.database_path
        if path is None:
            return _import_postgres(settings, book, clock, say)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with new_book(path) as draft:
            with ExitStack() as opened:
                loader = SqliteLoader(draft, RECORDS)
                opened.callback(loader.close)
                carried = _take_in(book, loader, say)
            if book.begin.is_move:
                asyncio.run(_open_draft(draft, clock))
        return carried


def _take_in(book: BookFile, loader: Loader, say: Progress) -> Carried:
    loaded = book.load(loader, _KINDS)
    with loader.reader() as reader:
        say(f"verifying {loaded.end.seq:,} units …")
        return _compared(reader, loaded)


def _compared(reader: BookReader, loaded: Loaded) -> Carried:
    verified = _proven(reader)
    if (verified.seq, verified.digest.hex()) != (loaded.end.seq, loaded.end.digest):
        raise StoreCorrupt("the chain of the book is not the file's")
    # Every account as the file has it, which the units make the same: the balances are equal.
    if accounts_digest(reader.accounts()) != loaded.accounts:
        raise StoreCorrupt("the balances of the book are not the file's")
    return Carried(verified, loaded.accounts.hex(), loaded.begin.is_move)


def _import_postgres(settings: Settings, book: BookFile, clock: Clock, say: Progress) -> Carried:
    with postgres_driver():
        from farebox.stores.postgres.load import empty_book
    asyncio.run(_make_tables(settings, clock))
    with open_audit(settings) as reader:
        last = reader.last_seq()
    if last:
        carried = _take_in(book, _ThereAlready(settings, last), say)
    else:
        with empty_book(postgres_address(settings), RECORDS) as loader:
            carried = _take_in(book, loader, say)
    if book.begin.is_move:
        asyncio.run(_open_database(settings, clock))
    return carried


class _ThereAlready:
    """Takes nothing in: an import that was broken off had brought everything."""

    def __init__(self, settings: Settings, last: int) -> None:
        self._settings = settings
        self._last = last
        self._digest = b""

    def load(self, name: str, columns: str, rows: Iterable[Sequence[object]]) -> None:
        """Look only for the last unit, which must be the book's own."""
        for row in rows:
            if name == "units" and row[1] == self._last:
                assert isinstance(row[5], bytes)
                self._digest = row[5]

    @contextmanager
    def reader(self) -> Iterator[BookReader]:
        """The book, if it is the file's to the last unit. Raises InvalidInput."""
        with open_audit(self._settings) as reader:
            unit = reader.unit(reader.last_seq())
            if unit is None or unit.digest != self._digest:
                raise InvalidInput(
                    f"there is a book in {book_place(self._settings)} already: name an empty "
                    "database, or drop it"
                )
            yield reader


async def _make_tables(settings: Settings, clock: Clock) -> None:
    await (await open_store(settings, clock, Commits())).close()


async def _open_draft(draft: Path, clock: Clock) -> None:
    await _begin_life(SqliteStore(draft, RECORDS, clock=clock), clock)


async def _open_database(settings: Settings, clock: Clock) -> None:
    await _begin_life(await open_store(settings, clock, Commits()), clock)


async def _begin_life(store: Store, clock: Clock) -> None:
    try:
        ledger = Ledger(store, clock)
        state = await read_state(ledger)
        await change_state(ledger, BookState(life=state.life + 1))
    finally:
        await store.close()


def _key(root_key: bytes) -> bytes:
    return Signer(root_key).derive("book-file")


def _proven(reader: BookReader) -> Verified:
    result = verify(reader, may_lack_cover=True)
    if isinstance(result, Broken):
        raise StoreCorrupt(f"the book is broken: {result.invariant}: {result}")
    return result[0]
