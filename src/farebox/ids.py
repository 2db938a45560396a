"""Identifiers: sortable by time, unguessable where secret, derived where they must repeat.

Promises: `new_id` never repeats in practice; `derived_id` always repeats for the same parts.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
#: Ten bits at a time: every request takes an id, so the fewer steps the better.
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_SHIFTS = range(120, -10, -10)


def new_id(prefix: str) -> str:
    """A fresh id such as `req_01jd…`: 48 bits of milliseconds, 80 random bits, Crockford base32."""
    value = (time.time_ns() // 1_000_000 << 80) | int.from_bytes(os.urandom(10))
    return prefix + "_" + "".join([_PAIRS[value >> shift & 1023] for shift in _SHIFTS])


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
