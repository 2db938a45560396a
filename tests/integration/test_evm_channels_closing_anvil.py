"""A payer asks its payee to close at once, both sign, and one transaction settles everything."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.channels.chain import ChannelStatus
from farebox.channels.closing import Agreed
from farebox.channels.weighing import Rejected
from farebox.errors import InvalidInput, RailRejected
from farebox.rails.evm.channels import BatchPolicy
from farebox.wire.subrav.keys import KeyType, SigningKey
from farebox.wire.subrav.model import ErrorCode
from tests.integration.evm_channel_world import ASSET, House, Payer, house_of, payer_of
from tests.integration.evm_channels import DAY_S, FRAGMENT
from tests.peers.anvil import Anvil

pytestmark = pytest.mark.peer
COLLATERAL = 1_000_000


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


async def refused(house: House, payer: Payer) -> ErrorCode:
    told = await house.closing.ask(payer.channel)
    assert isinstance(told, Rejected)
    return told.code


async def status(house: House, payer: Payer, block: str = "latest") -> str:
    channel = await house.reader.at(payer.channel, block)
    assert channel is not None
    return channel.status.name


async def test_one_transaction_pays_all_keys_and_gives_back_the_rest_and_it_opens_anew(
    house: House, payer: Payer
) -> None:
    await payer.open(COLLATERAL)
    phone = SigningKey(KeyType.EIP712, secrets.token_bytes(32), payer.contract.terms.contract_bytes)
    await payer.done(payer.contract.authorize_sub_channel(payer.channel, "phone", phone.public))
    last = await payer.pays(2_500)
    laptop, payer.key = payer.key, phone
    await payer.pays(500, "phone")
    payer.key = laptop
    with pytest.raises(RailRejected):
        await payer.contract.close(payer.channel, (last,))
    before = await house.desk.sending.chain.used(house.desk.sender)
    assert await house.closing.ask(payer.channel) == Agreed(payer.channel)
    assert await house.closing.ask(payer.channel) == Agreed(payer.channel), "it is asked again"
    await house.close()
    assert await status(house, payer, await house.reader.final_block()) == "CLOSED"
    assert await house.custody() == 3_000
    await house.desk.finish()
    assert await house.desk.sending.chain.used(house.desk.sender) - before == 1
    assert await refused(house, payer) is ErrorCode.CHANNEL_CLOSED
    # Opened anew, it is in its next epoch, where all begins at nothing.
    assert (await payer.open()).epoch == 1
    house.again()  # what the chain said is believed for seconds
    await payer.pays(700)
    assert (await house.settle(payer.channel))[0] == {FRAGMENT: 700}
    assert await house.custody() == 3_700


async def test_nothing_is_closed_while_something_is_owed(house: House, payer: Payer) -> None:
    await payer.open()
    await payer.pays(1_000)
    owed = await house.client.generate_proposal(payer.channel, FRAGMENT, 234)
    assert await refused(house, payer) is ErrorCode.PAYMENT_REQUIRED
    assert (await house.client.confirm_signed_proposal(payer.key.sign_sub_rav(owed))).is_valid
    assert isinstance(await house.closing.ask(payer.channel), Agreed)
    await house.close()
    assert await house.custody() == 1_234


async def test_from_the_agreement_on_nobody_is_served_not_even_with_a_new_key(
    house: House, payer: Payer
) -> None:
    await payer.open()
    await payer.pays(1_000)
    phone = SigningKey(KeyType.EIP712, secrets.token_bytes(32), payer.contract.terms.contract_bytes)
    await payer.done(payer.contract.authorize_sub_channel(payer.channel, "phone", phone.public))
    assert isinstance(await house.closing.ask(payer.channel), Agreed)
    for is_another_process in (False, True):
        for fragment in (FRAGMENT, "phone"):
            with pytest.raises(InvalidInput, match="CHANNEL_CLOSED"):
                await payer.pays(1, fragment)
        if not is_another_process:
            house.again()
    await house.close()
    assert await house.custody() == 1_000


async def test_what_opens_anew_before_it_was_booked_loses_nothing(
    house: House, payer: Payer
) -> None:
    await payer.open()
    await payer.pays(1_000)
    assert isinstance(await house.closing.ask(payer.channel), Agreed)
    await house.closing.run()
    await payer.desk.mine(1)
    assert (await payer.open()).epoch == 1
    house.again()
    with pytest.raises(InvalidInput, match="CHANNEL_CLOSED"):
        await payer.pays(1)
    await house.close()
    house.again()
    await payer.pays(700)
    assert await house.settle(payer.channel) == ({FRAGMENT: 700}, {})
    assert await house.custody() == 1_700


async def test_a_close_that_a_reorganisation_takes_back_is_closed_again(
    house: House, payer: Payer
) -> None:
    await payer.open()
    await payer.pays(1_000)
    assert isinstance(await house.closing.ask(payer.channel), Agreed)
    await house.closing.run()
    await house.desk.mine(1)
    assert await status(house, payer) == "CLOSED"
    await asyncio.to_thread(house.anvil.reorganise, 1)
    assert await house.custody() == 0
    await house.close()
    assert await status(house, payer) == "CLOSED"
    assert await house.custody() == 1_000


async def test_a_payer_that_closed_by_itself_meanwhile_has_paid_and_is_booked(
    house: House, payer: Payer
) -> None:
    await payer.open()
    last = await payer.pays(1_000)
    await payer.done(payer.contract.request_close(payer.channel))
    await asyncio.to_thread(house.anvil.rpc, "evm_increaseTime", DAY_S)
    await house.desk.mine(3)
    house.again()
    assert isinstance(await house.closing.ask(payer.channel), Agreed)
    await payer.done(payer.contract.close(payer.channel, (last,)))
    await house.close()
    assert await house.custody() == 1_000


async def test_a_channel_that_brought_less_than_its_gas_is_closed_by_its_payer(
    anvil: Anvil, tmp_path: Path
) -> None:
    async with (
        house_of(anvil, tmp_path, batches=BatchPolicy(gas_percent=10)) as house,
        payer_of(house, tmp_path, ASSET) as payer,
    ):
        await payer.open(10**18)
        await payer.pays(1_000)
        assert await refused(house, payer) is ErrorCode.HUB_INSUFFICIENT_FUNDS
        await payer.pays(10**17)
        assert isinstance(await house.closing.ask(payer.channel), Agreed)
        await house.close()
        closed = await house.payee.channel(payer.channel)
        assert closed is not None
        assert closed.status is ChannelStatus.CLOSED
