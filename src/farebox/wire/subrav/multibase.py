"""Multibase base64url, `u…`: how JSON and signatures travel in headers, arguments and frames."""

from __future__ import annotations

import binascii
from typing import Any, TypeVar

import msgspec

from farebox.errors import InvalidCredential

_T = TypeVar("_T")
_json = msgspec.json.Encoder().encode
_TO_URL = bytes.maketrans(b"+/", b"-_")
#: What is base64 and not base64url becomes what is neither.
_FROM_URL = bytes.maketrans(b"-_+/=", b"+/???")
#: What a text may end with, by its length modulo 4: bits that stand for nothing are 0.
_ENDS = {2: frozenset(b"AQgw"), 3: frozenset(b"AEIMQUYcgkosw048")}
_PADDING = (b"", b"===", b"==", b"=")


def encode(raw: bytes) -> str:
    """`u` and base64url without padding."""
    text = binascii.b2a_base64(raw, newline=False).rstrip(b"=").translate(_TO_URL)
    return "u" + text.decode()


def decode(text: str, chars_max: int, what: str) -> bytes:
    """Undo `encode`; one byte string has one text. Raises InvalidCredential."""
    if len(text) > chars_max:
        raise InvalidCredential(f"the {what} is longer than {chars_max} characters")
    if not text.startswith("u"):
        raise InvalidCredential(f"the {what} is multibase base64url and begins with u")
    try:
        letters = text[1:].encode("ascii").translate(_FROM_URL)
        over = len(letters) % 4
        raw = binascii.a2b_base64(letters + _PADDING[over], strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidCredential(f"the {what} is not base64url") from None
    if over and letters[-1] not in _ENDS[over]:
        raise InvalidCredential(f"the {what} is not base64url as it is written")
    return raw


def encode_json(document: object) -> str:
    """Compact UTF-8 JSON as multibase text."""
    return encode(_json(document))


def decode_json(text: str, chars_max: int, what: str) -> Any:
    """Undo `encode_json`, for what JSON it may be. Raises InvalidCredential."""
    return read_json(decode(text, chars_max, what), what)


def decode_shape(text: str, chars_max: int, shape: msgspec.json.Decoder[_T], what: str) -> _T:
    """The same, strictly of one shape: an error shows no value of it. Raises InvalidCredential."""
    raw = decode(text, chars_max, what)
    try:
        return shape.decode(raw)
    except msgspec.ValidationError:
        why = "does not have the fields it must have"
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        why = "is not JSON"
    raise InvalidCredential(f"the {what} {why}")


def read_json(raw: bytes | str, what: str) -> Any:
    """JSON text as plain values. Raises InvalidCredential."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise InvalidCredential(f"the {what} is not JSON") from None
