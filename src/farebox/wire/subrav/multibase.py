"""Multibase base64url, `u…`: how JSON and signatures travel in headers, arguments and frames."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from farebox.errors import InvalidCredential


def encode(raw: bytes) -> str:
    """`u` and base64url without padding."""
    return "u" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(text: str, chars_max: int, what: str) -> bytes:
    """Undo `encode`; one byte string has one text. Raises InvalidCredential."""
    if len(text) > chars_max:
        raise InvalidCredential(f"the {what} is longer than {chars_max} characters")
    if not text.startswith("u"):
        raise InvalidCredential(f"the {what} is multibase base64url and begins with u")
    try:
        raw = base64.b64decode(text[1:] + "=" * (-len(text[1:]) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidCredential(f"the {what} is not base64url") from None
    if encode(raw) != text:
        raise InvalidCredential(f"the {what} is not base64url as it is written")
    return raw


def encode_json(document: object) -> str:
    """Compact UTF-8 JSON as multibase text."""
    return encode(msgspec.json.encode(document))


def decode_json(text: str, chars_max: int, what: str) -> Any:
    """Undo `encode_json`, for what JSON it may be. Raises InvalidCredential."""
    return read_json(decode(text, chars_max, what), what)


def read_json(raw: bytes | str, what: str) -> Any:
    """JSON text as plain values. Raises InvalidCredential."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise InvalidCredential(f"the {what} is not JSON") from None
