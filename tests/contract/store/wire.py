"""A proxy in front of PostgreSQL that breaks the connection at a COMMIT, or at what else it is told
to, once for each fault."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator

_CHUNK_BYTES = 1 << 16


class Fault(enum.Enum):
    """What happens to a COMMIT, or another statement."""

    ANSWER_LOST = "it is carried out, and the connection ends before the answer"
    NEVER_ARRIVED = "the connection ends before it"
    STUCK = "the connection ends before it, and the server does not notice"
    SILENCE = "it is carried out, and nothing is heard any more"


class CommitBreaker:
    """Passes bytes on; the next COMMITs suffer `faults`, first one first.

    `at` are the words of what suffers. `open` tells whether new connections are taken; `released`
    ends what is stuck.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.at = b"COMMIT"
        self.open = True
        self.released = asyncio.Event()
        self.faults: list[Fault] = []

    async def __aenter__(self) -> CommitBreaker:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1")
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            if self.open:
                await self._pass_on(reader, writer)
        self._tasks.discard(task)
        writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, server = await asyncio.open_connection("127.0.0.1", self._port)
        back = asyncio.create_task(_copy(answers, writer))
        try:
            async for chunk in _chunks(reader):
                fault = self.faults.pop(0) if self.faults and self.at in chunk else None
                if fault is Fault.NEVER_ARRIVED:
                    break
                if fault is Fault.STUCK:
                    back.cancel()
                    writer.close()
                    await self.released.wait()
                    break
                if fault is not None:
                    back.cancel()
                    await asyncio.gather(back, return_exceptions=True)
                server.write(chunk)
                if fault is not None:
                    await answers.read(_CHUNK_BYTES)  # it is carried out
                if fault is Fault.ANSWER_LOST:
                    break
                if fault is Fault.SILENCE:
                    await reader.read()  # until the caller hangs up
        finally:
            back.cancel()
            server.close()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while chunk := await reader.read(_CHUNK_BYTES):
        yield chunk


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async for chunk in _chunks(reader):
            writer.write(chunk)
        writer.close()
    except OSError:
        writer.close()
