"""A checkpoint: the books as they were verified once, so that the next time starts from there.

A checkpoint is kept beside the book it vouches for, so it is authenticated with a key that is not.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec

from farebox.errors import SignerError
from farebox.ledger.audit import GENESIS
from farebox.ledger.model import HoldRow, Kind
from farebox.ledger.replay import Balance, Replay

#: Its name in the data directory.
CHECKPOINT_FILE = "verified.checkpoint"
_MAC_BYTES = 32


class StoredBalance(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An account in a checkpoint; amounts are decimal strings."""

    asset: str
    kind: str
    debits_pending: str
    debits_posted: str
    credits_pending: str
    credits_posted: str
    ceiling: str | None


class StoredHold(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An open hold in a checkpoint."""

    debit: str
    credit: str
    amount: str
    code: str
    expires_at: int


class Checkpoint(msgspec.Struct, frozen=True):
    """What is true after unit `seq`: the chain's digest, the last event, balances, open holds."""

    seq: int = 0
    at: int = 0
    digest: bytes = GENESIS
    event: int = 0
    accounts: dict[str, StoredBalance] = {}
    open_holds: dict[str, StoredHold] = {}
    holds_made: int = 0
    #: By kind of record: how many rows the units have made.
    rows_made: dict[str, int] = {}

    def replay(self) -> Replay:
        """The books to go on from."""
        accounts = {
            key: Balance(
                b.asset,
                Kind(b.kind),
                int(b.debits_pending),
                int(b.debits_posted),
                int(b.credits_pending),
                int(b.credits_posted),
                None if b.ceiling is None else int(b.ceiling),
            )
            for key, b in self.accounts.items()
        }
        holds = {
            key: HoldRow(key, h.debit, h.credit, int(h.amount), h.code, h.expires_at)
            for key, h in self.open_holds.items()
        }
        return Replay(accounts, holds, self.holds_made)


def checkpoint_of(
    replay: Replay, seq: int, at: int, digest: bytes, event: int, rows_made: dict[str, int]
) -> Checkpoint:
    """A checkpoint of books that were found whole."""
    accounts = {
        key: StoredBalance(
            b.asset,
            b.kind.value,
            str(b.debits_pending),
            str(b.debits_posted),
            str(b.credits_pending),
            str(b.credits_posted),
            None if b.ceiling is None else str(b.ceiling),
        )
        for key, b in replay.accounts.items()
    }
    holds = {
        key: StoredHold(h.debit, h.credit, str(h.amount), h.code, h.expires_at)
        for key, h in replay.open_holds.items()
    }
    return Checkpoint(seq, at, digest, event, accounts, holds, replay.holds_made, rows_made)


def seal_checkpoint(checkpoint: Checkpoint, key: bytes) -> bytes:
    """HMAC-SHA256 under `key` (`Signer.derive("checkpoint")`), then MessagePack."""
    payload = msgspec.msgpack.encode(checkpoint)
    return hmac.digest(key, payload, hashlib.sha256) + payload


def open_checkpoint(sealed: bytes, key: bytes) -> Checkpoint:
    """Undo `seal_checkpoint`. Raises SignerError when a byte or the key is different."""
    mac, payload = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
    if not hmac.compare_digest(mac, hmac.digest(key, payload, hashlib.sha256)):
        raise SignerError("the checkpoint was altered or sealed with another key")
    try:
        return msgspec.msgpack.decode(payload, type=Checkpoint)
    except msgspec.DecodeError as error:
        raise SignerError("the checkpoint was made by another version; verify whole") from error


class _Upto(msgspec.Struct, frozen=True):
    event: int


def event_of(sealed: bytes) -> int:
    """The last event that a checkpoint vouches for, read without its key: enough for a gauge, and
    for nothing that is believed. 0 where it cannot be read."""
    try:
        return msgspec.msgpack.decode(sealed[_MAC_BYTES:], type=_Upto).event
    except msgspec.DecodeError:
        return 0
