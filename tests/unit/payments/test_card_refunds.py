"""What a refund notes of its payment: how it ended, and what of it is still to ripen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import msgspec
import pytest

from farebox.errors import RailRejected
from farebox.ledger.model import ABSENT, Applied, Put, Unit
from farebox.payments.cards.connector import Connector
from farebox.payments.cards.model import Decline, Declined, GivenBack
from farebox.payments.cards.records import GIVING, Giving
from farebox.payments.cards.refunds import Job, Refunds
from farebox.payments.maturity import MATURING, unripe_msat
from farebox.payments.method import RefundQuote, RefundRequest, RefundResult
from farebox.payments.model import OPERATION, Operation, Rejected
from tests.unit.payments.test_card_booking import (
    ACCOUNT,
    CENT_MSAT,
    CUSTODY,
    PAID,
    TERMS,
    World,
)

PAYMENT, NUMBER, GIVEN = "stripe:pi_1:0", "stripe:pi_1:0:0", 300
JOB = msgspec.json.encode(Job("op", NUMBER, "pi_1", GIVEN, "USD"))


@dataclass
class Desk:
    """A provider that answers a refund as it was told to."""

    world: World
    answer: GivenBack | Declined

    def refunds(self) -> Refunds:
        return Refunds(TERMS, cast("Connector", self), self.world.ledger)

    async def sync(self, reference: str) -> object:
        if reference != "pi_1":
            raise RailRejected("no such payment")
        return self.world.told

    async def refund(self, *told: object, asked_before: bool) -> GivenBack | Declined:
        del told, asked_before
        return self.answer


async def opened(tmp_path: Path, answer: GivenBack | Declined) -> Desk:
    """A payment, and a refund of it that is under way."""
    world = World(tmp_path)
    await world.credit()
    operation = Operation(id="op", kind="refund", account=ACCOUNT, hold="", plan=b"")
    puts = (
        Put(OPERATION, "op", operation, ABSENT),
        Put(GIVING, NUMBER, Giving(PAYMENT, "op", GIVEN), ABSENT),
    )
    assert isinstance(await world.store.commit(Unit("open", puts=puts)), Applied)
    return Desk(world, answer)


async def unripe(world: World) -> int:
    row = await world.store.get(MATURING, ACCOUNT)
    return unripe_msat(row.value if row else None, world.clock.now_ns())


async def test_what_went_back_is_not_unripe_from_its_closing_commit_on(tmp_path: Path) -> None:
    desk = await opened(tmp_path, GivenBack("re_1", GIVEN, "op"))
    world = desk.world
    done = await desk.refunds().give(JOB, asked_before=False)
    assert isinstance(done, RefundResult)
    await world.store.commit(Unit("close", puts=done.puts))
    assert await unripe(world) == (PAID - GIVEN) * CENT_MSAT
    world.told = replace(world.told, refunds=(GivenBack("re_1", GIVEN, "op"),))
    await world.hear()
    assert await unripe(world) == (PAID - GIVEN) * CENT_MSAT  # told again, it is the same
    await world.store.close()


@pytest.mark.parametrize("says", ["provider", "operator"])
async def test_what_was_not_given_back_may_be_asked_for_again(says: str, tmp_path: Path) -> None:
    desk = await opened(tmp_path, Declined(Decline.HARD, "no", "no"))
    refunds, world = desk.refunds(), desk.world
    asked = RefundRequest("another", PAID, asset="USD", account=ACCOUNT)
    assert await refunds.quote(asked) == RefundQuote(PAID - GIVEN, 0, 0)
    if says == "provider":
        ended = await refunds.give(JOB, asked_before=False)
        assert isinstance(ended, Rejected)
        puts = ended.changes.puts
    else:
        puts = await refunds.give_up(JOB)
    await world.store.commit(Unit("close", puts=puts))
    assert await refunds.quote(asked) == RefundQuote(PAID, 0, 0)
    assert await unripe(world) == PAID * CENT_MSAT
    await world.store.close()


async def test_a_payment_that_its_provider_has_forgotten_is_in_nobodys_way(tmp_path: Path) -> None:
    desk = await opened(tmp_path, GivenBack("re_1", GIVEN, "op"))
    await desk.world.credit("pi_newer", custody=CUSTODY)
    await desk.world.credit("pi_1_elsewhere", custody="custody:stripe:another:USD")
    asked = RefundRequest("another", PAID - GIVEN, asset="USD", account=ACCOUNT)
    assert await desk.refunds().quote(asked) == RefundQuote(PAID - GIVEN, 0, 0)
    await desk.world.store.close()
