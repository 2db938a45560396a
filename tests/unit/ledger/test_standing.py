"""How a book stands: written once, and never over what somebody else has just said."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.clock import ManualClock
from farebox.ledger.service import Ledger
from farebox.ledger.standing import BOOK, BookState, Standing, change_state, read_state
from farebox.stores.sqlite import SqliteStore

CLOSED = BookState(Standing.CLOSED, 1, "a copy")
MOVED = BookState(Standing.MOVED, 1, "to db1")


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    store = SqliteStore(tmp_path / "book.db", (BOOK,))
    yield Ledger(store, ManualClock())
    await store.close()


async def test_a_new_book_is_open_and_says_so_once(ledger: Ledger) -> None:
    assert await read_state(ledger) == await read_state(ledger) == BookState()
    assert await ledger.store.events() == []


async def test_each_change_is_an_event(ledger: Ledger) -> None:
    await read_state(ledger)
    for state in (CLOSED, CLOSED, BookState(life=2)):
        assert await change_state(ledger, state) == state
    told = [(one.name, one.data["reason"]) for one in await ledger.store.events()]
    assert told == [("book.closed", "a copy"), ("book.opened", "")]


async def test_a_later_life_is_never_ended_by_an_earlier_one(ledger: Ledger) -> None:
    await change_state(ledger, BookState(life=3))
    assert await change_state(ledger, CLOSED) == BookState(life=3)


async def test_what_somebody_else_has_just_said_stays(ledger: Ledger) -> None:
    seen = await read_state(ledger)
    await change_state(ledger, MOVED)
    assert await change_state(ledger, CLOSED, expected=seen) == MOVED
    assert await read_state(ledger) == MOVED
