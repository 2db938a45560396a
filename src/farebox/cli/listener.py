"""Where callers connect: a socket, and uvicorn's server with connections of ours on it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from farebox.cli.connection import connections
from farebox.errors import InvalidSettings
from farebox.settings import Address

BACKLOG = 2_048
#: A request line and what frames the headers, beside the headers themselves.
_HEAD_EXTRA_BYTES = 16 * 1024


@contextmanager
def listening(address: Address, setting: str) -> Iterator[socket.socket]:
    """A bound socket. Raises InvalidSettings naming `setting` when the address is not to be had.

    It says that it is TCP: asyncio turns Nagle's algorithm off only then, and with it on an answer
    in two parts waits 40 ms for the caller's delayed acknowledgement.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        found = f"{address.host}:{address.port} ({error.strerror})"
        allowed = "a free address of this machine: stop what listens there, or name another"
        raise InvalidSettings(setting, found, allowed) from None
    with listener:
        yield listener


def server_config(app: Any, header_bytes_max: int, *, stop_timeout_s: int) -> uvicorn.Config:
    """How `app` is served: by connections of ours, and with nothing said or logged beside it.

    Headers a little over their limit reach the app, which answers with a problem document; what
    is far over, or slower than 30 s, is cut off. What runs when the server ends is cancelled after
    `stop_timeout_s`.
    """
    return uvicorn.Config(
        app,
        http=connections(header_bytes_max + _HEAD_EXTRA_BYTES),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=stop_timeout_s,
    )
