"""Whether a book may be served: one row of the book itself, so that every copy carries it.

    (new) ──► open ──► moved        the last export says where the book went
               ▲ │       │
               │ ▼       │
             closed ◄────┘          a copy of it, or older than what was seen of it

A closed book admits nothing and takes no counter until what it says was held against what the
mints say. Its `life` counts those times: a file of an earlier life is an old copy, whatever its
length.
"""

from __future__ import annotations

import enum

import msgspec

from farebox.ids import new_id
from farebox.ledger.model import Applied, Event, Put, Unit
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger, State

#: There is one row.
KEY = "book"
_EVENTS = {"open": "book.opened", "closed": "book.closed", "moved": "book.moved"}


class Standing(enum.StrEnum):
    """Who may use the book."""

    OPEN = "open"
    CLOSED = "closed"
    MOVED = "moved"


class BookState(msgspec.Struct, frozen=True):
    """How a book stands. `reason` is for people: why it is closed, or where it went."""

    standing: Standing = Standing.OPEN
    life: int = 1
    reason: str = ""


BOOK = RecordType("book", BookState)


def standing_unit(before: BookState | None, version: int, after: BookState) -> Unit:
    """The unit that brings a book from one state, at its row's version, to the next."""
    event = Event(_EVENTS[after.standing], KEY, {"life": after.life, "reason": after.reason})
    events = () if before is None and after.standing is Standing.OPEN else (event,)
    return Unit(new_id("book"), puts=(Put(BOOK, KEY, after, version),), events=events)


async def read_state(ledger: Ledger) -> BookState:
    """How the book stands; a new one is open, and says so from then on."""
    row = await ledger.store.get(BOOK, KEY)
    return await change_state(ledger, BookState()) if row is None else row.value


async def change_state(
    ledger: Ledger, after: BookState, *, expected: BookState | None = None
) -> BookState:
    """Bring the book to `after`, and return how it stands.

    Somebody may have been quicker: it stays as it is in a later life, or not as `expected`.
    """

    def decide(state: State, _: int) -> Unit | BookState:
        before = state.value(BOOK, KEY)
        if before is not None and (
            before == after
            or before.life > after.life
            or (expected is not None and before != expected)
        ):
            return before
        return standing_unit(before, state.version(BOOK, KEY), after)

    outcome = await ledger.transact([(BOOK, KEY)], decide)
    if isinstance(outcome, BookState):
        return outcome
    assert isinstance(outcome, Applied), outcome
    return after
