"""One HTTP exchange with a mint: bounded in time and size, its failures told apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
import msgspec
from yarl import URL

from farebox.errors import RailRejected, RailUnavailable
from farebox.rails.cashu.shapes import ErrorJson
from farebox.rails.web.bounded import read_bounded

_T = TypeVar("_T")

#: Statuses that put a call off; whatever they come with, they refuse nothing for good.
_NOT_NOW = frozenset({408, 425, 429})
_CONNECTIONS_MAX = 256
_CONNECTIONS_PER_MINT_MAX = 32
#: Uvicorn closes idle connections after 5 s: a pooled one must be younger, or a swap is sent into
#: a closing connection and its outcome is unknown for nothing.
_KEEPALIVE_S = 4
_DETAIL_MAX_CHARS = 200
#: Anything as long as a secret, a signature or a quote id.
_SECRET_LIKE = re.compile(r"[0-9A-Za-z_+/=-]{16,}")


@dataclass(frozen=True, slots=True)
class MintLimits:
    """How long and how large answers may be. A melt waits for a Lightning payment."""

    connect_s: float = 5
    call_s: float = 15
    melt_s: float = 120
    answer_bytes_max: int = 1 << 20


def open_session(*traces: aiohttp.TraceConfig) -> aiohttp.ClientSession:
    """A session for all mints together; close it in the end. Needs a running loop.

    `traces` hear of every call.
    """
    connector = aiohttp.TCPConnector(
        limit=_CONNECTIONS_MAX,
        limit_per_host=_CONNECTIONS_PER_MINT_MAX,
        keepalive_timeout=_KEEPALIVE_S,
    )
    # `identity`, because an answer that has to be unpacked can be far larger than it looks.
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        trace_configs=list(traces),
    )


async def exchange(
    session: aiohttp.ClientSession,
    method: str,
    url: URL,
    body: object,
    shape: type[_T],
    *,
    limits: MintLimits,
    total_s: float,
) -> _T:
    """Make one call and read its answer as `shape`.

    Raises RailRejected where the mint refused it with an error document, and RailUnavailable for
    everything else: then nobody knows whether the call was carried out.
    """
    try:
        async with session.request(
            method,
            url,
            data=None if body is None else msgspec.json.encode(body),
            headers={"Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=total_s, sock_connect=limits.connect_s),
            allow_redirects=False,  # what is sent is money; it goes to this mint or nowhere
        ) as response:
            status, raw = (
                response.status,
                await read_bounded(response, limits.answer_bytes_max, "the mint"),
            )
    except TimeoutError:
        raise RailUnavailable(f"the mint did not answer {url.path_safe} in time") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # The text of a foreign error may quote what was sent; its type says enough.
        raise RailUnavailable(f"the mint gave no answer: {type(error).__name__}") from None
    if status == 200:
        return _decode(raw, shape)
    if 400 <= status < 500 and status not in _NOT_NOW:
        raise _rejection(status, raw)
    raise RailUnavailable(f"the mint answered with status {status}")


def _decode(raw: bytes, shape: type[_T]) -> _T:
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, RecursionError, OverflowError, UnicodeError):
        raise RailUnavailable("the mint's answer is not what the call answers with") from None


def _rejection(status: int, raw: bytes) -> RailRejected | RailUnavailable:
    try:
        document = _decode(raw, ErrorJson)
    except RailUnavailable:
        return RailUnavailable(f"the mint answered with status {status} and no error document")
    detail = document.detail if isinstance(document.detail, str) else ""
    shown = _SECRET_LIKE.sub("…", detail)[:_DETAIL_MAX_CHARS] or "it said no more"
    return RailRejected(f"the mint refused with code {document.code}: {shown}", code=document.code)
