"""Extended keys and their children (BIP-32): as much as deriving addresses needs.

An ordinary child of a public key is that of its private key; a hardened one the latter alone has.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field, replace

from coincurve import PrivateKey, PublicKey

from farebox.errors import InvalidCredential
from farebox.wire import base58

_PUBLIC, _PRIVATE = bytes.fromhex("0488b21e"), bytes.fromhex("0488ade4")
_BYTES, _CHECK_BYTES = 78, 4
#: From here on a child is hardened.
HARDENED = 2**31


@dataclass(frozen=True, slots=True)
class ExtendedKey:
    """A point with its chain code; `secret` where the private key is known, else empty."""

    point: bytes
    chain_code: bytes = field(repr=False)
    secret: bytes = field(default=b"", repr=False)

    @property
    def public(self) -> ExtendedKey:
        """The same without the private key."""
        return replace(self, secret=b"")

    def child(self, index: int) -> ExtendedKey:
        """The child with a number (CKDpub, and CKDpriv where the secret is known).

        Raises ValueError for a hardened one of a public key, for what is no number of a child, and
        for the one number in 2^127 that has none.
        """
        if not 0 <= index < (2 * HARDENED if self.secret else HARDENED):
            raise ValueError("a public key has no such child")
        parent = self.point if index < HARDENED else b"\0" + self.secret
        digest = hmac.digest(self.chain_code, parent + index.to_bytes(4), hashlib.sha512)
        tweak, chain_code = digest[:32], digest[32:]
        if not self.secret:
            return ExtendedKey(PublicKey(self.point).add(tweak).format(), chain_code)
        return _with_secret(PrivateKey(self.secret).add(tweak), chain_code)


def _with_secret(key: PrivateKey, chain_code: bytes) -> ExtendedKey:
    return ExtendedKey(key.public_key.format(), chain_code, key.secret)


def master_key(seed: bytes) -> ExtendedKey:
    """The root of everything that is derived from a seed."""
    digest = hmac.digest(b"Bitcoin seed", seed, hashlib.sha512)
    return _with_secret(PrivateKey(digest[:32]), digest[32:])


def read_extended_key(text: str) -> ExtendedKey:
    """Read `xpub…` or `xprv…`. Raises InvalidCredential, which quotes nothing of it."""
    raw = base58.decode(text.strip())
    body, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
    twice = hashlib.sha256(hashlib.sha256(body).digest()).digest()
    if len(body) != _BYTES or not hmac.compare_digest(twice[:_CHECK_BYTES], check):
        raise InvalidCredential("the extended key is mistyped: its checksum is wrong")
    chain_code, key = body[13:45], body[45:]
    try:
        if body[:4] == _PUBLIC:
            return ExtendedKey(PublicKey(key).format(), chain_code)
        if body[:4] == _PRIVATE and key[0] == 0:
            return _with_secret(PrivateKey(key[1:]), chain_code)
    except ValueError:
        raise InvalidCredential("the extended key has no key in it") from None
    raise InvalidCredential("an extended key begins with xpub or xprv")


def write_public(key: ExtendedKey) -> str:
    """The key's public half as `xpub…`, with nothing told of where it came from."""
    body = _PUBLIC + bytes(9) + key.chain_code + key.point
    twice = hashlib.sha256(hashlib.sha256(body).digest()).digest()
    return base58.encode(body + twice[:_CHECK_BYTES])
