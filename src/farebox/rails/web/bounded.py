"""Reading an answer that may be as long as a stranger likes."""

from __future__ import annotations

import aiohttp

from farebox.errors import RailUnavailable

_CHUNK_BYTES = 1 << 16


class AnswerTooLong(RailUnavailable):
    """More was sent than is read: asking for the same again is of no use."""


async def read_bounded(response: aiohttp.ClientResponse, bytes_max: int, who: str) -> bytes:
    """The body, at most `bytes_max`; `who` answered, for the error. Raises RailUnavailable.

    A packed answer is refused: it can be far larger than it looks.
    """
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise RailUnavailable(f"{who} packed its answer, unasked")
    raw = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        raw += chunk
        if len(raw) > bytes_max:
            raise AnswerTooLong(f"{who}'s answer is too long")
    return bytes(raw)
