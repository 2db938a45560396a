"""What arrives on a real chain is credited once to its owner, whatever the chain does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.errors import InvalidCredential
from tests.integration.evm_counter import SETTLED_BLOCKS, Counter, counter_of
from tests.integration.evm_desk import CONFIRMATIONS, somebody
from tests.peers.anvil import CHAIN_ID, CONTRACTS, Anvil

pytestmark = pytest.mark.peer


@pytest.fixture
async def counter(anvil: Anvil, tmp_path: Path) -> AsyncIterator[Counter]:
    async with counter_of(anvil, tmp_path, USDT="TetherLike", FEE="FeeToken") as found:
        yield found


@pytest.mark.parametrize("asset", ["ETH", "TOK", "USDT"])
async def test_it_is_credited_once_confirmed_and_never_twice(counter: Counter, asset: str) -> None:
    request = await counter.asked(asset)
    await counter.pay(request, 1_000)
    await counter.look()
    assert await counter.states(request) == ["detected"]
    assert await counter.credited(asset) == 0
    await counter.desk.mine(CONFIRMATIONS - 1)
    for counter_now in (counter, counter, counter.again()):
        await counter_now.look()
        assert await counter.credited(asset) == 1_000
    await counter.desk.mine(SETTLED_BLOCKS)
    await counter.again().look()
    await counter.requests.look(request)
    assert await counter.credited(asset) == 1_000
    assert await counter.states(request) == ["credited"]


async def test_more_value_waits_for_more_confirmations(counter: Counter) -> None:
    request = await counter.asked()
    await counter.pay(request, 1_000_000)
    await counter.desk.mine(CONFIRMATIONS - 1)
    await counter.look()
    assert await counter.credited() == 0
    await counter.desk.mine(6 - CONFIRMATIONS)
    await counter.look()
    assert await counter.credited() == 1_000_000


async def test_no_two_requests_have_one_address_and_each_payment_is_its_own(
    counter: Counter,
) -> None:
    requests = await asyncio.gather(*(counter.asked() for _ in range(5)))
    requests.append(await counter.again().asked())
    assert len({one.reference for one in requests}) == 6
    for number, request in enumerate(requests):
        await counter.pay(request, 100 + number)
    await counter.pay(requests[0], 7)
    await counter.desk.mine(CONFIRMATIONS)
    await counter.look()
    assert await counter.credited() == sum(100 + n for n in range(6)) + 7
    assert await counter.states(requests[0]) == ["credited", "credited"]


async def test_what_came_while_nobody_looked_is_found(counter: Counter) -> None:
    request = await counter.asked()
    await counter.look()
    await counter.pay(request, 50)
    await counter.desk.mine(300)
    await counter.again().look()
    assert await counter.credited() == 50


async def test_what_vanishes_is_taken_back_and_credited_again_where_it_is_seen(
    counter: Counter,
) -> None:
    for asset in ("ETH", "TOK"):
        request = await counter.asked(asset)
        sent = await counter.pay(request, 900)
        raw = await asyncio.to_thread(counter.desk.anvil.rpc, "eth_getRawTransactionByHash", sent)
        await counter.desk.mine(CONFIRMATIONS)
        await counter.look()
        assert await counter.credited(asset) == 900
        await asyncio.to_thread(counter.desk.anvil.reorganise, CONFIRMATIONS + 1)
        await counter.look()
        assert await counter.credited(asset) == 0
        assert await counter.states(request) == ["reversed"]
        await asyncio.to_thread(counter.desk.anvil.rpc, "eth_sendRawTransaction", raw)
        await counter.desk.mine(CONFIRMATIONS)
        await counter.again().look()
        assert await counter.credited(asset) == 900
        assert await counter.states(request) == ["credited"]


async def test_a_reorganisation_while_nobody_looked_credits_once(counter: Counter) -> None:
    request = await counter.asked()
    sent = await counter.pay(request, 900)
    raw = await asyncio.to_thread(counter.desk.anvil.rpc, "eth_getRawTransactionByHash", sent)
    await counter.desk.mine(CONFIRMATIONS)
    await counter.look()
    await asyncio.to_thread(counter.desk.anvil.reorganise, CONFIRMATIONS + 1, [(raw, 1)])
    assert counter.desk.anvil.receipt(sent)
    await counter.again().look()
    assert await counter.credited() == 900
    assert await counter.states(request) == ["credited"]
    await counter.desk.mine(SETTLED_BLOCKS)
    await counter.look()
    assert await counter.credited() == 900


async def test_what_contracts_pass_on_is_credited_once_and_goes_with_its_block(
    counter: Counter,
) -> None:
    anvil, request = counter.desk.anvil, await counter.asked("ETH")
    contract = await asyncio.to_thread(anvil.deploy, CONTRACTS / "EtherSender.sol")
    in_vain = await asyncio.to_thread(contract.send, "sendInVain", request.reference, value=70)
    assert (await asyncio.to_thread(anvil.mined, in_vain))["status"] == "0x1"
    sent = await asyncio.to_thread(contract.send, "send", request.reference, value=900)
    await asyncio.to_thread(anvil.mined, sent)
    assert anvil.balance(request.reference) == 900
    raw = await asyncio.to_thread(anvil.rpc, "eth_getRawTransactionByHash", sent)
    await counter.pay(request, 30)
    await counter.desk.mine(CONFIRMATIONS)
    for counter_now in (counter, counter.again()):
        await counter_now.look()
        assert await counter.credited("ETH") == 930
    await asyncio.to_thread(anvil.reorganise, CONFIRMATIONS + 2)
    await counter.look()
    assert await counter.credited("ETH") == 0
    await asyncio.to_thread(anvil.rpc, "eth_sendRawTransaction", raw)
    await counter.desk.mine(CONFIRMATIONS)
    await counter.again().look()
    assert await counter.credited("ETH") == 900
    assert await counter.states(request) == ["credited", "reversed"]


async def test_a_token_that_keeps_a_part_credits_what_came(counter: Counter) -> None:
    request = await counter.asked("FEE")
    await counter.pay(request, 10_000)
    await counter.pay(request, 10_000)
    await counter.desk.mine(CONFIRMATIONS)
    await counter.look()
    held = counter.tokens["FEE"].call("balanceOf", request.reference)
    assert 0 < held < 20_000
    assert await counter.credited("FEE") == held


async def test_what_is_no_payment_is_not_credited(counter: Counter) -> None:
    request, anvil = await counter.asked(), counter.desk.anvil
    unlisted = await asyncio.to_thread(anvil.deploy, CONTRACTS / "PlainToken.sol")
    await asyncio.to_thread(unlisted.send, "mint", request.reference, 500)
    await asyncio.to_thread(counter.token.send, "transfer", request.reference, 0)
    await asyncio.to_thread(counter.token.send, "mint", somebody(), 500)
    await counter.desk.sent(request.reference, 10**15)  # gas from our own sender
    await counter.desk.mine(CONFIRMATIONS)
    await counter.look()
    assert await counter.states(request) == []
    await counter.desk.finish()


async def test_a_transaction_or_an_address_names_its_deposit_and_pays_for_nothing(
    counter: Counter,
) -> None:
    request = await counter.asked("USDT")
    sent = await counter.pay(request, 5)
    await counter.look()
    method, address = counter.method, request.reference
    for text in (
        address,
        address.lower(),
        sent,
        f"usdt:{address}",
        f"tether:{sent}",
        f"anvil:{address}",
        f"ethereum:{address}@{CHAIN_ID}",
        f"eip155:{CHAIN_ID}:{address}",
    ):
        assert method.can_handle(text), text
        read = await method.parse_credential(text)
        assert (read.payment_type, read.metadata["reference"]) == ("anvil", address), text
    for text in (f"ethereum:{address}@1", f"doge:{address}", "0x12", "cashuA"):
        assert not method.can_handle(text)
    with pytest.raises(InvalidCredential):
        await method.parse_credential(address[:-1] + ("0" if address[-1] != "0" else "1"))
