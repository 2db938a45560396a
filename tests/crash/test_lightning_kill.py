"""A house with a real Lightning node is killed at every commit and every call to the node.

After each death a fresh process goes on: what was paid in is credited once, what was to be paid out
is paid once, and the books are verified. The other node is the witness.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.exploring import die_at, left_behind, rehearse
from tests.crash.points import Kind, points
from tests.crash.scenarios import patiently
from tests.crash.world import Nursery, Outside, Run, new_run
from tests.integration.lightning_house import lightning_settings
from tests.peers.lnd import LightningNetwork

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(900)]

DEPOSIT_MSAT, REFUND_MSAT = 60_000, 20_000
_TRIES_MAX = 240
_PAUSE_S = 0.25
#: Longer than any jump of the house's clock.
_EXPIRY_S = 10 * 86_400


@dataclass
class Story:
    """One house on its node, and the payer's side of it."""

    run: Run
    network: LightningNetwork
    invoice: str = ""
    claim: str = ""
    back: str = ""

    async def ask(self) -> None:
        """Ask for a deposit; again after a crash, it is the same one or another."""
        body = {"method": "lightning", "amount": DEPOSIT_MSAT}
        reply = await patiently(lambda: self.run.post("/v1/deposits", body, name="the-deposit"))
        assert reply.status == 201, reply
        self.invoice, self.claim = reply.json["pay"], reply.json["claim_secret"]

    async def pay_in(self) -> None:
        """Pay it, and wait until the house has heard of it."""
        if await self._paid_in_msat() == 0:
            assert await asyncio.to_thread(self.network.payer.pay, self.invoice) == "SUCCEEDED"
        body = {"initial_balance_token": self.invoice, "claim_secret": self.claim}
        for _ in range(_TRIES_MAX):
            reply = await patiently(lambda: self.run.post("/create", body))
            if reply.status == 200:
                self.run.bearers = [reply.json["api_key"]]
                return
            assert reply.json["code"] == "deposit_unpaid", reply
            await asyncio.sleep(_PAUSE_S)
        raise AssertionError("never credited")

    async def refund(self) -> None:
        """Pay back a part, under one name."""
        if not self.back:
            self.back = await asyncio.to_thread(
                self.network.payer.invoice, REFUND_MSAT, "", _EXPIRY_S
            )
        body = {"destination": self.back}
        bearer = self.run.bearers[0]
        reply = await patiently(
            lambda: self.run.post("/v1/refunds", body, bearer=bearer, name="the-refund")
        )
        assert reply.status == 200, reply
        assert reply.json["amount_msat"] == REFUND_MSAT

    async def prepare_refund(self) -> None:
        await self.ask()
        await self.pay_in()

    async def assert_right(self) -> None:
        """House, books and the other node agree to the unit."""
        await self.run.settle()
        books = await self.run.books()
        assert books.broken == ""
        assert books.unfinished == ()
        assert books.pending == []
        paid_in = await self._paid_in_msat()
        paid_out = 0
        if self.back:
            paid_out = await asyncio.to_thread(self.network.payer.received_msat, self.back)
            assert paid_out == REFUND_MSAT
        assert books.custody_msat == paid_in - paid_out
        assert books.customers_msat == paid_in - paid_out
        if self.run.bearers:
            assert await self.run.balance_msat() == books.customers_msat

    async def _paid_in_msat(self) -> int:
        return await asyncio.to_thread(self.network.house.received_msat, self.invoice)


def story(
    nursery: Nursery, around: Outside, path: Path, network: LightningNetwork, macaroon: str
) -> Story:
    terms = {**lightning_settings(network, macaroon), "invoice_expiry_s": _EXPIRY_S}
    return Story(new_run(nursery, around, path, settings={"lightning": terms}), network)


Act = Callable[[Story], Awaitable[None]]


async def _nothing(_: Story) -> None:
    """There is nothing to be done before."""


ACTS: dict[str, tuple[Act, Act]] = {
    "ask": (_nothing, Story.ask),
    "pay-in": (Story.ask, Story.pay_in),
    "refund": (Story.prepare_refund, Story.refund),
}


@pytest.mark.parametrize("name", ACTS)
async def test_no_death_loses_or_doubles_a_unit(
    name: str, nursery: Nursery, around: Outside, tmp_path: Path, lightning: LightningNetwork
) -> None:
    macaroon = await asyncio.to_thread(lightning.house.bake)
    prepare, act = ACTS[name]

    def fresh() -> Story:
        return story(nursery, around, tmp_path, lightning, macaroon)

    passed = await rehearse(fresh(), prepare, act)
    passed.pop(Kind.ANSWER, None)  # what an answer's loss does, other crash tests show
    # Before a commit book and node stand as after the one before it: what lies between is NODE's.
    where = [one for one in points(passed) if one.after or one.kind is Kind.NODE]
    kinds = {point.kind for point in where}
    assert Kind.COMMIT in kinds
    assert (Kind.NODE in kinds) == (name != "pay-in")
    deaths = [point for point in where if await die_at(fresh(), prepare, act, point)]
    # What the background does moves a point or two from run to run; most are met.
    assert len(deaths) >= len(where) // 2, (where, deaths)
    assert all(macaroon.encode() not in raw for raw in left_behind(tmp_path))
