"""Whatever a chain does to what arrives, what is credited is what it has, deep enough, once.

The chain is a model of ours that forgets, reorders and comes back; `test_evm_deposits_anvil.py`
shows the same on a real one.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from eth_account.hdaccount.mnemonic import Mnemonic
from hypothesis import example, given, settings
from hypothesis import strategies as st

from farebox.clock import SystemClock
from farebox.ledger.service import Ledger
from farebox.money import Asset
from farebox.payments import Refusal
from farebox.payments.deposits import Deposits, DepositState
from farebox.payments.exchange import Exchange
from farebox.payments.rail import Limits
from farebox.payments.registry import PaymentMethods
from farebox.payments.requests import DepositRequests
from farebox.rails.evm.addresses import Addresses, DepositTree
from farebox.rails.evm.arrivals import Arrivals, Depth, WatchTerms
from farebox.rails.evm.config import EvmAsset, EvmConfig
from farebox.rails.evm.keys import deposit_key
from farebox.rails.evm.method import EvmMethod
from farebox.rails.evm.rpc import Data, Quantity
from farebox.rails.evm.scan import TRANSFER, Block, Event, Header, Placed, Transaction
from farebox.stores.sqlite import SqliteStore
from tests.integration.evm_desk import RECORDS

GENESIS = "0x" + "00" * 32
TOKEN = "0x" + "70" * 20
SOMEBODY = "0x" + "ab" * 20
ACCOUNT = "customer:one"
CONFIRMATIONS, SETTLED_BLOCKS = 3, 40
MNEMONIC = Mnemonic().generate(12)


@dataclass(frozen=True)
class Payment:
    """A transaction that pays an address, in coin or in the token `times` over."""

    name: str
    to: str
    amount: int
    times: int = 0


@dataclass
class Chain:
    """Blocks with payments in them; what was in none waits. `behind` is how much the node hides,
    `events_behind` how much of that its events are: it answers from several places."""

    blocks: list[tuple[str, list[Payment]]] = field(
        default_factory=lambda: [("0x" + "00" * 32, [])]
    )
    waiting: list[Payment] = field(default_factory=list)
    behind: int = 0
    events_behind: int = 0
    other: list[tuple[str, list[Payment]]] | None = None

    def mine(self) -> None:
        self.blocks.append((f"0x{secrets.token_hex(32)}", self.waiting))
        self.waiting = []

    def reorganise(self, depth: int, *, keeps: bool, waits: bool) -> None:
        """Replace the last blocks by as many and one more; what they had is lost, or comes again:
        at once, or in a block to come."""
        depth = min(depth, len(self.blocks) - 1)
        self.other = list(self.blocks)
        lost = [one for _, payments in self.blocks[len(self.blocks) - depth :] for one in payments]
        del self.blocks[len(self.blocks) - depth :]
        again = [*reversed(lost), *self.waiting] if keeps else self.waiting
        self.waiting = [] if waits else again
        for _ in range(depth + 1):
            self.mine()
        self.waiting += again if waits else []

    def come_back(self) -> None:
        """The branch before the last reorganisation wins after all: longer, with what was on it."""
        if self.other is not None and self.other[-1][0] not in dict(self.blocks):
            on_it = {one.name for _, payments in self.other for one in payments}
            left = [one for _, payments in self.blocks for one in payments]
            self.waiting += [one for one in left if one.name not in on_it]
            self.waiting = [one for one in self.waiting if one.name not in on_it]
            missing = len(self.blocks) - len(self.other)
            self.blocks, self.other = self.other, None
            for _ in range(missing + 1):
                self.mine()

    def deep(self, least: int) -> list[Payment]:
        """What has so many confirmations."""
        return [
            one for _, payments in self.blocks[: len(self.blocks) + 1 - least] for one in payments
        ]

    # ── as a node tells it ───────────────────────────────────────────────────────────────────────

    @property
    def _shown(self) -> list[tuple[str, list[Payment]]]:
        return self.blocks[: max(1, len(self.blocks) - self.behind)]

    def _header(self, height: int) -> Header:
        parent = self.blocks[max(0, height - 1)][0]
        return Header(Quantity(height), self.blocks[height][0], parent, Quantity(1_000 + height))

    async def header(self, which: int | str) -> Header | None:
        height = which if isinstance(which, int) else len(self._shown) - 1
        return self._header(height) if height < len(self._shown) else None

    async def hashes(self, heights: Collection[int]) -> dict[int, str]:
        return {height: self._shown[height][0] for height in heights}

    async def blocks_of(self, first: int, last: int) -> list[Block]:
        found = []
        for height in range(first, last + 1):
            name, payments = self._shown[height]
            sent = tuple(
                Transaction(one.name, SOMEBODY, one.to, Quantity(one.amount))
                for one in payments
                if not one.times
            )
            header = self._header(height)
            found.append(Block(header.number, name, header.parent_hash, header.timestamp, sent))
        return found

    def _events(self, height: int) -> list[Event]:
        name, payments = self._shown[height]
        found: list[Event] = []
        for one in payments:
            for _ in range(one.times):
                topics = (TRANSFER, _topic(SOMEBODY), _topic(one.to))
                place = (Quantity(height), name, one.name, Quantity(len(found)))
                found.append(Event(TOKEN, topics, Data(one.amount.to_bytes(32)), *place))
        return found

    async def transfers(
        self, first: int, last: int, tokens: Sequence[str], to: Collection[str]
    ) -> list[Event]:
        last = min(last, len(self.blocks) - 1 - self.events_behind)
        every = [event for height in range(first, last + 1) for event in self._events(height)]
        return [event for event in every if event.to in to]

    async def receipts(self, transactions: Sequence[str]) -> dict[str, Placed]:
        found = {}
        for height, (name, payments) in enumerate(self._shown):
            events = self._events(height)
            for one in payments:
                logs = tuple(event for event in events if event.transaction_hash == one.name)
                placed = Placed(one.name, name, Quantity(height), Quantity(1), logs)
                if one.name in transactions:
                    found[one.name] = placed
        return found


def _topic(address: str) -> str:
    return f"0x{address[2:].lower():0>64}"


class Watcher:
    """A process that watches the chain for a book."""

    def __init__(self, chain: Chain, ledger: Ledger) -> None:
        limits, depths = Limits(1, 10**9), (Depth(0, CONFIRMATIONS),)
        assets = tuple(
            EvmAsset(
                asset=Asset(code, scale), token=token, deposits=limits, payouts=None, depths=depths
            )
            for code, scale, token in (("ETH", 18, ""), ("TOK", 6, TOKEN))
        )
        scan = cast("Any", chain_as_scan(chain))
        addresses = Addresses("model", DepositTree(deposit_key(MNEMONIC)), ledger)
        terms = WatchTerms(
            chain="model",
            assets=tuple(one.taken for one in assets),
            settled_blocks=SETTLED_BLOCKS,
            step_blocks=7,
        )
        self.arrivals = Arrivals(terms, scan, addresses, [], ledger)
        nothing = cast("Any", SimpleNamespace(sending=None))
        config = EvmConfig(name="model", chain_id=1, assets=assets)
        method = EvmMethod(
            config, nothing, scan, self.arrivals, addresses, nothing, nothing, {}, ledger
        )
        methods = PaymentMethods()
        methods.register(method)
        exchange = Exchange(held=frozenset({"ETH", "TOK"}))
        self.requests = DepositRequests(ledger, Deposits(ledger), methods, exchange)

    async def look(self) -> None:
        for _ in range(100):
            if await self.arrivals.advance():
                break
        for sighting in await self.arrivals.to_be_told():
            await self.requests.seen("model", sighting)


def chain_as_scan(chain: Chain) -> SimpleNamespace:
    """The model under the names of the port."""
    names = ("header", "hashes", "transfers", "receipts")
    calls = {name: getattr(chain, name) for name in names}
    return SimpleNamespace(blocks=chain.blocks_of, **calls)


PAYS = st.tuples(st.just("pay"), st.sampled_from(("ETH", "TOK")), st.integers(1, 3))
MINES = st.tuples(st.just("mine"), st.integers(1, 4), st.just(0))
REORGANISES = st.tuples(st.just("reorganise"), st.integers(1, 6), st.integers(0, 2))
COMES_BACK = st.tuples(st.just("come back"), st.just(0), st.just(0))
LOOKS = st.tuples(st.just("look"), st.sampled_from((0, 0, 0, 1, 3)), st.integers(0, 1))


PAID, MINED, LOOKED = ("pay", "TOK", 2), ("mine", 4, 0), ("look", 0, 0)


async def live(steps: Sequence[tuple[str, Any, Any]], folder: Path) -> None:
    store = SqliteStore(folder / "book.db", RECORDS, clock=SystemClock())
    ledger, chain = Ledger(store, SystemClock()), Chain()
    watcher = Watcher(chain, ledger)
    addresses: dict[str, str] = {}
    for asset in ("ETH", "TOK"):
        made = await watcher.requests.ask("model", asset, None, ACCOUNT, opens_account=False)
        assert not isinstance(made, Refusal)
        addresses[asset] = made.request.reference

    async def assert_right() -> None:
        for asset, address in addresses.items():
            paid = [one for one in chain.deep(CONFIRMATIONS) if one.to == address]
            account = await store.account(f"{ACCOUNT}/{asset}")
            assert (account.available if account else 0) == sum(
                one.amount * (one.times or 1) for one in paid
            )

    for what, first, second in steps:
        if what == "pay":
            times = 0 if first == "ETH" else second
            name = f"0x{secrets.token_hex(32)}"
            chain.waiting.append(Payment(name, addresses[first], 100 + second, times))
        elif what == "mine":
            for _ in range(first):
                chain.mine()
        elif what == "reorganise":
            chain.reorganise(first, keeps=bool(second), waits=second == 2)
        elif what == "come back":
            chain.come_back()
        else:
            watcher = Watcher(chain, ledger) if second else watcher
            chain.behind = first
            await watcher.look()
            if not chain.behind:
                await assert_right()
            chain.behind = 0
    await watcher.look()
    await assert_right()
    for _ in range(SETTLED_BLOCKS + CONFIRMATIONS):
        chain.mine()
    for _ in range(3):
        watcher = Watcher(chain, ledger)
        await watcher.look()
        await assert_right()
    for address in addresses.values():  # what is asked for by name is told whole, rest or not
        for sighting in await watcher.arrivals.of_address(address):
            await watcher.requests.seen("model", sighting)
    await assert_right()
    await store.close()


@settings(max_examples=60)
@example([PAID, MINED, LOOKED, ("reorganise", 4, 2), ("mine", 1, 0), LOOKED, MINED, LOOKED])
@example([PAID, MINED, LOOKED, ("reorganise", 4, 0), LOOKED, ("come back", 0, 0), LOOKED])
@example([PAID, MINED, LOOKED, ("reorganise", 4, 0), ("look", 3, 0), ("come back", 0, 0)])
@given(st.lists(st.one_of(PAYS, MINES, REORGANISES, COMES_BACK, LOOKS), max_size=25))
def test_what_is_credited_is_what_the_chain_has(steps: list[tuple[str, Any, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(live(steps, Path(folder)))


async def test_depth_is_not_counted_from_a_branch_that_has_not_what_was_seen(
    tmp_path: Path,
) -> None:
    """Between the look at the blocks and the telling the chain may have become another."""
    store = SqliteStore(tmp_path / "book.db", RECORDS, clock=SystemClock())
    chain = Chain()
    watcher = Watcher(chain, Ledger(store, SystemClock()))
    made = await watcher.requests.ask("model", "ETH", None, ACCOUNT, opens_account=False)
    assert not isinstance(made, Refusal)
    chain.waiting.append(Payment(f"0x{secrets.token_hex(32)}", made.request.reference, 100))
    for _ in range(CONFIRMATIONS - 1):
        chain.mine()
    await watcher.arrivals.advance()
    chain.reorganise(CONFIRMATIONS - 1, keeps=False, waits=False)
    told = [*await watcher.arrivals.to_be_told()]
    told += await watcher.arrivals.of_address(made.request.reference)
    assert [one.state for one in told] == [DepositState.DETECTED] * 2
    await store.close()


async def test_who_catches_up_says_how_far_behind_it_is(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "book.db", RECORDS, clock=SystemClock())
    chain = Chain()
    watcher = Watcher(chain, Ledger(store, SystemClock()))
    told = [watcher.arrivals.behind]
    await watcher.arrivals.advance()
    for _ in range(16):
        chain.mine()
    while not await watcher.arrivals.advance():
        told.append(watcher.arrivals.behind)
    told.append(watcher.arrivals.behind)
    assert told == [None, 9, 2, 0]
    await store.close()


async def test_events_that_a_node_shows_later_than_their_blocks_are_found(tmp_path: Path) -> None:
    """Behind one address there are often many nodes, and not all have the newest block."""
    store = SqliteStore(tmp_path / "book.db", RECORDS, clock=SystemClock())
    chain = Chain()
    watcher = Watcher(chain, Ledger(store, SystemClock()))
    made = await watcher.requests.ask("model", "TOK", None, ACCOUNT, opens_account=False)
    assert not isinstance(made, Refusal)
    name = f"0x{secrets.token_hex(32)}"
    chain.waiting.append(Payment(name, made.request.reference, 100, times=1))
    chain.events_behind = 2
    for _ in range(2):
        chain.mine()
        await watcher.look()
    chain.events_behind = 0
    for _ in range(CONFIRMATIONS):
        chain.mine()
        await watcher.look()
    account = await store.account(f"{ACCOUNT}/TOK")
    assert account is not None
    assert account.available == 100
    await store.close()
