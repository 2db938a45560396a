"""What tokens and requests are wrapped in: base64url text around bounded CBOR."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any, NoReturn

import cbor2

from farebox.errors import InvalidCredential

#: Longest text that is looked at, for tokens and requests alike.
MAX_TEXT_CHARS = 64 * 1024

#: A token nests seven deep at most; room for unknown fields of later versions.
_CBOR_DEPTH_MAX = 12

#: Every tag that the CBOR library would turn into something richer than the formats know
#: (big numbers, patterns, shared references, sets): refused, because they cost time or form loops.
_REFUSED_TAGS = (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261)
_REFUSED_TAGS_LONG = (1004, 43000, 55799)

_STANDARD_TO_URLSAFE = str.maketrans("+/", "-_")


def read_text(text: str | bytes, what: str) -> str:
    """Bounded text without surrounding white space. Raises InvalidCredential."""
    if len(text) > MAX_TEXT_CHARS:
        raise InvalidCredential(f"the {what} is longer than {MAX_TEXT_CHARS} characters")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidCredential(f"the {what} is not UTF-8 text") from None
    return text.strip()


def decode_base64(text: str, what: str) -> bytes:
    """Bytes of base64url text; padding is optional and the standard alphabet is understood.

    NUT-18's own examples use the standard alphabet. Raises InvalidCredential.
    """
    body = text.translate(_STANDARD_TO_URLSAFE).rstrip("=")
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidCredential(f"the {what} is not base64url") from None


def encode_base64(raw: bytes) -> str:
    """Base64url text without padding."""
    return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def decode_cbor(raw: bytes, what: str) -> Any:
    """One plain CBOR item and nothing behind it: bounded depth, no tags, no duplicate keys.

    `undefined` reads as None, which is how some wallets write an absent field. Raises
    InvalidCredential.
    """
    stream = io.BytesIO(raw)
    try:
        item = _decoder(stream).decode()
    except (cbor2.CBORError, ValueError, RecursionError, OverflowError, MemoryError):
        raise InvalidCredential(f"the {what} is not well-formed CBOR") from None
    if stream.read(1):
        raise InvalidCredential(f"the {what} has bytes behind its end")
    return _without_undefined(item)


def _decoder(stream: io.BytesIO) -> cbor2.CBORDecoder:
    return cbor2.CBORDecoder(
        stream,
        max_depth=_CBOR_DEPTH_MAX,
        allow_duplicate_keys=False,
        strict_hashable_types=True,
        semantic_decoders=dict.fromkeys(_REFUSED_TAGS + _REFUSED_TAGS_LONG, _refuse_tag),
    )


def _refuse_tag(*_: object) -> NoReturn:
    raise ValueError("a tag that no Cashu format uses")


def _without_undefined(item: Any) -> Any:
    """The same tree with `undefined` as None; its depth is bounded by the decoder."""
    if item is cbor2.undefined:
        return None
    if isinstance(item, dict):
        return {key: _without_undefined(value) for key, value in item.items()}
    if isinstance(item, list):
        return [_without_undefined(value) for value in item]
    return item
