"""A wallet that follows the chain by compact filters misses nothing, whatever happens between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import bdkpython as bdk
import pytest

from farebox.clock import SystemClock
from farebox.errors import RailRejected, RailUnavailable
from farebox.rails.bitcoin import follower, peers
from farebox.rails.bitcoin.chain import View
from farebox.rails.bitcoin.filters import Filters
from farebox.rails.bitcoin.keys import WalletKeys
from farebox.rails.bitcoin.peers import PeerAddress
from farebox.rails.bitcoin.wallet import Wallet
from farebox.rails.web import Breaker
from tests.faults.proxy import FaultProxy
from tests.peers.bitcoin import BitcoinChain, BitcoinNode
from tests.waiting import eventually

pytestmark = pytest.mark.peer
SAT = 40_000
#: Far more than are looked for beyond the last that was given out.
FAR = 230


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as a slow machine may take that stands still for a while."""
    monkeypatch.setattr(peers, "_TIMEOUT_S", 60)
    monkeypatch.setattr(follower, "_STOP_S", 60)


@pytest.fixture
def keys() -> WalletKeys:
    return WalletKeys(str(bdk.Mnemonic(bdk.WordCount.WORDS12)), "regtest")


def where(url: str) -> PeerAddress:
    parts = urlsplit(url)
    return PeerAddress(parts.hostname or "", parts.port or 0)


@asynccontextmanager
async def wallet_by(
    peer: PeerAddress, keys: WalletKeys, folder: Path, *more: PeerAddress
) -> AsyncIterator[Wallet]:
    """A wallet that asks these nodes; nothing of it is left running."""
    file = folder / "wallet.sqlite"
    breaker = Breaker(SystemClock(), failures_to_open=1_000_000)
    wallet = Wallet(keys, lambda: Filters([peer, *more], keys, file=file), breaker)
    yield wallet
    await wallet.close()
    assert not [one for one in threading.enumerate() if one.name == "bitcoin-filters"]


async def seen(wallet: Wallet, chain: BitcoinChain, given: int = 1) -> View:
    """What is seen once the wallet has come as far as the chain."""
    height = await asyncio.to_thread(chain.node.height)

    async def look() -> View | None:
        with suppress(RailUnavailable):
            return await wallet.sync(lambda: asyncio.sleep(0, (given, 1)))
        return None

    found = await eventually(look, lambda view: view and view.tip.height == height)
    assert found is not None
    return found


async def looking(wallet: Wallet) -> None:
    """Look again and again."""
    await eventually(lambda: wallet.sync(lambda: asyncio.sleep(0, (1, 1))), lambda _: False)


async def paid(wallet: Wallet, chain: BitcoinChain, index: int = 0) -> None:
    """Somebody pays an address of the wallet, in a block."""
    await asyncio.to_thread(chain.payer.pay, wallet.keys.address(index), SAT)
    await asyncio.to_thread(chain.node.mine)


def held(view: View) -> list[int]:
    return sorted(one.index for one in view.coins if one.block is not None)


async def test_addresses_given_out_since_the_last_look_are_looked_for_in_what_came_meanwhile(
    tmp_path: Path, bitcoin: BitcoinChain, keys: WalletKeys, dead_port: int
) -> None:
    node = where(bitcoin.node.peer_url)
    again, away = PeerAddress("localhost", node.port), PeerAddress("127.0.0.1", dead_port)
    async with wallet_by(node, keys, tmp_path, again, away) as wallet:  # two of three will do
        assert held(await seen(wallet, bitcoin)) == []
        await paid(wallet, bitcoin, FAR)
        await paid(wallet, bitcoin, 3)
        assert held(await seen(wallet, bitcoin, FAR + 1)) == [3, FAR]
    (tmp_path / "wallet.sqlite").write_bytes(b"no database any more")
    async with wallet_by(where(bitcoin.node.peer_url), keys, tmp_path) as wallet:
        assert held(await seen(wallet, bitcoin, FAR + 1)) == [3, FAR]
    assert b"prv" not in (tmp_path / "wallet.sqlite").read_bytes()


async def test_a_node_that_goes_away_and_comes_back_is_followed_again(
    tmp_path: Path, bitcoin: BitcoinChain, keys: WalletKeys
) -> None:
    target = bitcoin.node.peer_url.replace("p2p", "http")
    async with FaultProxy(target, language=lambda data: ("bytes", len(data))) as line:
        async with wallet_by(where(line.url), keys, tmp_path) as wallet:
            await seen(wallet, bitcoin)
            await line.refuse()
            await paid(wallet, bitcoin)
            with pytest.raises(RailUnavailable):
                await looking(wallet)
            with pytest.raises(RailUnavailable):
                await wallet.info()
            await line.accept()
            assert held(await seen(wallet, bitcoin)) == [0]


@pytest.fixture
def stray(tmp_path: Path, bitcoin: BitcoinChain) -> Iterator[BitcoinNode]:
    """A node that has gone its own way."""
    node = BitcoinNode(tmp_path / "stray", bitcoin.payer.address())
    node.start()
    node.mine(3)
    yield node
    node.stop()


async def test_a_node_on_a_chain_of_its_own_is_outvoted_or_stops_all(
    tmp_path: Path, bitcoin: BitcoinChain, keys: WalletKeys, stray: BitcoinNode
) -> None:
    node, other = where(bitcoin.node.peer_url), where(stray.peer_url)
    async with wallet_by(node, keys, tmp_path, other) as wallet:
        with pytest.raises(RailUnavailable, match="another chain"):
            await looking(wallet)
        assert wallet.view is None
    again = PeerAddress("localhost", node.port)
    async with wallet_by(node, keys, tmp_path, other, again) as wallet:
        await paid(wallet, bitcoin)
        assert held(await seen(wallet, bitcoin)) == [0]


async def test_a_reorganisation_deeper_than_the_library_steps_back_is_followed(
    tmp_path: Path, bitcoin: BitcoinChain, keys: WalletKeys
) -> None:
    node = bitcoin.node
    async with wallet_by(where(node.peer_url), keys, tmp_path) as wallet:
        await paid(wallet, bitcoin)
        await asyncio.to_thread(node.mine, 12)
        assert held(await seen(wallet, bitcoin)) == [0]
    await asyncio.to_thread(node.undo, 13)
    for _ in range(14):  # a longer chain without it
        await asyncio.to_thread(node.mine_only)
    async with wallet_by(where(node.peer_url), keys, tmp_path) as wallet:
        assert held(await seen(wallet, bitcoin)) == []
        await asyncio.to_thread(node.mine)
        assert held(await seen(wallet, bitcoin)) == [0]


async def test_what_a_node_refuses_is_known_and_what_it_has_already_is_no_error(
    tmp_path: Path, bitcoin: BitcoinChain, keys: WalletKeys, dead_port: int
) -> None:
    payer = bitcoin.payer
    raw = await asyncio.to_thread(payer.signed, [(payer.address(30), SAT)], 20)
    other = await asyncio.to_thread(payer.instead, raw, [(payer.address(31), SAT)], 5)
    async with wallet_by(where(bitcoin.node.peer_url), keys, tmp_path) as wallet:
        await wallet.broadcast(bytes.fromhex(raw))
        with pytest.raises(RailRejected, match="fee"):
            await wallet.broadcast(bytes.fromhex(other))
    for _ in range(2):  # it waits, then it is in a block
        async with wallet_by(where(bitcoin.node.peer_url), keys, tmp_path) as wallet:
            await wallet.broadcast(bytes.fromhex(raw))
        await asyncio.to_thread(bitcoin.node.mine)
    nobody = PeerAddress("127.0.0.1", dead_port)
    async with wallet_by(nobody, keys, tmp_path) as wallet:
        with pytest.raises(RailUnavailable):
            await wallet.broadcast(bytes.fromhex(raw))
