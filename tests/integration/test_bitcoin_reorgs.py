"""What a chain may do to a deposit: leave it out, bring it back, replace it, while we sleep too."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.integration.bitcoin_house import BitcoinHouse, bitcoin_house, bitcoin_settings
from tests.integration.lightning_house import PRICE_MSAT
from tests.peers.bitcoin import BitcoinChain

pytestmark = pytest.mark.peer
SMALL_SAT, MIDDLE_SAT = 50_000, 150_000


def terms(chain: BitcoinChain) -> dict[str, object]:
    return bitcoin_settings(chain, start_height=chain.node.height() + 1)


async def mine(house: BitcoinHouse, chain: BitcoinChain, blocks: int = 1) -> None:
    """Make blocks, and wait until the house has seen them."""
    await asyncio.to_thread(chain.node.mine, blocks)
    await house.passed(await asyncio.to_thread(chain.node.height))


async def undo(house: BitcoinHouse, chain: BitcoinChain, blocks: int = 1) -> None:
    """Let the chain lose its last blocks, and wait until the house has seen that."""
    await asyncio.to_thread(chain.node.undo, blocks)
    await house.passed(await asyncio.to_thread(chain.node.height))


async def test_what_a_reorganisation_takes_is_taken_back_and_credited_again_where_it_returns(
    tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    async with bitcoin_house(tmp_path, terms(bitcoin)) as house:
        key, asked = await house.credited(bitcoin, SMALL_SAT, blocks=1)
        spent = await house.http.get("/echo", headers={"Authorization": f"Bearer {key}"})
        assert spent.status_code == 200
        for _ in range(2):
            await undo(house, bitcoin)
            told = await house.until(asked, "reversed")
            assert told["credited_msat"] == 0
            assert await house.balance_msat(key) == 0
            assert await house.held_msat() == 0
            await mine(house, bitcoin)
            told = await house.until(asked, "credited")
            assert told["credited_msat"] == SMALL_SAT * 1_000
            assert await house.balance_msat(key) == SMALL_SAT * 1_000 - PRICE_MSAT


async def test_a_block_that_the_chain_comes_back_to_counts_again(
    tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    node = bitcoin.node
    async with bitcoin_house(tmp_path, terms(bitcoin)) as house:
        key, asked = await house.credited(bitcoin, SMALL_SAT, blocks=1)
        block = await asyncio.to_thread(node.call, "getbestblockhash")
        await undo(house, bitcoin)
        await house.until(asked, "reversed")
        await asyncio.to_thread(node.call, "reconsiderblock", block)
        await house.until(asked, "credited")
        assert await house.balance_msat(key) == SMALL_SAT * 1_000


async def test_a_credit_that_was_spent_and_then_paid_to_another_is_owed_until_more_comes(
    tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    payer = bitcoin.payer
    async with bitcoin_house(tmp_path, terms(bitcoin)) as house:
        asked = await house.asked(None)
        raw = await asyncio.to_thread(payer.signed, [(asked["pay"], SMALL_SAT)])
        await asyncio.to_thread(payer.send, raw)
        await mine(house, bitcoin)
        await house.until(asked, "credited")
        key = await house.key_of(asked)
        await house.http.get("/echo", headers={"Authorization": f"Bearer {key}"})
        await asyncio.to_thread(bitcoin.node.undo, 1)
        other = await asyncio.to_thread(payer.instead, raw, [(payer.address(20), SMALL_SAT)], 20)
        await asyncio.to_thread(payer.send, other)
        await mine(house, bitcoin)
        await house.until(asked, "reversed")
        assert await house.held_msat() == 0
        owed = await house.farebox.store.accounts()
        assert [one.held for one in owed if one.kind.value == "receivable"] == [PRICE_MSAT]
        again = await house.asked(None, key)
        await asyncio.to_thread(payer.pay, again["pay"], SMALL_SAT)
        await mine(house, bitcoin)
        await house.until(again, "credited")
        assert await house.balance_msat(key) == SMALL_SAT * 1_000 - PRICE_MSAT
        assert await house.wallet_sat() * 1_000 == await house.held_msat()


async def test_a_deposit_that_is_replaced_before_its_block_is_never_credited(
    tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    payer = bitcoin.payer
    async with bitcoin_house(tmp_path, terms(bitcoin)) as house:
        asked = await house.asked(SMALL_SAT * 1_000)
        raw = await asyncio.to_thread(payer.signed, [(asked["pay"], SMALL_SAT)])
        await asyncio.to_thread(payer.send, raw)
        await house.until(asked, "detected")
        other = await asyncio.to_thread(payer.instead, raw, [(payer.address(21), SMALL_SAT)], 20)
        await asyncio.to_thread(payer.send, other)
        await house.until(asked, "reversed")
        await mine(house, bitcoin, 3)
        told = await house.told(asked)
        assert (told["state"], told["credited_msat"]) == ("reversed", 0)
        assert await house.held_msat() == 0


async def test_more_value_needs_more_blocks(tmp_path: Path, bitcoin: BitcoinChain) -> None:
    async with bitcoin_house(tmp_path, terms(bitcoin)) as house:
        small, middle = await house.asked(None), await house.asked(None)
        await asyncio.to_thread(bitcoin.payer.pay, small["pay"], SMALL_SAT)
        await asyncio.to_thread(bitcoin.payer.pay, middle["pay"], MIDDLE_SAT)
        await mine(house, bitcoin)
        await house.until(small, "credited")
        await house.until(middle, "detected")
        await mine(house, bitcoin)
        assert (await house.told(middle))["credited_msat"] == 0
        await mine(house, bitcoin)
        await house.until(middle, "credited")


@pytest.mark.parametrize("has_file", [True, False])
async def test_nothing_is_missed_that_happens_while_nobody_looks(
    tmp_path: Path, bitcoin: BitcoinChain, has_file: bool
) -> None:
    settings = terms(bitcoin)
    async with bitcoin_house(tmp_path, settings) as house:
        key, lost = await house.credited(bitcoin, SMALL_SAT, blocks=1)
        later = await house.asked(None)
    await asyncio.to_thread(bitcoin.node.undo, 1)
    await asyncio.to_thread(bitcoin.payer.pay, later["pay"], SMALL_SAT)
    if not has_file:
        (tmp_path / "bitcoin-main.scan").unlink()
    async with bitcoin_house(tmp_path, settings) as house:
        await house.until(lost, "reversed")
        await house.until(later, "detected")
    await asyncio.to_thread(bitcoin.node.mine, 3)
    async with bitcoin_house(tmp_path, settings) as house:
        await house.until(lost, "credited")
        await house.until(later, "credited")
        assert await house.balance_msat(key) == SMALL_SAT * 1_000
        assert await house.wallet_sat() == 2 * SMALL_SAT


async def test_who_saw_the_chain_before_it_was_credited_takes_nothing_back(
    tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    """Another call or another process may be a block further than this one."""
    async with bitcoin_house(tmp_path, terms(bitcoin)) as house:
        method = house.method
        older = [await method._addresses.look()]
        asked = await house.asked(SMALL_SAT * 1_000)
        await asyncio.to_thread(bitcoin.payer.pay, asked["pay"], SMALL_SAT)
        older.append(await method._addresses.look())  # in no block yet
        await asyncio.to_thread(bitcoin.node.mine)
        await house.until(asked, "credited")
        for view in older:
            assert [one async for one in method._news(view)] == []
