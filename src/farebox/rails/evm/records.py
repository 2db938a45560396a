"""What the incoming half keeps: addresses that were handed out, what arrived at them, how far we
have looked. Rows and nothing else.

    arrival   seen ◄──► gone
                │         └──► lost       taken back, and gone for too long to come again
                └──► resting              credited, and too deep to vanish
"""

from __future__ import annotations

import enum

import msgspec

from farebox.ledger.records import RecordType
from farebox.rails.evm.outbox import RECORDS as OUTBOX_RECORDS


class Tree(msgspec.Struct, frozen=True):
    """An extended key: how many of its addresses were handed out. The key is its name."""

    next_index: int


TREE = RecordType("evm_tree", Tree)


class Purse(enum.StrEnum):
    """Whether an address may have something to be swept."""

    EMPTY = "empty"
    HOLDS = "holds"


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """An address that was handed out once, for one chain. `height` is where that chain was then."""

    address: str
    chain: str
    tree: str
    index: int
    height: int
    created_at: int
    purse: Purse = Purse.EMPTY


ADDRESS = RecordType(
    "evm_address",
    Address,
    indexes=(("address",), ("chain", "tree"), ("chain", "purse")),
)


def address_key(tree: str, index: int) -> str:
    """The name of an address: sorts by its number."""
    return f"{tree}:{index:010d}"


class Presence(enum.StrEnum):
    """Whether a chain still has what we saw on it."""

    SEEN = "seen"
    GONE = "gone"
    RESTING = "resting"  # it is there, and nothing more is expected to become of it
    LOST = "lost"  # it is not, and the same


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """Value that arrived at an address: in a transaction's own value (`index` 0), or told by the
    n-th of its events (`index` n+1; the node's own numbers move with the block).

    `left` are the places that it vanished from. `turn` counts them, so that a block that comes
    back is another place. `at_s` is the block's time, Unix seconds.
    """

    chain: str
    address: str
    transaction: str
    index: int
    asset: str
    amount: int
    height: int
    block_hash: str
    at_s: int
    turn: int = 0
    left: tuple[str, ...] = ()
    presence: Presence = Presence.SEEN

    @property
    def key(self) -> str:
        """Of its row."""
        return f"{self.chain}:{self.transaction}:{self.index}"

    @property
    def is_gone(self) -> bool:
        """Whether the chain has it no more."""
        return self.presence in (Presence.GONE, Presence.LOST)

    @property
    def place(self) -> str:
        """Where it is, unlike every place where it was."""
        return f"{self.turn}:{self.block_hash}"


ARRIVAL = RecordType(
    "evm_arrival",
    Arrival,
    indexes=(("chain", "presence"), ("address",), ("transaction",)),
)


class Cursor(msgspec.Struct, frozen=True):
    """The newest block that was looked through; the key is the chain."""

    height: int
    block_hash: str


CURSOR = RecordType("evm_cursor", Cursor)


class ReservationState(enum.StrEnum):
    """What has become of an authorisation."""

    RESERVED = "reserved"
    RELEASED = "released"
    SETTLED = "settled"
    FAILED = "failed"


class Reservation(msgspec.Struct, frozen=True):
    """An authorisation is one intent's. The key is chain, token, payer and nonce."""

    intent: str
    tries: int
    state: ReservationState = ReservationState.RESERVED


RESERVATION = RecordType("evm_authorization", Reservation)


RECORDS = (*OUTBOX_RECORDS, TREE, ADDRESS, ARRIVAL, CURSOR, RESERVATION)
