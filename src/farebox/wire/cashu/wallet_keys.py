"""NUT-13: every output secret follows from one seed, a keyset and a counter.

Nothing secret about an output has to be stored: seed, keyset id, counter and amount make it anew,
the same for ever. Using a counter twice would make two proofs with one secret, of which only one
can be spent; whoever hands out counters must never go back.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from dataclasses import dataclass

from farebox.errors import InvalidCredential, SignerError
from farebox.wire.cashu import crypto
from farebox.wire.cashu.keysets import VERSION_1, VERSION_2
from farebox.wire.cashu.model import BlindedMessage

_KDF_DOMAIN = b"Cashu_KDF_HMAC_SHA256"
_QUOTE_KEY_DOMAIN = b"Farebox_Cashu_Quote_Key"
_BIP32_SEED_KEY = b"Bitcoin seed"
_HARDENED = 2**31
_PURPOSE = 129372
_COUNTER_END = 2**31
_SEED_BYTES_MIN = 16
_CACHED_KEYSETS_MAX = 256


@dataclass(frozen=True, slots=True, repr=False)
class OutputSecret:
    """The secret of a future proof and the scalar that blinds it."""

    secret: str
    r: bytes

    def __repr__(self) -> str:
        return "OutputSecret(…)"


@dataclass(frozen=True, slots=True, repr=False)
class _Node:
    """A private BIP-32 node."""

    key: bytes
    chain_code: bytes


class WalletKeys:
    """Derives outputs from a seed; keeps the parent node of recently used keysets."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) < _SEED_BYTES_MIN:
            raise SignerError(f"a wallet seed must have at least {_SEED_BYTES_MIN} bytes")
        self._seed = seed
        self._parents: OrderedDict[str, _Node] = OrderedDict()

    def __repr__(self) -> str:
        return "WalletKeys(…)"

    def output_secret(self, keyset_id: str, counter: int) -> OutputSecret:
        """Secret and blinding factor of one counter. Raises InvalidCredential for an unknown
        keyset version or a counter outside [0, 2^31)."""
        if not 0 <= counter < _COUNTER_END:
            raise InvalidCredential("an output counter is out of range")
        if keyset_id.startswith(VERSION_2):
            return self._by_hmac(keyset_id, counter)
        if keyset_id.startswith(VERSION_1):
            return self._by_bip32(keyset_id, counter)
        raise InvalidCredential("no way is known to derive secrets for this keyset version")

    def output(self, keyset_id: str, counter: int, amount: int) -> BlindedMessage:
        """The blinded message of one counter."""
        derived = self.output_secret(keyset_id, counter)
        return BlindedMessage(amount, keyset_id, crypto.blind(derived.secret, derived.r))

    def quote_key(self, label: str) -> bytes:
        """The private key that locks one mint quote (NUT-20); a label of its own for each.

        Quotes with one key in common could be linked by the mint.
        """
        digest = hmac.digest(self._seed, _QUOTE_KEY_DOMAIN + label.encode(), hashlib.sha512)
        return _scalar(int.from_bytes(digest, "big"))

    def _by_hmac(self, keyset_id: str, counter: int) -> OutputSecret:
        message = _KDF_DOMAIN + bytes.fromhex(keyset_id) + counter.to_bytes(8, "big")
        secret = hmac.digest(self._seed, message + b"\x00", hashlib.sha256)
        r = hmac.digest(self._seed, message + b"\x01", hashlib.sha256)
        return OutputSecret(secret.hex(), _scalar(int.from_bytes(r, "big")))

    def _by_bip32(self, keyset_id: str, counter: int) -> OutputSecret:
        """m/129372'/0'/keyset'/counter'/{0,1}."""
        node = _hardened_child(self._parent(keyset_id), counter)
        public = crypto.public_key(node.key)
        secret, r = (_child(node, public + step.to_bytes(4, "big")).key for step in (0, 1))
        return OutputSecret(secret.hex(), r)

    def _parent(self, keyset_id: str) -> _Node:
        """m/129372'/0'/keyset', remembered: it is the larger half of the work."""
        node = self._parents.get(keyset_id)
        if node is None:
            number = int(keyset_id, 16) % (2**31 - 1)
            node = _master(self._seed)
            for step in (_PURPOSE, 0, number):
                node = _hardened_child(node, step)
            self._parents[keyset_id] = node
            if len(self._parents) > _CACHED_KEYSETS_MAX:
                self._parents.popitem(last=False)
        return node


def _master(seed: bytes) -> _Node:
    digest = hmac.digest(_BIP32_SEED_KEY, seed, hashlib.sha512)
    return _Node(_scalar(int.from_bytes(digest[:32], "big")), digest[32:])


def _hardened_child(parent: _Node, index: int) -> _Node:
    return _child(parent, b"\x00" + parent.key + (index + _HARDENED).to_bytes(4, "big"))


def _child(parent: _Node, data: bytes) -> _Node:
    digest = hmac.digest(parent.chain_code, data, hashlib.sha512)
    tweak = int.from_bytes(digest[:32], "big") + int.from_bytes(parent.key, "big")
    return _Node(_scalar(tweak), digest[32:])


def _scalar(number: int) -> bytes:
    """`number` modulo the group's order, never zero (which no seed that exists will meet)."""
    reduced = number % crypto.ORDER
    if reduced == 0:
        raise SignerError("a derived key is zero")
    return reduced.to_bytes(32, "big")
