"""Bech32 and bech32m (BIP-173, BIP-350), without their length limit: invoices and requests are
longer than addresses."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from farebox.errors import InvalidCredential

_ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUES = {letter: value for value, letter in enumerate(_ALPHABET)}
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_WORDS = 6


class Checksum(enum.Enum):
    """Which constant the checksum is made with."""

    BECH32 = 1
    BECH32M = 0x2BC830A3


@dataclass(frozen=True, slots=True)
class Decoded:
    """Human-readable part in lower case, and the words of five bits behind it."""

    prefix: str
    words: tuple[int, ...]


def decode(text: str, checksum: Checksum, chars_max: int) -> Decoded:
    """Read text whose checksum holds. Raises InvalidCredential."""
    if len(text) > chars_max:
        raise InvalidCredential(f"bech32 text is longer than {chars_max} characters")
    if not text.isascii() or text not in (text.lower(), text.upper()):
        raise InvalidCredential("bech32 text mixes upper and lower case or is not ASCII")
    prefix, separator, body = text.lower().rpartition("1")
    if not separator or not prefix or not prefix.isprintable() or len(body) < _CHECKSUM_WORDS:
        raise InvalidCredential("bech32 text has no prefix or is cut short")
    try:
        words = tuple(_VALUES[letter] for letter in body)
    except KeyError:
        raise InvalidCredential("bech32 text has a letter that bech32 does not use") from None
    if _polymod((*_expanded(prefix), *words)) != checksum.value:
        raise InvalidCredential("the checksum of bech32 text does not hold")
    return Decoded(prefix, words[:-_CHECKSUM_WORDS])


def encode(prefix: str, raw: bytes, checksum: Checksum) -> str:
    """Lower-case text of `raw` behind `prefix`."""
    return encode_words(prefix, to_words(raw), checksum)


def encode_words(prefix: str, words: Sequence[int], checksum: Checksum) -> str:
    """Lower-case text of words of five bits behind `prefix`."""
    remainder = _polymod((*_expanded(prefix), *words, *[0] * _CHECKSUM_WORDS)) ^ checksum.value
    tail = [remainder >> 5 * (_CHECKSUM_WORDS - 1 - i) & 31 for i in range(_CHECKSUM_WORDS)]
    return prefix + "1" + "".join(_ALPHABET[word] for word in (*words, *tail))


def to_words(raw: bytes) -> tuple[int, ...]:
    """Bytes as words of five bits, padded with zero bits."""
    count = -(-len(raw) * 8 // 5)
    number = int.from_bytes(raw, "big") << (count * 5 - len(raw) * 8)
    return tuple(number >> 5 * (count - 1 - i) & 31 for i in range(count))


def to_bytes(words: Iterable[int]) -> bytes:
    """Words of five bits as bytes. Raises InvalidCredential unless the padding is zero bits."""
    bits = accumulator = 0
    raw = bytearray()
    for word in words:
        accumulator = (accumulator << 5 | word) & 0xFFF
        bits += 5
        if bits >= 8:
            bits -= 8
            raw.append(accumulator >> bits & 0xFF)
    if bits >= 5 or accumulator & ((1 << bits) - 1):
        raise InvalidCredential("bech32 text has padding that is not zero")
    return bytes(raw)


def to_number(words: Iterable[int]) -> int:
    """Words of five bits as one big-endian number."""
    number = 0
    for word in words:
        number = number << 5 | word
    return number


def _expanded(prefix: str) -> tuple[int, ...]:
    codes = prefix.encode("ascii")
    return (*(code >> 5 for code in codes), 0, *(code & 31 for code in codes))


def _polymod(values: Iterable[int]) -> int:
    remainder = 1
    for value in values:
        top = remainder >> 25
        remainder = (remainder & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATOR):
            if top >> bit & 1:
                remainder ^= generator
    return remainder
