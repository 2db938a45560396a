"""A deposit is credited once, and taken back whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from farebox.clock import SystemClock
from farebox.ledger.model import Applied, Kind, Open, Transfer, Unit
from farebox.ledger.service import Ledger
from farebox.payments.deposits import DEPOSIT, Deposit, Deposits, DepositState
from farebox.stores.sqlite import SqliteStore

SEEN = Deposit(
    source="chain",
    reference="tx",
    account="customer:a",
    custody="custody:chain",
    asset="BTC",
    amount_msat=700,
    currency="BTC",
    amount=700,
)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    store = SqliteStore(tmp_path / "book.db", [DEPOSIT])
    yield Ledger(store, SystemClock())
    await store.close()


async def available(ledger: Ledger) -> int:
    account = await ledger.store.account("customer:a")
    return 0 if account is None else account.available


def at(state: DepositState) -> Deposit:
    return msgspec.structs.replace(SEEN, state=state)


async def test_webhook_poller_and_rescan_credit_once(ledger: Ledger) -> None:
    deposits = Deposits(ledger)
    reports = [at(state) for state in list(DepositState)[:3] for _ in range(10)]
    await asyncio.gather(*(deposits.report(report) for report in reports))
    assert await available(ledger) == 700
    assert (await deposits.report(at(DepositState.DETECTED))).state is DepositState.CREDITED


async def test_nothing_is_owed_before_it_is_credited(ledger: Ledger) -> None:
    await Deposits(ledger).report(at(DepositState.CONFIRMED))
    assert await available(ledger) == 0


async def test_a_reversal_takes_what_is_left_and_books_the_rest_as_owed(ledger: Ledger) -> None:
    deposits = Deposits(ledger)
    await deposits.report(at(DepositState.CREDITED))
    spend = Unit(
        "spend",
        (Open("revenue", "BTC", Kind.REVENUE), Transfer("customer:a", "revenue", 500, "x")),
    )
    assert isinstance(await ledger.store.commit(spend), Applied)
    reversed_ = await deposits.report(at(DepositState.REVERSED))
    assert reversed_.state is DepositState.REVERSED
    owed = await ledger.store.account("receivable:customer:a")
    custody = await ledger.store.account("custody:chain")
    assert owed is not None
    assert custody is not None
    assert (await available(ledger), owed.held, custody.held) == (0, 500, 0)
    assert await deposits.report(at(DepositState.REVERSED)) == reversed_


async def test_one_reversed_before_it_was_credited_moves_nothing(ledger: Ledger) -> None:
    deposits = Deposits(ledger)
    await deposits.report(at(DepositState.DETECTED))
    await deposits.report(at(DepositState.REVERSED))
    assert (await deposits.report(at(DepositState.CREDITED))).state is DepositState.REVERSED
    assert await available(ledger) == 0
