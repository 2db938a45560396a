"""Base58 with Bitcoin's alphabet, as multibase `z` and DIDs use it."""

from __future__ import annotations

from farebox.errors import InvalidCredential

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_VALUES = {letter: value for value, letter in enumerate(_ALPHABET)}
#: Decoding takes time by the square of the length: keys are short.
_CHARS_MAX = 256


def encode(raw: bytes) -> str:
    """Text of `raw`; leading zero bytes become leading ones."""
    number, letters = int.from_bytes(raw, "big"), ""
    while number:
        number, rest = divmod(number, 58)
        letters = _ALPHABET[rest] + letters
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + letters


def decode(text: str) -> bytes:
    """Undo `encode`. Raises InvalidCredential."""
    if len(text) > _CHARS_MAX:
        raise InvalidCredential(f"base58 text is longer than {_CHARS_MAX} characters")
    number = 0
    try:
        for letter in text:
            number = number * 58 + _VALUES[letter]
    except KeyError:
        raise InvalidCredential("base58 text has a letter that base58 does not use") from None
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
