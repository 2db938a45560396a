"""Whatever becomes of a card payment: the books say what its provider owes us, to the cent."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from farebox.clock import ManualClock
from farebox.ledger.model import ABSENT, Applied, Kind, Open, Put, Transfer, Unit
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger
from farebox.money import BTC
from farebox.payments.cards.booking import EXPENSE, Booking
from farebox.payments.cards.model import CardPayment, GivenBack, Phase
from farebox.payments.cards.records import CARD_MONEY, GIVING
from farebox.payments.cards.terms import CardTerms
from farebox.payments.deposits import DEPOSIT, DEPOSIT_REQUEST, Deposit, Deposits, DepositState
from farebox.payments.exchange import Quoted
from farebox.payments.maturity import MATURING, unripe_msat
from farebox.payments.model import OPERATION, Operation, OperationState
from farebox.stores.sqlite import SqliteStore

ACCOUNT, CUSTODY, PAYABLE = "customer:a", "custody:stripe:main:USD", "payable:stripe:main:USD"
CENT_MSAT, PAID, CHARGED = 10_000, 1_000, 1_065
TERMS = CardTerms(provider="stripe", currencies={}, maturity_s=86_400)


class World:
    """A book with one card payment in it, and the provider that tells of it."""

    def __init__(self, path: Path) -> None:
        records: list[RecordType[Any]] = [
            CARD_MONEY,
            GIVING,
            DEPOSIT,
            DEPOSIT_REQUEST,
            MATURING,
            OPERATION,
        ]
        self.clock = ManualClock()
        self.store = SqliteStore(path / "book.db", records, clock=self.clock)
        self.ledger = Ledger(self.store, self.clock)
        self.booking = Booking(TERMS, self.ledger)
        self.told = CardPayment(
            "dep_1", "cs_1", "pi_1", Phase.CAPTURED, "USD", captured=CHARGED, fees=61
        )
        self.spent_msat = 0

    async def credit(self, payment: str = "pi_1", custody: str = CUSTODY) -> None:
        """A payment arrives."""
        deposit = Deposit(
            source="stripe",
            reference=payment,
            account=ACCOUNT,
            custody=custody,
            asset="USD",
            amount_msat=PAID * CENT_MSAT,
            currency="USD",
            amount=PAID,
            state=DepositState.CREDITED,
            at=self.clock.now_ns(),
            quoted=Quoted("USD", str(CENT_MSAT), 0),
            matures_at=TERMS.matures_at(self.clock.now_ns() // 10**9),
        )
        await Deposits(self.ledger).report(deposit)

    async def spend(self, amount_msat: int) -> None:
        """The account buys something."""
        available = await self.of(ACCOUNT)
        amount_msat = min(amount_msat, available)
        self.spent_msat += amount_msat
        steps = (
            Open("revenue", BTC.code, Kind.REVENUE),
            Transfer(ACCOUNT, "revenue", amount_msat, "sale"),
        )
        unit = Unit(f"sale-{self.spent_msat}-{self.clock.now_ns()}", steps)
        assert isinstance(await self.store.commit(unit), Applied)

    async def of(self, name: str) -> int:
        """What stands on an account, on its own side."""
        found = await self.store.account(name)
        return abs(found.debits_posted - found.credits_posted) if found else 0

    async def hear(self) -> None:
        """A notice, of anything."""
        await self.booking.book("pi_1", self.stands)

    async def stands(self) -> CardPayment:
        return self.told

    async def assert_right(self) -> None:
        """Provider, account and house: each has what is theirs."""
        told = self.told
        given = sum(one.amount for one in told.refunds)
        lies_there = told.captured - told.fees - told.disputed - given
        assert await self.of(CUSTODY) - await self.of(PAYABLE) == lies_there
        assert 0 in (await self.of(CUSTODY), await self.of(PAYABLE))
        of_account = PAID - min(PAID, told.disputed + given)
        has_msat = await self.of(ACCOUNT) - await self.of(f"receivable:{ACCOUNT}")
        assert has_msat == of_account * CENT_MSAT - self.spent_msat
        assert 0 in (await self.of(ACCOUNT), await self.of(f"receivable:{ACCOUNT}"))
        ours = (await self.of("revenue")) - (await self.of(EXPENSE)) - self.spent_msat
        assert ours == (lies_there - of_account) * CENT_MSAT
        row = await self.store.get(MATURING, ACCOUNT)
        unripe = unripe_msat(row.value if row else None, self.clock.now_ns())
        assert unripe == of_account * CENT_MSAT  # what came again may be taken again


@pytest.mark.parametrize("seed", range(25))
async def test_disputes_refunds_and_fees_in_any_order_are_booked_to_the_cent(
    seed: int, tmp_path: Path
) -> None:
    dice, world = random.Random(seed), World(tmp_path)
    await world.credit()
    for _ in range(20):
        told = world.told
        given = sum(one.amount for one in told.refunds)
        left = told.captured - told.disputed - given
        match dice.choice(("spend", "dispute", "win", "refund", "fee", "notice", "notice")):
            case "spend":
                await world.spend(dice.randrange(1, 4_000_000))
            case "dispute" if left:
                world.told = replace(told, disputed=told.disputed + dice.randint(1, left))
            case "win" if told.disputed:
                world.told = replace(told, disputed=told.disputed - dice.randint(1, told.disputed))
            case "refund" if left:
                back = GivenBack(f"re_{len(told.refunds)}", dice.randint(1, left))
                world.told = replace(told, refunds=(*told.refunds, back))
            case "fee":
                change = dice.choice((15, 1_500, -min(told.fees, 40)))
                world.told = replace(told, fees=told.fees + change)
            case _:
                for _ in range(dice.randint(1, 3)):
                    await world.hear()
                await world.assert_right()
        world.clock.advance(1)
    await world.hear()
    await world.assert_right()
    await world.store.close()


async def test_a_refund_that_was_given_up_and_was_made_all_the_same_leaves_the_account(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    await world.credit()
    given_up = Operation(
        id="op", kind="refund", account=ACCOUNT, hold="", plan=b"", state=OperationState.REJECTED
    )
    await world.store.commit(Unit("op", puts=(Put(OPERATION, "op", given_up, ABSENT),)))
    world.told = replace(world.told, refunds=(GivenBack("re_1", 300, "op"),))
    for _ in range(2):
        await world.hear()
        await world.assert_right()
    await world.store.close()


async def test_processes_that_hear_the_same_at_once_book_it_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.credit()
    others = [Booking(TERMS, Ledger(world.store, world.clock)) for _ in range(3)]
    for disputed in (0, 400, 100):
        world.told = replace(world.told, disputed=disputed)
        await asyncio.gather(*(one.book("pi_1", world.stands) for one in (world.booking, *others)))
        await world.assert_right()
    await world.store.close()
