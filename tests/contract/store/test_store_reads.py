"""Events, accounts and rows as they are read back."""

from __future__ import annotations

import asyncio

import pytest

from farebox.errors import StoreError
from farebox.ledger.model import ABSENT, Event, Kind, Open, Post, Put, Transfer, Unit
from farebox.ledger.records import RecordType, Row
from farebox.ledger.store import PAGE_MAX, Store
from tests.contract.store.books import COUNTER, JOB, TASK, Backend, Job, State, do, fund


async def put(
    store: Store, key: str, job: Job, record: RecordType[Job] = JOB, expect: int = ABSENT
) -> None:
    await do(store, f"put:{key}:{expect}", puts=(Put(record, key, job, expect),))


# ── events ───────────────────────────────────────────────────────────────────────────────────────


async def test_events_are_numbered_without_gaps_in_the_order_of_their_units(store: Store) -> None:
    await fund(store, 30)

    def unit(number: int) -> Unit:
        events = (Event("paid", f"s{number % 3}", {"n": number}), Event("told", "x"))
        return Unit(f"u:{number}", (Transfer("a", "b", 1, "x"),), events=events)

    await asyncio.gather(*(store.commit(unit(number)) for number in range(60)))
    events = await store.events()
    assert [event.number for event in events] == list(range(1, 61))  # thirty were refused
    assert [event.seq for event in events] == sorted(event.seq for event in events)
    assert [event.name for event in events[:4]] == ["paid", "told"] * 2


async def test_events_are_read_on_from_a_number_and_by_subject(store: Store) -> None:
    for number in range(10):
        await do(store, f"u:{number}", events=(Event("e", f"s{number % 2}", {"n": number}),))
    assert [event.number for event in await store.events(7)] == [8, 9, 10]
    assert [event.number for event in await store.events(2, limit=3)] == [3, 4, 5]
    even = await store.events(2, subject="s0", limit=3)
    assert [event.data["n"] for event in even] == [2, 4, 6]
    assert await store.events(10) == []


async def test_an_event_carries_what_its_steps_moved(store: Store) -> None:
    await fund(store)
    event = Event("paid", "a", {"note": "Grüße 🥳"}, {"amount_msat": 1, "other_msat": 0})
    steps = (Transfer("a", "b", 3, "x"), Transfer("a", "b", 7, "x"))
    told = await do(store, "u", *steps, events=(event,))
    (stored,) = await store.events()
    assert stored.data == {"note": "Grüße 🥳", "amount_msat": 7, "other_msat": 3}
    assert (stored.seq, stored.at) == (told.seq, told.at)


async def test_numbering_goes_on_after_a_restart(backend: Backend) -> None:
    for number in range(3):
        async with backend.open() as store:
            await do(store, f"u:{number}", events=(Event("e", "s"),))
    async with backend.open() as store:
        assert [(event.number, event.seq) for event in await store.events()] == [
            (1, 1),
            (2, 2),
            (3, 3),
        ]


# ── accounts ─────────────────────────────────────────────────────────────────────────────────────


async def test_accounts_come_in_order_page_by_page(store: Store) -> None:
    steps = tuple(Open(f"c:{number:02d}", "BTC", Kind.CUSTOMER) for number in range(25))
    await do(store, "o", *steps)
    first = await store.accounts(limit=20)
    rest = await store.accounts(after=first[-1].id, limit=20)
    assert [account.id for account in first + rest] == [step.account for step in steps]
    assert await store.account("nobody") is None


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


async def test_rows_are_found_by_the_leading_fields_of_an_index(store: Store) -> None:
    await put(store, "3", Job(State.OPEN, 30, "ann"))
    await put(store, "1", Job(State.OPEN, 10, "bob"))
    await put(store, "2", Job(State.DONE, 20, "ann"))
    await put(store, "4", Job(State.OPEN, 40))

    async def keys(**where: str | int) -> list[str]:
        return [key for key, _ in await store.find(JOB, where)]

    assert await keys() == ["1", "2", "3", "4"]
    assert await keys(state=State.OPEN) == ["1", "3", "4"]
    assert await keys(state="done") == ["2"]
    assert await keys(state=State.OPEN, due_at=30) == ["3"]
    assert await keys(due_at=30, state=State.OPEN) == ["3"]
    assert await keys(owner="ann") == ["2", "3"]
    assert await keys(owner="zoe") == []


async def test_a_row_at_rest_is_found_by_its_key_alone(store: Store) -> None:
    await put(store, "1", Job(State.OPEN, owner="ann"), record=TASK)
    await put(store, "2", Job(State.DONE, owner="ann"), record=TASK)
    assert [key for key, _ in await store.find(TASK, {"owner": "ann"})] == ["1"]
    await put(store, "1", Job(State.DONE, owner="ann"), record=TASK, expect=1)
    await put(store, "2", Job(State.OPEN, owner="bob"), record=TASK, expect=1)
    assert [key for key, _ in await store.find(TASK, {"state": State.OPEN})] == ["2"]
    assert await store.find(TASK, {"owner": "ann"}) == []
    assert await store.get(TASK, "1") == Row(Job(State.DONE, owner="ann"), 2)
    with pytest.raises(ValueError, match="no index"):
        await store.find(TASK, {"state": State.DONE})


async def test_rows_are_found_up_to_a_bound(store: Store) -> None:
    for number in range(5):
        await put(store, f"{number}", Job(State.OPEN, 40 - 10 * number))
    found = await store.find(JOB, {"state": State.OPEN}, at_most=("due_at", 20))
    assert [(key, row.value.due_at) for key, row in found] == [("2", 20), ("3", 10), ("4", 0)]


async def test_rows_come_page_by_page(store: Store) -> None:
    for number in range(7):
        await put(store, f"{number}", Job(State.OPEN))
    first = await store.find(JOB, {"state": "open"}, limit=4)
    rest = await store.find(JOB, {"state": "open"}, limit=4, after=first[-1][0])
    assert [key for key, _ in first] == ["0", "1", "2", "3"]
    assert [key for key, _ in rest] == ["4", "5", "6"]


async def test_a_page_is_bounded_whatever_is_asked_for(store: Store) -> None:
    puts = [Put(JOB, f"{number:05d}", Job(), ABSENT) for number in range(PAGE_MAX + 5)]
    await do(store, "many", puts=tuple(puts))
    assert len(await store.find(JOB, {}, limit=10 * PAGE_MAX)) == PAGE_MAX


async def test_a_row_is_found_by_what_it_says_now(store: Store) -> None:
    await put(store, "j", Job(State.OPEN, 1))
    await do(store, "u", puts=(Put(JOB, "j", Job(State.DONE, 2, None, 5), 1),))
    assert await store.find(JOB, {"state": "open"}) == []
    ((key, row),) = await store.find(JOB, {"state": "done"})
    assert (key, row.version, row.value) == ("j", 2, Job(State.DONE, 2, None, 5))
    assert await store.get(JOB, "j") == row
    assert await store.get(COUNTER, "j") is None


@pytest.mark.parametrize(
    ("where", "at_most"),
    [({"count": 1}, None), ({"due_at": 1}, None), ({"owner": "x"}, ("due_at", 1))],
)
async def test_a_query_that_no_index_serves_is_an_error(
    store: Store, where: dict[str, str | int], at_most: tuple[str, int] | None
) -> None:
    with pytest.raises(ValueError, match="no index"):
        await store.find(JOB, where, at_most=at_most)


async def test_what_was_answered_is_read_at_once(store: Store) -> None:
    """A read after an answer sees what was answered, and nothing that was refused."""
    await fund(store)
    for number in range(50):
        await do(store, f"h:{number}", Transfer("a", "b", 1, "x"))
        await put(store, f"{number:02d}", Job(count=number))
        account = await store.account("b")
        assert account is not None
        assert account.available == number + 1
        assert len(await store.find(JOB, {})) == number + 1


async def test_a_closed_store_says_so(backend: Backend) -> None:
    async with backend.open() as store:
        await fund(store)
    for asked in (
        store.commit(Unit("u", (Post("x/0"),))),
        store.expire_due(),
        store.get(JOB, "j"),
        store.find(JOB, {}),
        store.account("a"),
        store.accounts(),
        store.events(),
        store.outcome("u"),
    ):
        with pytest.raises(StoreError):
            await asked
    await store.close()
