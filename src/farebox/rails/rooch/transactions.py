"""A call of the contract as Rooch takes it: in BCS, signed by a key of the caller's DID.

    sender address | sequence number u64 | chain id u64 | most gas u64
    | 01 (a function's call) | module address | module | function | type arguments | arguments
    ‖ 4 u64 (signed by a DID) | { 0 (the hash itself) | fragment | signature | no message }

The signature is over SHA3-256 of the first part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from farebox.wire.subrav.bcs import string
from farebox.wire.subrav.keys import SigningKey
from farebox.wire.subrav.rooch import canonical_coin_type

_MODULE = bytes(31) + b"\x03" + string(b"payment_channel")
_CALL_FUNCTION = b"\x01"
_STRUCT_TAG = b"\x07"
_NO_TYPE_PARAMETERS = b"\x00"
_SIGNED_BY_DID = 4
_SIGNED_HASH = b"\x00"
_NO_MESSAGE = b"\x00"
#: What payment-kit allows for each of these calls.
_GAS_MAX = 100_000_000


@dataclass(frozen=True, slots=True)
class Call:
    """A call of `0x3::payment_channel`. `coin_type` is its type argument, where it has one."""

    function: str
    arguments: Sequence[bytes]
    coin_type: str | None = None


def encode_call(call: Call, *, sender: bytes, sequence_number: int, chain_id: int) -> bytes:
    """The part of a transaction that is signed."""
    types = [] if call.coin_type is None else [_type_tag(call.coin_type)]
    return b"".join(
        (
            sender,
            sequence_number.to_bytes(8, "little"),
            chain_id.to_bytes(8, "little"),
            _GAS_MAX.to_bytes(8, "little"),
            _CALL_FUNCTION,
            _MODULE,
            string(call.function.encode()),
            bytes((len(types),)),
            *types,
            bytes((len(call.arguments),)),
            *(string(argument) for argument in call.arguments),
        )
    )


def sign_transaction(data: bytes, key: SigningKey, fragment: str) -> bytes:
    """The whole transaction."""
    signature = key.sign(hashlib.sha3_256(data).digest())
    payload = _SIGNED_HASH + string(fragment.encode()) + string(signature) + _NO_MESSAGE
    return data + _SIGNED_BY_DID.to_bytes(8, "little") + string(payload)


def object_id_argument(object_id: str) -> bytes:
    """An object's id: a vector of one address."""
    return b"\x01" + bytes.fromhex(object_id[2:])


def u256_argument(number: int) -> bytes:
    """A u256."""
    return number.to_bytes(32, "little")


def u64_argument(number: int) -> bytes:
    """A u64."""
    return number.to_bytes(8, "little")


def _type_tag(coin_type: str) -> bytes:
    address, module, name = canonical_coin_type(coin_type).split("::")
    return (
        _STRUCT_TAG
        + bytes.fromhex(address[2:])
        + string(module.encode())
        + string(name.encode())
        + _NO_TYPE_PARAMETERS
    )
