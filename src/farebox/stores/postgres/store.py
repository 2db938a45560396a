"""The PostgreSQL store: any number of processes on one database, each with one task that writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from farebox.errors import StoreError
from farebox.ledger.audit import decode_body, known_from
from farebox.ledger.model import Account, Applied, Outcome, Refused, StoredEvent, Unit, check_unit
from farebox.ledger.records import RecordType, Row, column_value
from farebox.ledger.store import PAGE_MAX, check_units
from farebox.stores.postgres.batch import ACCOUNT, LOCK_SHARED, SYNCED
from farebox.stores.postgres.connection import Connection, conninfo, place
from farebox.stores.postgres.readers import Readers
from farebox.stores.postgres.schema import prepare
from farebox.stores.postgres.writer import Writer
from farebox.stores.rows import account_from, event_from, table
from farebox.tally import Commits

T = TypeVar("T", bound=msgspec.Struct)
R = TypeVar("R")

_EXPIRE_MAX = 1_000
_UNIT = "SELECT seq, at, body FROM units WHERE book = %s::int4 AND id = %s"


class PostgresStore:
    """One book of one database, shared with other processes. Make it with `open`."""

    def __init__(self, info: str, book: int, commits: Commits) -> None:
        self._book = book
        self._readers = Readers(info)
        self._writer = Writer(info, book, commits)

    @classmethod
    async def open(
        cls,
        dsn: str,
        records: Sequence[RecordType[Any]],
        *,
        book: int = 1,
        commits: Commits | None = None,
    ) -> PostgresStore:
        """Open the book, or make a new one. `commits` counts what is committed.

        Raises StoreError when the database cannot be reached, StoreOutdated when it is of another
        version.
        """
        names = [table(record) for record in records]
        if len(set(names)) < len(names):
            raise ValueError(f"two record types share a table: {sorted(names)}")
        info = conninfo(dsn)
        readers = Readers(info)
        try:
            await readers.read(lambda connection: prepare(connection, records))
        except StoreError as error:
            raise type(error)(f"cannot open the database {place(dsn)}: {error}") from error
        finally:
            await readers.close()
        return cls(info, book, commits or Commits())

    async def commit(self, unit: Unit, *, synced: bool = True) -> Outcome:
        """Decide and durably store one unit; see `farebox.ledger.store.Store`.

        A unit that is not `synced` may also be lost when the database server crashes.
        """
        check_unit(unit)
        (outcome,) = await self._writer.write((unit,), synced)
        return outcome

    async def commit_many(self, units: Sequence[Unit], *, synced: bool = True) -> Sequence[Outcome]:
        """Decide and durably store many units; see `farebox.ledger.store.Store`."""
        check_units(units)
        return await self._writer.write(tuple(units), synced)

    async def expire_due(self) -> int:
        """Release every hold that is due; returns how many."""
        total = 0
        while True:
            expired = await self._writer.expire(_EXPIRE_MAX)
            total += expired
            if expired < _EXPIRE_MAX:
                return total

    async def outcome(self, unit_id: str) -> Applied | Refused | None:
        """What became of a unit, or None when no such unit was committed.

        None is told under the book's lock: no commit that is on its way, of a process that died or
        whose answer was lost, can make it untrue afterwards. Raises StoreError when the lock is
        not to be had.
        """
        row = await self._one(_UNIT, unit_id) or await self._readers.read(
            lambda connection: _settled_unit(connection, self._book, unit_id)
        )
        return known_from(row[0], row[1], decode_body(row[2])).outcome if row else None

    async def get(self, record: RecordType[T], key: str) -> Row[T] | None:
        """One domain row."""
        row = await self._one(
            f"SELECT value, version FROM {table(record)} WHERE book = %s::int4 AND key = %s", key
        )
        return None if row is None else Row(record.decode(row[0]), row[1])

    async def find(
        self,
        record: RecordType[T],
        where: Mapping[str, str | int],
        *,
        at_most: tuple[str, int] | None = None,
        after: str = "",
        limit: int = PAGE_MAX,
    ) -> list[tuple[str, Row[T]]]:
        """Rows by their indexed fields, in key order."""
        record.check_query(where, at_most and at_most[0])
        terms = ["book = %s::int4", *(f"f_{name} = %s" for name in where), "key > %s"]
        values: list[object] = [*map(column_value, where.values()), after]
        if at_most is not None:
            terms.append(f"f_{at_most[0]} <= %s")
            values.append(at_most[1])
        return await self._page(
            f"SELECT key, value, version FROM {table(record)} WHERE {' AND '.join(terms)} "
            "ORDER BY key LIMIT %s",
            *values,
            min(limit, PAGE_MAX),
            read=lambda row: (row[0], Row(record.decode(row[1]), row[2])),
        )

    async def account(self, account_id: str) -> Account | None:
        """One account with its balances."""
        row = await self._one(
            f"SELECT {ACCOUNT} FROM accounts WHERE book = %s::int4 AND id = %s", account_id
        )
        return None if row is None else account_from(row)

    async def accounts(self, after: str = "", limit: int = PAGE_MAX) -> list[Account]:
        """Accounts in id order."""
        return await self._page(
            f"SELECT {ACCOUNT} FROM accounts WHERE book = %s::int4 AND id > %s ORDER BY id "
            "LIMIT %s",
            after,
            min(limit, PAGE_MAX),
            read=account_from,
        )

    async def events(
        self, after: int = 0, *, subject: str | None = None, limit: int = PAGE_MAX
    ) -> list[StoredEvent]:
        """Events in order."""
        term, values = ("", ()) if subject is None else ("AND subject = %s ", (subject,))
        return await self._page(
            "SELECT number, seq, at, name, subject, data FROM events "
            f"WHERE book = %s::int4 AND number > %s::int8 {term}ORDER BY number LIMIT %s",
            after,
            *values,
            min(limit, PAGE_MAX),
            read=event_from,
        )

    async def close(self) -> None:
        """Finish what is queued, then let go of the database."""
        await self._writer.close()
        await self._readers.close()

    async def _one(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        async def read(connection: Connection) -> tuple[Any, ...] | None:
            found = await connection.execute(sql.encode(), (self._book, *values), binary=True)
            return await found.fetchone()

        return await self._readers.read(read)

    async def _page(self, sql: str, *values: object, read: Callable[..., R]) -> list[R]:
        async def fetch(connection: Connection) -> list[R]:
            found = await connection.execute(sql.encode(), (self._book, *values), binary=True)
            return [read(row) for row in await found.fetchall()]

        return await self._readers.read(fetch)


async def _settled_unit(connection: Connection, book: int, unit_id: str) -> Any:
    """A unit's row as it is once every commit that was on its way has ended."""
    async with connection.pipeline():
        await connection.execute("BEGIN")
        await connection.execute(SYNCED.encode())
        await connection.execute(LOCK_SHARED, (book,))
        found = await connection.execute(_UNIT, (book, unit_id), binary=True)
        await connection.execute("COMMIT")
    return await found.fetchone()
