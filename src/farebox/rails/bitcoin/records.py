"""What the rail keeps in the book beside the money.

The wallet itself can be rebuilt from its descriptor, the counter of its addresses and the chain;
everything that cannot is here.
"""

from __future__ import annotations

import enum

import msgspec

from farebox.ledger.records import RecordType


class AddressCounter(msgspec.Struct, frozen=True):
    """How many addresses of a wallet were given out, and where its chain is looked at from.

    The key is the wallet's name. `descriptor` is a checksum: another wallet needs another name.
    """

    given: int
    descriptor: str
    since_height: int = 0


class GivenAddress(msgspec.Struct, frozen=True):
    """Where an address stands in its wallet. The key is the address."""

    wallet: str
    index: int
    path: str


class Young(enum.StrEnum):
    """Whether an arrival may still be undone by the chain."""

    YES = "yes"
    NO = "no"


class Arrival(msgspec.Struct, frozen=True):
    """An output paid to a given address. The key is its outpoint, `txid:index`.

    `gone_at` is the height at which it was found to be gone, 0 while it is there; `height` that of
    the block where it was seen last, 0 for none.
    """

    address: str
    amount_sat: int
    young: Young = Young.YES
    gone_at: int = 0
    height: int = 0


class PayoutState(enum.StrEnum):
    """How far a payment out has come."""

    WAITING = "waiting"  # for its batch
    BATCHED = "batched"
    PAID = "paid"
    REFUSED = "refused"


class Payout(msgspec.Struct, frozen=True, kw_only=True):
    """One payment out; the key is its operation. `fee_sat` is what its receiver bears."""

    address: str
    amount_sat: int
    fee_max_sat: int
    asked_at: int
    state: PayoutState = PayoutState.WAITING
    batch: str = ""
    fee_sat: int = 0
    txid: str = ""


class BatchState(enum.StrEnum):
    """How far a batch has come."""

    UNSIGNED = "unsigned"  # waits for the operator's signature
    SENT = "sent"  # signed and stored, so that it may be out
    PAID = "paid"  # deep enough in the chain; looked after a while longer
    OLD = "old"
    DEAD = "dead"  # another transaction has spent its inputs for good


class BatchTry(msgspec.Struct, frozen=True):
    """One form of a batch. Any of them may win. `rate` is sat per 1,000 virtual bytes.

    `raw` is empty where an operator signs elsewhere and has not yet: he may send it himself.
    """

    txid: str
    raw: bytes
    fee_sat: int
    rate: int
    height: int


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Payments that leave in one transaction. The key is the operation that carries it out.

    `inputs` are those of its first form, which all others spend too, `added` what only some spend
    besides. `psbt` is what an operator is to sign, for the last of the tries; else empty. `child`
    spends the change of the try `child_of`, which the pool lets nothing replace, so that both
    together are worth a miner's while.
    """

    wallet: str
    payouts: tuple[str, ...]
    inputs: tuple[str, ...]
    state: BatchState
    tries: tuple[BatchTry, ...]
    psbt: str = ""
    added: tuple[str, ...] = ()
    child: BatchTry | None = None
    child_of: str = ""

    def cost_sat(self, won: BatchTry) -> int:
        """What the network takes in all when this try is in a block."""
        is_parent = self.child is not None and won.txid == self.child_of
        return won.fee_sat + (self.child.fee_sat if self.child and is_parent else 0)


class ReservedInput(msgspec.Struct, frozen=True):
    """Whose an output of ours is. The key is its outpoint; `batch` "" is nobody's any more."""

    batch: str


COUNTER = RecordType("bitcoin_counter", AddressCounter)
ADDRESS = RecordType("bitcoin_address", GivenAddress)
ARRIVAL = RecordType("bitcoin_arrival", Arrival, (("young",),), frozenset({Young.NO}))
PAYOUT = RecordType(
    "bitcoin_payout", Payout, (("state",),), frozenset({PayoutState.PAID, PayoutState.REFUSED})
)
BATCH = RecordType(
    "bitcoin_batch", Batch, (("state",),), frozenset({BatchState.OLD, BatchState.DEAD})
)
INPUT = RecordType("bitcoin_input", ReservedInput, (("batch",),))

RECORDS = (COUNTER, ADDRESS, ARRIVAL, PAYOUT, BATCH, INPUT)
