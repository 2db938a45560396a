"""The admin door of a running server: one JSON request, one JSON answer, on a Unix socket.

A running server owns its book, so the command line sends its wishes through here. Who may open
the socket (`admin.sock` in the data directory, for its owner alone) may do everything.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import structlog

from farebox.cli.requests import Request
from farebox.errors import FareboxError, InvalidInput, StoreError, StoreLocked

_log = structlog.get_logger("farebox.door")

_NAME = "admin.sock"
_REQUEST_MAX_BYTES = 1 << 20
_ANSWER_MAX_BYTES = 1 << 26
#: Long enough for a Lightning payment; the operation goes on in the server if it takes longer.
_ANSWER_TIMEOUT_S = 300
_REQUEST_TIMEOUT_S = 10
_AT_ONCE_MAX = 8
#: Linux allows 107 bytes for the path of a socket, others fewer.
_PATH_MAX_BYTES = 100

CarryOut = Callable[[Request], Awaitable[Mapping[str, object]]]


class _Answer(msgspec.Struct, frozen=True):
    facts: dict[str, object] = {}
    error: str = ""


_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_answers = msgspec.json.Decoder(_Answer)


@asynccontextmanager
async def open_door(data_dir: Path, carry_out: CarryOut) -> AsyncIterator[None]:
    """Answer requests with what `carry_out` finds, while the book in `data_dir` is ours.

    Raises StoreLocked where another process has a door there: what lies in the directory beside a
    book (`book.seen`, what was scanned of a chain) is written by one.
    """
    limit = asyncio.Semaphore(_AT_ONCE_MAX)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with limit:
                answer = await _answered(reader, carry_out)
                writer.write(msgspec.json.encode(answer) + b"\n")
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever knocked has left, or spoke no JSON line
        finally:
            writer.close()

    with _bound(data_dir) as listener:
        server = await asyncio.start_unix_server(serve, sock=listener, limit=_REQUEST_MAX_BYTES)
        try:
            yield
        finally:
            server.close()


async def _answered(reader: asyncio.StreamReader, carry_out: CarryOut) -> _Answer:
    async with asyncio.timeout(_REQUEST_TIMEOUT_S):
        line = await reader.readuntil(b"\n")
    try:
        return _Answer(dict(await carry_out(_requests.decode(line))))
    except msgspec.DecodeError:
        return _Answer(error="the running server does not know this request: restart it")
    except FareboxError as error:
        return _Answer(error=str(error))
    except Exception:
        _log.exception("door.request_failed")
        return _Answer(error="the running server failed at this; its log says why")


@contextmanager
def _bound(data_dir: Path) -> Iterator[socket.socket]:
    """A listening socket that only we may connect to. A dead server's socket is replaced."""
    if _is_home(data_dir):
        raise StoreLocked(
            f"another server is at work in {data_dir}: give each process that serves a book in "
            "PostgreSQL a data directory of its own, with the same root key"
        )
    (data_dir / _NAME).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    # The mask comes before the socket: between bind and chmod anybody could have connected.
    mask = os.umask(0o177)
    try:
        with _address(data_dir) as address:
            listener.bind(address)
    except OSError as error:
        listener.close()
        raise StoreError(f"cannot open {data_dir / _NAME}: {error.strerror}") from error
    finally:
        os.umask(mask)
    try:
        yield listener
    finally:
        (data_dir / _NAME).unlink(missing_ok=True)


def _is_home(data_dir: Path) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX) as knocking, _address(data_dir) as address:
        return knocking.connect_ex(address) == 0


@contextmanager
def _address(data_dir: Path) -> Iterator[str]:
    """A name of the socket that is short enough for the system, wherever the directory is."""
    path = str(data_dir / _NAME)
    if len(os.fsencode(path)) <= _PATH_MAX_BYTES:
        yield path
        return
    directory = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{_NAME}"
    finally:
        os.close(directory)


async def ask_server(data_dir: Path, request: Request) -> dict[str, object] | None:
    """What the server that owns this book answers; None when no server is running.

    Raises InvalidInput with the server's sentence, StoreError when it does not answer.
    """
    streams = await _knock(data_dir)
    if streams is None:
        return None
    reader, writer = streams
    try:
        writer.write(msgspec.json.encode(request) + b"\n")
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            line = await reader.readuntil(b"\n")
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise StoreError("the running server broke off; ask it again") from None
    finally:
        writer.close()
    answer = _answers.decode(line)
    if answer.error:
        raise InvalidInput(answer.error)
    return answer.facts


async def _knock(data_dir: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """A connection to the running server; None when nobody is at home."""
    try:
        with _address(data_dir) as address:
            return await asyncio.open_unix_connection(address, limit=_ANSWER_MAX_BYTES)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"cannot reach the running server: {error.strerror}") from error
