"""The nouns of the ledger: accounts, steps, units, outcomes. Plain immutable values.

Names and rules follow TigerBeetle's reference (https://docs.tigerbeetle.com/reference/): pending
and posted balances, two-phase transfers, linked steps, balancing transfers, limits, and named
failures with a fixed precedence.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, assert_never

import msgspec

from farebox.ledger.records import RecordType

#: `Put.expect` of a row that must not exist yet: every "only once" is one of these.
ABSENT = 0
#: The units that release due holds begin with this; no caller's may.
EXPIRY_PREFIX = "expire:"
#: The longest a hold may live: a century.
TIMEOUT_NS_MAX = 100 * 366 * 86_400 * 1_000_000_000


class Kind(enum.StrEnum):
    """What an account stands for; decides its normal side and its limit."""

    CUSTOMER = "customer"  # what we owe a customer; never below zero
    IMMATURE = "immature"  # what we owe once it can no longer be taken back
    ESCROW = "escrow"  # held under a condition
    REVENUE = "revenue"  # earned and not yet withdrawn, net of what rails charged us
    CAPITAL = "capital"  # the operator's own, put in to bear losses
    BREAKAGE = "breakage"  # expired credits
    CUSTODY = "custody"  # value we hold at one place of one rail; has a ceiling
    RECEIVABLE = "receivable"  # owed to us; has a ceiling
    EXPENSE = "expense"  # spent for good
    CLEARING = "clearing"  # returns to zero
    PAYABLE = "payable"  # what we owe to a provider
    SUSPENSE = "suspense"  # arrived, owner unknown
    EXCHANGE = "exchange"  # the legs of a conversion between assets


#: Credit-normal kinds whose debits never exceed their credits.
CREDIT_LIMITED = frozenset(
    {
        Kind.CUSTOMER,
        Kind.IMMATURE,
        Kind.ESCROW,
        Kind.REVENUE,
        Kind.CAPITAL,
        Kind.BREAKAGE,
        Kind.PAYABLE,
    }
)
#: Debit-normal kinds whose credits never exceed their debits; these may have a ceiling.
DEBIT_LIMITED = frozenset({Kind.CUSTODY, Kind.RECEIVABLE})


class Account(msgspec.Struct, frozen=True, gc=False):
    """A named balance in one asset. `ceiling` caps debits (pending too) net of posted credits."""

    id: str
    asset: str
    kind: Kind
    debits_pending: int = 0
    debits_posted: int = 0
    credits_pending: int = 0
    credits_posted: int = 0
    ceiling: int | None = None

    @property
    def available(self) -> int:
        """What a credit-normal account can still spend: posted credits less every debit."""
        return self.credits_posted - self.debits_posted - self.debits_pending

    @property
    def held(self) -> int:
        """What a debit-normal account holds: posted debits less posted credits."""
        return self.debits_posted - self.credits_posted


# ── steps ────────────────────────────────────────────────────────────────────────────────────────


class Open(msgspec.Struct, frozen=True, gc=False):
    """Make sure an account exists. An equal one is no error; a different one is a refusal."""

    account: str
    asset: str
    kind: Kind


class SetCeiling(msgspec.Struct, frozen=True, gc=False):
    """Set or lift (None) the most a debit-limited account may hold. What is there may stay."""

    account: str
    ceiling: int | None


class Balancing(enum.StrEnum):
    """Which side a balancing transfer empties at most."""

    DEBIT = "debit"  # at most what the debit account can spend
    CREDIT = "credit"  # at most what the credit account holds


class Transfer(msgspec.Struct, frozen=True, gc=False):
    """Move `amount` now. With `balancing`, move at most `amount` and at most what is there."""

    debit: str
    credit: str
    amount: int
    code: str
    balancing: Balancing | None = None


class Hold(msgspec.Struct, frozen=True, gc=False):
    """Reserve `amount` until posted, voided or, when `timeout_ns` is not 0, expired."""

    debit: str
    credit: str
    amount: int
    code: str
    timeout_ns: int = 0


class Post(msgspec.Struct, frozen=True, gc=False):
    """Take `amount` (None: all) of a hold for good; the rest is released."""

    hold: str
    amount: int | None = None


class Void(msgspec.Struct, frozen=True, gc=False):
    """Release a hold."""

    hold: str


Step = Open | SetCeiling | Transfer | Hold | Post | Void


class HoldState(enum.StrEnum):
    """What became of a hold."""

    OPEN = "open"
    POSTED = "posted"
    VOIDED = "voided"
    EXPIRED = "expired"


class HoldRow(msgspec.Struct, frozen=True, gc=False):
    """A hold as stored. `expires_at` is 0 for never, else UTC nanoseconds."""

    id: str
    debit: str
    credit: str
    amount: int
    code: str
    expires_at: int
    state: HoldState = HoldState.OPEN


def hold_id(unit_id: str, step: int) -> str:
    """The id of the hold that step number `step` of a unit makes."""
    return f"{unit_id}/{step}"


# ── units ────────────────────────────────────────────────────────────────────────────────────────


class Put(msgspec.Struct, frozen=True, gc=False):
    """Write a domain row that now has version `expect` (ABSENT: does not exist)."""

    record: RecordType[Any]
    key: str
    value: Any
    expect: int


class Guard(msgspec.Struct, frozen=True, gc=False):
    """A domain row that was read: it must still have this version."""

    record: RecordType[Any]
    key: str
    version: int


class Event(msgspec.Struct, frozen=True, gc=False):
    """A fact in the past tense. `amounts` names steps: their moved amounts join `data`."""

    name: str
    subject: str
    data: Mapping[str, Any] = {}
    amounts: Mapping[str, int] = {}


class Unit(msgspec.Struct, frozen=True, gc=False):
    """Everything one decision changes, as data. It happens whole, once per id, or not at all.

    `fingerprint` tells two uses of one id apart; `sticky` keeps a refusal for ever (for ids the
    caller chose); `reply` is given back with every replay.
    """

    id: str
    steps: tuple[Step, ...] = ()
    puts: tuple[Put, ...] = ()
    guards: tuple[Guard, ...] = ()
    events: tuple[Event, ...] = ()
    fingerprint: bytes = b""
    sticky: bool = False
    reply: bytes = b""


def check_unit(unit: Unit) -> None:
    """Refuse what no correct program makes, before it can harm its neighbours in a batch.

    Raises ValueError for an empty or reserved id, two puts of one row, an event that names a step
    that is not there, a time-out that is negative or longer than TIMEOUT_NS_MAX.
    """
    if not unit.id or unit.id.startswith(EXPIRY_PREFIX):
        raise ValueError(f"unit id {unit.id!r} is empty or reserved")
    if len(unit.puts) > 1 and len({(p.record.kind, p.key) for p in unit.puts}) < len(unit.puts):
        raise ValueError(f"unit {unit.id} puts one row twice")
    for step in unit.steps:
        if type(step) is Hold and not 0 <= step.timeout_ns <= TIMEOUT_NS_MAX:
            raise ValueError(f"unit {unit.id} holds for {step.timeout_ns} ns")
    for event in unit.events:
        if event.amounts and not 0 <= max(event.amounts.values()) < len(unit.steps):
            raise ValueError(f"event {event.name} of unit {unit.id} names a step that is not there")


# ── outcomes ─────────────────────────────────────────────────────────────────────────────────────


class Code(enum.StrEnum):
    """Why a step is refused, in order of precedence: the first that applies is the one told."""

    AMOUNT_OUT_OF_RANGE = "amount_out_of_range"
    ACCOUNTS_MUST_BE_DIFFERENT = "accounts_must_be_different"
    EXISTS_WITH_DIFFERENT_ASSET = "exists_with_different_asset"
    EXISTS_WITH_DIFFERENT_KIND = "exists_with_different_kind"
    ACCOUNT_NOT_FOUND = "account_not_found"
    CEILING_NOT_ALLOWED = "ceiling_not_allowed"
    DEBIT_ACCOUNT_NOT_FOUND = "debit_account_not_found"
    CREDIT_ACCOUNT_NOT_FOUND = "credit_account_not_found"
    ACCOUNTS_MUST_HAVE_THE_SAME_ASSET = "accounts_must_have_the_same_asset"
    PENDING_TRANSFER_NOT_FOUND = "pending_transfer_not_found"
    PENDING_TRANSFER_ALREADY_POSTED = "pending_transfer_already_posted"
    PENDING_TRANSFER_ALREADY_VOIDED = "pending_transfer_already_voided"
    PENDING_TRANSFER_EXPIRED = "pending_transfer_expired"
    EXCEEDS_PENDING_TRANSFER_AMOUNT = "exceeds_pending_transfer_amount"
    OVERFLOWS_ACCOUNT = "overflows_account"
    EXCEEDS_CREDITS = "exceeds_credits"
    EXCEEDS_DEBITS = "exceeds_debits"
    EXCEEDS_CEILING = "exceeds_ceiling"


def transient(code: Code) -> bool:
    """Whether the same unit may succeed later because *other* units changed the books."""
    match code:
        case (
            Code.ACCOUNT_NOT_FOUND
            | Code.DEBIT_ACCOUNT_NOT_FOUND
            | Code.CREDIT_ACCOUNT_NOT_FOUND
            | Code.PENDING_TRANSFER_NOT_FOUND
            | Code.OVERFLOWS_ACCOUNT
            | Code.EXCEEDS_CREDITS
            | Code.EXCEEDS_DEBITS
            | Code.EXCEEDS_CEILING
        ):
            return True
        case (
            Code.AMOUNT_OUT_OF_RANGE
            | Code.ACCOUNTS_MUST_BE_DIFFERENT
            | Code.EXISTS_WITH_DIFFERENT_ASSET
            | Code.EXISTS_WITH_DIFFERENT_KIND
            | Code.CEILING_NOT_ALLOWED
            | Code.ACCOUNTS_MUST_HAVE_THE_SAME_ASSET
            | Code.PENDING_TRANSFER_ALREADY_POSTED
            | Code.PENDING_TRANSFER_ALREADY_VOIDED
            | Code.PENDING_TRANSFER_EXPIRED
            | Code.EXCEEDS_PENDING_TRANSFER_AMOUNT
        ):
            return False
        case _:
            assert_never(code)


class Applied(msgspec.Struct, frozen=True, gc=False, tag="applied"):
    """The unit happened as number `seq` at `at` (ns); `amounts[i]` is what step i moved."""

    seq: int
    at: int
    amounts: tuple[int, ...]
    reply: bytes = b""


class Refused(msgspec.Struct, frozen=True, gc=False, tag="refused"):
    """Step number `step` cannot be; nothing of the unit happened."""

    step: int
    code: Code


class Replayed(msgspec.Struct, frozen=True, gc=False):
    """A unit with this id and fingerprint was decided before; this is what it was told."""

    first: Applied | Refused


class Mismatch(msgspec.Struct, frozen=True, gc=False):
    """The id was used before for something else."""


class Stale(msgspec.Struct, frozen=True, gc=False):
    """A row changed since it was read; read again and decide again."""

    kind: str
    key: str


class Taken(msgspec.Struct, frozen=True, gc=False):
    """A row that had to be absent exists."""

    kind: str
    key: str


Outcome = Applied | Replayed | Mismatch | Refused | Stale | Taken


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """An event as committed: `number` has no gaps within the book."""

    number: int
    seq: int
    at: int
    name: str
    subject: str
    data: dict[str, Any]
