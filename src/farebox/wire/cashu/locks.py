"""Spending conditions (NUT-10, NUT-11): recognise a locked secret, and unlock what is ours."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec

from farebox.wire.cashu import crypto
from farebox.wire.cashu.model import Proof

P2PK = "P2PK"
_LOCKTIME_MAX_CHARS = 18


@dataclass(frozen=True, slots=True, repr=False)
class Lock:
    """A secret in NUT-10's well-known form. Times in Unix seconds, keys in lower-case hex.

    `malformed` says that NUT-11 calls the secret unspendable (a tag twice, a number that is none,
    a key twice): never accept one.
    """

    kind: str
    data: str
    keys: tuple[str, ...]
    signatures_needed: int
    locktime: int | None
    refund_keys: tuple[str, ...]
    sigflag: str
    malformed: bool

    def __repr__(self) -> str:
        return f"Lock(kind={self.kind!r}, locktime={self.locktime})"

    def opens_with(self, public_key: bytes) -> bool:
        """Whether one signature by `public_key` on the secret alone spends it, now and later.

        SIG_ALL and shared keys answer False: those need more than this wallet gives.
        """
        x_only = public_key.hex()[2:]
        return (
            self.kind == P2PK
            and not self.malformed
            and self.sigflag == "SIG_INPUTS"
            and self.signatures_needed == 1
            and any(key[2:] == x_only for key in self.keys)
        )


_MALFORMED = Lock("", "", (), 1, None, (), "", malformed=True)


def parse_lock(secret: str) -> Lock | None:
    """The lock in a secret, or None where it is an ordinary one. Never raises.

    Whatever a mint might read as a lock is one here, malformed ones included: taking a locked
    secret for a free one means taking money that cannot be spent.
    """
    if not secret.lstrip().startswith("["):
        return None
    try:
        parts = json.loads(secret)
    except (ValueError, RecursionError):
        return _MALFORMED
    match parts:
        case [str(kind), {"data": str(data), **body}]:
            tags = _tags(body.get("tags"))
            return _MALFORMED if tags is None else _lock(kind, data.lower(), tags)
    return _MALFORMED


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    nonce: str
    data: str
    tags: list[Annotated[list[str], msgspec.Meta(min_length=2)]] = []


#: As every wallet writes it: a mint that looks for this text sees a lock too.
_P2PK_START = '["P2PK",'
_ONLY_TAGS = {"locktime", "refund", "n_sigs", "n_sigs_refund", "sigflag"}


def is_locked_to(secret: str, public_key: bytes, until_s: int) -> bool:
    """Whether `public_key`, and before `until_s` no other, spends this at *every* mint.

    Stricter than `Lock.opens_with`: mints take a lock that they cannot read for an ordinary
    secret, which the payer can spend. So nothing is taken here that two readers may read in two
    ways: another key, an unknown member or tag, a member twice, a number that is not plain.
    """
    lock = parse_lock(secret)
    if lock is None or not secret.startswith(_P2PK_START) or not lock.opens_with(public_key):
        return False
    try:
        document = json.loads(secret, object_pairs_hook=_without_repeats)
        body = msgspec.convert(document[1], _Body)
    except (ValueError, RecursionError, msgspec.ValidationError):
        return False
    tags = {tag[0]: tag[1:] for tag in body.tags}
    is_plain = body.data == public_key.hex() and tags.keys() <= _ONLY_TAGS
    if "locktime" not in tags:
        return is_plain
    is_long = lock.locktime is not None and lock.locktime > until_s
    return is_plain and is_long and len(tags["locktime"]) == 1


def _without_repeats(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        raise ValueError("a member is there twice")
    return found


def _tags(raw: Any) -> dict[str, list[str]] | None:
    """Tags by name, or None where they break NUT-10's or NUT-11's rules."""
    if raw is None:
        return {}
    if not isinstance(raw, list):
        return None
    tags: dict[str, list[str]] = {}
    for tag in raw:
        if not isinstance(tag, list) or not tag or tag[0] in tags:
            return None
        if not all(isinstance(part, str) and part for part in tag):
            return None
        tags[tag[0]] = tag[1:]
    return tags


def _lock(kind: str, data: str, tags: dict[str, list[str]]) -> Lock:
    listed = tuple(key.lower() for key in tags.get("pubkeys", []))
    keys = (data, *listed) if kind == P2PK else listed
    refund = tuple(key.lower() for key in tags.get("refund", []))
    needed = _count(tags.get("n_sigs"), len(keys))
    refund_needed = _count(tags.get("n_sigs_refund"), len(refund))
    sigflag = (tags.get("sigflag") or ["SIG_INPUTS"])[0]
    return Lock(
        kind=kind,
        data=data,
        keys=keys,
        signatures_needed=needed or 1,
        locktime=_locktime(tags.get("locktime")),
        refund_keys=refund,
        sigflag=sigflag,
        malformed=(
            needed is None
            or refund_needed is None
            or sigflag not in ("SIG_INPUTS", "SIG_ALL")
            or _has_twice(keys)
            or _has_twice(refund)
        ),
    )


def _count(values: list[str] | None, keys: int) -> int | None:
    """How many signatures; None where the number is none or more than there are keys."""
    if values is None:
        return 1
    if len(values) != 1 or not (values[0].isascii() and values[0].isdigit() and len(values[0]) < 9):
        return None
    count = int(values[0])
    return count if 1 <= count <= keys else None


def _locktime(values: list[str] | None) -> int | None:
    if not values or len(values[0]) > _LOCKTIME_MAX_CHARS:
        return None
    return int(values[0]) if values[0].isascii() and values[0].isdigit() else None


def _has_twice(keys: tuple[str, ...]) -> bool:
    return len({key[2:] for key in keys}) < len(keys)


def unlock(proof: Proof, private_key: bytes) -> Proof:
    """The proof with the P2PK witness that spends it (SIG_INPUTS)."""
    signature = crypto.sign_secret(private_key, proof.secret)
    return replace(proof, witness=json.dumps({"signatures": [signature]}))


def is_unlocked(proof: Proof, now_s: int) -> bool:
    """Whether a proof's witness opens its lock now, where it has one (SIG_INPUTS only)."""
    lock = parse_lock(proof.secret)
    if lock is None:
        return True
    is_over = lock.locktime is not None and lock.locktime <= now_s
    if lock.malformed or lock.kind != P2PK or lock.sigflag != "SIG_INPUTS":
        return False
    if is_over and not lock.refund_keys:
        return True
    signatures = _signatures(proof.witness)
    keys = (*lock.keys, *(lock.refund_keys if is_over else ()))
    signers = {
        key
        for key in keys
        for signature in signatures
        if _KEY.fullmatch(key)
        and crypto.is_secret_signed(bytes.fromhex(key), proof.secret, signature)
    }
    return len(signers) >= lock.signatures_needed


_KEY = re.compile(r"0[23][0-9a-f]{64}")


class _Witness(msgspec.Struct, frozen=True):
    signatures: list[str] = []


def _signatures(witness: str | None) -> list[str]:
    try:
        return msgspec.json.decode(witness or "{}", type=_Witness).signatures
    except msgspec.DecodeError:
        return []


def p2pk_secret(nonce: str, public_key: bytes, tags: tuple[tuple[str, ...], ...] = ()) -> str:
    """A secret that only the holder of `public_key` can spend (NUT-11)."""
    body = {"nonce": nonce, "data": public_key.hex(), "tags": [list(tag) for tag in tags]}
    return json.dumps([P2PK, body], separators=(",", ":"))
