"""Whatever the order of vouchers, claims, reorganisations, restarts, closings: the sums agree."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from farebox.channels.chain import ChannelStatus
from farebox.channels.postings import custody_account
from tests.integration.evm_channel_world import House, Payer, house_of, payer_of
from tests.integration.evm_channels import FRAGMENT
from tests.integration.evm_desk import CONFIRMATIONS
from tests.peers.anvil import Anvil

pytestmark = pytest.mark.peer
STEPS = 40

COLLATERAL = 100_000
ACTS = ("pay",) * 6 + ("claim", "send", "mine", "reorganise", "restart") * 2 + ("top up", "close")


@pytest.fixture
def anvil(anvil_ahead: Anvil) -> Anvil:
    return anvil_ahead


class Life:
    """Two payers and a house; what was promised and locked is counted beside them."""

    def __init__(self, house: House, payers: list[Payer], seed: int) -> None:
        self.house = house
        self.payers = payers
        self.chance = random.Random(seed)
        self.promised = dict.fromkeys(range(len(payers)), 0)
        self.told: list[str] = []

    async def step(self) -> None:
        which = self.chance.randrange(len(self.payers))
        act, payer = self.chance.choice(ACTS), self.payers[which]
        self.told.append(f"{act} {which}")
        house = self.house
        match act:
            case "pay":
                amount = self.chance.randrange(1, COLLATERAL // 50)
                await payer.pays(amount)
                self.promised[which] += amount
            case "claim":
                await house.claims.trigger(payer.channel)
            case "send":
                await house.send()
            case "mine":
                await house.desk.mine(self.chance.randrange(1, CONFIRMATIONS + 2))
            case "reorganise":
                depth = self.chance.randrange(1, CONFIRMATIONS)
                await asyncio.to_thread(house.anvil.reorganise, depth)
            case "restart":
                house.again()
            case "top up":
                await payer.open(COLLATERAL)
            case "close":
                await self.close(payer)

    async def close(self, payer: Payer) -> None:
        """A payer that wants out is answered, and opens anew."""
        await payer.done(payer.contract.request_close(payer.channel))
        self.house.again()
        await self.house.settle(payer.channel)
        await asyncio.to_thread(self.house.anvil.rpc, "evm_increaseTime", 86_400)
        await self.house.desk.mine()
        closed = await payer.done(payer.contract.close(payer.channel))
        assert closed.status is ChannelStatus.CLOSED
        await payer.open(COLLATERAL)
        self.house.again()

    async def check(self) -> None:
        """Everything promised has come, and stands where the contract says."""
        for payer in self.payers:
            await self.house.settle(payer.channel)
            row = await self.house.row(payer.channel)
            sub = await self.house.reader.sub_at(payer.channel, FRAGMENT, "latest")
            assert sub is not None
            assert row.unclaimed_amount == 0
            assert sub.epoch != row.epoch or sub.claimed == row.claimed_amount
            left = await self.house.desk.ledger.store.account(custody_account(row.backing))
            assert left is not None
            assert left.held == 0
        assert await self.house.custody() == sum(self.promised.values())
        losses = await self.house.desk.ledger.store.account("expense:channel-loss:ETH")
        assert losses is None or losses.held == 0


@pytest.mark.parametrize("seed", range(3))
async def test_the_sums_agree_whatever_the_order_anvil(
    anvil: Anvil, tmp_path: Path, seed: int
) -> None:
    async with AsyncExitStack() as opened:
        house = await opened.enter_async_context(house_of(anvil, tmp_path))
        payers = [await opened.enter_async_context(payer_of(house, tmp_path)) for _ in range(2)]
        for payer in payers:
            await payer.open(COLLATERAL)
            await payer.pays(1)
        life = Life(house, payers, seed)
        life.promised = {0: 1, 1: 1}
        try:
            for _ in range(STEPS):
                await life.step()
            await life.check()
        except BaseException:
            print("; ".join(life.told))
            raise
