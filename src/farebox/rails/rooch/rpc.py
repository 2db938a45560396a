"""JSON-RPC to a Rooch node. The four calls that channels need; answers bounded in time and size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import aiohttp
import msgspec

from farebox.errors import RailRejected, RailUnavailable
from farebox.rails.web.bounded import read_bounded
from farebox.rails.web.breaker import Breaker

_T = TypeVar("_T")
_BYTES_MAX = 1 << 20
_SAID_MAX_CHARS = 200
_CALL_S = 20
_EXECUTED = "executed"
_SEQUENCE_NUMBER = f"0x{2:064x}::account::sequence_number"


_Number: Any = str | int  # a union, which mypy takes for no type of values


class _Error(msgspec.Struct, frozen=True):
    code: int = 0
    message: str = ""


class _Answer(msgspec.Struct, frozen=True):
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: _Error | None = None


class _State(msgspec.Struct, frozen=True):
    value: str


class _Status(msgspec.Struct, frozen=True):
    type: str


class _Execution(msgspec.Struct, frozen=True):
    status: _Status


class _Executed(msgspec.Struct, frozen=True):
    execution_info: _Execution


class _Returned(msgspec.Struct, frozen=True):
    decoded_value: str | int


class _Viewed(msgspec.Struct, frozen=True):
    return_values: list[_Returned] | None = None


def open_rooch_session() -> aiohttp.ClientSession:
    """A session for the node; close it in the end. Needs a running loop."""
    return aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
    )


class RoochRpc:
    """One node. Its address may hold a key: neither a repr nor an error tells it."""

    def __init__(self, url: str, session: aiohttp.ClientSession, breaker: Breaker) -> None:
        self._url = url
        self._session = session
        self._breaker = breaker

    async def chain_id(self) -> int:
        """Which chain this is: 1 is the main net, 4 a local one. Raises RailUnavailable."""
        return int(await self._ask("rooch_getChainID", [], _Number))

    async def object_state(self, object_id: str) -> bytes | None:
        """An object's value in BCS; None: there is none. Raises RailUnavailable."""
        states = await self._ask("rooch_getObjectStates", [object_id, _PLAIN], list[_State | None])
        return _bytes(states)

    async def field_state(self, object_id: str, key: str) -> bytes | None:
        """A table's row, name and value in BCS; None: there is none. Raises RailUnavailable."""
        asked = [object_id, [key], _PLAIN]
        return _bytes(await self._ask("rooch_getFieldStates", asked, list[_State | None]))

    async def sequence_number(self, address: bytes) -> int:
        """The number of an account's next transaction. Raises RailUnavailable."""
        call = {"function_id": _SEQUENCE_NUMBER, "args": [address.hex()], "ty_args": []}
        told = await self._ask("rooch_executeViewFunction", [call], _Viewed)
        return int(told.return_values[0].decoded_value) if told.return_values else 0

    async def execute(self, transaction: bytes) -> None:
        """Have a signed transaction sequenced and executed.

        Raises RailRejected where the contract refused it. Everything else is RailUnavailable, and
        may have been executed: also the node's own no, which a lost answer's second try gets too.
        """
        asked = ["0x" + transaction.hex(), {"withOutput": False}]
        told = await self._ask("rooch_executeRawTransaction", asked, _Executed)
        status = told.execution_info.status.type
        if status != _EXECUTED:
            raise RailRejected(f"Rooch has not executed it: {status[:_SAID_MAX_CHARS]}")

    async def _ask(self, method: str, params: Sequence[object], shape: type[_T]) -> _T:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        with self._breaker.attempt():
            answer = _decoded(await self._post(msgspec.json.encode(body)), _Answer)
            if answer.error is not None:
                said = answer.error.message[:_SAID_MAX_CHARS]
                raise RailUnavailable(f"the node says no ({answer.error.code}): {said}")
            return _decoded(bytes(answer.result), shape)

    async def _post(self, body: bytes) -> bytes:
        try:
            async with self._session.post(
                self._url,
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=_CALL_S),
                allow_redirects=False,
            ) as response:
                raw = await read_bounded(response, _BYTES_MAX, "the node")
                status = response.status
        except TimeoutError:
            raise RailUnavailable("the node did not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise RailUnavailable(f"the node gave no answer: {type(error).__name__}") from None
        if status != 200:
            raise RailUnavailable(f"the node answered with status {status}")
        return raw


_PLAIN = {"decode": False, "showDisplay": False}


def _decoded(raw: bytes, shape: type[_T]) -> _T:
    try:
        return msgspec.json.decode(raw, type=shape)
    except msgspec.DecodeError:
        raise RailUnavailable("the node's answer makes no sense") from None


def _bytes(states: list[_State | None]) -> bytes | None:
    found = states[0] if states else None
    if found is None:
        return None
    try:
        return bytes.fromhex(found.value.removeprefix("0x"))
    except ValueError:
        raise RailUnavailable("the node's answer makes no sense") from None
