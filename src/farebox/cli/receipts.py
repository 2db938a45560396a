"""What a caller reads of a receipt: in a header, or in the last comment of a stream."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from farebox.errors import InvalidInput
from farebox.wire.receipt import document_of

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
    try:
        return msgspec.json.decode(document_of(text), type=Receipt)
    except (InvalidInput, msgspec.DecodeError):
        return None


def receipt_of_stream(body: bytes) -> str:
    """The receipt in a stream's last comment, which other clients ignore; "" where there is none.

    `body` may be its end alone.
    """
    _, found, rest = body.rpartition(_COMMENT)
    words = rest.split(maxsplit=1)
    return words[0].decode("latin-1") if found and words else ""
