"""A Lightning network of nothing: real invoices, no nodes, no money."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from coincurve import PrivateKey

from farebox.clock import NS_PER_S, Clock, SystemClock
from farebox.errors import RailRejected
from farebox.wire import bech32
from farebox.wire.bolt11 import Invoice, decode_invoice

EXPIRY_S = 3_600

_NODE_KEY = hashlib.sha256(b"Farebox play Lightning").digest()
_TAG_PAYMENT_HASH, _TAG_EXPIRY, _TAG_DESCRIPTION = 1, 6, 13
_TAG_PAYMENT_SECRET, _TAG_FINAL_CLTV, _TAG_FEATURES = 16, 24, 5
#: Bits 8 and 14: onion format and payment secret, both required, as every node sets them.
_FEATURES = 1 << 8 | 1 << 14
_FINAL_CLTV = 18
_INVOICE_PAID = 20006


def encode_invoice(
    amount_msat: int | None,
    payment_hash: bytes,
    created_at_s: int,
    *,
    network: str = "bcrt",
    expiry_s: int = EXPIRY_S,
) -> str:
    """A signed invoice (BOLT 11) of a play network; None leaves the amount to the payer."""
    prefix = f"ln{network}" + ("" if amount_msat is None else _amount(amount_msat))
    words = (
        *_number_words(created_at_s, 7),
        *_field(_TAG_PAYMENT_HASH, bech32.to_words(payment_hash)),
        *_field(_TAG_PAYMENT_SECRET, bech32.to_words(os.urandom(32))),
        *_field(_TAG_DESCRIPTION, bech32.to_words(b"play money")),
        *_field(_TAG_EXPIRY, _number_words(expiry_s, 4)),
        *_field(_TAG_FINAL_CLTV, _number_words(_FINAL_CLTV, 1)),
        *_field(_TAG_FEATURES, _number_words(_FEATURES, 3)),
    )
    # What is signed is the words as bytes, padded with zero bits to whole bytes.
    padding = -len(words) * 5 % 8
    signed = (bech32.to_number(words) << padding).to_bytes((len(words) * 5 + padding) // 8, "big")
    signature = PrivateKey(_NODE_KEY).sign_recoverable(prefix.encode() + signed)
    whole = (*words, *bech32.to_words(signature))
    return bech32.encode_words(prefix, whole, bech32.Checksum.BECH32)


def _amount(amount_msat: int) -> str:
    """The amount in the largest multiplier that keeps it whole."""
    tenths = amount_msat * 10
    for divisor, letter in ((10**9, "m"), (10**6, "u"), (10**3, "n")):
        if tenths % divisor == 0:
            return f"{tenths // divisor}{letter}"
    return f"{tenths}p"


def _field(tag: int, words: Iterable[int]) -> tuple[int, ...]:
    value = tuple(words)
    return (tag, len(value) >> 5, len(value) & 31, *value)


def _number_words(number: int, count: int) -> tuple[int, ...]:
    return tuple(number >> 5 * (count - 1 - at) & 31 for at in range(count))


@dataclass(frozen=True, slots=True, repr=False)
class PlayPayment:
    """What paying an invoice gave. The preimage is None for an invoice from outside."""

    preimage: bytes | None
    internal: bool


class PlayLightning:
    """Mints that share one of these can pay each other's invoices; whatever else is paid too.

    `lock` guards every mint of the network, since a payment changes two of them.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.lock = threading.RLock()
        self._clock = clock or SystemClock()
        self._offers: dict[bytes, tuple[bytes, object, Callable[[], None]]] = {}
        self._paid: set[bytes] = set()

    def invoice(self, amount_msat: int, preimage: bytes) -> str:
        """An invoice whose payment reveals `preimage`."""
        now_s = self._clock.now_ns() // NS_PER_S
        return encode_invoice(amount_msat, hashlib.sha256(preimage).digest(), now_s)

    def offer(self, preimage: bytes, payee: object, on_paid: Callable[[], None]) -> None:
        """Have `on_paid` called once, when the invoice of `preimage` is paid."""
        self._offers[hashlib.sha256(preimage).digest()] = (preimage, payee, on_paid)

    def pay(self, request: str, payer: object) -> PlayPayment:
        """Pay an invoice. Raises RailRejected (20006) if it was paid before by a payer, and
        InvalidCredential if it is none."""
        payment_hash = self.read(request).payment_hash
        if payment_hash in self._paid:
            raise RailRejected("invoice already paid", code=_INVOICE_PAID)
        self._paid.add(payment_hash)
        offer = self._offers.get(payment_hash)
        if offer is None:
            return PlayPayment(None, internal=False)
        preimage, payee, on_paid = offer
        on_paid()
        return PlayPayment(preimage, internal=payee is payer)

    def read(self, request: str) -> Invoice:
        """What an invoice asks for. Raises InvalidCredential."""
        return decode_invoice(request)
