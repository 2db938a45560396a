"""One transaction: load what the units name, evaluate them in order, write what they decided."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import apsw

from farebox.ledger.audit import decode_body, known_from
from farebox.ledger.batch import EXPIRED_MAX, Head, Staged, names_of
from farebox.ledger.evaluator import Overlay
from farebox.ledger.model import (
    ABSENT,
    Account,
    Applied,
    HoldRow,
    HoldState,
    Outcome,
    Refused,
    Unit,
)
from farebox.ledger.records import RecordType
from farebox.stores.rows import (
    COLUMNS,
    account_columns,
    account_from,
    hold_columns,
    hold_from,
    record_columns,
    table,
)

R = TypeVar("R")

#: Rows of one sort that are remembered at most.
_KNOWN_MAX = 50_000


class Known:
    """What was written lately, as it stands: what is written next is mostly the same, and need
    not be read. Nobody else writes to a book while this process owns it."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        #: Open ones.
        self.holds: dict[str, HoldRow] = {}
        #: Of domain rows, by kind and key.
        self.versions: dict[tuple[str, str], int] = {}

    def learn(self, staged: Staged) -> None:
        """What a batch wrote and committed."""
        self.accounts.update(staged.accounts)
        for hold in staged.holds.values():
            if hold.state is HoldState.OPEN:
                self.holds[hold.id] = hold
            else:
                self.holds.pop(hold.id, None)
        for record, rows in staged.records.items():
            self.versions.update(((record.kind, row[1]), row[2]) for row in rows)
        for rows_known in (self.accounts, self.holds, self.versions):
            if len(rows_known) > _KNOWN_MAX:
                rows_known.clear()


class Batch:
    """The units of one transaction. Runs inside BEGIN … COMMIT."""

    def __init__(
        self, db: apsw.Connection, book: int, head: Head, now_ns: int, known: Known
    ) -> None:
        self._db = db
        self._book = book
        self._known = known
        self._overlay = Overlay()
        self._staged = Staged(book, head, now_ns, self._overlay)

    @property
    def head(self) -> Head:
        """Where the book stands after this batch."""
        return self._staged.head

    def committed(self) -> Head:
        """What it wrote stands: learn it for the next. Returns where the book stands."""
        self._known.learn(self._staged)
        return self._staged.head

    def run(self, units: Sequence[Unit]) -> list[Outcome]:
        """Decide and write all units; their outcomes hold once the transaction is committed."""
        self._load(units)
        self._staged.expire(self._due_on(set(self._overlay.accounts)))
        outcomes = self._staged.decide(units)
        self._write()
        return outcomes

    def run_expiry(self, limit: int) -> int:
        """Release up to `limit` holds that are due anywhere in the book."""
        due = self._db.execute(
            f"SELECT {HOLD} FROM holds WHERE book = ? AND state = 'open' AND expires_at > 0 "
            "AND expires_at <= ? ORDER BY expires_at, id LIMIT ?",
            (self._book, self._staged.at, limit),
        )
        rows = [hold_from(row) for row in due]
        self._load_accounts({account for row in rows for account in (row.debit, row.credit)})
        self._staged.expire(rows)
        self._write()
        return len(rows)

    # ── load ─────────────────────────────────────────────────────────────────────────────────────

    def _load(self, units: Sequence[Unit]) -> None:
        names = names_of(units)
        self._load_units(names.units)
        self._load_holds(names.holds)
        for hold in self._overlay.holds.values():
            if hold is not None:
                names.accounts.add(hold.debit)
                names.accounts.add(hold.credit)
        self._load_accounts(names.accounts)
        for record, keys in names.rows.items():
            self._load_versions(record, keys)

    def _load_versions(self, record: RecordType[Any], keys: set[str]) -> None:
        kind, versions, known = record.kind, self._overlay.versions, self._known.versions
        missing = []
        for key in keys:
            version = known.get((kind, key))
            if version is None:
                missing.append(key)
            versions[kind, key] = version or ABSENT
        if missing:
            found = self._db.execute(
                f"SELECT key, version FROM {table(record)} WHERE book = ? AND key IN carray(?)",
                (self._book, apsw.carray(tuple(missing))),
            )
            versions.update(((kind, key), version) for key, version in found)

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
        self._load_rows(
            self._overlay.accounts, ids, self._known.accounts, _ACCOUNTS_NAMED, account_from
        )

    def _load_holds(self, ids: set[str]) -> None:
        self._load_rows(self._overlay.holds, ids, self._known.holds, _HOLDS_NAMED, hold_from)

    def _load_rows(
        self,
        loaded: dict[str, R | None],
        ids: set[str],
        known: Mapping[str, R],
        named: str,
        read: Callable[[Sequence[Any]], R],
    ) -> None:
        """Fill `loaded` with rows by their ids; only what is not known is asked for."""
        missing = []
        for row_id in ids:
            loaded[row_id] = row = known.get(row_id)
            if row is None:
                missing.append(row_id)
        if missing:
            found = self._db.execute(named, (self._book, apsw.carray(tuple(missing))))
            loaded.update((row[0], read(row)) for row in found)

    def _due_on(self, accounts: set[str]) -> list[HoldRow]:
        """Holds that are due on the accounts this batch touches, oldest first."""
        if not accounts or not self._db.execute(_ANY_DUE, (self._book, self._staged.at)).fetchone():
            return []
        touched = apsw.carray(tuple(accounts))
        rows: dict[str, HoldRow] = {}
        for side in ("debit", "credit"):
            due = self._db.execute(
                f"SELECT {HOLD} FROM holds INDEXED BY holds_{side} WHERE book = ? "
                f"AND {side} IN carray(?) AND state = 'open' AND expires_at > 0 "
                "AND expires_at <= ? ORDER BY expires_at, id LIMIT ?",
                (self._book, touched, self._staged.at, EXPIRED_MAX),
            )
            rows.update((row[0], hold_from(row)) for row in due)
        self._load_accounts(
            {account for row in rows.values() for account in (row.debit, row.credit)} - accounts
        )
        return sorted(rows.values(), key=lambda row: (row.expires_at, row.id))

    # ── write ────────────────────────────────────────────────────────────────────────────────────

    def _write(self) -> None:
        staged = self._staged
        if not staged.units:
            return
        many = self._db.executemany
        many(_INSERT["units"], staged.units)
        if staged.events:
            many(_INSERT["events"], staged.events)
        if accounts := staged.accounts:
            # In the order of the table: neighbours share its pages, which is faster by a sixth.
            many(
                _INSERT["accounts"],
                [account_columns(self._book, accounts[name]) for name in sorted(accounts)],
            )
        if holds := staged.holds:
            many(
                _INSERT["holds"],
                [hold_columns(self._book, hold) for hold in holds.values()],
            )
        for record, rows in staged.records.items():
            many(_put_statement(record), rows)


ACCOUNT = "id, asset, kind, debits_pending, debits_posted, credits_pending, credits_posted, ceiling"
HOLD = "id, debit, credit, amount, code, expires_at, state"
_ACCOUNTS_NAMED = f"SELECT {ACCOUNT} FROM accounts WHERE book = ? AND id IN carray(?)"
_HOLDS_NAMED = f"SELECT {HOLD} FROM holds WHERE book = ? AND id IN carray(?)"
_ANY_DUE = (
    "SELECT 1 FROM holds INDEXED BY holds_due "
    "WHERE book = ? AND state = 'open' AND expires_at > 0 AND expires_at <= ? LIMIT 1"
)


def insert_statement(name: str, columns: str, verb: str = "INSERT") -> str:
    """Writes a row, its columns named: a migration that adds one must not stop us."""
    marks = ", ".join("?" * (columns.count(",") + 1))
    return f"{verb} INTO {name} ({columns}) VALUES ({marks})"


#: Accounts and holds change, the rest is written once.
_INSERT = {
    name: insert_statement(
        name, columns, "INSERT OR REPLACE" if name in ("accounts", "holds") else "INSERT"
    )
    for name, columns in COLUMNS.items()
}


@functools.cache
def _put_statement(record: RecordType[Any]) -> str:
    return insert_statement(table(record), record_columns(record), "INSERT OR REPLACE")


def known_outcome(db: apsw.Connection, book: int, unit_id: str) -> Applied | Refused | None:
    """What a committed unit was told."""
    row = db.execute(
        "SELECT seq, at, body FROM units WHERE book = ? AND id = ?", (book, unit_id)
    ).fetchone()
    return known_from(row[0], row[1], decode_body(row[2])).outcome if row else None
