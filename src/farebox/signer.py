"""Secrets: one root secret, and everything derived from it, behind this door.

Promises: bytes sealed here cannot be read or altered without the root secret; each purpose has a
key of its own. Never: a default secret, a secret in a repr, a log or an error.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from farebox.errors import SignerError

_NONCE_BYTES = 12
ROOT_BYTES = 32


class Signer:
    """Derives every key from one root secret of 32 bytes."""

    def __init__(self, root: bytes) -> None:
        if len(root) != ROOT_BYTES:
            raise SignerError(f"the root secret has {len(root)} bytes, it must have {ROOT_BYTES}")
        self._root = root
        self._seal = AESGCM(self.derive("seal"))
        self._receipts = Ed25519PrivateKey.from_private_bytes(self.derive("receipts"))

    def __repr__(self) -> str:
        return "Signer(…)"

    def derive(self, purpose: str) -> bytes:
        """32 bytes for one purpose: HMAC-SHA256(root, purpose)."""
        return hmac.digest(self._root, b"farebox/" + purpose.encode(), hashlib.sha256)

    def seal(self, plain: bytes, context: str) -> bytes:
        """Encrypt and authenticate (AES-256-GCM); `context` must be given again to open it."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._seal.encrypt(nonce, plain, context.encode())

    def unseal(self, sealed: bytes, context: str) -> bytes:
        """Undo `seal`. Raises SignerError when key, context or bytes differ."""
        try:
            nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
            return self._seal.decrypt(nonce, body, context.encode())
        except (InvalidTag, ValueError) as error:
            raise SignerError("sealed bytes cannot be opened with this root secret") from error

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature (64 bytes) that anyone can check with `public_key`."""
        return self._receipts.sign(message)

    @property
    def public_key(self) -> bytes:
        """The 32 raw bytes of the Ed25519 public key for `sign`."""
        return self._receipts.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
