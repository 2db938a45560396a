"""A book as a file that any store can take in: `docs/book-file.md` has the format.

Lines of JSON, each an array that begins with its kind; one table after the other, in the order of
their keys. The last line authenticates all others with a key of the root key's, so a file that was
cut off or altered is refused as a whole. Streams: memory holds a line, never a book.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, Protocol

import msgspec

from farebox.errors import InvalidInput
from farebox.ledger.batch import Head, Staged
from farebox.ledger.evaluator import Overlay
from farebox.ledger.model import Account
from farebox.ledger.records import RecordType
from farebox.ledger.standing import BOOK, KEY, BookState, standing_unit
from farebox.stores.audit import BookReader
from farebox.stores.rows import COLUMNS, record_columns, table

VERSION = 1
#: Longer lines are no book's: a value is bounded by what its request may hold.
_LINE_MAX_BYTES = 1 << 26
_BOOK = 1


class _Line(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A line; its first element is its kind."""


class BeginLine(_Line, frozen=True, tag="farebox-book"):
    """The first line: the version of the format, who made the file when, and what for."""

    version: int
    program: str
    made_at: str
    is_move: bool


class AccountLine(_Line, frozen=True, tag="account"):
    """Amounts are decimal strings, here and below."""

    id: str
    asset: str
    kind: str
    debits_pending: str
    debits_posted: str
    credits_pending: str
    credits_posted: str
    ceiling: str | None


class UnitLine(_Line, frozen=True, tag="unit"):
    """Bytes are base64."""

    seq: int
    id: str
    at: int
    body: bytes
    digest: bytes


class HoldLine(_Line, frozen=True, tag="hold"):
    """Resolved ones too."""

    id: str
    debit: str
    credit: str
    amount: str
    code: str
    expires_at: int
    state: str


class EventLine(_Line, frozen=True, tag="event"):
    """`data` is JSON, byte by byte as it was hashed."""

    number: int
    seq: int
    at: int
    name: str
    subject: str
    data: bytes


class RecordLine(_Line, frozen=True, tag="record"):
    """A row of any other kind."""

    kind: str
    key: str
    version: int
    seq: int
    value: bytes


class EndLine(_Line, frozen=True, tag="end"):
    """The last line: the last unit with its digest, how many lines are before this one, and the
    HMAC-SHA256 of their bytes."""

    seq: int
    digest: str
    lines: int
    mac: str


Line = BeginLine | AccountLine | UnitLine | HoldLine | EventLine | RecordLine | EndLine
_TABLES: dict[type[Any], str] = {
    AccountLine: "accounts",
    UnitLine: "units",
    HoldLine: "holds",
    EventLine: "events",
}
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


# ── out ──────────────────────────────────────────────────────────────────────────────────────────


def write_book(
    file: BinaryIO, reader: BookReader, begin: BeginLine, after: BookState, now_ns: int, key: bytes
) -> EndLine:
    """Write a snapshot, and one more unit at its end that says how the copy stands: `after`."""
    mark = _marked(reader, after, now_ns)
    mac = hmac.new(key, digestmod=hashlib.sha256)
    lines = 0
    for line in itertools.chain([begin], _lines(reader, mark)):
        raw = _encode(line) + b"\n"
        mac.update(raw)
        file.write(raw)
        lines += 1
    head = mark.head
    end = EndLine(head.seq, head.digest.hex(), lines, mac.hexdigest())
    file.write(_encode(end) + b"\n")
    return end


def _marked(reader: BookReader, after: BookState, now_ns: int) -> Staged:
    last, event = reader.last_seq(), reader.last_event()
    unit = reader.unit(last)
    head = Head(unit.seq, unit.at, unit.digest, event) if unit else Head()
    known = reader.value(BOOK, KEY)
    before, version = known or (None, 0)
    overlay = Overlay()
    overlay.versions[BOOK.kind, KEY] = version
    staged = Staged(_BOOK, head, now_ns, overlay)
    staged.decide([standing_unit(before, version, after)])
    return staged


def _lines(reader: BookReader, mark: Staged) -> Iterator[Line]:
    mine: dict[str, Sequence[tuple[Any, ...]]] = {"units": mark.units, "events": mark.events}
    for kind, name in _TABLES.items():
        for row in reader.table(name):
            yield kind(*row)
        for added in mine.get(name, []):
            yield kind(*added[1:])
    for record, rows in reader.records():
        for row in rows:
            if (record.kind, row[0]) != (BOOK.kind, KEY):
                yield RecordLine(record.kind, *row)
    for _, key, version, seq, value, *_ in mark.records[BOOK]:
        yield RecordLine(BOOK.kind, key, version, seq, value)


# ── in ───────────────────────────────────────────────────────────────────────────────────────────


class Loader(Protocol):
    """Takes rows into the tables of an empty book, in one transaction of the store's."""

    def load(self, name: str, columns: str, rows: Iterable[Sequence[object]]) -> None:
        """Insert rows of the columns named, all of them."""
        ...

    def reader(self) -> AbstractContextManager[BookReader]:
        """The book as it stands within the transaction."""
        ...


class Loaded(msgspec.Struct, frozen=True):
    """What was read: the first and the last line, and a digest over all accounts."""

    begin: BeginLine
    end: EndLine
    accounts: bytes


class BookFile:
    """Reads lines and checks all that can be checked of them without a book."""

    def __init__(self, file: BinaryIO, key: bytes) -> None:
        self._file = file
        self._mac = hmac.new(key, digestmod=hashlib.sha256)
        self._lines = 0
        self._accounts = hashlib.sha256()
        self.begin = self._begin()
        self._end: EndLine | None = None

    def load(self, loader: Loader, records: Mapping[str, RecordType[Any]]) -> Loaded:
        """Hand every row to the loader. Raises InvalidInput when the file is not as it was made;
        then the loader's transaction must not be committed."""
        grouped = itertools.groupby(self._rows(), key=_table_of)
        for (kind, record_kind), lines in grouped:
            if kind is RecordLine:
                record = records.get(record_kind)
                if record is None:
                    raise InvalidInput(
                        f"the file holds rows of {record_kind!r}, which this program does not "
                        "know: use the version that made it, or a newer one"
                    )
                rows = (_record_row(record, line) for line in lines)
                loader.load(table(record), record_columns(record), rows)
            else:
                name = _TABLES[kind]
                rows = ((_BOOK, *msgspec.structs.astuple(line)) for line in lines)
                loader.load(name, COLUMNS[name], rows)
        assert self._end is not None, "the rows end with it"
        return Loaded(self.begin, self._end, self._accounts.digest())

    def _begin(self) -> BeginLine:
        line = self._next()
        if not isinstance(line, BeginLine):
            raise InvalidInput("this is no file that `farebox export` has made")
        if line.version != VERSION:
            raise InvalidInput(
                f"the file has format {line.version}, this program knows {VERSION}: "
                "use a newer farebox"
            )
        return line

    def _rows(self) -> Iterator[Line]:
        while True:
            sealed = self._mac.copy()
            line = self._next()
            if isinstance(line, EndLine):
                break
            if isinstance(line, BeginLine):
                raise _altered(self._lines)
            if isinstance(line, AccountLine):
                self._accounts.update(_encode(line))
            yield line
        is_same = hmac.compare_digest(line.mac, sealed.hexdigest())
        if not is_same or line.lines != self._lines - 1 or self._file.read(1):
            raise InvalidInput(
                "the file was altered, or made under another root key; nothing was brought in"
            )
        self._end = line

    def _next(self) -> Line:
        raw = self._file.readline(_LINE_MAX_BYTES)
        if not raw.endswith(b"\n"):
            raise InvalidInput("the file is cut off; nothing was brought in")
        self._lines += 1
        self._mac.update(raw)
        try:
            line: Line = _decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if self._lines == 1:
                raise InvalidInput("this is no file that `farebox export` has made") from None
            raise _altered(self._lines) from None
        return line


def accounts_digest(accounts: Iterable[Account]) -> bytes:
    """The digest of `Loaded.accounts`, of the accounts as a store has them, in the order of ids."""
    digest = hashlib.sha256()
    for one in accounts:
        ceiling = None if one.ceiling is None else str(one.ceiling)
        line = AccountLine(
            one.id,
            one.asset,
            one.kind.value,
            str(one.debits_pending),
            str(one.debits_posted),
            str(one.credits_pending),
            str(one.credits_posted),
            ceiling,
        )
        digest.update(_encode(line))
    return digest.digest()


def _altered(number: int) -> InvalidInput:
    return InvalidInput(f"line {number} of the file cannot be read; nothing was brought in")


def _table_of(line: Line) -> tuple[type[Any], str]:
    return type(line), line.kind if isinstance(line, RecordLine) else ""


def _record_row(record: RecordType[Any], line: Any) -> tuple[object, ...]:
    try:
        value = record.decode(line.value)
    except msgspec.DecodeError:
        raise InvalidInput(f"a row of {record.kind!r} in the file cannot be read") from None
    return (_BOOK, line.key, line.version, line.seq, line.value, *record.columns_of(value))
