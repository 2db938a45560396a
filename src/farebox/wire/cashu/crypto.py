"""Blind signatures (NUT-00), their proofs (NUT-12) and the signatures of NUT-11 and NUT-20.

Points are 33 compressed bytes, scalars 32 bytes. Functions that take foreign points raise
InvalidCredential for bytes that are none; the checks answer False instead.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from coincurve import PrivateKey, PublicKey, PublicKeyXOnly

from farebox.errors import InvalidCredential
from farebox.wire.cashu.model import BlindedMessage, BlindSignature, Dleq, Proof

#: The order of secp256k1's group.
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

_HASH_TO_CURVE_DOMAIN = b"Secp256k1_HashToCurve_Cashu_"
_DLEQ_NONCE_DOMAIN = b"Cashu_DLEQ_R_v1"
#: Each try succeeds half the time; reaching the end would be a broken hash.
_HASH_TO_CURVE_TRIES = 2**16
_DLEQ_NONCE_TRIES = 256
_SIGNATURE_BYTES = 64


def hash_to_curve(secret: str | bytes) -> bytes:
    """Y: the point that stands for a secret, in `checkstate` and in signatures (NUT-00)."""
    return _hash_to_point(secret).format()


def _hash_to_point(secret: str | bytes) -> PublicKey:
    message = secret.encode() if isinstance(secret, str) else secret
    digest = hashlib.sha256(_HASH_TO_CURVE_DOMAIN + message).digest()
    for counter in range(_HASH_TO_CURVE_TRIES):
        x = hashlib.sha256(digest + counter.to_bytes(4, "little")).digest()
        try:
            return PublicKey(b"\x02" + x)
        except ValueError:
            continue
    raise InvalidCredential("no point on the curve was found for a secret")


def public_key(private_key: bytes) -> bytes:
    """The compressed public key of a private key."""
    return PublicKey.from_secret(private_key).format()


def blind(secret: str | bytes, r: bytes) -> bytes:
    """B_ = Y + rG: the secret, blinded by `r`."""
    return _hash_to_point(secret).add(r).format()


def sign_blinded(blinded: bytes, mint_private_key: bytes) -> bytes:
    """C_ = kB_: what a mint does with an output. Raises InvalidCredential for no point."""
    return _point(blinded).multiply(mint_private_key).format()


def unblind(blind_signature: bytes, r: bytes, mint_key: bytes) -> bytes:
    """C = C_ - rK: the signature on the secret itself. Raises InvalidCredential."""
    try:
        return PublicKey.combine_keys(
            [_point(blind_signature), _point(mint_key).multiply(_negated(r))]
        ).format()
    except ValueError:
        raise InvalidCredential("a blind signature cannot be unblinded") from None


def is_signed(secret: str | bytes, signature: bytes, mint_private_key: bytes) -> bool:
    """Whether C = kY: the check that only the mint can make."""
    expected = _hash_to_point(secret).multiply(mint_private_key).format()
    return hmac.compare_digest(expected, signature)


def prove_dleq(blinded: bytes, blind_signature: bytes, mint_private_key: bytes) -> Dleq:
    """The mint's proof that C_ was made with the private key of its public key (NUT-12).

    The nonce is derived, never random: using one twice would give the private key away.
    """
    mint_key = PublicKey.from_secret(mint_private_key)
    b, c = _point(blinded), _point(blind_signature)
    seen = b"".join(point.format(compressed=False) for point in (mint_key, b, c))
    nonce = _dleq_nonce(mint_private_key, seen)
    e = _hash_points(PublicKey.from_secret(nonce), b.multiply(nonce), mint_key, c)
    s = (_number(nonce) + _number(e) * _number(mint_private_key)) % ORDER
    return Dleq(e, s.to_bytes(32, "big"))


def _dleq_nonce(mint_private_key: bytes, seen: bytes) -> bytes:
    for counter in range(_DLEQ_NONCE_TRIES):
        message = _DLEQ_NONCE_DOMAIN + seen + bytes([counter])
        nonce = hmac.digest(mint_private_key, message, hashlib.sha256)
        if 0 < _number(nonce) < ORDER:
            return nonce
    raise InvalidCredential("no nonce was found for a DLEQ proof")


def is_dleq_valid(blinded: bytes, blind_signature: bytes, dleq: Dleq, mint_key: bytes) -> bool:
    """Whether a mint's proof on a blind signature holds (NUT-12, "Alice")."""
    try:
        a, b, c = PublicKey(mint_key), PublicKey(blinded), PublicKey(blind_signature)
        return _dleq_holds(a, b, c, dleq)
    except ValueError:
        return False


def is_proof_dleq_valid(proof: Proof, mint_key: bytes) -> bool:
    """Whether a proof carries a DLEQ with `r` that holds (NUT-12, "Carol"). Missing is False.

    True shows that the mint signed it; it says nothing about whether it was spent.
    """
    if proof.dleq is None or proof.dleq.r is None:
        return False
    try:
        a = PublicKey(mint_key)
        c = PublicKey.combine_keys([PublicKey(proof.C), a.multiply(proof.dleq.r)])
        return _dleq_holds(a, _hash_to_point(proof.secret).add(proof.dleq.r), c, proof.dleq)
    except ValueError:
        return False


def _dleq_holds(a: PublicKey, b: PublicKey, c: PublicKey, dleq: Dleq) -> bool:
    """e == hash(sG - eA, sB' - eC', A, C'). Raises ValueError for scalars out of range."""
    minus_e = _negated(dleq.e)
    r1 = a.multiply(minus_e).add(dleq.s)
    r2 = PublicKey.combine_keys([b.multiply(dleq.s), c.multiply(minus_e)])
    return hmac.compare_digest(_hash_points(r1, r2, a, c), dleq.e)


def _hash_points(*points: PublicKey) -> bytes:
    """NUT-12's hash: over the hex text of the uncompressed points, not over their bytes."""
    text = "".join(point.format(compressed=False).hex() for point in points)
    return hashlib.sha256(text.encode()).digest()


def promise(output: BlindedMessage, amount: int, mint_private_key: bytes) -> BlindSignature:
    """A mint's whole answer to one output, with its DLEQ proof."""
    signature = sign_blinded(output.B_, mint_private_key)
    dleq = prove_dleq(output.B_, signature, mint_private_key)
    return BlindSignature(amount, output.keyset_id, signature, dleq)


def sign_mint_quote(private_key: bytes, quote: str, outputs: Sequence[BlindedMessage]) -> str:
    """The hex signature that redeems a mint quote locked to a public key (NUT-20)."""
    digest = _quote_digest(quote, outputs)
    return PrivateKey(private_key).sign_schnorr(digest).hex()


def is_mint_quote_signed(
    public_key: bytes, quote: str, outputs: Sequence[BlindedMessage], signature: str
) -> bool:
    """Whether `signature` redeems a mint quote that is locked to `public_key` (NUT-20)."""
    return _is_schnorr_valid(public_key, _quote_digest(quote, outputs), signature)


def _quote_digest(quote: str, outputs: Sequence[BlindedMessage]) -> bytes:
    message = quote + "".join(output.B_.hex() for output in outputs)
    return hashlib.sha256(message.encode()).digest()


def sign_secret(private_key: bytes, secret: str) -> str:
    """The hex signature that unlocks one P2PK input, flag SIG_INPUTS (NUT-11)."""
    return PrivateKey(private_key).sign_schnorr(hashlib.sha256(secret.encode()).digest()).hex()


def is_secret_signed(public_key: bytes, secret: str, signature: str) -> bool:
    """Whether `signature` unlocks a P2PK secret for `public_key` (NUT-11)."""
    return _is_schnorr_valid(public_key, hashlib.sha256(secret.encode()).digest(), signature)


def _is_schnorr_valid(public_key: bytes, digest: bytes, signature: str) -> bool:
    try:
        raw = bytes.fromhex(signature)
        if len(raw) != _SIGNATURE_BYTES or len(public_key) != 33:
            return False
        return bool(PublicKeyXOnly(public_key[1:]).verify(raw, digest))
    except ValueError:
        return False


def _point(raw: bytes) -> PublicKey:
    try:
        return PublicKey(raw)
    except ValueError:
        raise InvalidCredential("bytes that should be a point on the curve are none") from None


def _number(scalar: bytes) -> int:
    return int.from_bytes(scalar, "big")


def _negated(scalar: bytes) -> bytes:
    return (-_number(scalar) % ORDER).to_bytes(32, "big")
