"""The writer one would write by hand on PostgreSQL: batches of transfers, set by set, no ledger.

It keeps what ours keeps, in the same tables: ids that happen once, balances and limits, the audit
chain, two pipelined round trips a batch, the book's lock, a synced commit. It has no callers, no
steps but transfers, no holds, no rows, no events, no retries; what it wrote passes `verify`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import psycopg

from farebox.money import AMOUNT_END

_pack = msgspec.msgpack.Encoder().encode

_LOCK = "SELECT pg_advisory_xact_lock(1, %s::int4)"
_HEAD = "SELECT seq, at, digest FROM units WHERE book = %s::int4 ORDER BY seq DESC LIMIT 1"
_KNOWN = (
    "SELECT count(*) FROM unnest(%b::text[]) AS named (name) "
    "JOIN units ON book = %s::int4 AND id = name"
)
_ACCOUNTS = (
    "SELECT id, asset, kind, debits_pending::text, debits_posted::text, credits_pending::text, "
    "credits_posted::text FROM unnest(%b::text[]) AS named (name) "
    "JOIN accounts ON book = %s::int4 AND id = name"
)
_UNITS = (
    "INSERT INTO units SELECT %s::int4, * FROM unnest("
    "%b::int8[], %b::text[], %b::int8[], %b::bytea[], %b::bytea[])"
)
_BALANCES = (
    "UPDATE accounts SET debits_posted = debits, credits_posted = credits "
    "FROM unnest(%b::text[], %b::text[]::numeric[], %b::text[]::numeric[]) "
    "AS changed (name, debits, credits) WHERE book = %s::int4 AND id = name"
)


class _Account(NamedTuple):
    asset: str
    kind: str
    debits_pending: int
    debits_posted: int
    credits_pending: int
    credits_posted: int


class BareWriter:
    """One connection that writes one book."""

    def __init__(self, dsn: str, book: int) -> None:
        self._db = psycopg.connect(dsn, autocommit=True, prepare_threshold=0)
        self._db.execute("SET enable_seqscan = off")
        self._db.execute("SET plan_cache_mode = force_generic_plan")
        self._book = book

    def run(self, pairs: Sequence[tuple[str, str]], round_id: str, size: int) -> None:
        """Transfer 1 for each pair, `size` of them a transaction."""
        for first in range(0, len(pairs), size):
            batch = pairs[first : first + size]
            names = [f"{round_id}:{number}" for number in range(first, first + len(batch))]
            self._write(names, batch)

    def close(self) -> None:
        """Let go of the connection."""
        self._db.close()

    def _execute(self, sql: str, *values: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        return self._db.execute(sql.encode(), values, binary=True)

    def _write(self, names: list[str], batch: Sequence[tuple[str, str]]) -> None:
        touched = list({account for pair in batch for account in pair})
        with self._db.pipeline():
            self._execute("BEGIN")
            self._execute(_LOCK, self._book)
            head = self._execute(_HEAD, self._book)
            known = self._execute(_KNOWN, names, self._book)
            found = self._execute(_ACCOUNTS, touched, self._book)
        assert known.fetchone() == (0,)
        accounts = {
            name: _Account(asset, kind, int(dp), int(d), int(cp), int(c))
            for name, asset, kind, dp, d, cp, c in found
        }
        seq, at, digest = head.fetchone() or (0, 0, bytes(32))
        at = max(time.time_ns(), at + 1)
        units = []
        for name, (debit, credit) in zip(names, batch, strict=True):
            _move(accounts, debit, credit)
            seq += 1
            movement = (0, "transfer", debit, credit, "1", "charge", "", 0)
            body = _pack((b"", False, None, b"", (movement,), (), (), ()))
            link = _pack((seq, at, name, body, ()))
            digest = hashlib.sha256(digest + link).digest()
            units.append((seq, name, at, body, digest))
        written = sorted(accounts.items())
        with self._db.pipeline():
            self._execute(_UNITS, self._book, *_columns(units))
            self._execute(
                _BALANCES,
                [name for name, _ in written],
                [str(account.debits_posted) for _, account in written],
                [str(account.credits_posted) for _, account in written],
                self._book,
            )
            self._execute("COMMIT")


def _move(accounts: dict[str, _Account], debit: str, credit: str) -> None:
    debtor, creditor = accounts[debit], accounts[credit]
    assert debtor.asset == creditor.asset
    debits, credits_ = debtor.debits_posted + 1, creditor.credits_posted + 1
    assert debits + debtor.debits_pending <= debtor.credits_posted
    assert max(debits + debtor.debits_pending, credits_ + creditor.credits_pending) < AMOUNT_END
    accounts[debit] = debtor._replace(debits_posted=debits)
    accounts[credit] = creditor._replace(credits_posted=credits_)


def _columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
