"""The audit chain: every committed unit extends one SHA-256 chain over the whole book.

    digest(n) = SHA-256( digest(n-1) ‖ MessagePack([seq, at, id, body, events]) )
    body      = MessagePack([fingerprint, sticky, refused, reply, movements, opens, ceilings, puts])
    movements = [[step, kind, debit, credit, amount, code, hold, expires_at], …]
    puts      = [[kind, key, version, SHA-256(value)], …]

MessagePack arrays, strings, bytes and shortest-form integers carry their own lengths, so no two
different units have the same encoding. Amounts are decimal strings (MessagePack stops at 64 bits).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from farebox.ledger.evaluator import Decision, Known, Movement
from farebox.ledger.model import Applied, Code, Open, Refused, SetCeiling

#: The digest before the first unit.
GENESIS = bytes(32)

_pack = msgspec.msgpack.Encoder().encode


class PutDigest(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a unit wrote to one row: the version it made and the hash of the stored bytes."""

    kind: str
    key: str
    version: int
    digest: bytes


class Body(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What is stored of a unit beside its events. Each step is a movement, an open or a ceiling."""

    fingerprint: bytes
    sticky: bool
    refused: tuple[int, str] | None  # step, code; nothing of the unit happened then
    reply: bytes
    movements: tuple[Movement, ...]
    opens: tuple[tuple[int, str, str, str], ...]  # step, account, asset, kind
    ceilings: tuple[tuple[int, str, str | None], ...]  # step, account, decimal amount
    puts: tuple[PutDigest, ...]


class EventRow(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An event as stored and as hashed; `data` is JSON."""

    number: int
    name: str
    subject: str
    data: bytes


_decode_body = msgspec.msgpack.Decoder(Body).decode


def value_digest(raw: bytes) -> bytes:
    """SHA-256 of a row's stored bytes."""
    return hashlib.sha256(raw).digest()


def encode_body(decision: Decision, puts: tuple[PutDigest, ...]) -> bytes:
    """The canonical bytes of a unit's body."""
    unit, outcome = decision.unit, decision.outcome
    refused: tuple[int, Code] | None = None
    opens: list[tuple[int, str, str, str]] = []
    ceilings: list[tuple[int, str, str | None]] = []
    if isinstance(outcome, Applied):
        # Each step that moves nothing opens an account or sets a ceiling: most units have none.
        if len(decision.movements) < len(unit.steps):
            for number, step in enumerate(unit.steps):
                if type(step) is Open:
                    opens.append((number, step.account, step.asset, step.kind))
                elif type(step) is SetCeiling:
                    ceiling = None if step.ceiling is None else str(step.ceiling)
                    ceilings.append((number, step.account, ceiling))
    else:
        refused = (outcome.step, outcome.code)
    moves = decision.movements
    return _pack((unit.fingerprint, unit.sticky, refused, unit.reply, moves, opens, ceilings, puts))


def decode_body(raw: bytes) -> Body:
    """Undo `encode_body`. Raises msgspec.DecodeError on anything else."""
    return _decode_body(raw)


def known_from(seq: int, at: int, body: Body) -> Known:
    """What a stored unit answers when its id comes again."""
    if body.refused is not None:
        return Known(body.fingerprint, Refused(body.refused[0], Code(body.refused[1])))
    amounts = [0] * (len(body.movements) + len(body.opens) + len(body.ceilings))
    for move in body.movements:
        amounts[move.step] = int(move.amount)
    return Known(body.fingerprint, Applied(seq, at, tuple(amounts), body.reply))


def extend(
    previous: bytes,
    seq: int,
    at: int,
    unit_id: str,
    body: bytes,
    events: Sequence[EventRow],
) -> bytes:
    """The digest after unit `seq`."""
    link = _pack((seq, at, unit_id, body, events))
    return hashlib.sha256(previous + link).digest()
