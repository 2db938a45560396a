"""NUT-26: the fields of a payment request as type-length-value, wrapped in bech32m.

Works on the documents of NUT-18 (`{i, a, u, s, m, d, t, nut10}`); `request` gives them types.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from farebox.errors import InvalidCredential
from farebox.wire import bech32
from farebox.wire.cashu.envelope import MAX_TEXT_CHARS

_PREFIX = "creqb"
_UNIT_SAT = b"\x00"
_TRANSPORT_KINDS = {"nostr": 0, "post": 1}
_LOCK_KINDS = {"P2PK": 0, "HTLC": 1}
_NOSTR_KEY_BYTES = 32
_NPROFILE_KEY, _NPROFILE_RELAY = 0, 1
_FIELDS_MAX = 1_000

_ID, _AMOUNT, _UNIT, _SINGLE_USE, _MINT, _DESCRIPTION, _TRANSPORT, _LOCK = range(1, 9)
_KIND, _TARGET, _TAG = range(1, 4)


def decode(text: str) -> dict[str, Any]:
    """The document behind `creqb1…`; unknown fields are skipped. Raises InvalidCredential."""
    decoded = bech32.decode(text, bech32.Checksum.BECH32M, MAX_TEXT_CHARS)
    if decoded.prefix != _PREFIX:
        raise InvalidCredential("a bech32m payment request starts with creqb1")
    document: dict[str, Any] = {}
    for field, value in _read(bech32.to_bytes(decoded.words)):
        match field:
            case 0x01:
                document["i"] = _text(value)
            case 0x02:
                document["a"] = _number(value, 8)
            case 0x03:
                document["u"] = "sat" if value == _UNIT_SAT else _text(value)
            case 0x04:
                document["s"] = bool(_number(value, 1))
            case 0x05:
                document.setdefault("m", []).append(_text(value))
            case 0x06:
                document["d"] = _text(value)
            case 0x07:
                document.setdefault("t", []).append(_transport(value))
            case 0x08:
                document["nut10"] = _lock(value)
    return document


def encode(document: dict[str, Any]) -> str:
    """`CREQB1…` of a document. Raises InvalidCredential for what this form cannot hold."""
    raw = b"".join(_field(field, value) for field, value in _top_fields(document))
    return bech32.encode(_PREFIX, raw, bech32.Checksum.BECH32M).upper()


def _top_fields(document: dict[str, Any]) -> Iterator[tuple[int, bytes]]:
    if "i" in document:
        yield _ID, document["i"].encode()
    if "a" in document:
        yield _AMOUNT, document["a"].to_bytes(8, "big")
    if "u" in document:
        yield _UNIT, _UNIT_SAT if document["u"] == "sat" else document["u"].encode()
    if "s" in document:
        yield _SINGLE_USE, bytes([document["s"]])
    for mint in document.get("m", ()):
        yield _MINT, mint.encode()
    if "d" in document:
        yield _DESCRIPTION, document["d"].encode()
    for transport in document.get("t", ()):
        yield _TRANSPORT, _transport_value(transport)
    if "nut10" in document:
        lock = document["nut10"]
        yield _LOCK, _conditions(_LOCK_KINDS, lock["k"], lock["d"].encode(), lock.get("t", []))


def _read(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Fields of one byte type, two bytes length. Raises InvalidCredential when cut short."""
    at = 0
    for _ in range(_FIELDS_MAX):
        if at == len(raw):
            return
        end = at + 3 + int.from_bytes(raw[at + 1 : at + 3], "big")
        if at + 3 > len(raw) or end > len(raw):
            raise InvalidCredential("a field of the payment request is cut short")
        yield raw[at], raw[at + 3 : end]
        at = end
    raise InvalidCredential("the payment request has too many fields")


def _field(field: int, value: bytes) -> bytes:
    if len(value) > 0xFFFF:
        raise InvalidCredential("a field is too long for a bech32m payment request")
    return bytes([field]) + len(value).to_bytes(2, "big") + value


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidCredential("a field of the payment request is not UTF-8") from None


def _number(raw: bytes, length: int) -> int:
    if len(raw) != length:
        raise InvalidCredential("a number in the payment request has the wrong length")
    return int.from_bytes(raw, "big")


def _parts(raw: bytes) -> tuple[int, bytes, list[list[str]]]:
    """Kind, target and tags: transports and locks are built alike."""
    kind, target, tags = None, b"", []
    for field, value in _read(raw):
        match field:
            case 0x01:
                kind = _number(value, 1)
            case 0x02:
                target = value
            case 0x03:
                tags.append(_tag(value))
    if kind is None:
        raise InvalidCredential("a transport or lock of the payment request has no kind")
    return kind, target, tags


def _conditions(
    kinds: dict[str, int], kind: str, target: bytes, tags: Iterable[list[str]]
) -> bytes:
    if kind not in kinds:
        raise InvalidCredential("a bech32m payment request has no number for this kind")
    fields = [(_KIND, bytes([kinds[kind]])), (_TARGET, target)]
    fields += [(_TAG, _tag_value(tag)) for tag in tags]
    return b"".join(_field(field, value) for field, value in fields)


def _name(kinds: dict[str, int], kind: int) -> str:
    for name, number in kinds.items():
        if number == kind:
            return name
    raise InvalidCredential("a transport or lock of the payment request has an unknown kind")


def _lock(raw: bytes) -> dict[str, Any]:
    kind, data, tags = _parts(raw)
    return {"k": _name(_LOCK_KINDS, kind), "d": _text(data), "t": tags}


def _transport(raw: bytes) -> dict[str, Any]:
    number, target, tags = _parts(raw)
    kind = _name(_TRANSPORT_KINDS, number)
    if kind == "post":
        return {"t": kind, "a": _text(target), "g": tags}
    if len(target) != _NOSTR_KEY_BYTES:
        raise InvalidCredential("a nostr transport has a key of 32 bytes")
    relays = [relay for tag in tags if tag[0] == "r" for relay in tag[1:]]
    return {
        "t": kind,
        "a": _nostr_address(target, relays),
        "g": [tag for tag in tags if tag[0] != "r"],
    }


def _transport_value(transport: dict[str, Any]) -> bytes:
    tags = transport.get("g", [])
    if transport["t"] != "nostr":
        target = transport["a"].encode()
        return _conditions(_TRANSPORT_KINDS, transport["t"], target, tags)
    key, relays = _nostr_key(transport["a"])
    return _conditions(_TRANSPORT_KINDS, "nostr", key, [*tags, *(["r", one] for one in relays)])


def _tag(raw: bytes) -> list[str]:
    """A key and its values, each behind one byte of length."""
    parts: list[str] = []
    at = 0
    while at < len(raw):
        end = at + 1 + raw[at]
        if end > len(raw):
            raise InvalidCredential("a tag of the payment request is cut short")
        parts.append(_text(raw[at + 1 : end]))
        at = end
    if not parts:
        raise InvalidCredential("a tag of the payment request is empty")
    return parts


def _tag_value(tag: Iterable[str]) -> bytes:
    raw = [part.encode() for part in tag]
    if any(len(part) > 0xFF for part in raw):
        raise InvalidCredential("a tag is too long for a bech32m payment request")
    return b"".join(bytes([len(part)]) + part for part in raw)


def _nostr_address(key: bytes, relays: list[str]) -> str:
    """NIP-19: `npub…` of a key alone, `nprofile…` with relays."""
    if not relays:
        return bech32.encode("npub", key, bech32.Checksum.BECH32)
    parts = [(_NPROFILE_KEY, key), *((_NPROFILE_RELAY, relay.encode()) for relay in relays)]
    raw = b"".join(bytes([kind, len(value)]) + value for kind, value in parts)
    return bech32.encode("nprofile", raw, bech32.Checksum.BECH32)


def _nostr_key(address: str) -> tuple[bytes, list[str]]:
    """Key and relays of an `npub…` or `nprofile…` (NIP-19). Raises InvalidCredential."""
    decoded = bech32.decode(address, bech32.Checksum.BECH32, MAX_TEXT_CHARS)
    raw = bech32.to_bytes(decoded.words)
    keys, relays = [raw] if decoded.prefix == "npub" else [], []
    at = 0
    while decoded.prefix == "nprofile" and at + 2 <= len(raw):
        kind, value = raw[at], raw[at + 2 : at + 2 + raw[at + 1]]
        if kind == _NPROFILE_KEY:
            keys.append(value)
        elif kind == _NPROFILE_RELAY:
            relays.append(_text(value))
        at += 2 + raw[at + 1]
    if len(keys) != 1 or len(keys[0]) != _NOSTR_KEY_BYTES:
        raise InvalidCredential("a nostr transport is an npub or nprofile with one key")
    return keys[0], relays
