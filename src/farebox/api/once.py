"""Idempotent calls: the answer is kept when it is final, and told again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from farebox.api.context import ApiContext
from farebox.api.http import Incoming
from farebox.api.problems import in_progress, key_reused
from farebox.identity import InProgress, KeyReused, Recorded
from farebox.ids import new_id
from farebox.paywall.model import Answer, Headers

_REPLAYED = (b"idempotent-replayed", b"true")
_HEADER = b"idempotency-key"


@dataclass(frozen=True, slots=True)
class Told:
    """An answer, and whether it is the last word: what is not may change when asked again."""

    answer: Answer
    final: bool


Act = Callable[[str], Awaitable[Told]]


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    headers: Headers
    body: bytes


def settled(answer: Answer) -> Told:
    """Final unless it asks to be tried again."""
    return Told(answer, final=answer.status < 500 and answer.status not in (202, 409, 429))


async def once(context: ApiContext, incoming: Incoming, scope: str, act: Act) -> Answer:
    """Carry out `act(operation_id)` once for the caller's `Idempotency-Key`, where there is one."""
    name = incoming.header(_HEADER)
    if name is None:
        return (await act(new_id("op"))).answer
    return await once_named(context, scope, name, incoming.fingerprint, act)


async def once_named(
    context: ApiContext, scope: str, name: str, fingerprint: bytes, act: Act
) -> Answer:
    """Carry out `act(operation_id)` once for this name within `scope`."""
    begun = await context.idempotency.begin(scope, name, fingerprint)
    match begun:
        case Recorded(status, body):
            kept = msgspec.msgpack.decode(body, type=_Kept)
            return Answer(status, (*kept.headers, _REPLAYED), kept.body)
        case InProgress():
            return in_progress()
        case KeyReused():
            return key_reused()
    try:
        told = await act(begun.operation_id)
        if told.final:
            kept_bytes = msgspec.msgpack.encode(_Kept(told.answer.headers, told.answer.body))
            await context.idempotency.finish(begun, told.answer.status, kept_bytes)
        return told.answer
    finally:
        await context.idempotency.release(begun)
