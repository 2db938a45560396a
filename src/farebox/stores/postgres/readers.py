"""A few connections that only read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psycopg

from farebox.errors import StoreError
from farebox.stores.postgres.connection import (
    Connection,
    Patience,
    connect,
    hanging_up,
    passing,
)

R = TypeVar("R")

_CONNECTIONS_MAX = 4


class Readers:
    """Hands a connection to one reader at a time; makes them when they are needed."""

    def __init__(self, info: str) -> None:
        self._info = info
        self._free = asyncio.Semaphore(_CONNECTIONS_MAX)
        self._idle: list[Connection] = []
        self._closed = False
        #: How often somebody gave up. Whoever waited behind has waited long enough as well.
        self._given_up = 0

    async def read(self, work: Callable[[Connection], Awaitable[R]]) -> R:
        """What `work` makes of a connection; again on a new one when that was lost.

        Raises StoreError when it cannot be read, or not for a while.
        """
        patience, given_up = Patience(), self._given_up
        async with self._free:
            if self._given_up != given_up:
                raise StoreError("the book could not be read: the database is away")
            while True:
                if self._closed:
                    raise StoreError("the store is closed")
                try:
                    return await self._try(work)
                except psycopg.Error as error:
                    is_passing = passing(error)
                    if not is_passing or not await patience.pause():
                        self._given_up += is_passing
                        raise StoreError(f"the book could not be read: {error}") from error
                    await self._close_idle()  # made before the same failure

    async def close(self) -> None:
        """Close what is idle; a reader that is still at work closes its own."""
        self._closed = True
        await self._close_idle()

    async def _try(self, work: Callable[[Connection], Awaitable[R]]) -> R:
        connection = self._idle.pop() if self._idle else await connect(self._info)
        try:
            with hanging_up(connection):
                result = await work(connection)
        except BaseException:
            # Also for a caller that was cancelled: what it left half read is of no use to others.
            await connection.close()
            raise
        if self._closed:
            await connection.close()
        else:
            self._idle.append(connection)
        return result

    async def _close_idle(self) -> None:
        while self._idle:
            await self._idle.pop().close()
