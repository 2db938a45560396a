"""Names on Rooch: addresses in DIDs, coin types, the ids of channels and hubs."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

from farebox.errors import InvalidCredential
from farebox.wire import bech32
from farebox.wire.subrav.bcs import string

_DID_PREFIX = "did:rooch:"
_DID_MAX_CHARS = 128
_ADDRESS_PREFIX = "rooch"
_ADDRESS_BYTES = 32
_IDS_MAX = 10_000
_COIN_TYPE = re.compile(r"0x([0-9a-fA-F]{1,64})::([A-Za-z_]\w{0,127})::([A-Za-z_]\w{0,127})", re.A)
_MODULE = f"0x{3:064x}::payment_channel::"


def did_address(did: str) -> bytes:
    """The 32 bytes of the address in `did:rooch:rooch1…`. Raises InvalidCredential."""
    if not did.startswith(_DID_PREFIX):
        raise InvalidCredential("the DID is not a did:rooch:…")
    decoded = bech32.decode(did[len(_DID_PREFIX) :], bech32.Checksum.BECH32M, _DID_MAX_CHARS)
    address = bech32.to_bytes(decoded.words)
    if decoded.prefix != _ADDRESS_PREFIX or len(address) != _ADDRESS_BYTES:
        raise InvalidCredential("the DID holds no Rooch address")
    return address


def address_did(address: bytes) -> str:
    """Undo `did_address`."""
    return _DID_PREFIX + bech32.encode(_ADDRESS_PREFIX, address, bech32.Checksum.BECH32M)


def canonical_coin_type(asset_id: str) -> str:
    """`0x3::gas_coin::RGas` with its address in full. Raises InvalidCredential."""
    match = _COIN_TYPE.fullmatch(asset_id)
    if match is None:
        raise InvalidCredential("an asset id on Rooch is a coin type: 0x…::module::Name")
    return f"0x{int(match[1], 16):064x}::{match[2]}::{match[3]}"


@lru_cache(maxsize=_IDS_MAX)  # each request that says who asks names it: two checksums in base32
def channel_id(payer_did: str, payee_did: str, asset_id: str) -> str:
    """The one channel between two parties in one asset. Raises InvalidCredential."""
    coin_type = canonical_coin_type(asset_id).encode()
    return _object_id(
        did_address(payer_did)
        + did_address(payee_did)
        + string(coin_type)
        + f"{_MODULE}PaymentChannel".encode()
    )


def hub_id(owner_did: str) -> str:
    """The hub that backs every channel of one payer. Raises InvalidCredential."""
    return _object_id(did_address(owner_did) + f"{_MODULE}PaymentHub".encode())


def _object_id(preimage: bytes) -> str:
    return "0x" + hashlib.sha3_256(preimage).hexdigest()
