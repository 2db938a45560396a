"""What is signed: a SubRAV in Binary Canonical Serialization.

    u8 version | u64 chain id | 01 + 32 bytes channel id | u64 epoch
    | ULEB128 length + UTF-8 fragment | u256 amount | u64 nonce          (integers little-endian)

The 01 is the length of a vector: on Rooch an object id is a vector of one address. Nothing is
hashed or prefixed before it is signed.
"""

from __future__ import annotations

from collections.abc import Sequence

from farebox.errors import InvalidCredential
from farebox.wire.subrav.model import SignedSubRAV, SubRAV

_CHANNEL_AT = 1 + 8
_FRAGMENT_AT = _CHANNEL_AT + 1 + 32 + 8
_TAIL_BYTES = 32 + 8
_PROOFS_MAX = 256


def encode_sub_rav(sub_rav: SubRAV) -> bytes:
    """The bytes that are signed."""
    return b"".join(
        (
            sub_rav.version.to_bytes(1, "little"),
            sub_rav.chain_id.to_bytes(8, "little"),
            b"\x01",
            bytes.fromhex(sub_rav.channel_id[2:]),
            sub_rav.channel_epoch.to_bytes(8, "little"),
            string(sub_rav.vm_id_fragment.encode()),
            sub_rav.accumulated_amount.to_bytes(32, "little"),
            sub_rav.nonce.to_bytes(8, "little"),
        )
    )


def decode_sub_rav(raw: bytes) -> SubRAV:
    """Undo `encode_sub_rav`. Raises InvalidCredential for anything that is not its exact output."""
    if not _FRAGMENT_AT + 2 + _TAIL_BYTES <= len(raw) <= _FRAGMENT_AT + 2 + 255 + _TAIL_BYTES:
        raise InvalidCredential("the bytes have no SubRAV's length")
    tail_at = len(raw) - _TAIL_BYTES
    prefix = len(_uleb128(tail_at - _FRAGMENT_AT - 1))
    try:
        sub_rav = SubRAV(
            version=raw[0],
            chain_id=int.from_bytes(raw[1:_CHANNEL_AT], "little"),
            channel_id="0x" + raw[_CHANNEL_AT + 1 : _CHANNEL_AT + 33].hex(),
            channel_epoch=int.from_bytes(raw[_CHANNEL_AT + 33 : _FRAGMENT_AT], "little"),
            vm_id_fragment=raw[_FRAGMENT_AT + prefix : tail_at].decode(),
            accumulated_amount=int.from_bytes(raw[tail_at : tail_at + 32], "little"),
            nonce=int.from_bytes(raw[tail_at + 32 :], "little"),
        )
    except UnicodeDecodeError:
        raise InvalidCredential("the fragment of a SubRAV is not UTF-8") from None
    if encode_sub_rav(sub_rav) != raw:
        raise InvalidCredential("the bytes are not a SubRAV as it is signed")
    return sub_rav


def encode_close_proofs(proofs: Sequence[SignedSubRAV]) -> bytes:
    """What the Rooch contract takes to close a channel: the last voucher of each sub-channel.

    `vector<{fragment: string, amount: u256, nonce: u64, signature: vector<u8>}>`.
    """
    if len(proofs) > _PROOFS_MAX:
        raise InvalidCredential(f"a close has at most {_PROOFS_MAX} proofs")
    parts = [_uleb128(len(proofs))]
    for proof in proofs:
        parts += [
            string(proof.sub_rav.vm_id_fragment.encode()),
            proof.sub_rav.accumulated_amount.to_bytes(32, "little"),
            proof.sub_rav.nonce.to_bytes(8, "little"),
            string(proof.signature),
        ]
    return b"".join(parts)


def string(raw: bytes) -> bytes:
    """Bytes or text as BCS has them: their length, then they."""
    return _uleb128(len(raw)) + raw


def _uleb128(number: int) -> bytes:
    assert number < 2**14  # all of ours are bounded far below
    return bytes((number,)) if number < 128 else bytes((number & 127 | 128, number >> 7))
