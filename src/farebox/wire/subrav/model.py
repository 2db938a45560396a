"""The nouns of the wire: vouchers, signed or not, and the error codes that answer them.

A SubRAV (sub-channel receipt and voucher) promises a *total*: `accumulated_amount` is all that the
payer owes the payee on one sub-channel in one epoch. Names follow payment-kit 0.7.0 and NIP-4.
"""

from __future__ import annotations

import enum
import re
from functools import lru_cache

import msgspec

from farebox.errors import InvalidCredential

#: The only version there is.
VERSION = 1
U64_END = 2**64
U256_END = 2**256
FRAGMENT_MAX_BYTES = 255
SIGNATURE_BYTES = 64

#: Good ids and fragments come again and again.
_CHECKED_MAX = 10_000
_CHANNEL_ID = re.compile(r"0x[0-9a-f]{64}")


class SubRAV(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a payer signs. `accumulated_amount` is in base units of the channel's asset.

    Making one checks it: raises InvalidCredential for a field out of its range.
    """

    version: int = VERSION
    chain_id: int
    channel_id: str
    channel_epoch: int
    vm_id_fragment: str
    accumulated_amount: int
    nonce: int

    def __post_init__(self) -> None:
        version, chain_id, epoch = self.version, self.chain_id, self.channel_epoch
        nonce, amount = self.nonce, self.accumulated_amount
        are_integers = type(nonce) is type(amount) is type(chain_id) is type(epoch) is int
        if not (
            are_integers
            and type(version) is int
            and 0 <= version < 2**8
            and 0 <= chain_id < U64_END
            and 0 <= epoch < U64_END
            and 0 <= nonce < U64_END
            and 0 <= amount < U256_END
        ):
            raise InvalidCredential("a SubRAV's numbers are integers of 8, 64 and 256 bits")
        check_channel_id(self.channel_id)
        check_fragment(self.vm_id_fragment)


class SignedSubRAV(msgspec.Struct, frozen=True, gc=False):
    """A voucher: a SubRAV and the 64 bytes its payer signed it with."""

    sub_rav: SubRAV
    signature: bytes

    def __post_init__(self) -> None:
        if len(self.signature) != SIGNATURE_BYTES:
            raise InvalidCredential(f"a SubRAV's signature has {SIGNATURE_BYTES} bytes")

    def __repr__(self) -> str:
        return f"SignedSubRAV({self.sub_rav!r})"  # whoever has the signature can claim


@lru_cache(maxsize=_CHECKED_MAX)
def check_channel_id(text: str) -> str:
    """`text` if it is `0x` and 64 lower-case hex digits, else InvalidCredential.

    payment-kit pads shorter ids and takes other letters for digits; signed bytes that two sides
    read differently are worth nothing.
    """
    if not _CHANNEL_ID.fullmatch(text):
        raise InvalidCredential("a channel id is 0x and 64 lower-case hex digits")
    return text


@lru_cache(maxsize=_CHECKED_MAX)
def check_fragment(text: str) -> str:
    """`text` if it can name a sub-channel: the part behind `#` of the payer's key id."""
    if text.isascii():
        size = len(text)
    else:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            size = 0
    if not 0 < size <= FRAGMENT_MAX_BYTES or "#" in text or not text.isprintable():
        raise InvalidCredential(f"a key fragment has 1 to {FRAGMENT_MAX_BYTES} printable bytes")
    return text


class ErrorCode(enum.StrEnum):
    """Why a payment is not taken, in payment-kit's words and in those of the older API."""

    AUTH_MISSING = "AUTH_MISSING"
    AUTH_INVALID = "AUTH_INVALID"
    AUTH_ADMIN_FORBIDDEN = "AUTH_ADMIN_FORBIDDEN"
    DID_RESOLVE_FAILED = "DID_RESOLVE_FAILED"
    CHANNEL_NOT_FOUND = "CHANNEL_NOT_FOUND"
    SUBCHANNEL_NOT_AUTHORIZED = "SUBCHANNEL_NOT_AUTHORIZED"
    CHANNEL_CONTEXT_MISSING = "CHANNEL_CONTEXT_MISSING"
    PAYMENT_REQUIRED = "PAYMENT_REQUIRED"
    RAV_CONFLICT = "RAV_CONFLICT"
    INVALID_SIGNATURE = "INVALID_SIGNATURE"
    UNKNOWN_SUBRAV = "UNKNOWN_SUBRAV"
    TAMPERED_SUBRAV = "TAMPERED_SUBRAV"
    BILLING_RATE_FETCH_FAILED = "BILLING_RATE_FETCH_FAILED"
    BILLING_RATE_NOT_AVAILABLE = "BILLING_RATE_NOT_AVAILABLE"
    BILLING_MAX_AMOUNT_EXCEEDED = "BILLING_MAX_AMOUNT_EXCEEDED"
    BILLING_CONFIG_ERROR = "BILLING_CONFIG_ERROR"
    HUB_INSUFFICIENT_FUNDS = "HUB_INSUFFICIENT_FUNDS"
    HUB_BALANCE_FETCH_FAILED = "HUB_BALANCE_FETCH_FAILED"
    CHANNEL_CLOSED = "CHANNEL_CLOSED"
    EPOCH_MISMATCH = "EPOCH_MISMATCH"
    INTERNAL_SERVER_ERROR = "INTERNAL_SERVER_ERROR"
    # The codes of the API reference that payment-kit 0.7.0 no longer has.
    INVALID_PAYMENT = "INVALID_PAYMENT"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    PAYMENT_ERROR = "PAYMENT_ERROR"


_HTTP_STATUSES = {
    ErrorCode.CHANNEL_NOT_FOUND: 404,
    ErrorCode.SUBCHANNEL_NOT_AUTHORIZED: 404,
    ErrorCode.CHANNEL_CONTEXT_MISSING: 409,
    ErrorCode.RAV_CONFLICT: 409,
    ErrorCode.PAYMENT_REQUIRED: 402,
    ErrorCode.HUB_INSUFFICIENT_FUNDS: 402,
    ErrorCode.INSUFFICIENT_FUNDS: 402,
    ErrorCode.BILLING_RATE_FETCH_FAILED: 500,
    ErrorCode.BILLING_RATE_NOT_AVAILABLE: 500,
    ErrorCode.BILLING_CONFIG_ERROR: 500,
    ErrorCode.HUB_BALANCE_FETCH_FAILED: 500,
    ErrorCode.INTERNAL_SERVER_ERROR: 500,
    ErrorCode.PAYMENT_ERROR: 500,
}


def http_status(code: ErrorCode) -> int:
    """The HTTP status that payment-kit 0.7.0 answers a code with."""
    return _HTTP_STATUSES.get(code, 400)
