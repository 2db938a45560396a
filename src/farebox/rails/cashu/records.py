"""The rows this rail keeps: proofs, and the counters that their secrets come from.

No secret of a proof is stored: the seed, its keyset and its counter make it anew. Whoever reads
the rows without the seed cannot spend a single proof.
"""

from __future__ import annotations

import enum

import msgspec

from farebox.ledger.records import RecordType


class ProofUse(enum.StrEnum):
    """What a proof of ours is for.

    reserved ──► given ──► spent        (change, refunds)
        │ ▲
        ▼ │
    available ─► reserved ─► spent      (swaps, melts)
                    ▲
    found ──────────┴──────► spent      (after a restore: claimed, or spent by a payer)
    """

    AVAILABLE = "available"  # anyone's refund may take it
    RESERVED = "reserved"  # for the request or operation that `owner` names
    GIVEN = "given"  # handed out by `owner`, perhaps not yet spent; no longer ours
    SPENT = "spent"  # the mint has taken it back
    FOUND = "found"  # signed after the copy that was restored; perhaps in a payer's hands


class StoredProof(msgspec.Struct, frozen=True, kw_only=True):
    """One proof; its key is Y in hex. Amount in `unit`, `fee_ppk` as its keyset had it then.

    The owner of an available proof is the request it came with, if its change is still to be made.
    `e` and `s` are the mint's DLEQ proof, empty where it gave none. They and `C` are wiped once
    the proof is spent.
    """

    mint: str
    unit: str
    keyset_id: str
    amount: int
    fee_ppk: int
    counter: int
    C: bytes
    e: bytes = b""
    s: bytes = b""
    use: ProofUse = ProofUse.AVAILABLE
    owner: str = ""

    def __repr__(self) -> str:
        return f"StoredProof({self.amount} {self.unit}, {self.use}, mint={self.mint!r})"


PROOF = RecordType("cashu.proof", StoredProof, indexes=(("mint", "unit", "use"), ("owner",)))


class Counter(msgspec.Struct, frozen=True):
    """The first counter of a keyset that no process has taken yet; the key is the keyset's id.

    Not the mint's URL as well: secrets follow from keyset and counter alone, so two addresses of
    one mint (or a mint that copies another's keys) must never be handed the same counter.
    """

    next: int


COUNTER = RecordType("cashu.counter", Counter)


class Replan(msgspec.Struct, frozen=True):
    """A sealed plan that takes the place of another; the key is that other one's own.

    `fee_ppk` is the input fee of its outputs' keyset: None where an earlier version wrote the row.
    """

    sealed: bytes
    fee_ppk: int | None = None


REPLAN = RecordType("cashu.replan", Replan)


class LockedUse(enum.StrEnum):
    """What becomes of a proof that a payer has locked to our key.

    claimed ──► waiting ◄──► swapping ──► gone     taken without a call, swapped later
       │                        └──────► lost      the mint let somebody else spend it
       ├──────► gone                               swapped by the very payment
       └──────► free ──► claimed                   that payment was refused
    """

    CLAIMED = "claimed"  # by the payment that `owner` names
    WAITING = "waiting"  # credited, and not swapped yet
    SWAPPING = "swapping"  # by the operation that `owner` names
    GONE = "gone"
    LOST = "lost"
    FREE = "free"


class LockedProof(msgspec.Struct, frozen=True, kw_only=True):
    """A proof locked to our key; its key is Y in hex, so that it is credited once.

    `worth_msat` is what the books hold for it while it waits: its amount less its part of the
    mint's fee. `sealed` is the proof itself, empty where it does not wait. `retry_at` (UTC
    nanoseconds) is 0 until a batch with it was refused; then it is swapped by itself, from that
    time on.
    """

    mint: str
    unit: str
    amount: int
    use: LockedUse = LockedUse.CLAIMED
    owner: str = ""
    worth_msat: int = 0
    sealed: bytes = b""
    retry_at: int = 0

    def __repr__(self) -> str:
        return f"LockedProof({self.amount} {self.unit}, {self.use}, mint={self.mint!r})"


LOCKED = RecordType(
    "cashu.locked",
    LockedProof,
    indexes=(("mint", "unit", "use"), ("owner", "use")),
)

#: All record types of this rail, for whoever opens the store.
RECORDS = (PROOF, COUNTER, REPLAN, LOCKED)
