"""What a caller reads of a receipt: in a header, or in the last comment of a stream."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import msgspec

RECEIPT = "x-farebox-receipt"
#: Asks for the receipt at the end of a stream, whose headers leave before the cost is known.
STREAM_RECEIPT = "x-farebox-stream-receipt"
_COMMENT = b": farebox receipt="


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a request came to. Its signature is for disputes, and not looked at here."""

    charged_msat: int
    returned_msat: int
    credited_msat: int


def read_receipt(text: str) -> Receipt | None:
    """The facts of a receipt; None for what is none."""
    payload = text.partition(".")[0]
    try:
        raw = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        return msgspec.json.decode(raw, type=Receipt)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        return None


def receipt_of_stream(body: bytes) -> str:
    """The receipt in a stream's last comment, which other clients ignore; "" where there is none.

    `body` may be its end alone.
    """
    _, found, rest = body.rpartition(_COMMENT)
    words = rest.split(maxsplit=1)
    return words[0].decode("latin-1") if found and words else ""
