"""Several processes on one book: each of them right, and all of them together."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farebox.ledger.model import Code, Kind, Open, Transfer
from tests.contract.store.books import JOB, PostgresBook, balances, do, fund
from tests.peers.postgres import Postgres

#: Thirty callers, who all ask for the same things in their own order: ids that every process
#: uses, rows that must be absent, more money than there is. Prints what each was told.
CHILD = """
import asyncio, json, random, sys
from farebox.ledger.model import *
from farebox.stores.postgres import PostgresStore
from tests.contract.store.books import JOB, RECORDS, Job

async def main(dsn, name, count):
    store = await PostgresStore.open(dsn, RECORDS)

    async def one(kind, number):
        event = Event("paid", kind, {}, {"amount": 0})
        if kind == "shared":  # the same id in every process, and linked steps
            steps = (Transfer("a", "b", 3, "x"), Hold("b", "revenue", 2, "x"))
            unit = Unit(f"shared:{number}", steps, events=(event,))
        elif kind == "claim":  # ids of its own, one row
            put = Put(JOB, f"claim:{number}", Job(owner=name), ABSENT)
            steps = (Transfer("a", "b", 5, "x"),)
            unit = Unit(f"claim:{number}:{name}", steps, (put,), events=(event,))
        else:  # a purse with less in it than everybody together asks for
            unit = Unit(f"spend:{number}:{name}", (Transfer("purse", "b", 7, "x"),))
        told = await store.commit(unit)
        first = told.first if isinstance(told, Replayed) else told
        said = [kind, number, type(told).__name__]
        said.append(getattr(first, "seq", None) or getattr(first, "code", None))
        print(json.dumps(said), flush=True)

    work = [(kind, number) for kind in ("shared", "claim", "spend") for number in range(int(count))]
    random.Random(name).shuffle(work)

    async def caller(own):
        for kind, number in own:
            await one(kind, number)

    print(json.dumps("ready"), flush=True)
    sys.stdin.readline()
    await asyncio.gather(*(caller(work[first::30]) for first in range(30)))
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""
COUNT = 200
PURSE = 7 * 250  # of 600 that are asked for


@pytest.fixture
def book(postgres: Postgres) -> Iterator[PostgresBook]:
    book = PostgresBook(postgres)
    yield book
    book.verify()
    book.remove()


def start(book: PostgresBook, names: str) -> list[subprocess.Popen[str]]:
    """Processes that are all ready, and begin at one signal."""
    root = Path(__file__).parents[3]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, book.dsn, name, str(COUNT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        for name in names
    ]
    for child in children:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline()) == "ready"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    return children


def answers(child: subprocess.Popen[str]) -> list[list[Any]]:
    """All that a process was told, once it has ended."""
    said, _ = child.communicate(timeout=90)
    return [json.loads(line) for line in said.splitlines() if line.endswith("]")]


async def make_books(book: PostgresBook) -> None:
    async with book.open() as store:
        await fund(store, 1_000_000)
        purse = Open("purse", "BTC", Kind.CUSTOMER)
        await do(store, "purse", purse, Transfer("custody", "purse", PURSE, "deposit"))


@pytest.mark.slow
async def test_of_the_same_thing_asked_of_three_processes_exactly_one_happens(
    book: PostgresBook,
) -> None:
    await make_books(book)
    told = [line for child in start(book, "xyz") for line in answers(child)]
    assert len(told) == 3 * 3 * COUNT
    outcomes = Counter((kind, outcome) for kind, _, outcome, _ in told)
    assert outcomes == {
        ("shared", "Applied"): COUNT,
        ("shared", "Replayed"): 2 * COUNT,
        ("claim", "Applied"): COUNT,
        ("claim", "Taken"): 2 * COUNT,
        ("spend", "Applied"): 250,
        ("spend", "Refused"): 350,
    }
    assert {seq for kind, _, outcome, seq in told if outcome == "Refused"} == {Code.EXCEEDS_CREDITS}
    # Replays tell the number of the one that happened, and no two units have one number.
    shared = {(number, seq) for kind, number, _, seq in told if kind == "shared"}
    assert len(shared) == COUNT
    assert len({seq for _, _, outcome, seq in told if outcome == "Applied"}) == 2 * COUNT + 250
    async with book.open() as store:
        assert await balances(store, "b") == (2 * COUNT, 0, 0, 8 * COUNT + PURSE)
        events = await store.events()
        assert [event.number for event in events] == list(range(1, 2 * COUNT + 1))


@pytest.mark.slow
async def test_a_process_that_is_killed_takes_nothing_with_it_and_keeps_nobody_waiting(
    book: PostgresBook,
) -> None:
    await make_books(book)
    children = start(book, "xyz")
    victim = children[0]
    assert victim.stdout is not None
    heard = [json.loads(victim.stdout.readline())]
    await asyncio.sleep(0.1)
    victim.kill()
    heard += answers(victim)
    assert victim.returncode == -signal.SIGKILL
    told = [line for child in children[1:] for line in answers(child)]
    assert len(told) == 2 * 3 * COUNT
    async with book.open() as store:
        for kind, number, outcome, _ in heard:
            if kind == "shared":
                assert outcome in {"Applied", "Replayed"}
                assert await store.outcome(f"shared:{number}") is not None
            if outcome == "Applied" and kind == "claim":
                row = await store.get(JOB, f"claim:{number}")
                assert row is not None
                assert row.value.owner == "x"
        # The others finished everything, whatever the victim had begun.
        assert await balances(store, "b") == (2 * COUNT, 0, 0, 8 * COUNT + PURSE)
