"""Connections to PostgreSQL: how they are made, how long they may be silent, what a failure means.

Nothing here shows the connection string: it may hold a password.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from farebox.errors import StoreError, StoreRewound

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

#: How long a call tries again while the database cannot be reached or restarts.
PATIENCE_S = 10
#: How long one round trip may take, waits for the book's lock included; then we hang up.
_TRIP_MAX_S = 30
_PAUSE_S = 0.05
_PAUSE_MAX_S = 1

#: What `is_direct` must be told.
BACKEND = "SELECT pg_backend_pid()"

#: What an operator's connection string may say otherwise.
_DEFAULTS: dict[str, str | int] = {
    "application_name": "farebox",
    "connect_timeout": 5,
    "target_session_attrs": "read-write",
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # ms
}

#: A standby answers reads and takes no writes, and what it does not know yet may have happened all
#: the same: whoever decides about money never asks one, whatever the connection string says.
_DECIDES = ("read-write", "primary")

#: Classes of SQLSTATE that hit every unit of a batch alike: the connection, the transaction's
#: state, resources, locks, the operator, the system. Of any other, one unit is the cause.
_EVERYBODYS = ("08", "25", "40", "53", "55", "57", "58", "XX")
#: Of these, the ones that pass: the server starts, stops, or is no longer the primary.
_PASSING = ("08", "25006", "57P")


def conninfo(dsn: str, *, reads_only: bool = False) -> str:
    """The connection string with our defaults. Raises StoreError when it cannot be read.

    `reads_only` is for who may be told of a moment ago: then a standby will do, and
    `target_session_attrs` is the operator's to say.
    """
    defaults = _DEFAULTS | ({"target_session_attrs": "any"} if reads_only else {})
    try:
        said = conninfo_to_dict(dsn)
        if not reads_only and said.get("target_session_attrs") not in _DECIDES:
            said.pop("target_session_attrs", None)
        return make_conninfo(dsn, **{key: defaults[key] for key in defaults.keys() - said.keys()})
    except psycopg.ProgrammingError:
        # Its message quotes the string.
        raise StoreError("the database address is no PostgreSQL connection string") from None


def place(dsn: str) -> str:
    """The database for people to read: host, port and name, never a password."""
    said = conninfo_to_dict(conninfo(dsn))
    host, port = said.get("host") or "localhost", said.get("port") or 5432
    return f"{said.get('dbname') or said.get('user') or ''} at {host}:{port}"


async def connect(info: str) -> Connection:
    """A connection in autocommit mode; transactions are begun by hand.

    Raises psycopg.Error, or StoreError for a pooler that cannot hold a transaction.
    """
    made = psycopg.AsyncConnection.connect(info, autocommit=True, prepare_threshold=None)
    connection: Connection = await made
    try:
        found = await connection.execute(BACKEND)
        if is_direct(connection, await found.fetchone()):
            connection.prepare_threshold = 0
        else:
            await connection.execute("BEGIN")
            await connection.execute("COMMIT")
    except psycopg.errors.ProtocolViolation as error:
        await connection.close()
        raise StoreError(
            f"the pooler in front of the database takes no transactions ({error}): set its mode "
            "to transaction or session"
        ) from error
    except BaseException:
        await connection.close()
        raise
    return connection


def is_direct(
    connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], backend: object
) -> bool:
    """Whether the server itself is at the other end, by its answer to `BACKEND`.

    A pooler introduces itself with a number of its own. What is prepared through one may be gone
    in the next transaction, or be another process's statement under the same name: behind a
    pooler nothing is prepared.
    """
    return backend == (connection.pgconn.backend_pid,)


def lost(connection: Connection, error: Exception) -> bool:
    """Whether the connection is of no use any more, and another one may be."""
    return connection.closed or passing(error)


def passing(error: Exception) -> bool:
    """Whether the failure may be gone in a moment, on a new connection."""
    if not isinstance(error, psycopg.OperationalError | psycopg.errors.ReadOnlySqlTransaction):
        return False
    return error.sqlstate is None or error.sqlstate.startswith(_PASSING)


def everybodys(error: Exception) -> bool:
    """Whether a failure hits all units of a batch, whatever they are."""
    if not isinstance(error, psycopg.Error):
        return isinstance(error, StoreRewound)
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate.startswith(_EVERYBODYS)


class Patience:
    """How often something is tried again, and when no more: counted from the first failure."""

    def __init__(self) -> None:
        self._ends_s = 0.0
        self._pause_s = _PAUSE_S

    async def pause(self) -> bool:
        """Wait a little, longer each time. False when it is time to give up."""
        now_s = asyncio.get_running_loop().time()
        self._ends_s = self._ends_s or now_s + PATIENCE_S
        if now_s + self._pause_s > self._ends_s:
            return False
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
        return True


@contextlib.contextmanager
def hanging_up(connection: Connection) -> Iterator[None]:
    """Break the connection if what is done meanwhile takes too long.

    A peer that is silent and alive is noticed by nobody else. Cancelling would not do: the driver
    then waits for the server to confirm.
    """
    timer = asyncio.get_running_loop().call_later(_TRIP_MAX_S, _shut_down, connection)
    try:
        yield
    finally:
        timer.cancel()


def _shut_down(connection: Connection) -> None:
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.pgconn.socket)) as wire,
    ):
        wire.shutdown(socket.SHUT_RDWR)
