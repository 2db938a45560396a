"""The same money, seen through each place that the chain can be asked at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import bdkpython as bdk
import pytest

from farebox.testing.asgi import serving
from tests.contract.rail.fake_esplora import FakeEsplora
from tests.integration.bitcoin_house import (
    BitcoinHouse,
    bitcoin_house,
    bitcoin_settings,
)
from tests.peers.bitcoin import BitcoinChain
from tests.peers.electrumx import ElectrumX
from tests.waiting import eventually

pytestmark = pytest.mark.peer
IN_SAT, OUT_SAT = 90_000, 20_000
#: Who sees what waits for a block; by filters only blocks are seen.
SEES_POOL = {"core": True, "electrum": True, "esplora": True, "filters": False}
SOURCES = tuple(SEES_POOL)


@dataclass(frozen=True)
class Places:
    """Where the chain can be asked."""

    chain: BitcoinChain
    electrumx: ElectrumX
    esplora: FakeEsplora


@pytest.fixture(scope="module")
def places(bitcoin: BitcoinChain, electrumx: ElectrumX) -> Places:
    return Places(bitcoin, electrumx, FakeEsplora(bitcoin.node))


@asynccontextmanager
async def house_by(
    source: str, folder: Path, places: Places, key: str
) -> AsyncIterator[BitcoinHouse]:
    """A house that asks there. Its wallet is new: servers know what an old one was ever paid."""
    chain = places.chain
    async with serving(places.esplora) as esplora:
        url = {
            "core": chain.node.url,
            "electrum": places.electrumx.url,
            "esplora": esplora,
            "filters": chain.node.peer_url,
        }[source]
        since = chain.node.height() + 1
        terms = bitcoin_settings(
            chain, source=source, url=url, key=key, start_height=since, bump_after_blocks=2
        )
        async with bitcoin_house(folder, terms) as house:
            yield house


@pytest.fixture
def words() -> str:
    return str(bdk.Mnemonic(bdk.WordCount.WORDS12))


async def mine(house: BitcoinHouse, chain: BitcoinChain, *, empty: bool = False) -> None:
    await asyncio.to_thread(chain.node.mine_only if empty else chain.node.mine)
    await house.passed(await asyncio.to_thread(chain.node.height))


@pytest.mark.parametrize("source", SOURCES)
async def test_money_comes_and_goes_and_a_stuck_payment_goes_dearer(
    source: str, tmp_path: Path, bitcoin: BitcoinChain, places: Places, words: str
) -> None:
    place = 50 + SOURCES.index(source)
    async with house_by(source, tmp_path, places, words) as house:
        asked = await house.asked(None)
        await asyncio.to_thread(bitcoin.payer.pay, asked["pay"], IN_SAT)
        if SEES_POOL[source]:
            await house.until(asked, "detected")
        await mine(house, bitcoin)
        await house.until(asked, "credited")
        await mine(house, bitcoin)  # as deep as what is spent has to be
        key, to = await house.key_of(asked), bitcoin.payer.address(place)
        await house.paid_out(key, to, OUT_SAT, "stuck")
        (first,) = await eventually(lambda: asyncio.to_thread(bitcoin.node.pool))
        for _ in range(2):
            await mine(house, bitcoin, empty=True)
        await eventually(
            lambda: asyncio.to_thread(bitcoin.node.pool),
            lambda pool: bool(pool) and pool != [first],
        )
        for _ in range(2):
            await mine(house, bitcoin)
        await house.settled()
        assert (await house.told_of(key, to, OUT_SAT, "stuck"))["txid"] != first
        assert await asyncio.to_thread(bitcoin.payer.received_sat, place) == OUT_SAT
        assert await house.wallet_sat() * 1_000 == await house.held_msat()


@pytest.mark.parametrize("source", SOURCES)
async def test_what_is_replaced_or_leaves_the_chain_is_taken_back(
    source: str, tmp_path: Path, bitcoin: BitcoinChain, places: Places, words: str
) -> None:
    payer = bitcoin.payer
    async with house_by(source, tmp_path, places, words) as house:
        gone, stays = await house.asked(None), await house.asked(None)
        raw = await asyncio.to_thread(payer.signed, [(gone["pay"], IN_SAT)])
        await asyncio.to_thread(payer.send, raw)
        if SEES_POOL[source]:
            await house.until(gone, "detected")
        other = await asyncio.to_thread(payer.instead, raw, [(stays["pay"], IN_SAT)], 20)
        await asyncio.to_thread(payer.send, other)
        if SEES_POOL[source]:
            await house.until(gone, "reversed")
        await mine(house, bitcoin)
        await house.until(stays, "credited")
        await asyncio.to_thread(bitcoin.node.undo, 1)
        for _ in range(2):  # a longer chain without it
            await asyncio.to_thread(bitcoin.node.mine_only)
        await house.until(stays, "reversed")
        assert await house.held_msat() == 0
        await mine(house, bitcoin)
        await house.until(stays, "credited")
        assert (await house.told(gone))["credited_msat"] == 0


@pytest.mark.parametrize("source", SOURCES)
async def test_a_house_that_starts_again_finds_its_change_and_what_came_meanwhile(
    source: str, tmp_path: Path, bitcoin: BitcoinChain, places: Places, words: str
) -> None:
    async with house_by(source, tmp_path, places, words) as house:
        key, _ = await house.credited(bitcoin, IN_SAT)
        await house.paid_out(key, bitcoin.payer.address(55), OUT_SAT, "first")
        await eventually(lambda: asyncio.to_thread(bitcoin.node.pool))
        for _ in range(2):
            await mine(house, bitcoin)
        await house.settled()
        later, left = await house.asked(None), await house.held_msat()
    await asyncio.to_thread(bitcoin.payer.pay, later["pay"], IN_SAT)
    await asyncio.to_thread(bitcoin.node.mine)
    async with house_by(source, tmp_path, places, words) as house:
        await house.until(later, "credited")
        assert await house.wallet_sat() * 1_000 == left + IN_SAT * 1_000
        await house.paid_out(key, bitcoin.payer.address(56), OUT_SAT, "second")
        await eventually(lambda: asyncio.to_thread(bitcoin.node.pool))
        for _ in range(2):
            await mine(house, bitcoin)
        await house.settled()
        assert await house.wallet_sat() * 1_000 == await house.held_msat()
