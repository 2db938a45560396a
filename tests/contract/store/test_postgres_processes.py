"""Several processes on one book: each of them right, and all of them together."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farebox.clock import running_s
from farebox.ledger.model import Code, Kind, Open, Transfer
from farebox.stores.postgres import batch
from tests.contract.store.books import JOB, PostgresBook, balances, do, fund
from tests.peers.postgres import Postgres

ROOT = Path(__file__).parents[3]

#: Thirty callers, who all ask for the same things in their own order: ids that every process
#: uses, rows that must be absent, more money than there is. Prints what each was told.
CHILD = """
import asyncio, json, random, sys
from farebox.ledger.model import *
from farebox.stores.postgres import PostgresStore
from farebox.stores.postgres import batch
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
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, book.dsn, name, str(COUNT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
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
    said, _ = child.communicate(timeout=150)
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


# ── frozen ───────────────────────────────────────────────────────────────────────────────────────

#: Freezes while it holds the book's lock, once, between two trips or within the first; what it is
#: told when it goes on, it prints.
FREEZER = """
import asyncio, json, os, signal, sys
from farebox.ledger.model import *
from farebox.stores.postgres import PostgresStore, batch, writer
from tests.contract.store.books import RECORDS

async def main(dsn, where):
    store = await PostgresStore.open(dsn, RECORDS)
    room = writer if where == "write" else batch
    work = getattr(room, where)

    async def freezes(*what):
        setattr(room, where, work)
        if where == "write":
            os.kill(os.getpid(), signal.SIGSTOP)
        told = await work(*what)
        if where != "write":
            await asyncio.sleep(1)  # for the server to have taken the lock
            os.kill(os.getpid(), signal.SIGSTOP)
        return told

    setattr(room, where, freezes)
    told = await store.commit(Unit("frozen", (Transfer("a", "b", 1, "x"),)))
    print(json.dumps([type(told).__name__]), flush=True)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_frozen_process_is_waited_for_no_longer_than_is_promised() -> None:
    [lock_s] = re.findall(r"'lock_timeout', '(\d+)s'", batch.SYNCED)
    # Who began to wait before it froze asks twice.
    assert int(lock_s) + batch.FROZEN_S == 10, "what the documentation says"


@pytest.mark.parametrize("where", ["write", "_begin"])
def test_a_process_that_is_frozen_with_the_books_lock_delays_the_others_and_no_more(
    book: PostgresBook, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(batch, "FROZEN_S", 0.5)
    monkeypatch.setattr(batch, "SYNCED", batch.SYNCED.replace("'5s'", "'500ms'"))
    asyncio.run(make_books(book))
    command = [sys.executable, "-c", FREEZER, book.dsn, where]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        asyncio.run(others(book))
        child.send_signal(signal.SIGCONT)
        # Its transaction is gone; it notices, asks, and does it again.
        assert answers(child) == [["Applied"]]
        asyncio.run(paid(book, 6))
    finally:
        child.kill()
        child.wait()


async def others(book: PostgresBook) -> None:
    """Two more processes, which want the lock at the same moment."""
    async with book.open() as one, book.open() as two:
        began_s = running_s()
        pay = Transfer("a", "b", 1, "x")
        told = await asyncio.gather(
            *(do(store, f"p:{n}", pay) for n in range(5) for store in (one, two))
        )
        assert running_s() - began_s > 0.3, "the lock was held"
        names = Counter(type(outcome).__name__ for outcome in told)
        assert names == {"Applied": 5, "Replayed": 5}


async def paid(book: PostgresBook, times: int) -> None:
    async with book.open() as store:
        assert await balances(store, "b") == (0, 0, 0, times)
