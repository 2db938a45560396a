"""Identifiers: sortable by time, unguessable where secret, derived where they must repeat.

Promises: `new_id` never repeats in practice; `derived_id` always repeats for the same parts.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from functools import lru_cache

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
#: The character that five bits of a random byte stand for.
_RANDOM = bytes(ord(_ALPHABET[byte & 31]) for byte in range(256))
_RANDOM_CHARS = 16
_TIME_SHIFTS = range(45, -5, -5)


def new_id(prefix: str) -> str:
    """A fresh id such as `req_01jd…`: 48 bits of milliseconds, 80 random bits, Crockford base32."""
    random = os.urandom(_RANDOM_CHARS).translate(_RANDOM).decode()
    return f"{prefix}_{_time_chars(time.time_ns() // 1_000_000)}{random}"


@lru_cache(maxsize=1)  # many ids are made within a millisecond
def _time_chars(ms: int) -> str:
    return "".join([_ALPHABET[ms >> shift & 31] for shift in _TIME_SHIFTS])


def derived_id(prefix: str, *parts: bytes | str) -> str:
    """The same id for the same parts, for ever: 160 bits of SHA-256 over length-prefixed parts."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
    return f"{prefix}_{digest.hexdigest()[:40]}"


def new_secret(prefix: str) -> str:
    """A bearer secret with 256 random bits, such as `sk-…`. Show it once; store `secret_hash`."""
    return prefix + secrets.token_urlsafe(32)


def secret_hash(secret: str) -> str:
    """What is stored instead of a secret. Plain SHA-256 suffices: the secrets have 256 bits."""
    return hashlib.sha256(secret.encode()).hexdigest()
