"""Spending conditions (NUT-10, NUT-11): recognise a locked secret, and unlock what is ours."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

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


def p2pk_secret(nonce: str, public_key: bytes, tags: tuple[tuple[str, ...], ...] = ()) -> str:
    """A secret that only the holder of `public_key` can spend (NUT-11)."""
    body = {"nonce": nonce, "data": public_key.hex(), "tags": [list(tag) for tag in tags]}
    return json.dumps([P2PK, body], separators=(",", ":"))
