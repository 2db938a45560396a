"""Vouchers for a contract on an EVM chain: the same seven fields, signed as EIP-712 typed data.

    keccak256(0x19 0x01 ‖ domain ‖ struct)         signed by secp256k1, r ‖ s, low s only

The domain names the chain and the contract, so that a wallet can show what it signs and no other
contract takes it. Texts of the same key (DIDAuth) are signed as EIP-191 personal messages.
Needs `farebox[evm]`.
"""

from __future__ import annotations

import functools

from farebox.errors import InvalidCredential
from farebox.wire.subrav.model import SubRAV

ADDRESS_BYTES = 20
DOMAIN_NAME = "Farebox Channels"
DOMAIN_VERSION = "1"
#: As EIP-712 has types; the contract has the same text.
VOUCHER_TYPE = (
    "SubRAV(uint8 version,uint64 chainId,bytes32 channelId,uint64 channelEpoch,"
    "string vmIdFragment,uint256 accumulatedAmount,uint64 nonce)"
)
_DOMAIN_TYPE = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"


def keccak256(raw: bytes) -> bytes:
    """Keccak as Ethereum has it, which is not SHA-3. Raises InvalidCredential without its library:
    who cannot check a wallet's signatures takes none of its keys."""
    try:
        from eth_hash.auto import keccak
    except ImportError:
        raise InvalidCredential("wallet keys need `pip install 'farebox[evm]'`") from None
    return keccak(raw)


def voucher_preimage(sub_rav: SubRAV, contract: bytes) -> bytes:
    """What is hashed and signed for a voucher that `contract` (20 bytes) redeems."""
    struct = b"".join(
        (
            _type_hash(VOUCHER_TYPE),
            _word(sub_rav.version),
            _word(sub_rav.chain_id),
            bytes.fromhex(sub_rav.channel_id[2:]),
            _word(sub_rav.channel_epoch),
            keccak256(sub_rav.vm_id_fragment.encode()),
            _word(sub_rav.accumulated_amount),
            _word(sub_rav.nonce),
        )
    )
    return b"\x19\x01" + _domain(sub_rav.chain_id, contract) + keccak256(struct)


def message_preimage(message: bytes) -> bytes:
    """What is hashed and signed for a text (EIP-191, version E)."""
    return b"\x19Ethereum Signed Message:\n" + str(len(message)).encode() + message


def key_address(point: bytes) -> bytes:
    """The address of a public key: 65 bytes of an uncompressed point."""
    return keccak256(point[1:])[-ADDRESS_BYTES:]


@functools.lru_cache(maxsize=64)
def _domain(chain_id: int, contract: bytes) -> bytes:
    return keccak256(
        b"".join(
            (
                _type_hash(_DOMAIN_TYPE),
                keccak256(DOMAIN_NAME.encode()),
                keccak256(DOMAIN_VERSION.encode()),
                _word(chain_id),
                contract.rjust(32, b"\0"),
            )
        )
    )


@functools.cache
def _type_hash(encoded: str) -> bytes:
    return keccak256(encoded.encode())


def _word(number: int) -> bytes:
    return number.to_bytes(32, "big")
