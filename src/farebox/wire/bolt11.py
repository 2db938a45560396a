"""Lightning invoices (BOLT 11): the little that paying one needs to know.

Promises: amount, payment hash and times are read exactly, the checksum holds.
Never: checks the payee's signature; whoever pays the invoice does that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from farebox.errors import InvalidCredential
from farebox.wire import bech32

_CHARS_MAX = 8_192
_PREFIX = re.compile(r"ln(bcrt|bc|tbs|tb|sb)(?:([1-9][0-9]{0,11})([munp])?)?")
#: Tenths of a millisatoshi in one unit of each multiplier, since a picobitcoin is 0.1 msat.
_TENTHS_PER_UNIT = {None: 10**12, "m": 10**9, "u": 10**6, "n": 10**3, "p": 1}

_TIMESTAMP_WORDS = 7
_SIGNATURE_WORDS = 104
_HASH_WORDS = 52
_TAG_PAYMENT_HASH = 1
_TAG_EXPIRY = 6
_TAG_DESCRIPTION_HASH = 23
_EXPIRY_WORDS_MAX = 12
_EXPIRY_S_DEFAULT = 3_600


@dataclass(frozen=True, slots=True)
class Invoice:
    """`network` is `bc` for the real one. `amount_msat` is None where the payer chooses.

    `description_hash` is the SHA-256 of what it is for, where it names that instead of text.
    """

    network: str
    amount_msat: int | None
    payment_hash: bytes
    created_at_s: int
    expiry_s: int
    description_hash: bytes | None = None

    @property
    def expires_at_s(self) -> int:
        """Unix seconds from which it can no longer be paid."""
        return self.created_at_s + self.expiry_s


def decode_invoice(text: str) -> Invoice:
    """Read an invoice; `lightning:` before it is understood. Raises InvalidCredential."""
    body = text.strip()
    if body[:10].lower() == "lightning:":
        body = body[10:]
    decoded = bech32.decode(body, bech32.Checksum.BECH32, _CHARS_MAX)
    prefix = _PREFIX.fullmatch(decoded.prefix)
    if prefix is None:
        raise InvalidCredential("not a Lightning invoice: its prefix is not lnbc… or alike")
    words = decoded.words
    if len(words) < _TIMESTAMP_WORDS + _SIGNATURE_WORDS:
        raise InvalidCredential("the Lightning invoice is cut short")
    fields = dict(_fields(words[_TIMESTAMP_WORDS:-_SIGNATURE_WORDS]))
    if _TAG_PAYMENT_HASH not in fields:
        raise InvalidCredential("the Lightning invoice has no payment hash")
    expiry = fields.get(_TAG_EXPIRY)
    described = fields.get(_TAG_DESCRIPTION_HASH)
    return Invoice(
        network=prefix[1],
        amount_msat=_amount_msat(prefix[2], prefix[3]),
        payment_hash=_hash(fields[_TAG_PAYMENT_HASH]),
        created_at_s=bech32.to_number(words[:_TIMESTAMP_WORDS]),
        expiry_s=_EXPIRY_S_DEFAULT if expiry is None else bech32.to_number(expiry),
        description_hash=None if described is None else _hash(described),
    )


def _hash(words: tuple[int, ...]) -> bytes:
    """52 words are 260 bits: the hash and four bits of padding."""
    return (bech32.to_number(words) >> 4).to_bytes(32, "big")


def _amount_msat(digits: str | None, multiplier: str | None) -> int | None:
    if digits is None:
        return None
    tenths = int(digits) * _TENTHS_PER_UNIT[multiplier]
    if tenths % 10:
        raise InvalidCredential("the Lightning invoice asks for a fraction of a millisatoshi")
    return tenths // 10


def _fields(words: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The fields we read, first last, so that in a dict the first of a kind counts.

    A hash of another length must be skipped, says BOLT 11.
    """
    found: list[tuple[int, tuple[int, ...]]] = []
    at = 0
    while at < len(words):
        if at + 3 > len(words):
            raise InvalidCredential("a field of the Lightning invoice is cut short")
        tag, length = words[at], words[at + 1] << 5 | words[at + 2]
        value = words[at + 3 : at + 3 + length]
        if len(value) < length:
            raise InvalidCredential("a field of the Lightning invoice is cut short")
        is_hash = tag in (_TAG_PAYMENT_HASH, _TAG_DESCRIPTION_HASH) and length == _HASH_WORDS
        if is_hash or (tag == _TAG_EXPIRY and length <= _EXPIRY_WORDS_MAX):
            found.append((tag, value))
        at += 3 + length
    return reversed(found)
