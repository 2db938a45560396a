"""A process that is killed while it commits loses nothing that it was told, and leaves no half."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farebox.ledger.invariants import verify
from farebox.ledger.model import Applied
from farebox.ledger.replay import Broken
from farebox.stores.sqlite import SqliteStore
from farebox.stores.sqlite.audit import SqliteAuditReader
from tests.contract.store.books import JOB, RECORDS, balances

#: Commits for as long as it lives, fifty at a time; prints each id once it was answered.
CHILD = """
import asyncio, pathlib, sys
from farebox.ledger.model import *
from farebox.stores.sqlite import SqliteStore
from tests.contract.store.books import JOB, RECORDS, Job, fund

async def main(path, life):
    store = SqliteStore(pathlib.Path(path), RECORDS)
    if life == "0":
        await fund(store, 10**9)

    async def caller(name):
        for number in range(10**6):
            key = f"{life}.{name}.{number}"
            steps = (Transfer("a", "b", 1, "x"), Hold("a", "revenue", 2, "x"))
            put = Put(JOB, key, Job(count=1), ABSENT)
            event = Event("paid", key, {}, {"amount": 0})
            told = await store.commit(Unit(key, steps, (put,), events=(event,)))
            assert isinstance(told, Applied), told
            print(key, flush=True)

    await asyncio.gather(*(caller(name) for name in range(50)))

asyncio.run(main(*sys.argv[1:]))
"""


def live_and_die(path: Path, life: int, seconds: float) -> list[str]:
    """Run a child, kill it so many seconds after its first units; gives the ids of all it told."""
    command = [sys.executable, "-c", CHILD, str(path), str(life)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as child:
        assert child.stdout is not None
        told = [child.stdout.readline() for _ in range(20)]  # it works
        time.sleep(seconds)
        child.kill()
        told += child.stdout.readlines()
    assert child.returncode == -signal.SIGKILL
    return [line.decode().strip() for line in told if line.endswith(b"\n")]


async def after_the_crash(path: Path, told: set[str]) -> None:
    store = SqliteStore(path, RECORDS)
    for key in told:
        assert isinstance(await store.outcome(key), Applied), key
    paid = (await balances(store, "b"))[3]
    held = (await balances(store, "revenue"))[2]
    rows, after = 0, ""
    while page := await store.find(JOB, {}, after=after):
        rows, after = rows + len(page), page[-1][0]
    last = await store.events(paid - 1)
    assert paid == rows == held // 2 == last[-1].number
    assert paid >= len(told)
    await store.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_every_unit_that_was_answered_survives_a_kill(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "book.db"
    draw = random.Random(seed)
    told: set[str] = set()
    for life in range(3):
        told.update(live_and_die(path, life, draw.uniform(0.0, 0.4)))
        with SqliteAuditReader(path, RECORDS) as reader:
            result = verify(reader)
        assert not isinstance(result, Broken), str(result)
        asyncio.run(after_the_crash(path, told))
    assert len(told) > 50
