"""What is credited is taken back only by a chain that has come about as far as where it was."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from farebox.clock import SystemClock
from farebox.ledger.model import ABSENT, Put, Unit
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger
from farebox.payments.deposits import DEPOSIT, DEPOSIT_REQUEST, Deposit, Deposits, DepositState
from farebox.payments.rail import Limits, Sighting
from farebox.rails.bitcoin import BitcoinConfig, Depth
from farebox.rails.bitcoin.arrivals import Arrivals
from farebox.rails.bitcoin.chain import Block, Coin, View
from farebox.rails.bitcoin.records import ADDRESS, ARRIVAL, GivenAddress
from farebox.stores.sqlite import SqliteStore

ADDRESS_1, OUTPOINT = "bc1qsomebody", f"{'ab' * 32}:0"
LIMITS = Limits(1, 10**12)
HEIGHT = 500


def block(height: int, branch: str = "") -> Block:
    return Block(height, hashlib.sha256(f"{height}{branch}".encode()).hexdigest(), 1_700_000_000)


def view(tip: int, at: Block | None, *, is_there: bool = True) -> View:
    """The chain up to a height; the coin is in a block, in the pool, or nowhere."""
    coin = Coin(OUTPOINT, 50_000, is_change=False, index=0, block=at, is_spent=False)
    return View(block(tip), (coin,) if is_there else ())


@dataclass
class Desk:
    arrivals: Arrivals
    deposits: Deposits

    async def look(self, at: View) -> list[DepositState]:
        """What is told of a view; the books take it in."""
        told = []
        async for one in self.arrivals.news(at):
            told.append(one.state)
            await self.deposits.report(deposit_of(one))
        return told


def deposit_of(one: Sighting) -> Deposit:
    is_sure = one.state is DepositState.CONFIRMED
    return Deposit(
        source="bitcoin",
        reference=one.external,
        index=one.index,
        account="customer:one",
        custody="custody:bitcoin:main",
        asset="BTC",
        amount_msat=one.amount,
        currency="BTC",
        amount=one.amount,
        state=DepositState.CREDITED if is_sure else one.state,
        at=one.at,
        seen_in=one.seen_in,
    )


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    records: list[RecordType[Any]] = [ADDRESS, ARRIVAL, DEPOSIT, DEPOSIT_REQUEST]
    store = SqliteStore(tmp_path / "book.db", records, clock=SystemClock())
    ledger = Ledger(store, SystemClock())
    given = GivenAddress("main", 0, "0/0")
    await store.commit(Unit("given", puts=(Put(ADDRESS, ADDRESS_1, given, ABSENT),)))
    keys = cast("Any", SimpleNamespace(address=lambda index: ADDRESS_1))
    config = BitcoinConfig(name="main", deposits=LIMITS, payouts=LIMITS, depths=(Depth(0, 1),))
    yield Desk(Arrivals(config, keys, ledger), Deposits(ledger))
    await store.close()


async def test_a_node_that_is_behind_takes_nothing_back(desk: Desk) -> None:
    """One that builds its index anew, or was put back: what it has not reached may be there."""
    assert await desk.look(view(HEIGHT, block(HEIGHT))) == [DepositState.CONFIRMED]
    assert await desk.look(view(HEIGHT - 400, None, is_there=False)) == []
    assert await desk.look(view(HEIGHT - 400, None)) == []
    assert await desk.look(view(HEIGHT + 2, block(HEIGHT))) == []


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("tip", [HEIGHT + 1, HEIGHT - 3])
async def test_another_branch_takes_back_what_it_has_not(
    desk: Desk, is_there: bool, tip: int
) -> None:
    assert await desk.look(view(HEIGHT, block(HEIGHT))) == [DepositState.CONFIRMED]
    assert await desk.look(view(tip, None, is_there=is_there)) == [DepositState.REVERSED]
    again = block(HEIGHT + 1, "of another branch")
    assert await desk.look(view(HEIGHT + 1, again)) == [DepositState.CONFIRMED]
