"""Channels on a real chain: what was signed is claimed, once, and stands in the books."""

from __future__ import annotations

import ast
import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import farebox.channels
import farebox.rails.evm.channels
from farebox.bootstrap.evm_channels import NOBODY
from farebox.channels import HttpPaymentCodec
from farebox.channels.chain import ChannelStatus
from farebox.errors import InvalidInput, RailRejected
from farebox.rails.evm import reads, sending
from farebox.rails.evm.channels import BatchPolicy
from farebox.rails.evm.fees import Fees
from farebox.wire.subrav.keys import KeyType, SigningKey
from tests.integration.evm_channel_world import ASSET, TOKEN, House, Payer, house_of, payer_of
from tests.integration.evm_channels import DAY_S, FRAGMENT
from tests.peers.anvil import CHAIN_ID, Anvil
from tests.waiting import eventually

pytestmark = pytest.mark.peer


@pytest.fixture
def anvil(anvil_ahead: Anvil) -> Anvil:
    return anvil_ahead


@pytest.fixture
async def house(anvil: Anvil, tmp_path: Path) -> AsyncIterator[House]:
    async with house_of(anvil, tmp_path) as found:
        yield found


@pytest.fixture
async def payer(house: House, tmp_path: Path) -> AsyncIterator[Payer]:
    async with payer_of(house, tmp_path) as found:
        yield found


async def wait(house: House, seconds: int) -> None:
    """Let time pass on the chain."""
    await asyncio.to_thread(house.anvil.rpc, "evm_increaseTime", seconds)
    await house.desk.mine(3)


@pytest.mark.parametrize("asset", [ASSET, TOKEN])
async def test_vouchers_are_claimed_and_the_rest_goes_back(
    house: House, tmp_path: Path, asset: str
) -> None:
    async with payer_of(house, tmp_path, asset) as payer:
        channel = await payer.open(500_000)
        assert channel.status is ChannelStatus.ACTIVE
        assert (await payer.open(500_000)).epoch == 0  # a top-up
        assert await house.payee.balance(payer.channel, asset) == 1_000_000
        for _ in range(3):
            await payer.pays(100_000)
        assert await house.settle(payer.channel) == ({FRAGMENT: 300_000}, {})
        assert await house.custody(asset) == 300_000
        if asset == TOKEN:
            assert house.token.call("balanceOf", house.desk.sender) == 300_000
        await payer.pays(50_000)
        await payer.done(payer.contract.request_close(payer.channel))
        assert await house.settle(payer.channel) == ({FRAGMENT: 50_000}, {})
        await wait(house, DAY_S)
        closed = await payer.done(payer.contract.close(payer.channel))
        assert closed.status is ChannelStatus.CLOSED
        assert await house.custody(asset) == 350_000
        if asset == TOKEN:
            assert house.token.call("balanceOf", payer.desk.sender) == 10**9 - 350_000


async def test_several_channels_are_claimed_in_one_transaction(
    house: House, tmp_path: Path
) -> None:
    async with payer_of(house, tmp_path) as one, payer_of(house, tmp_path, TOKEN) as other:
        for payer in (one, other):
            await payer.open()
            await payer.pays(1_000)
            await house.claims.trigger(payer.channel)
        before = house.anvil.rpc("eth_getTransactionCount", house.desk.sender, "latest")
        assert await house.send() == 2
        await house.settle(one.channel)
        await house.settle(other.channel)
        after = house.anvil.rpc("eth_getTransactionCount", house.desk.sender, "latest")
        assert int(after, 16) - int(before, 16) == 1
        assert (await house.custody(), await house.custody(TOKEN)) == (1_000, 1_000)


async def test_a_channel_counts_once_no_reorganisation_can_take_it_back(
    house: House, payer: Payer
) -> None:
    opening = asyncio.ensure_future(payer.opening(1_000_000))
    await eventually(lambda: house.reader.at(payer.channel, "latest"))
    assert await house.payee.channel(payer.channel) is None
    await asyncio.to_thread(house.anvil.reorganise, 1)
    assert (await payer.done(opening)).status is ChannelStatus.ACTIVE
    assert await house.payee.balance(payer.channel, ASSET) == 1_000_000


async def test_a_claim_that_a_reorganisation_takes_back_is_not_booked_and_paid_again(
    house: House, payer: Payer
) -> None:
    await payer.open()
    await payer.pays(7_000)
    await house.claims.trigger(payer.channel)
    assert await house.send() == 1
    await asyncio.to_thread(house.anvil.reorganise, 1)
    assert await house.claims.trigger(payer.channel) == ({}, {FRAGMENT: "underway"})
    assert await house.custody() == 0
    assert await house.settle(payer.channel) == ({FRAGMENT: 7_000}, {})
    assert await house.custody() == 7_000


async def test_a_stale_close_is_answered_by_whoever_was_away(house: House, payer: Payer) -> None:
    await payer.open()
    await payer.pays(1_000)
    await house.settle(payer.channel)
    await payer.pays(9)  # too little to be claimed before
    await payer.done(payer.contract.request_close(payer.channel))
    for _ in range(4):  # one restart after the other
        house.again()
        await house.claims.run_once()
        await house.send()
        await house.desk.mine(3)
    assert (await house.row(payer.channel)).unclaimed_amount == 0
    await wait(house, DAY_S)
    await payer.done(payer.contract.close(payer.channel))
    assert await house.custody() == 1_009


async def test_what_was_claimed_too_late_is_lost_and_said(house: House, payer: Payer) -> None:
    await payer.open()
    await payer.pays(1_000)
    await payer.done(payer.contract.request_close(payer.channel))
    await wait(house, DAY_S)
    await payer.done(payer.contract.close(payer.channel))
    house.again()
    assert await house.settle(payer.channel) == ({}, {FRAGMENT: "channel_closed"})
    loss = await house.desk.ledger.store.account("expense:channel-loss:ETH")
    assert loss is not None
    assert loss.held == 1_000


async def test_no_more_is_served_than_the_collateral_covers(house: House, payer: Payer) -> None:
    await payer.open(1_000)
    await payer.pays(900)
    with pytest.raises(InvalidInput, match="HUB_INSUFFICIENT_FUNDS"):
        await payer.pays(101)
    await payer.pays(100)


async def test_a_voucher_that_the_contract_refuses_holds_up_no_other(
    house: House, tmp_path: Path
) -> None:
    async with payer_of(house, tmp_path) as good, payer_of(house, tmp_path) as bad:
        for payer in (good, bad):
            await payer.open()
            await payer.pays(1_000)
        row = await house.row(bad.channel)
        assert row.accepted is not None
        forged = bad.key.sign_sub_rav(
            await house.client.generate_proposal(bad.channel, FRAGMENT, 1)
        )
        wrong = type(forged)(forged.sub_rav, bytes(64))
        with pytest.raises(Exception, match="waits"):
            await house.payee.claim(wrong)
        await house.claims.trigger(good.channel)
        assert await house.send() == 1
        with pytest.raises(RailRejected):
            await house.payee.claim(wrong)
        assert await house.settle(good.channel) == ({FRAGMENT: 1_000}, {})


async def test_what_is_worth_less_than_its_gas_waits_for_more(anvil: Anvil, tmp_path: Path) -> None:
    async with (
        house_of(anvil, tmp_path, batches=BatchPolicy(gas_percent=100)) as house,
        payer_of(house, tmp_path) as payer,
    ):
        await payer.open(10**18)
        await payer.pays(1_000)
        await house.claims.trigger(payer.channel)
        assert await house.send() == 0
        await payer.pays(10**17)
        await house.claims.trigger(payer.channel)
        assert await house.send() == 1


async def test_many_that_are_not_worth_their_gas_hold_up_none_that_is(
    anvil: Anvil, tmp_path: Path
) -> None:
    async with (
        house_of(anvil, tmp_path, batches=BatchPolicy(size_max=3, gas_percent=100)) as house,
        payer_of(house, tmp_path) as dust,
        payer_of(house, tmp_path) as payer,
    ):
        for name in ("one", "two", "three"):
            await dust.open(10**18, name)
            await dust.pays(1_000, name)
        await house.claims.trigger(dust.channel)
        offered = await house.desk.sending.offer()
        assert isinstance(offered, Fees)
        gas = 72_000 * offered.max_fee
        await payer.open(10**18)
        await payer.pays(gas * 3 // 2)  # pays for its own claim, and for none besides
        await house.claims.trigger(payer.channel)
        assert await house.send() == 1
        assert await house.settle(payer.channel) == ({FRAGMENT: gas * 3 // 2}, {})


async def test_what_nobody_knows_the_worth_of_is_claimed(anvil: Anvil, tmp_path: Path) -> None:
    async with (
        house_of(anvil, tmp_path, batches=BatchPolicy()) as house,
        payer_of(house, tmp_path, TOKEN) as payer,
    ):
        await payer.open()
        await payer.pays(1)
        await house.claims.trigger(payer.channel)
        assert await house.send() == 1


async def test_what_is_signed_is_claimed_while_nobody_is_trusted_for_want_of_a_rate(
    house: House, payer: Payer
) -> None:
    await payer.open()
    await payer.pays(1_000)
    house.client.policy = NOBODY
    with pytest.raises(InvalidInput, match="HUB_INSUFFICIENT_FUNDS"):
        await payer.pays(1)
    assert await house.settle(payer.channel) == ({FRAGMENT: 1_000}, {})
    assert await house.custody() == 1_000


async def test_two_processes_that_claim_at_once_move_each_unit_once(
    house: House, payer: Payer
) -> None:
    await payer.open()
    await payer.pays(1_000)
    await house.claims.trigger(payer.channel)
    first = house.payee
    house.again()
    await house.claims.trigger(payer.channel)
    assert sum(await asyncio.gather(first.run(), house.payee.run())) >= 1
    assert await house.settle(payer.channel) == ({FRAGMENT: 1_000}, {})
    await house.desk.finish()
    assert await house.custody() == 1_000
    sub = await house.reader.sub_at(payer.channel, FRAGMENT, "latest")
    assert sub is not None
    assert sub.claimed == 1_000


async def test_a_house_puts_the_contract_where_it_is_missing(tmp_path: Path) -> None:
    (tmp_path / "anvil").mkdir()  # a chain of its own
    chain = Anvil(tmp_path / "anvil")
    await asyncio.to_thread(chain.start)
    try:
        async with house_of(chain, tmp_path, is_deployed=False) as house:
            with pytest.raises(RailRejected, match="no contract"):
                await house.reader.check()
            await house.send()
            await house.desk.finish()
            await house.reader.check()
            assert await house.send() == 0
            assert int(chain.rpc("eth_getTransactionCount", house.desk.sender, "latest"), 16) == 1
            await asyncio.to_thread(chain.rpc, "anvil_setCode", house.reader.terms.contract, "0xfe")
            with pytest.raises(RailRejected, match="another contract"):
                await house.reader.check()
    finally:
        await asyncio.to_thread(chain.stop)


async def test_the_payer_of_the_page_pays(house: House, payer: Payer) -> None:
    page = (Path(__file__).parents[2] / "docs" / "channels.md").read_text()
    (block,) = re.findall(r"<!-- on anvil -->\n```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    for room in (farebox.channels, farebox.rails.evm.channels, sending, reads):
        names |= vars(room)
    names |= {"KeyType": KeyType, "SigningKey": SigningKey, "secrets": secrets}
    names |= {"chain_id": CHAIN_ID, "rpc": house.rpc, "usdc": house.token.address.lower()}
    names |= {"payee_did": house.payee.did}
    names |= {"wallet": payer.desk.keys, "ledger": payer.desk.ledger}
    code = compile(block, "docs/channels.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    await payer.done(eval(code, names))
    assert await house.payee.balance(names["channel"].channel_id, TOKEN) == 50_000_000
    codec = HttpPaymentCodec()
    asked = codec.decode(await names["payer"].sign_and_encode(None, codec))
    assert asked.signed_sub_rav is None  # the first request is served on credit
