"""The nouns of the journal: operations, what joins their commits, what a handler finds out."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import msgspec

from farebox.ledger.model import Event, Guard, Put, Step
from farebox.ledger.records import RecordType


class OperationState(enum.StrEnum):
    """Where an operation stands."""

    QUEUED = "queued"
    OPEN = "open"
    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    MANUAL = "manual"
    CANCELLED = "cancelled"
    REVERSED = "reversed"


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One effect outside. `plan` is sealed by whoever made it when it holds secrets.

    `far_hold` is the other leg of one that converts: it is posted and voided with `hold`.
    """

    id: str
    kind: str
    account: str
    method: str = ""  # the payment type of the method that carries it out, where one does
    hold: str
    plan: bytes
    far_hold: str = ""
    state: OperationState = OperationState.OPEN
    created_at: int = 0
    next_check_at: int = 0
    deadline_at: int = 0
    attempts: int = 0
    unanswered_at: int = 0  # when the answer to an attempt was last lost
    lease_owner: str = ""  # the process that carries it out, while that runs
    parent: str = ""
    asset: str = "BTC"
    amount: int = 0  # what really moved of it, once succeeded
    result: bytes = b""
    error: str = ""
    may_try_again: bool = False  # once rejected

    def __repr__(self) -> str:
        return f"Operation({self.id}, {self.kind}, {self.state})"


OPERATION = RecordType(
    "operation", Operation, indexes=(("state", "next_check_at"), ("account",), ("parent",))
)


class Changes(msgspec.Struct, frozen=True, gc=False):
    """Part of a unit: what joins an opening or closing commit."""

    steps: tuple[Step, ...] = ()
    puts: tuple[Put, ...] = ()
    events: tuple[Event, ...] = ()
    guards: tuple[Guard, ...] = ()


NO_CHANGES = Changes()


@dataclass(frozen=True, slots=True)
class Succeeded:
    """It happened. `amount` of the hold is posted; `changes` join the closing commit.

    `far_amount` is what is posted of the other leg; None: all.
    """

    amount: int
    result: bytes = b""
    changes: Changes = NO_CHANGES
    far_amount: int | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """It definitely did not and will not happen. `code` is stable, `message` is for people.

    `again`: for a passing reason, so that the same intent may be tried anew, as a new operation.
    `vague`: said of this attempt in words that would also fit while an earlier one, whose answer
    was lost, is still being carried out: believed only once that one cannot be any more.
    """

    code: str
    message: str
    changes: Changes = NO_CHANGES
    again: bool = False
    vague: bool = False


@dataclass(frozen=True, slots=True)
class Unresolved:
    """Nobody knows yet; ask again later. `alarm` calls a person at once."""

    reason: str
    alarm: bool = False


Verdict = Succeeded | Rejected | Unresolved


class Handler(Protocol):
    """What knows how to carry out one kind of operation."""

    async def attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        """Call outside, or, when an attempt may already have left, ask first.

        A definite no is a value, Rejected. Any exception is Unresolved, a RailRejected too: a node
        that refuses a question says nothing of the payment, which may have left by then.
        """
        ...
