"""The outbox: what was signed under each nonce, and what has become of it. Rows and pure decisions.

    intent   waiting ──► sent ──► done          slot   sent ◄──► mined ──► done
                └──► cancelled (before a nonce)           └──► lost (a person must look)

| boundary                         | what can fail           | recovery                            |
|----------------------------------|-------------------------|-------------------------------------|
| before the nonce commit          | anything                | the intent waits; nothing is signed |
| nonce commit → broadcast         | we stop                 | the stored raw bytes are broadcast  |
| broadcast → in a block           | dropped, stuck, dear    | broadcast again; replaced, and all  |
|                                  |                         | hashes followed: any may win        |
| in a block → confirmed           | reorganisation          | back to `sent`, broadcast again     |
| confirmed → done commit          | we stop                 | asked again: receipts stay          |
| nonce used by none of our hashes | a foreign copy of a key | `lost`: alarm, never a second try   |

One commit takes the next nonce, stores what was signed under it and marks the intents it serves.
The commit that finds a slot done books its gas, for whatever it was sent: an expense out of the
operator's float, the coin that senders have beside what customers brought. What it was sent for is
booked by the operation of the intent. So on each chain our addresses hold custody and float.
"""

from __future__ import annotations

import enum

import msgspec

from farebox.ledger.records import RecordType
from farebox.rails.evm.fees import Fees, best

#: Blocks after which what is not mined is replaced.
STUCK_BLOCKS = 4
#: A nonce is offered anew at most so often; by then the offer has grown a thousandfold.
ATTEMPTS_MAX = 64
#: Nonces of one sender that are on their way at once.
IN_FLIGHT_MAX = 16


class Call(msgspec.Struct, frozen=True):
    """What a transaction does: `value` wei and `data` (hex, 0x…) to an address; `gas` its limit."""

    to: str
    value: int = 0
    data: str = "0x"
    gas: int = 21_000


class Attempt(msgspec.Struct, frozen=True):
    """One signed transaction under a nonce. `raw` is dropped once another has taken its place."""

    hash: str
    raw: str
    max_fee: int
    tip: int
    height: int  # of the chain when it was made
    is_cancel: bool = False

    @property
    def fees(self) -> Fees:
        """What it offers."""
        return Fees(self.max_fee, self.tip)


class Mined(msgspec.Struct, frozen=True):
    """The receipt of the attempt that won. `cost` is all it took in wei, an L1 fee included."""

    hash: str
    height: int
    block_hash: str
    ok: bool
    cost: int


class SlotState(enum.StrEnum):
    """What has become of a nonce."""

    SENT = "sent"
    MINED = "mined"
    DONE = "done"
    LOST = "lost"


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One nonce of one sender, for ever: unique by `slot_key`. `lane` is chain and sender.

    `spends` is what leaves in a token, for choosing senders; `batch` says that it pays several.
    """

    lane: str
    chain: str
    sender: str
    nonce: int
    purpose: str
    call: Call
    attempts: tuple[Attempt, ...]
    state: SlotState = SlotState.SENT
    mined: Mined | None = None
    wants_cancel: bool = False
    token: str = ""
    spends: int = 0
    batch: bool = False

    @property
    def key(self) -> str:
        """Of its row."""
        return slot_key(self.lane, self.nonce)

    @property
    def newest(self) -> Attempt:
        """The attempt that is broadcast."""
        return self.attempts[-1]

    @property
    def offered(self) -> Fees:
        """The most offered so far."""
        return best([one.fees for one in self.attempts])

    @property
    def is_open(self) -> bool:
        """Whether it may still change."""
        return self.state in (SlotState.SENT, SlotState.MINED)

    @property
    def is_cancelled(self) -> bool:
        """Whether the attempt that won does nothing."""
        if self.mined is None:
            return False
        return any(one.is_cancel for one in self.attempts if one.hash == self.mined.hash)


SLOT = RecordType(
    "evm_slot",
    Slot,
    indexes=(("chain", "state"), ("lane", "state"), ("purpose",)),
)


class Sender(msgspec.Struct, frozen=True):
    """The next nonce of a sender; the key is its lane."""

    next_nonce: int


SENDER = RecordType("evm_sender", Sender)


class IntentState(enum.StrEnum):
    """Whether something was signed for an intent."""

    WAITING = "waiting"
    SENT = "sent"
    DONE = "done"
    CANCELLED = "cancelled"


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """Something to be sent once. The key is its operation's id. `token` is empty for ETH.

    `index` is its place in a batch, -1 when it is sent alone. `alone`: no batch may take it.
    """

    chain: str
    to: str
    amount: int
    token: str = ""
    state: IntentState = IntentState.WAITING
    slot: str = ""
    index: int = -1
    alone: bool = False
    created_at: int = 0


INTENT = RecordType(
    "evm_intent",
    Intent,
    indexes=(("chain", "state"), ("slot",)),
    resting=frozenset({IntentState.DONE.value, IntentState.CANCELLED.value}),
)

RECORDS = (SLOT, SENDER, INTENT)


def custody_of(chain: str, asset: str) -> str:
    """The ledger account of what our addresses on a chain hold for customers."""
    return f"custody:evm:{chain}:{asset}"


def lane_of(chain: str, sender: str) -> str:
    """The name of a sender on a chain."""
    return f"{chain}:{sender}"


def slot_key(lane: str, nonce: int) -> str:
    """The name of a nonce: sorts by nonce."""
    return f"{lane}:{nonce:012d}"


class Seen(msgspec.Struct, frozen=True):
    """What the chain says of a slot: the receipt of one of its hashes, the number of its newest
    block, and whether the nonce was used so long ago that no reorganisation is expected."""

    height: int
    receipt: Mined | None = None
    is_used_for_good: bool = False


def judged(slot: Slot, seen: Seen, confirmations: int) -> Slot:
    """The slot by what was seen; the same one where nothing has changed."""
    receipt = seen.receipt
    if not slot.is_open:
        return slot
    if receipt is None:
        state = SlotState.LOST if seen.is_used_for_good else SlotState.SENT
        return msgspec.structs.replace(slot, state=state, mined=None)
    is_deep = seen.height - receipt.height + 1 >= confirmations
    state = SlotState.DONE if is_deep else SlotState.MINED
    return msgspec.structs.replace(slot, state=state, mined=receipt)


def needs_replacement(slot: Slot, height: int, base_fee: int) -> bool:
    """Whether something else is to be offered under this nonce: it is stuck, offers less than the
    next block takes, or is to be cancelled. A chain that makes no blocks replaces nothing."""
    newest = slot.newest
    if slot.state is not SlotState.SENT or len(slot.attempts) >= ATTEMPTS_MAX:
        return False
    if slot.wants_cancel and not newest.is_cancel:
        return True
    waited = height - newest.height
    return waited >= STUCK_BLOCKS or (waited > 0 and newest.max_fee < base_fee)


def with_attempt(slot: Slot, attempt: Attempt) -> Slot:
    """The slot with another attempt in front; of those before, the hashes are kept."""
    before = tuple(msgspec.structs.replace(one, raw="") for one in slot.attempts)
    return msgspec.structs.replace(slot, attempts=(*before, attempt))
