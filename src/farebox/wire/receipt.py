"""Receipts: facts of a request, signed so that anyone can check them with the house's public key.

    base64url(JSON) "." base64url(signature) "." base64url(path)        without padding

A signature costs as much as a good part of a request, so receipts that are due at the same moment
share one: it covers the root of the Merkle tree (RFC 9162, section 2.1) over their documents, and
each receipt carries the path from its own leaf to that root. A receipt that was alone has an empty
path; the others tell nothing of each other but hashes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from farebox.errors import InvalidInput

#: What is signed begins with this, so that no signature can be taken for one of something else.
_PURPOSE = b"farebox receipt\0"
_LEAF, _NODE = b"\0", b"\1"
#: A step of a path: on which side of the way up the sibling stands, and its hash.
_ON_LEFT, _ON_RIGHT = b"\0", b"\1"
_STEP_BYTES = 33
_STEPS_MAX = 32
_URLSAFE = bytes.maketrans(b"+/", b"-_")


def tree(documents: Sequence[bytes]) -> tuple[bytes, list[bytes]]:
    """What is to be signed for these documents, one or more, and the path of each."""
    level = [sha256(_LEAF + document).digest() for document in documents]
    paths = [b""] * len(documents)
    width = 1  # documents below each node of the level; the last node may have fewer
    while len(level) > 1:
        for at in range(0, len(level) - 1, 2):
            left, right = at * width, (at + 1) * width
            for leaf in range(left, right):
                paths[leaf] += _ON_RIGHT + level[at + 1]
            for leaf in range(right, min(right + width, len(paths))):
                paths[leaf] += _ON_LEFT + level[at]
        above = [
            sha256(_NODE + level[at] + level[at + 1]).digest() for at in range(0, len(level) - 1, 2)
        ]
        level = above + level[2 * len(above) :]
        width *= 2
    return _PURPOSE + level[0], paths


def encode(documents: Sequence[bytes], signature: bytes, paths: Sequence[bytes]) -> list[str]:
    """The receipts that share `signature`, as they are told."""
    signed = _b64(signature)
    return [
        f"{_b64(document)}.{signed}.{_b64(path) if path else ''}"
        for document, path in zip(documents, paths, strict=True)
    ]


def document_of(receipt: str) -> bytes:
    """The document of a receipt, nothing checked. Raises InvalidInput for what is none."""
    return _parts(receipt)[0]


def check(receipt: str, public_key: bytes) -> bytes:
    """The document of a receipt that the holder of `public_key` (Ed25519, 32 bytes) has signed.

    Raises InvalidInput when it did not, or for what is no receipt.
    """
    document, signature, path = _parts(receipt)
    node = sha256(_LEAF + document).digest()
    for at in range(0, len(path), _STEP_BYTES):
        side, sibling = path[at : at + 1], path[at + 1 : at + _STEP_BYTES]
        pair = sibling + node if side == _ON_LEFT else node + sibling
        node = sha256(_NODE + pair).digest()
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _PURPOSE + node)
    except (InvalidSignature, ValueError):
        raise InvalidInput("the receipt is not signed by this key") from None
    return document


def _parts(receipt: str) -> tuple[bytes, bytes, bytes]:
    try:
        document, signature, path = (
            base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
            for part in receipt.split(".")
        )
    except (binascii.Error, ValueError):
        raise InvalidInput("this is no receipt") from None
    if len(path) % _STEP_BYTES or len(path) > _STEPS_MAX * _STEP_BYTES:
        raise InvalidInput("this is no receipt")
    return document, signature, path


def _b64(raw: bytes) -> str:
    return binascii.b2a_base64(raw, newline=False).translate(_URLSAFE, b"=").decode()
