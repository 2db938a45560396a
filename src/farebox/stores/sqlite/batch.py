"""One transaction: load what the units name, evaluate them in order, write what they decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import apsw
import msgspec
from msgspec.structs import astuple

from farebox.ledger.audit import (
    EventRow,
    PutDigest,
    decode_body,
    encode_body,
    extend,
    known_from,
    value_digest,
)
from farebox.ledger.evaluator import Decision, Overlay, evaluate, expire
from farebox.ledger.model import (
    ABSENT,
    EXPIRY_PREFIX,
    Account,
    Applied,
    Hold,
    HoldRow,
    HoldState,
    Kind,
    Open,
    Outcome,
    Post,
    Refused,
    SetCeiling,
    StoredEvent,
    Transfer,
    Unit,
    Void,
)
from farebox.ledger.records import RecordType
from farebox.stores.sqlite.schema import column_value, table

_json = msgspec.json.Encoder().encode
_KINDS = {kind.value: kind for kind in Kind}


class Head(msgspec.Struct, frozen=True):
    """Where the book stands: last unit, its time, its digest, last event."""

    seq: int
    at: int
    digest: bytes
    event: int


def account_from(row: Sequence[Any]) -> Account:
    """An account from its columns, in table order after the book."""
    ceiling = None if row[7] is None else int(row[7])
    return Account(
        row[0], row[1], _KINDS[row[2]], int(row[3]), int(row[4]), int(row[5]), int(row[6]), ceiling
    )


def event_from(row: Sequence[Any]) -> StoredEvent:
    """An event from number, seq, at, name, subject, data."""
    return StoredEvent(row[0], row[1], row[2], row[3], row[4], msgspec.json.decode(row[5]))


class Batch:
    """The units of one transaction. Runs in the writer thread, inside BEGIN … COMMIT."""

    def __init__(
        self,
        db: apsw.Connection,
        book: int,
        head: Head,
        now_ns: int,
        accounts: Mapping[str, Account],
    ) -> None:
        """`accounts` holds some of the book's accounts as they stand."""
        self._db = db
        self._book = book
        self._known = accounts
        # Strictly increasing, whatever the machine's clock does.
        self._at = max(now_ns, head.at + 1)
        self._head = head
        self._seq = head.seq
        self._digest = head.digest
        self._event = head.event
        self._overlay = Overlay()
        #: The accounts that this batch changed.
        self.accounts: dict[str, Account] = {}
        self._holds: dict[str, HoldRow] = {}
        self._unit_rows: list[tuple[Any, ...]] = []
        self._movement_rows: list[tuple[Any, ...]] = []
        self._event_rows: list[tuple[Any, ...]] = []
        self._record_rows: dict[str, list[tuple[Any, ...]]] = {}

    @property
    def head(self) -> Head:
        """Where the book stands after this batch."""
        return (
            Head(self._seq, self._at, self._digest, self._event) if self._unit_rows else self._head
        )

    def run(self, units: Sequence[Unit]) -> list[Outcome]:
        """Decide and write all units; their outcomes hold once the transaction is committed."""
        self._load(units)
        self._expire(self._due_on(set(self._overlay.accounts)))
        outcomes: list[Outcome] = []
        for unit in units:
            decided = evaluate(unit, self._overlay, self._seq + 1, self._at)
            if isinstance(decided, Decision):
                self._stage(decided)
                outcomes.append(decided.outcome)
            else:
                outcomes.append(decided)
        self._write()
        return outcomes

    def run_expiry(self, limit: int) -> int:
        """Release up to `limit` holds that are due anywhere in the book."""
        due = self._db.execute(
            f"SELECT {HOLD} FROM holds WHERE book = ? AND state = 'open' AND expires_at > 0 "
            "AND expires_at <= ? ORDER BY expires_at, id LIMIT ?",
            (self._book, self._at, limit),
        )
        rows = [hold_from(row) for row in due]
        self._load_accounts({account for row in rows for account in (row.debit, row.credit)})
        self._expire(rows)
        self._write()
        return len(rows)

    # ── load ─────────────────────────────────────────────────────────────────────────────────────

    def _load(self, units: Sequence[Unit]) -> None:
        accounts: set[str] = set()
        holds: set[str] = set()
        keys: dict[RecordType[Any], set[str]] = {}
        for unit in units:
            for step in unit.steps:
                match step:
                    case Transfer() | Hold():
                        accounts.add(step.debit)
                        accounts.add(step.credit)
                    case Post() | Void():
                        holds.add(step.hold)
                    case Open() | SetCeiling():
                        accounts.add(step.account)
            for put in unit.puts:
                keys.setdefault(put.record, set()).add(put.key)
            for guard in unit.guards:
                keys.setdefault(guard.record, set()).add(guard.key)
        self._load_units({unit.id for unit in units})
        self._load_holds(holds)
        for hold in self._overlay.holds.values():
            if hold is not None:
                accounts.add(hold.debit)
                accounts.add(hold.credit)
        self._load_accounts(accounts)
        for record, names in keys.items():
            self._load_versions(record, names)

    def _load_versions(self, record: RecordType[Any], keys: set[str]) -> None:
        versions = self._overlay.versions
        versions.update(dict.fromkeys(((record.kind, key) for key in keys), ABSENT))
        found = self._db.execute(
            f"SELECT key, version FROM {table(record)} WHERE book = ? AND key IN carray(?)",
            (self._book, apsw.carray(tuple(keys))),
        )
        versions.update(((record.kind, key), version) for key, version in found)

    def _load_units(self, ids: set[str]) -> None:
        # Left to itself SQLite would read the whole book here instead of looking the ids up.
        found = self._db.execute(
            "SELECT id, seq, at, body FROM units INDEXED BY units_id "
            "WHERE book = ? AND id IN carray(?)",
            (self._book, apsw.carray(tuple(ids))),
        )
        for unit_id, seq, at, body in found:
            self._overlay.units[unit_id] = known_from(seq, at, decode_body(body))

    def _load_accounts(self, ids: set[str]) -> None:
        loaded = self._overlay.accounts
        missing = []
        for account in ids:
            loaded[account] = known = self._known.get(account)
            if known is None:
                missing.append(account)
        if missing:
            found = self._db.execute(
                f"SELECT {ACCOUNT} FROM accounts WHERE book = ? AND id IN carray(?)",
                (self._book, apsw.carray(tuple(missing))),
            )
            loaded.update((row[0], account_from(row)) for row in found)

    def _load_holds(self, ids: set[str]) -> None:
        if not ids:
            return
        self._overlay.holds.update(dict.fromkeys(ids))
        found = self._db.execute(
            f"SELECT {HOLD} FROM holds WHERE book = ? AND id IN carray(?)",
            (self._book, apsw.carray(tuple(ids))),
        )
        for row in found:
            self._overlay.holds[row[0]] = hold_from(row)

    def _due_on(self, accounts: set[str]) -> list[HoldRow]:
        """Holds that are due on the accounts this batch touches, oldest first."""
        if not accounts or not self._db.execute(_ANY_DUE, (self._book, self._at)).fetchone():
            return []
        touched = apsw.carray(tuple(accounts))
        rows: dict[str, HoldRow] = {}
        for side in ("debit", "credit"):
            due = self._db.execute(
                f"SELECT {HOLD} FROM holds INDEXED BY holds_{side} WHERE book = ? "
                f"AND {side} IN carray(?) AND state = 'open' AND expires_at > 0 "
                "AND expires_at <= ? ORDER BY expires_at, id LIMIT ?",
                (self._book, touched, self._at, _DUE_MAX),
            )
            rows.update((row[0], hold_from(row)) for row in due)
        self._load_accounts(
            {account for row in rows.values() for account in (row.debit, row.credit)} - accounts
        )
        return sorted(rows.values(), key=lambda row: (row.expires_at, row.id))

    def _expire(self, rows: list[HoldRow]) -> None:
        for row in rows:
            self._overlay.holds[row.id] = row
            unit = Unit(EXPIRY_PREFIX + row.id)
            decided = expire(row, self._overlay, unit, self._seq + 1, self._at)
            self._stage(decided)

    # ── stage and write ──────────────────────────────────────────────────────────────────────────

    def _stage(self, decision: Decision) -> None:
        unit, outcome = decision.unit, decision.outcome
        self._seq = seq = self._seq + 1
        puts: tuple[PutDigest, ...] = ()
        events: tuple[EventRow, ...] = ()
        if isinstance(outcome, Applied):
            puts = tuple(self._put(put, seq) for put in unit.puts) if unit.puts else ()
            events = self._events(unit, outcome) if unit.events else ()
        body = encode_body(decision, puts)
        moves = decision.movements
        self._digest = extend(self._digest, seq, self._at, unit.id, body, moves, events)
        self._unit_rows.append((self._book, seq, unit.id, self._at, body, self._digest))
        for move in moves:
            self._movement_rows.append((self._book, seq, *astuple(move)))
        for event in events:
            self._event_rows.append(
                (self._book, event.number, seq, self._at, event.name, event.subject, event.data)
            )
        for account in decision.accounts:
            self.accounts[account.id] = account
        for hold in decision.holds:
            self._holds[hold.id] = hold

    def _put(self, put: Any, seq: int) -> PutDigest:
        raw = put.record.encode(put.value)
        version = put.expect + 1
        columns = [column_value(getattr(put.value, name)) for name in put.record.columns]
        statement = _put_statement(put.record)
        row = (self._book, put.key, version, seq, raw, *columns)
        self._record_rows.setdefault(statement, []).append(row)
        return PutDigest(put.record.kind, put.key, version, value_digest(raw))

    def _events(self, unit: Unit, applied: Applied) -> tuple[EventRow, ...]:
        rows = []
        for number, event in enumerate(unit.events, self._event + 1):
            data = dict(event.data)
            for name, step in event.amounts.items():
                data[name] = applied.amounts[step]
            rows.append(EventRow(number, event.name, event.subject, _json(data)))
        self._event += len(rows)
        return tuple(rows)

    def _write(self) -> None:
        if not self._unit_rows:
            return
        many = self._db.executemany
        many("INSERT INTO units VALUES (?,?,?,?,?,?)", self._unit_rows)
        if self._movement_rows:
            many("INSERT INTO movements VALUES (?,?,?,?,?,?,?,?,?,?)", self._movement_rows)
        if self._event_rows:
            many("INSERT INTO events VALUES (?,?,?,?,?,?,?)", self._event_rows)
        if self.accounts:
            # In the order of the table: neighbours share its pages, which is faster by a sixth.
            many(
                "INSERT OR REPLACE INTO accounts VALUES (?,?,?,?,?,?,?,?,?)",
                sorted(_account_row(self._book, account) for account in self.accounts.values()),
            )
        if self._holds:
            many(
                "INSERT OR REPLACE INTO holds VALUES (?,?,?,?,?,?,?,?)",
                [_hold_row(self._book, hold) for hold in self._holds.values()],
            )
        for statement, rows in self._record_rows.items():
            many(statement, rows)


ACCOUNT = "id, asset, kind, debits_pending, debits_posted, credits_pending, credits_posted, ceiling"
HOLD = "id, debit, credit, amount, code, expires_at, state"
_ANY_DUE = (
    "SELECT 1 FROM holds INDEXED BY holds_due "
    "WHERE book = ? AND state = 'open' AND expires_at > 0 AND expires_at <= ? LIMIT 1"
)
#: What one batch releases at most; a hold that is due and waits is refused all the same.
_DUE_MAX = 5_000


def _account_row(book: int, account: Account) -> tuple[Any, ...]:
    return (
        book,
        account.id,
        account.asset,
        account.kind,
        str(account.debits_pending),
        str(account.debits_posted),
        str(account.credits_pending),
        str(account.credits_posted),
        None if account.ceiling is None else str(account.ceiling),
    )


def _hold_row(book: int, hold: HoldRow) -> tuple[Any, ...]:
    return (
        book,
        hold.id,
        hold.debit,
        hold.credit,
        str(hold.amount),
        hold.code,
        hold.expires_at,
        hold.state.value,
    )


def hold_from(row: Sequence[Any]) -> HoldRow:
    """A hold from its columns, in table order after the book."""
    return HoldRow(row[0], row[1], row[2], int(row[3]), row[4], row[5], HoldState(row[6]))


_PUT_STATEMENTS: dict[Any, str] = {}


def _put_statement(record: Any) -> str:
    statement = _PUT_STATEMENTS.get(record)
    if statement is None:
        marks = ",".join("?" * (5 + len(record.columns)))
        statement = f"INSERT OR REPLACE INTO {table(record)} VALUES ({marks})"
        _PUT_STATEMENTS[record] = statement
    return statement


def known_outcome(db: apsw.Connection, book: int, unit_id: str) -> Applied | Refused | None:
    """What a committed unit was told."""
    row = db.execute(
        "SELECT seq, at, body FROM units WHERE book = ? AND id = ?", (book, unit_id)
    ).fetchone()
    return known_from(row[0], row[1], decode_body(row[2])).outcome if row else None
