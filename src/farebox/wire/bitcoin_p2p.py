"""Messages between Bitcoin nodes, as far as greeting one and handing it a transaction needs them.

Layouts: https://developer.bitcoin.org/reference/p2p_networking.html; `reject` is BIP-61, the
service bit of compact filters BIP-157.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from farebox.errors import InvalidInput

#: What each message of a network begins with.
MAGIC = {
    "bitcoin": bytes.fromhex("f9beb4d9"),
    "testnet": bytes.fromhex("0b110907"),
    "testnet4": bytes.fromhex("1c163f28"),
    "signet": bytes.fromhex("0a03cf40"),
    "regtest": bytes.fromhex("fabfb5da"),
}
HEAD_BYTES = 24
#: Nothing that is waited for is longer; nodes send no more than this unasked either.
PAYLOAD_MAX_BYTES = 1 << 20
#: Speaks `reject` and the like; Bitcoin Core and btcd serve filters from it on.
_PROTOCOL = 70_016
#: Services: whole blocks; witnesses are understood, so that transactions come with them; filters.
_NETWORK, _WITNESS, _COMPACT_FILTERS = 1 << 0, 1 << 3, 1 << 6
_COMMAND_BYTES = 12
_TEXT_MAX = 120
_ADDRESS = bytes(26)
_DUPLICATE = 0x12


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before a message."""

    command: str
    length: int
    checksum: bytes


@dataclass(frozen=True, slots=True)
class Greeting:
    """Who a node says it is. `height` is how many blocks it has."""

    agent: str
    height: int
    has_filters: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a node does not take, "tx" for a transaction, and why."""

    what: str
    reason: str
    is_known: bool


def framed(network: str, command: str, payload: bytes = b"") -> bytes:
    """A whole message."""
    name = command.encode().ljust(_COMMAND_BYTES, b"\0")
    return MAGIC[network] + name + len(payload).to_bytes(4, "little") + _sum(payload) + payload


def read_head(network: str, raw: bytes) -> Head:
    """The first `HEAD_BYTES` of a message. Raises InvalidInput, also for one that is too long."""
    if raw[:4] != MAGIC[network]:
        raise InvalidInput("it is on another network")
    length = int.from_bytes(raw[16:20], "little")
    if length > PAYLOAD_MAX_BYTES:
        raise InvalidInput("its message is too long")
    return Head(raw[4:16].rstrip(b"\0").decode("ascii", "replace"), length, raw[20:24])


def check_payload(head: Head, payload: bytes) -> None:
    """Raises InvalidInput where the payload is not what the head promised."""
    if _sum(payload) != head.checksum:
        raise InvalidInput("its message is damaged")


def greeting(nonce: int, now_s: int) -> bytes:
    """The payload of our `version`: we serve nothing and want no transactions."""
    start = _PROTOCOL.to_bytes(4, "little") + _WITNESS.to_bytes(8, "little")
    fixed = start + now_s.to_bytes(8, "little") + _ADDRESS + _ADDRESS + nonce.to_bytes(8, "little")
    return fixed + bytes(1) + bytes(4) + bytes(1)  # no name, no block, no relay


def read_greeting(payload: bytes) -> Greeting:
    """The payload of a node's `version`. Raises InvalidInput."""
    services = int.from_bytes(payload[4:12], "little")
    agent, position = _text(payload, 80)
    height = payload[position : position + 4]
    if len(height) < 4:
        raise InvalidInput("its greeting ends too early")
    wanted = _NETWORK | _COMPACT_FILTERS
    return Greeting(agent, int.from_bytes(height, "little"), services & wanted == wanted)


def read_refusal(payload: bytes) -> Refusal:
    """The payload of a `reject`. Raises InvalidInput."""
    what, position = _text(payload, 0)
    code = payload[position : position + 1]
    reason, _ = _text(payload, position + 1)
    return Refusal(what, reason, code == bytes([_DUPLICATE]))


def _text(payload: bytes, start: int) -> tuple[str, int]:
    """A text and where it ends; short ones only, as all that are read here."""
    if start >= len(payload) or payload[start] >= 0xFD:
        raise InvalidInput("its message cannot be read")
    end = start + 1 + payload[start]
    if end > len(payload):
        raise InvalidInput("its message ends too early")
    shown = payload[start + 1 : end].decode("ascii", "replace")
    return "".join(one for one in shown if one.isprintable())[:_TEXT_MAX], end


def _sum(payload: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(payload).digest()).digest()[:4]
