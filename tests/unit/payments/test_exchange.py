"""Conversion: exact in every direction, balanced in each asset, undone and done again whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.clock import ManualClock
from farebox.ledger.model import Applied, Hold, Kind, Open, Post, Transfer, Unit
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger
from farebox.payments.deposits import DEPOSIT, DEPOSIT_REQUEST, Deposit, Deposits, DepositState
from farebox.payments.exchange import Quoted, affordable, bought, sold
from farebox.stores.sqlite import SqliteStore

QUOTED = Quoted("USDC", "10003/10", 20_000)  # 1000.3 msat each, and two per cent for us
ALICE, CUSTODY = "customer:alice", "custody:play:USDC"

rates = st.fractions(min_value=Fraction(1, 10**12), max_value=10**9).filter(bool)
amounts = st.integers(0, 10**24)
spreads = st.integers(0, 999_999)


@given(rates, spreads, amounts)
def test_what_is_bought_goes_somewhere_to_the_last_msat(
    rate: Fraction, spread: int, amount: int
) -> None:
    split = bought(Quoted("X", str(rate), spread), amount)
    assert split.total == split.account + split.spread + split.rounding
    assert min(split.account, split.spread) >= 0
    assert 0 <= split.rounding <= 1


@given(rates, spreads, amounts)
def test_what_is_sold_costs_its_worth_and_the_spread_to_the_last_msat(
    rate: Fraction, spread: int, amount: int
) -> None:
    split = sold(Quoted("X", str(rate), spread), amount)
    assert split.account == split.total + split.spread + split.rounding
    assert 0 <= split.rounding <= 2


@given(rates, spreads, st.integers(0, 10**18))
def test_what_an_account_affords_never_costs_more_than_it_has(
    rate: Fraction, spread: int, has_msat: int
) -> None:
    quoted = Quoted("X", str(rate), spread)
    amount = affordable(quoted, has_msat)
    assert sold(quoted, amount).account <= has_msat < sold(quoted, amount + 1).account


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    records: list[RecordType[Any]] = [DEPOSIT, DEPOSIT_REQUEST]
    clock = ManualClock()
    store = SqliteStore(tmp_path / "book.db", records, clock=clock)
    yield Ledger(store, clock)
    await store.close()


def arrival(seen_in: str, state: DepositState = DepositState.CREDITED) -> Deposit:
    return Deposit(
        source="play",
        reference="tx",
        account=ALICE,
        custody=CUSTODY,
        asset="USDC",
        amount_msat=bought(QUOTED, 1_000).account,
        currency="USDC",
        amount=1_000,
        state=state,
        quoted=QUOTED,
        seen_in=seen_in,
    )


async def held(ledger: Ledger, account: str) -> int:
    found = await ledger.store.account(account)
    return 0 if found is None else found.debits_posted - found.credits_posted


async def test_a_deposit_in_another_asset_is_credited_in_msat_and_both_assets_balance(
    ledger: Ledger,
) -> None:
    deposits = Deposits(ledger)
    for _ in range(3):
        done = await deposits.report(arrival("block-1"))
        assert done.state is DepositState.CREDITED
    assert await held(ledger, CUSTODY) == 1_000
    assert await held(ledger, "exchange:USDC") == -1_000
    assert -await held(ledger, ALICE) == 980_294
    assert await held(ledger, "exchange:BTC") == 1_000_300
    assert -await held(ledger, "revenue") == 20_006


async def test_a_deposit_that_vanished_is_taken_back_and_credited_again_in_another_block(
    ledger: Ledger,
) -> None:
    deposits = Deposits(ledger)
    await deposits.report(arrival("block-1"))
    spent = Unit("spend", (Transfer(ALICE, "revenue", 80_294, "request"),))
    assert isinstance(await ledger.store.commit(spent), Applied)

    await deposits.report(arrival("block-1", DepositState.REVERSED))
    assert await held(ledger, ALICE) == 0
    assert await held(ledger, f"receivable:{ALICE}") == 80_294
    assert await held(ledger, CUSTODY) == await held(ledger, "exchange:BTC") == 0

    late = await deposits.report(arrival("block-1"))  # was under way when it vanished
    assert late.state is DepositState.REVERSED
    again = await deposits.report(arrival("block-2"))
    assert (again.state, again.turn) == (DepositState.CREDITED, 1)
    assert -await held(ledger, ALICE) == 900_000  # what had been spent is paid first
    assert await held(ledger, f"receivable:{ALICE}") == 0

    stale = await deposits.report(arrival("block-1", DepositState.REVERSED))
    assert stale.state is DepositState.CREDITED


async def test_what_was_never_noted_leaves_nothing_behind_when_it_vanishes(ledger: Ledger) -> None:
    deposits = Deposits(ledger)
    await deposits.report(arrival("block-1", DepositState.REVERSED))
    assert await ledger.store.get(DEPOSIT, "play:tx:0") is None
    done = await deposits.report(arrival("block-1"))
    assert done.state is DepositState.CREDITED


async def test_an_asset_that_is_held_stays_on_a_balance_of_its_own(ledger: Ledger) -> None:
    deposits = Deposits(ledger)
    as_it_came = msgspec.structs.replace(arrival("block-1"), quoted=None, amount_msat=0)
    await deposits.report(as_it_came)
    assert -await held(ledger, f"{ALICE}/USDC") == 1_000
    assert await held(ledger, ALICE) == 0
    out = Unit(
        "out",
        (
            Open(CUSTODY, "USDC", Kind.CUSTODY),
            Hold(f"{ALICE}/USDC", CUSTODY, 400, "payout"),
            Post("out/1"),
        ),
    )
    assert isinstance(await ledger.store.commit(out), Applied)
    assert await held(ledger, CUSTODY) == 600
