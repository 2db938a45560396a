"""The kinds of key that sign vouchers, and their signatures of 64 raw bytes.

| DID method type | signs the bytes by |
|---|---|
| Ed25519VerificationKey2020 | Ed25519 |
| EcdsaSecp256k1VerificationKey2019 | ECDSA with SHA-256, r ‖ s, low s only |
| EcdsaSecp256r1VerificationKey2019 | ECDSA with SHA-256, r ‖ s, any s (WebCrypto makes both) |
| EcdsaSecp256k1RecoveryMethod2020 | a wallet's key: ECDSA with Keccak-256, r ‖ s, low s only |

The first three are payment-kit's and sign the BCS bytes. The last is for vouchers that a contract
on an EVM chain redeems, and signs `typed_data`.

In a DID document a key stands as multibase base58 of its raw bytes, with no multicodec prefix.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import coincurve
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from farebox.errors import InvalidCredential
from farebox.wire import base58
from farebox.wire.subrav.bcs import encode_sub_rav
from farebox.wire.subrav.model import SIGNATURE_BYTES, SignedSubRAV, SubRAV
from farebox.wire.subrav.typed_data import (
    ADDRESS_BYTES,
    keccak256,
    key_address,
    message_preimage,
    voucher_preimage,
)

#: Keys that were seen stay parsed, so that a voucher costs one verification and no more.
_PARSED_KEYS_MAX = 4_096
_SCALAR_BYTES = 32
#: Half the order of secp256k1: a greater s is the same signature written another way.
_LOW_S_MAX = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


class KeyType(enum.StrEnum):
    """A verification method's type in a DID document."""

    ED25519 = "Ed25519VerificationKey2020"
    SECP256K1 = "EcdsaSecp256k1VerificationKey2019"
    SECP256R1 = "EcdsaSecp256r1VerificationKey2019"
    EIP712 = "EcdsaSecp256k1RecoveryMethod2020"


#: The kinds that payment-kit knows.
PAYMENT_KIT_KEYS = (KeyType.ED25519, KeyType.SECP256K1, KeyType.SECP256R1)
#: Multicodec prefixes of did:key ids. The one of P-256 should be `80 24`; Nuwa writes `12 00`.
_DID_KEY_PREFIXES = {
    KeyType.ED25519: b"\xed\x01",
    KeyType.SECP256K1: b"\xe7\x01",
    KeyType.SECP256R1: b"\x12\x00",
}
_STANDARD_P256 = (KeyType.SECP256R1, b"\x80\x24")
_DID_KEY = "did:key:"


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key: 32 bytes of Ed25519, 33 of a compressed point. Making one checks it.

    For EIP-712 it is the address of the contract that its vouchers are for, then its own.
    """

    type: KeyType
    raw: bytes

    def __post_init__(self) -> None:
        try:
            _verifier(self.type, self.raw)
        except ValueError:
            raise InvalidCredential(f"not a public key of {self.type}") from None

    @classmethod
    def from_multibase(cls, key_type: KeyType, text: str) -> VerificationKey:
        """A key as it stands in a DID document. Raises InvalidCredential."""
        if not text.startswith("z"):
            raise InvalidCredential("a key in a DID document is multibase base58: z…")
        return cls(key_type, base58.decode(text[1:]))

    @classmethod
    def from_did_key(cls, did: str) -> VerificationKey:
        """The key that a `did:key` is. P-256 in both spellings. Raises InvalidCredential."""
        name = did.removeprefix(_DID_KEY)
        if not did.startswith(f"{_DID_KEY}z"):
            raise InvalidCredential("a key that is its own DID is did:key:z…")
        coded = base58.decode(name[1:])
        for key_type, prefix in (*_DID_KEY_PREFIXES.items(), _STANDARD_P256):
            if coded.startswith(prefix):
                return cls(key_type, coded[len(prefix) :])
        raise InvalidCredential("a did:key of a kind that signs no vouchers")

    @property
    def multibase(self) -> str:
        """The key as it stands in a DID document."""
        return "z" + base58.encode(self.raw)

    @property
    def did_key(self) -> str:
        """Nuwa's `did:key` of it."""
        return f"{_DID_KEY}z" + base58.encode(_DID_KEY_PREFIXES[self.type] + self.raw)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` is this key's over `message`."""
        if self.type is KeyType.EIP712:
            message = message_preimage(message)
        return self._verifies(signature, message)

    def verifies_sub_rav(self, signed: SignedSubRAV) -> bool:
        """Whether a voucher bears this key's signature."""
        return self._verifies(signed.signature, self.signed_bytes(signed.sub_rav))

    def signed_bytes(self, sub_rav: SubRAV) -> bytes:
        """What this key signs for a SubRAV."""
        if self.type is KeyType.EIP712:
            return voucher_preimage(sub_rav, self.raw[:ADDRESS_BYTES])
        return encode_sub_rav(sub_rav)

    def _verifies(self, signature: bytes, message: bytes) -> bool:
        return len(signature) == SIGNATURE_BYTES and _verifier(self.type, self.raw)(
            signature, message
        )


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key: an Ed25519 seed or a scalar, 32 bytes.

    `contract`: for EIP-712 alone, the 20 bytes of the contract that its vouchers are for.
    """

    type: KeyType
    secret: bytes = field(repr=False)
    contract: bytes = b""

    def __post_init__(self) -> None:
        try:
            _signer(self.type, self.secret, self.contract)
        except ValueError:
            raise InvalidCredential(f"not a private key of {self.type}") from None

    @property
    def public(self) -> VerificationKey:
        """What verifies its signatures."""
        return _signer(self.type, self.secret, self.contract)[1]

    def sign(self, message: bytes) -> bytes:
        """64 bytes; the same for the same message."""
        if self.type is KeyType.EIP712:
            message = message_preimage(message)
        return _signer(self.type, self.secret, self.contract)[0](message)

    def sign_sub_rav(self, sub_rav: SubRAV) -> SignedSubRAV:
        """The voucher of a SubRAV."""
        sign, public = _signer(self.type, self.secret, self.contract)
        return SignedSubRAV(sub_rav, sign(public.signed_bytes(sub_rav)))


def sign_sub_rav(sub_rav: SubRAV, key: SigningKey) -> SignedSubRAV:
    """Sign blindly. What may be signed is for `farebox.channels.payer` to decide."""
    return key.sign_sub_rav(sub_rav)


def verify_sub_rav(signed: SignedSubRAV, key: VerificationKey) -> bool:
    """Whether a voucher bears this key's signature."""
    return key.verifies_sub_rav(signed)


@lru_cache(maxsize=_PARSED_KEYS_MAX)
def _verifier(key_type: KeyType, raw: bytes) -> Callable[[bytes, bytes], bool]:
    match key_type:
        case KeyType.ED25519:
            return _ed25519(Ed25519PublicKey.from_public_bytes(raw))
        case KeyType.SECP256K1:
            _check_compressed(raw)
            return _secp256k1(coincurve.PublicKey(raw))
        case KeyType.SECP256R1:
            _check_compressed(raw)
            return _p256(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw))
        case KeyType.EIP712:
            if len(raw) != 2 * ADDRESS_BYTES:
                raise ValueError("not two addresses")
            keccak256(b"")  # now, while whoever brings the key can be told that none is taken
            return _recovered(raw[ADDRESS_BYTES:])


def _check_compressed(raw: bytes) -> None:
    if len(raw) != 33:
        raise ValueError("not a compressed point")


def _ed25519(key: Ed25519PublicKey) -> Callable[[bytes, bytes], bool]:
    def verify(signature: bytes, message: bytes) -> bool:
        try:
            key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    return verify


def _secp256k1(key: coincurve.PublicKey) -> Callable[[bytes, bytes], bool]:
    def verify(signature: bytes, message: bytes) -> bool:
        # libsecp256k1 itself refuses an s in the upper half: one signature has one form.
        return bool(key.verify(_to_der(signature), message))

    return verify


def _p256(key: ec.EllipticCurvePublicKey) -> Callable[[bytes, bytes], bool]:
    algorithm = ec.ECDSA(hashes.SHA256())

    def verify(signature: bytes, message: bytes) -> bool:
        try:
            key.verify(_to_der(signature), message, algorithm)
        except InvalidSignature:
            return False
        return True

    return verify


def _recovered(address: bytes) -> Callable[[bytes, bytes], bool]:
    def verify(signature: bytes, message: bytes) -> bool:
        if int.from_bytes(signature[_SCALAR_BYTES:], "big") > _LOW_S_MAX:
            return False
        digest = keccak256(message)
        # The wire's 64 bytes don't say which of the two points with this r was meant.
        for point in (b"\x00", b"\x01"):
            try:
                key = coincurve.PublicKey.from_signature_and_message(
                    signature + point, digest, hasher=None
                )
            except Exception:  # noqa: S112  # coincurve raises bare Exception
                continue
            if key_address(key.format(compressed=False)) == address:
                return True
        return False

    return verify


@lru_cache(maxsize=64)
def _signer(
    key_type: KeyType, secret: bytes, contract: bytes = b""
) -> tuple[Callable[[bytes], bytes], VerificationKey]:
    if len(secret) != _SCALAR_BYTES:
        raise ValueError("not 32 bytes")
    if len(contract) != (ADDRESS_BYTES if key_type is KeyType.EIP712 else 0):
        raise ValueError("a contract's address is of 20 bytes, and for EIP-712 alone")
    match key_type:
        case KeyType.ED25519:
            ed25519 = Ed25519PrivateKey.from_private_bytes(secret)
            raw = ed25519.public_key().public_bytes(
                serialization.Encoding.Raw, serialization.PublicFormat.Raw
            )
            return ed25519.sign, VerificationKey(key_type, raw)
        case KeyType.SECP256K1:
            k1 = coincurve.PrivateKey(secret)
            return lambda message: _from_der(k1.sign(message)), VerificationKey(
                key_type, k1.public_key.format()
            )
        case KeyType.SECP256R1:
            p256 = ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256R1())
            algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
            raw = p256.public_key().public_bytes(
                serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
            )
            return lambda message: _from_der(p256.sign(message, algorithm)), VerificationKey(
                key_type, raw
            )
        case KeyType.EIP712:
            wallet = coincurve.PrivateKey(secret)
            address = key_address(wallet.public_key.format(compressed=False))
            return lambda message: wallet.sign_recoverable(keccak256(message), hasher=None)[
                :SIGNATURE_BYTES
            ], VerificationKey(key_type, contract + address)


def _to_der(signature: bytes) -> bytes:
    return encode_dss_signature(
        int.from_bytes(signature[:_SCALAR_BYTES], "big"),
        int.from_bytes(signature[_SCALAR_BYTES:], "big"),
    )


def _from_der(signature: bytes) -> bytes:
    r, s = decode_dss_signature(signature)
    return r.to_bytes(_SCALAR_BYTES, "big") + s.to_bytes(_SCALAR_BYTES, "big")
