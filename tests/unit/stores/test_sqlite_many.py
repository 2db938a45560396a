"""Many units in one call, where the disk or the queue of a SQLite book says no."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from farebox.clock import ManualClock
from farebox.errors import OutcomeUnknown, StoreBusy
from farebox.ledger.model import Applied, Replayed, Transfer, Unit
from farebox.ledger.service import Ledger
from farebox.stores.sqlite import SqliteStore, disk, writer
from tests.contract.store.books import RECORDS, available, fund

PAYOUTS = {f"p:{number}": Transfer("a", "b", 1, "payout") for number in range(300)}


async def test_many_whose_sync_fails_are_unknown_and_told_by_the_same_call_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(log: int) -> None:
        raise OSError(errno.EIO, "the disk says no")

    store = SqliteStore(tmp_path / "book.db", RECORDS)
    await fund(store)
    with monkeypatch.context() as broken:
        broken.setattr(disk, "sync", fails)
        with pytest.raises(OutcomeUnknown, match="p:0"):
            await Ledger(store, ManualClock()).post_many(PAYOUTS)
        await store.close()
    store = SqliteStore(tmp_path / "book.db", RECORDS)
    told = await Ledger(store, ManualClock()).post_many(PAYOUTS)
    # The process has lived on, and the power too: so all of them were written.
    assert {type(outcome) for outcome in told.values()} == {Replayed}
    assert await available(store, "b") == 300
    await store.close()


async def test_what_waits_is_counted_by_units_and_not_by_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(tmp_path / "book.db", RECORDS)
    await fund(store)
    monkeypatch.setattr(writer, "QUEUE_MAX", 5)

    def units(call: int, count: int) -> list[Unit]:
        return [Unit(f"{call}:{n}", (Transfer("a", "b", 1, "x"),)) for n in range(count)]

    calls = (units(call, count) for call, count in enumerate((3, 3, 2, 1)))
    told = await asyncio.gather(*map(store.commit_many, calls), return_exceptions=True)
    assert [isinstance(outcome, StoreBusy) for outcome in told] == [False, True, False, True]
    assert await available(store, "b") == 5
    assert await store.outcome("1:0") is None
    assert isinstance(await store.commit(units(1, 1)[0]), Applied)
    await store.close()
