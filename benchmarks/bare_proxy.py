"""The reference: a pass-through proxy with nothing in it but a server and a client.

    python -m benchmarks.bare_proxy UPSTREAM_URL PORT [DATA_DIR]

Uvicorn with uvloop and httptools in front, aiohttp's client behind, one process. With DATA_DIR it
also keeps the barest book there that could survive a crash: for each request one row that is
written before the request goes on, and one that the disk has before the answer goes back. No
ledger, no check, no price, no thread. That is the least a durable charge can cost.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import aiohttp
import apsw
import uvicorn
from multidict import CIMultiDict

Message = MutableMapping[str, Any]
_CHUNK_BYTES = 65_536
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"host"}
)


class BareBook:
    """Two rows a request, the second one durable."""

    def __init__(self, data: Path) -> None:
        self._db = apsw.Connection(str(data / "bare.db"))
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, value BLOB) STRICT")

    def write(self, value: bytes, *, durable: bool) -> None:
        """One commit."""
        self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        self._db.execute("INSERT INTO rows (value) VALUES (?)", (value,))


class BareProxy:
    """Forwards everything to one upstream."""

    def __init__(self, upstream_url: str, book: BareBook | None = None) -> None:
        self._url = upstream_url
        self._book = book
        self._client: aiohttp.ClientSession | None = None

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Serve one connection of the server."""
        if scope["type"] == "lifespan":
            return
        if self._client is None:
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        body = bytearray()
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if self._book is not None:
            self._book.write(b"held", durable=False)
        headers = CIMultiDict(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name not in _HOP_BY_HOP
        )
        async with self._client.request(
            scope["method"],
            self._url + scope["path"],
            headers=headers,
            data=bytes(body) if body else None,
            allow_redirects=False,
        ) as answer:
            kept = [
                (name, value)
                for name, value in answer.raw_headers
                if name.lower() not in _HOP_BY_HOP
            ]
            await send({"type": "http.response.start", "status": answer.status, "headers": kept})
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            if self._book is not None:
                self._book.write(b"charged", durable=True)
            await send({"type": "http.response.body", "body": b""})


def main() -> None:
    """Serve until told to stop."""
    upstream_url, port, *data = sys.argv[1:]
    uvicorn.run(
        BareProxy(upstream_url, BareBook(Path(data[0])) if data else None),
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
