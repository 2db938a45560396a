"""One batch in one transaction and two round trips: lock and load, then write and commit."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import psycopg

from farebox.errors import StoreRewound
from farebox.ledger.audit import GENESIS, decode_body, known_from
from farebox.ledger.batch import EXPIRED_MAX, Head, Names, Staged, names_of
from farebox.ledger.evaluator import Overlay
from farebox.ledger.model import ABSENT, HoldRow, Outcome, Unit
from farebox.ledger.records import RecordType
from farebox.stores.postgres.arrays import Insert, texts
from farebox.stores.postgres.connection import Connection, hanging_up
from farebox.stores.postgres.schema import column_types
from farebox.stores.rows import account_columns, account_from, hold_columns, hold_from, table

Cursor = psycopg.AsyncCursor[tuple[Any, ...]]

ACCOUNT = (
    "id, asset, kind, debits_pending::text, debits_posted::text, credits_pending::text, "
    "credits_posted::text, ceiling::text"
)
HOLD = "id, debit, credit, amount::text, code, expires_at, state"

#: The first half of every book's lock in pg_locks: "FARE".
_LOCK_CLASS = 0x46415245
LOCK = f"SELECT pg_advisory_xact_lock({_LOCK_CLASS}, %s::int4)"
LOCK_SHARED = f"SELECT pg_advisory_xact_lock_shared({_LOCK_CLASS}, %s::int4)"

# For this transaction alone, so that a pooler may hand the connection on. Whatever the planner
# believes of the tables, rows are looked up by their keys. So no plan depends on what is asked for,
# and none is made twice: that took a third of the server's time.
_SETTINGS = (
    "SELECT set_config('lock_timeout', '5s', true), set_config('statement_timeout', '20s', true), "
    "set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true), "
    "set_config('plan_cache_mode', 'force_generic_plan', true), "
    "set_config('synchronous_commit', {commit}, true)"
)
# An operator may ask for more than `on` (a standby that has applied it), never for less.
SYNCED = _SETTINGS.format(
    commit="CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
    "ELSE current_setting('synchronous_commit') END"
)
UNSYNCED = _SETTINGS.format(commit="'off'")

#: How long a process may leave the server waiting while it holds the book's lock.
FROZEN_S = 5
# The server's own idle_in_transaction_session_timeout does not do: a process may be frozen in the
# middle of a trip, and the driver ends each trip with a Flush, which stops that clock.
_END_FROZEN = f"""
SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND classid = {_LOCK_CLASS} AND objid = %s::int4 AND objsubid = 2
  AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND granted AND wait_event = 'ClientRead' AND state_change < now() - make_interval(secs => %s)
"""

# The batch's one instant is fixed here, for the statements that follow: the database's clock,
# except that it always rises. The rest is `farebox.ledger.batch.Pace`: what was seen last is kept
# with the connection, and forgotten with it.
_PACE = "'farebox.pace_' || %(book)s::int4"
_HEAD = f"""
SELECT (set_config('farebox.at', time.at::text, true) ||
        left(set_config({_PACE}, time.at || ' ' || machine.clock, false), 0))::bigint,
       last.seq, last.at, last.digest,
       (SELECT max(number) FROM events WHERE book = %(book)s::int4),
       (SELECT digest FROM units WHERE book = %(book)s::int4 AND seq = %(seq)s::int8)
FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint * 1000 AS clock,
             nullif(current_setting({_PACE}, true), '') AS seen) machine
LEFT JOIN LATERAL (
    SELECT seq, at, digest FROM units WHERE book = %(book)s::int4 ORDER BY seq DESC LIMIT 1
) last ON true
CROSS JOIN LATERAL (
    SELECT greatest(
        machine.clock, coalesce(last.at, 0) + 1, split_part(machine.seen, ' ', 1)::bigint
            + (machine.clock - split_part(machine.seen, ' ', 2)::bigint) / 2) AS at
) time
"""


def _looked_up(columns: str, names: str, where: str, key: str = "id") -> str:
    """A query for the rows of a table that are named.

    Each name is looked up by itself. Left to choose, a planner that met the table when it was
    empty would go through the whole book instead: OFFSET 0 keeps it from turning the join round.
    """
    return (
        f"SELECT found.* FROM {names} CROSS JOIN LATERAL (SELECT {columns} FROM {where} "
        f"WHERE book = %(book)s::int4 AND {key} = named.name OFFSET 0) AS found"
    )


_NAMED = "unnest(%(names)b::text[]) AS named (name)"
_UNITS = _looked_up("id, seq, at, body", _NAMED, "units")
_HOLDS = _looked_up(HOLD, _NAMED, "holds")
_HOLD_SIDES = _looked_up("debit, credit", "unnest(%(holds)b::text[]) AS named (name)", "holds")
#: Accounts that are named, and those of the holds that are named.
_TOUCHED = f"""
(SELECT unnest(%(accounts)b::text[]) UNION
 SELECT unnest(ARRAY[debit, credit]) FROM ({_HOLD_SIDES}) AS sides) AS named (name)
"""
_ACCOUNTS = _looked_up(ACCOUNT, _TOUCHED, "accounts")
_DUE = (
    "book = %(book)s::int4 AND state = 'open' AND expires_at > 0 "
    "AND expires_at <= current_setting('farebox.at')::bigint"
)
_DUE_ON = (
    f"SELECT found.* FROM {_TOUCHED} CROSS JOIN LATERAL (SELECT {HOLD} FROM holds "
    f"WHERE {_DUE} AND {{side}} = named.name OFFSET 0) AS found "
    f"WHERE EXISTS (SELECT FROM holds WHERE {_DUE}) ORDER BY expires_at, id LIMIT {EXPIRED_MAX}"
)
_DUE_TOUCHED = f"({_DUE_ON.format(side='debit')}) UNION ({_DUE_ON.format(side='credit')})"
_DUE_ANYWHERE = f"SELECT {HOLD} FROM holds WHERE {_DUE} ORDER BY expires_at, id LIMIT %(limit)s"

_NOTHING = "SELECT pg_logical_emit_message(true, 'farebox', '')"
_INSERT_UNITS = Insert.into("units", ("int4", "int8", "text", "int8", "bytea", "bytea"))
_INSERT_EVENTS = Insert.into("events", ("int4", "int8", "int8", "int8", "text", "text", "bytea"))
_UPSERT_ACCOUNTS = Insert.into(
    "accounts",
    ("int4", "text", "text", "text", "numeric", "numeric", "numeric", "numeric", "numeric"),
    "ON CONFLICT (book, id) DO UPDATE SET "
    "debits_pending = excluded.debits_pending, debits_posted = excluded.debits_posted, "
    "credits_pending = excluded.credits_pending, credits_posted = excluded.credits_posted, "
    "ceiling = excluded.ceiling",
)
_UPSERT_HOLDS = Insert.into(
    "holds",
    ("int4", "text", "text", "text", "numeric", "text", "int8", "text"),
    "ON CONFLICT (book, id) DO UPDATE SET state = excluded.state",
)


R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Decided(Generic[R]):
    """What a batch comes to: what must be written, and what is told once it is."""

    staged: Staged
    told: R
    synced: bool


async def decide(
    connection: Connection, book: int, units: Sequence[Unit], known: Head, *, synced: bool
) -> Decided[list[Outcome]]:
    """Begin the transaction, load what the units name, decide them.

    `known` is where the book is known to have stood. Raises psycopg.Error, and StoreRewound when
    the book has no memory of that.
    """
    names = names_of(units)
    touched = {"book": book, "accounts": texts(names.accounts), "holds": texts(names.holds)}
    versions: dict[RecordType[Any], Cursor] = {}
    with hanging_up(connection):
        async with connection.pipeline():
            head = await _begin(connection, book, known, synced)
            committed = await _run(connection, _UNITS, {"book": book, "names": texts(names.units)})
            if names.holds:
                holds = await _run(connection, _HOLDS, {"book": book, "names": touched["holds"]})
            if names.holds or names.accounts:
                accounts = await _run(connection, _ACCOUNTS, touched)
                due = await _run(connection, _DUE_TOUCHED, touched)
            for record, keys in names.rows.items():
                values = {"book": book, "names": texts(keys)}
                versions[record] = await _run(connection, _versions(record), values)
        overlay = _named(names)
        staged = await _staged(book, head, known, overlay)
        for unit_id, seq, at, body in await committed.fetchall():
            overlay.units[unit_id] = known_from(seq, at, decode_body(body))
        if names.holds:
            overlay.holds.update((row[0], hold_from(row)) for row in await holds.fetchall())
        if names.holds or names.accounts:
            await _add_accounts(overlay, accounts)
            await _expire(connection, book, staged, overlay, due)
        for record, found in versions.items():
            overlay.versions.update(
                ((record.kind, key), version) for key, version in await found.fetchall()
            )
    return Decided(staged, staged.decide(units), synced)


async def decide_expiry(connection: Connection, book: int, limit: int, known: Head) -> Decided[int]:
    """Begin the transaction, release up to `limit` holds that are due anywhere in the book.

    Tells how many they are. Raises as `decide`.
    """
    overlay = Overlay()
    with hanging_up(connection):
        async with connection.pipeline():
            head = await _begin(connection, book, known, synced=True)
            due = await _run(connection, _DUE_ANYWHERE, {"book": book, "limit": limit})
        staged = await _staged(book, head, known, overlay)
        released = await _expire(connection, book, staged, overlay, due)
        return Decided(staged, released, synced=True)


async def write(connection: Connection, book: int, staged: Staged) -> None:
    """Write what is staged and commit. Raises psycopg.Error.

    When the connection is lost meanwhile it may have happened: ask `stands`.
    """
    with hanging_up(connection):
        async with connection.pipeline():
            if staged.units:
                await _insert(connection, _INSERT_UNITS, staged.units)
            else:
                # What is told was committed by others, perhaps unsynced: a commit that writes
                # anything at all waits for that as well.
                await _run(connection, _NOTHING, ())
            if staged.events:
                await _insert(connection, _INSERT_EVENTS, staged.events)
            if accounts := staged.accounts:
                rows = [account_columns(book, accounts[name]) for name in sorted(accounts)]
                await _insert(connection, _UPSERT_ACCOUNTS, rows)
            if holds := staged.holds:
                columns = [hold_columns(book, hold) for hold in holds.values()]
                await _insert(connection, _UPSERT_HOLDS, columns)
            for record, records in staged.records.items():
                # One statement writes a row once: of two versions the newer.
                newest = {row[1]: row for row in records}
                await _insert(connection, _upsert(record), newest.values())
            await _plain(connection, "COMMIT")


async def stands(connection: Connection, book: int, head: Head) -> bool:
    """Whether a batch that hoped to bring the book to `head` was committed.

    Asked under the book's lock: the backend that held it has ended, and with it the doubt. The
    digest answers for the whole chain up to there, so nothing else can be in its place. That
    backend may have ended while it waited for a standby, so this commit waits for that as well.
    """
    with hanging_up(connection):
        async with connection.pipeline():
            await _plain(connection, "BEGIN")
            await _run(connection, SYNCED, ())
            await _run(connection, LOCK, (book,))
            sql = "SELECT digest FROM units WHERE book = %s::int4 AND seq = %s::int8"
            found = await _run(connection, sql, (book, head.seq))
            await _run(connection, _NOTHING, ())
            await _plain(connection, "COMMIT")
        row = await found.fetchone()
    return row is not None and row[0] == head.digest


async def end_frozen(connection: Connection, book: int) -> bool:
    """End the backend that holds the book's lock for a process that has gone silent.

    Whether there was one. Its transaction is undone; the process will ask when it goes on.
    Raises psycopg.Error.
    """
    with hanging_up(connection):
        found = await connection.execute(_END_FROZEN.encode(), (book, FROZEN_S))
        return bool(await found.fetchall())


# ── load ─────────────────────────────────────────────────────────────────────────────────────────


async def _run(connection: Connection, sql: str, values: Any) -> Cursor:
    return await connection.execute(sql.encode(), values, prepare=True, binary=True)


async def _plain(connection: Connection, command: str) -> None:
    """A command that begins or ends a transaction: there is nothing in it to prepare."""
    await connection.execute(command.encode(), prepare=False)


async def _begin(connection: Connection, book: int, known: Head, synced: bool) -> Cursor:
    await _plain(connection, "BEGIN")
    await _run(connection, SYNCED if synced else UNSYNCED, ())
    # A statement of its own: what the next ones see is what the last holder of the lock committed.
    await _run(connection, LOCK, (book,))
    return await _run(connection, _HEAD, {"book": book, "seq": known.seq})


def _named(names: Names) -> Overlay:
    versions = {(record.kind, key): ABSENT for record, keys in names.rows.items() for key in keys}
    return Overlay(dict.fromkeys(names.accounts), dict.fromkeys(names.holds), versions)


async def _staged(book: int, cursor: Cursor, known: Head, overlay: Overlay) -> Staged:
    row = await cursor.fetchone()
    assert row is not None
    now_ns, seq, at, digest, event, digest_then = row
    if known.seq and digest_then != known.digest:
        raise StoreRewound(
            f"book {book} had acknowledged unit {known.seq} and does not have it: a fail-over or a "
            "restore has lost its end; this process writes nothing more until it is started anew"
        )
    head = Head(event=event or 0) if seq is None else Head(seq, at, digest or GENESIS, event or 0)
    return Staged(book, head, now_ns, overlay)


async def _add_accounts(overlay: Overlay, found: Cursor) -> None:
    overlay.accounts.update((row[0], account_from(row)) for row in await found.fetchall())


async def _expire(
    connection: Connection, book: int, staged: Staged, overlay: Overlay, found: Cursor
) -> int:
    """Release holds that are due; a third trip fetches their other accounts, should one be."""
    due = [hold_from(row) for row in await found.fetchall()]
    if not due:
        return 0
    due.sort(key=lambda row: (row.expires_at, row.id))
    missing = _accounts_of(due) - overlay.accounts.keys()
    if missing:
        values = {"book": book, "accounts": texts(missing), "holds": texts(())}
        await _add_accounts(overlay, await _run(connection, _ACCOUNTS, values))
    staged.expire(due)
    return len(due)


def _accounts_of(holds: Iterable[HoldRow]) -> set[str]:
    return {account for hold in holds for account in (hold.debit, hold.credit)}


@functools.cache
def _versions(record: RecordType[Any]) -> str:
    return _looked_up("key, version", _NAMED, table(record), key="key")


# ── write ────────────────────────────────────────────────────────────────────────────────────────


async def _insert(connection: Connection, insert: Insert, rows: Iterable[tuple[Any, ...]]) -> None:
    """One statement for all rows."""
    await _run(connection, insert.sql, insert.values(rows))


@functools.cache
def _upsert(record: RecordType[Any]) -> Insert:
    written = ["version", "seq", "value", *(f"f_{name}" for name in record.columns)]
    return Insert.into(
        table(record),
        ("int4", "text", "int8", "int8", "bytea", *column_types(record)),
        "ON CONFLICT (book, key) DO UPDATE SET "
        + ", ".join(f"{name} = excluded.{name}" for name in written),
    )
