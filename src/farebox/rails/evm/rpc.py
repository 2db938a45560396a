"""JSON-RPC to one node: a call or a batch, bounded in time and size, its answers read into types.

An answer with an `error` is the node's own no (`RailRejected`, with JSON-RPC's code) unless the
code says that it could not tell; everything else that is no answer is `RailUnavailable`. Neither
says anything of the address, which often has a key in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import aiohttp
import msgspec
from yarl import URL

from farebox.errors import RailRejected, RailUnavailable
from farebox.rails.web.bounded import read_bounded
from farebox.rails.web.breaker import Breaker

_T = TypeVar("_T")
#: A batch of whole blocks is the longest answer.
_BYTES_MAX = 32 << 20
_BATCH_MAX = 50
_CONNECT_S = 5
_SAID_MAX_CHARS = 200
#: Addresses, hashes and amounts may be shown; anything else this long may be a key.
_SECRET_LIKE = re.compile(r"(?<![0-9A-Za-z])(?!0x[0-9a-fA-F]{1,64}(?![0-9A-Za-z]))[\w+/=-]{20,}")
#: The node could not tell: internal error, resource unavailable.
_NO_ANSWER = (-32_603, -32_002)
_LIMIT_EXCEEDED = -32_005
_TOO_OFTEN = re.compile(r"rate|too many requests|throughput|capacity|quota", re.IGNORECASE)


class Quantity(int):
    """A whole number, which JSON-RPC writes as 0x… text."""


class Data(bytes):
    """Bytes, which JSON-RPC writes as 0x… text."""


Hash = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-f]{64}$")]
Address = Annotated[str, msgspec.Meta(pattern="^0x[0-9a-fA-F]{40}$")]


class _Error(msgspec.Struct, frozen=True):
    code: int = 0
    message: str = ""


class _Answer(msgspec.Struct, frozen=True):
    id: int | str | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: _Error | None = None


def open_rpc_session() -> aiohttp.ClientSession:
    """A session for the nodes; close it in the end. Needs a running loop."""
    return aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
    )


class Rpc:
    """The way to one node: its address, the headers that let us in, its breaker.

    Neither address nor headers reach a repr, a log or an error: keys stand in both.
    """

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        breaker: Breaker,
        *,
        secret_headers: Mapping[str, str] | None = None,
        call_s: float = 20,
    ) -> None:
        self._url = URL(url)
        self._headers = {"Content-Type": "application/json", **(secret_headers or {})}
        self._session = session
        self._call_s = call_s
        self.breaker = breaker

    def __repr__(self) -> str:
        return f"Rpc({self._url.host})"

    async def call(self, shape: type[_T], method: str, *params: object) -> _T:
        """One call, its result read as `shape`.

        Raises RailRejected for the node's no, RailUnavailable when nobody knows.
        """
        with self.breaker.attempt():
            return decoded(await self._ask(method, params), shape)

    async def find(self, shape: type[_T], method: str, *params: object) -> _T | None:
        """As `call`, where null is an answer: there is no such block, receipt, transaction."""
        with self.breaker.attempt():
            raw = await self._ask(method, params)
            return None if raw == b"null" else decoded(raw, shape)

    async def batch(
        self, shape: type[_T], method: str, params: Sequence[Sequence[object]]
    ) -> list[_T]:
        """The same method with each of `params`, the results in their order.

        Several exchanges where there are many. The first no among them is raised. Raises
        RailRejected, RailUnavailable.
        """
        found: list[_T] = []
        for start in range(0, len(params), _BATCH_MAX):
            asked = params[start : start + _BATCH_MAX]
            body = [{"id": number, **_asked(method, one)} for number, one in enumerate(asked)]
            with self.breaker.attempt():
                raw = await self._post(body)
                if not raw.lstrip().startswith(b"["):  # one error for all of it
                    _result(decoded(raw, _Answer))
                    raise RailUnavailable("the node answered a batch with one result")
                told = {one.id: one for one in decoded(raw, list[_Answer])}
                if not told.keys() >= set(range(len(asked))):
                    raise RailUnavailable("the node left calls of a batch unanswered")
                found += [decoded(_result(told[number]), shape) for number in range(len(asked))]
        return found

    async def _ask(self, method: str, params: Sequence[object]) -> bytes:
        return _result(decoded(await self._post({"id": 0, **_asked(method, params)}), _Answer))

    async def _post(self, body: object) -> bytes:
        try:
            async with self._session.post(
                self._url,
                data=msgspec.json.encode(body),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=self._call_s, sock_connect=_CONNECT_S),
                allow_redirects=False,  # the key that lets us in goes to this node or nowhere
            ) as response:
                raw = await read_bounded(response, _BYTES_MAX, "the node")
                status = response.status
        except TimeoutError:
            raise RailUnavailable("the node did not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # The text of a foreign error may quote the address; its type says enough.
            raise RailUnavailable(f"the node gave no answer: {type(error).__name__}") from None
        if status in (401, 403):
            raise RailUnavailable("the node does not let us in: check its address and key")
        # Some nodes send their no with a status of 400; a document without one is no answer.
        if status != 200 and not (400 <= status < 500 and b'"error"' in raw and status != 429):
            raise RailUnavailable(f"the node answered with status {status}")
        return raw


def _asked(method: str, params: Sequence[object]) -> dict[str, object]:
    return {"jsonrpc": "2.0", "method": method, "params": params}


def _result(answer: _Answer) -> bytes:
    error = answer.error
    if error is None:
        return bytes(answer.result)
    said = _said(error.message)
    is_too_often = error.code == _LIMIT_EXCEEDED and _TOO_OFTEN.search(error.message)
    if error.code in _NO_ANSWER or is_too_often:
        raise RailUnavailable(f"the node has no answer: {said}")
    raise RailRejected(f"the node refused: {said}", code=error.code)


def decoded(raw: bytes | msgspec.Raw, shape: type[_T]) -> _T:
    """Read a result as `shape`. Raises RailUnavailable for anything else."""
    try:
        return msgspec.json.decode(raw, type=shape, dec_hook=_read)
    except (msgspec.DecodeError, RecursionError, OverflowError, UnicodeError):
        raise RailUnavailable("the node's answer is not what the call answers with") from None


def _read(shape: type, value: Any) -> Any:
    """For msgspec: what stands as 0x… text. Raises ValueError."""
    if not isinstance(value, str) or not value.startswith("0x"):
        raise ValueError("expected 0x…")
    return Quantity(value, 16) if shape is Quantity else Data(bytes.fromhex(value[2:]))


def _said(text: str) -> str:
    """A node's own words, fit to be shown."""
    return _SECRET_LIKE.sub("…", text)[:_SAID_MAX_CHARS] or "it said no more"
