"""A model of an EVM chain with one token on it: accounts, blocks, a pool, and branches.

A transaction moves coin, and does what a contract does for it (`evm_contracts.py`), or is reverted.
Blocks are found, and left for longer branches in which the same transactions stand elsewhere, or no
more; the pool forgets; the base fee jumps over what was offered; strangers are quicker with what
the house sends for somebody else. `evm_node.py` is a node of it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from farebox.clock import NS_PER_S, Clock
from tests.simulation.evm_contracts import (
    COIN_GAS,
    Around,
    Authorized,
    Batch,
    Deed,
    Log,
    Move,
    Moves,
    Reverted,
    State,
    carry_out,
    gas_of,
)

#: Nothing vanishes from so deep, with some to spare: what settings call settled.
SETTLED_BLOCKS: Final = 12
_COPIER: Final = "0x" + "C0" * 20
_TIPS: Final = (10**6, 10**7, 10**8)
#: What the base fee may become, wei per gas: one can be stuck under each of the others.
_BASE_FEES: Final = (10**7, 3 * 10**7, 10**8, 5 * 10**8)
_EVERYTHING: Final = 10**30
_OLD_BLOCKS: Final = 6
#: How deep it is followed how deep something is.
_DEEP: Final = SETTLED_BLOCKS + 2
_CALM_BLOCK_S: Final = 5
#: A replacement offers so many percent more, in both fields.
_MORE_PERCENT: Final = 10


@dataclass(frozen=True, slots=True)
class Tx:
    """A transaction, which brings coin and does something."""

    sender: str
    nonce: int
    to: str
    value: int = 0
    deed: Deed = None
    gas: int = COIN_GAS
    max_fee: int = 10**10
    tip: int = 10**7
    hash: str = ""

    @property
    def named(self) -> Tx:
        """One of somebody's else than the house's, which signs its own."""
        return replace(self, hash=f"0x{hashlib.sha256(repr(self).encode()).hexdigest()}")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a transaction came to in its block. `first_log` is the number of its first event."""

    tx: Tx
    ok: bool
    gas_used: int
    price: int
    first_log: int
    logs: tuple[Log, ...] = ()

    @property
    def moves(self) -> tuple[Move, ...]:
        """The token's."""
        return tuple(one.move for one in self.logs if one.move is not None)


@dataclass(frozen=True, slots=True)
class Block:
    """A block, and what everybody has after it."""

    number: int
    hash: str
    parent: str
    time_s: int
    base_fee: int
    receipts: tuple[Receipt, ...]
    state: State


@dataclass
class EvmMoods:
    """How the chain behaves; the defaults mine whatever there is."""

    chance: Random = field(default_factory=lambda: Random(0))
    #: How often a block leaves out a transaction, or is left for a longer branch.
    leaves_out: float = 0
    reorganises: float = 0
    #: How often what a branch had is replaced by its payer, who pays nobody then.
    double_spends: float = 0
    #: How often the pool forgets, the house's node stays where it is, the base fee jumps: for each
    #: block.
    forgets: float = 0
    lags: float = 0
    fee_jumps: float = 0
    #: How often, for each block, a stranger sends first what the house sends for somebody else, and
    #: the token blocks somebody who is about to be paid.
    copies: float = 0
    blocks_payees: float = 0
    block_s: float = 10
    reorganised_most: int = 2
    is_down: bool = False

    def happens(self, probability: float) -> bool:
        """Whether it does this time."""
        return probability > 0 and self.chance.random() < probability


class ModelEvm:
    """The best chain, and the pool beside it."""

    def __init__(self, clock: Clock, moods: EvmMoods, trace: Callable[[str], None]) -> None:
        self.moods = moods
        self._clock = clock
        self._trace = trace
        self.pool: dict[tuple[str, int], Tx] = {}
        self.base_fee = _BASE_FEES[0]
        genesis = Block(0, f"0x{'00' * 32}", f"0x{'00' * 32}", self._now_s(), 0, (), State())
        self.blocks = [genesis]
        self._seen: tuple[Block, ...] = ()
        #: How deep each transaction ever was in the best chain.
        self.deepest: Counter[str] = Counter()
        #: Whom the token moves nothing to.
        self.blocked: frozenset[str] = frozenset()
        for _ in range(_OLD_BLOCKS):
            self.mine()
        self.endow(_COPIER)

    def _now_s(self) -> int:
        return self._clock.now_ns() // NS_PER_S

    @property
    def tip(self) -> Block:
        """The best block."""
        return self.blocks[-1]

    def endow(self, address: str, coin: int = _EVERYTHING, token: int = 0) -> None:
        """Give somebody what no block has brought."""
        for block in self.blocks:
            block.state.coin[address] += coin
            block.state.token[address] += token

    # ── the pool ─────────────────────────────────────────────────────────────────────────────────

    def accept(self, tx: Tx) -> str:
        """Take a transaction into the pool, in place of a cheaper one; "" or why not."""
        state = self.tip.state
        if tx.nonce < state.nonces[tx.sender]:
            return "nonce too low"
        rival = self.pool.get((tx.sender, tx.nonce))
        if rival is not None and rival.hash == tx.hash:
            return "already known"
        if tx.value + tx.gas * tx.max_fee > state.coin[tx.sender]:
            return "insufficient funds for gas * price + value"
        if rival is not None and not _outbids(tx, rival):
            return "replacement transaction underpriced"
        self.pool[tx.sender, tx.nonce] = tx
        return ""

    def next_nonce(self, sender: str) -> int:
        """The first that is neither used nor waits."""
        nonce = self.tip.state.nonces[sender]
        while (sender, nonce) in self.pool:
            nonce += 1
        return nonce

    def pay(self, sender: str, to: str, value: int, *moves: Move) -> Tx:
        """Somebody's payment, whatever it is; it waits in the pool."""
        return self._send(sender, to, value, Moves(moves) if moves else None)

    def _send(self, sender: str, to: str, value: int, deed: Deed) -> Tx:
        tip, gas = self.moods.chance.choice(_TIPS), COIN_GAS + gas_of(to, deed)
        tx = Tx(sender, self.next_nonce(sender), to, value, deed, gas, tip=tip).named
        no = self.accept(tx)
        assert not no, no
        return tx

    def take_back(self, tx: Tx) -> str:
        """Its payer spends the nonce on nothing; "" or why that is too late."""
        more = replace(tx, to=tx.sender, value=0, deed=None, max_fee=2 * tx.max_fee, tip=2 * tx.tip)
        return self.accept(replace(more, hash="").named)

    # ── blocks ───────────────────────────────────────────────────────────────────────────────────

    def mine(self) -> Block:
        """Find a block, with what of the pool pays enough and comes next at its sender."""
        number, state, receipts, logs = (
            self.tip.number + 1,
            self.tip.state.copy(),
            list[Receipt](),
            0,
        )
        waiting = [tx for tx in self.pool.values() if not self.moods.happens(self.moods.leaves_out)]
        self.moods.chance.shuffle(waiting)
        while ready := [tx for tx in waiting if self._is_next(tx, state)]:
            for tx in ready:
                receipt = self._executed(tx, state, logs)
                receipts.append(receipt)
                logs += len(receipt.logs)
            waiting = [tx for tx in waiting if tx not in ready]
        text = f"{self.tip.hash} {self.moods.chance.random()} {[one.tx.hash for one in receipts]}"
        name = f"0x{hashlib.sha256(text.encode()).hexdigest()}"
        block = Block(
            number, name, self.tip.hash, self._now_s(), self.base_fee, tuple(receipts), state
        )
        self.blocks.append(block)
        for key in [key for key in self.pool if key[1] < state.nonces[key[0]]]:
            del self.pool[key]
        for block_before in self.blocks[-_DEEP:]:
            for receipt in block_before.receipts:
                depth = number - block_before.number + 1
                self.deepest[receipt.tx.hash] = max(depth, self.deepest[receipt.tx.hash])
        return block

    def _is_next(self, tx: Tx, state: State) -> bool:
        return (
            tx.nonce == state.nonces[tx.sender]
            and tx.max_fee >= self.base_fee + min(tx.tip, 1)
            and tx.value + tx.gas * tx.max_fee <= state.coin[tx.sender]
        )

    def _executed(self, tx: Tx, state: State, first_log: int) -> Receipt:
        price = min(tx.max_fee, self.base_fee + tx.tip)
        needed = gas_of(tx.to, tx.deed)
        gas_used = min(tx.gas, needed)
        found = None if tx.gas < needed else self.tried(tx, state, self._now_s())
        if found is not None:
            state.become(found[0])
        state.nonces[tx.sender] += 1
        state.coin[tx.sender] -= gas_used * price
        logs = () if found is None else found[1]
        return Receipt(tx, found is not None, gas_used, price, first_log, logs)

    def tried(self, tx: Tx, before: State, time_s: int) -> tuple[State, tuple[Log, ...]] | None:
        """What everybody would have after a transaction, but for its gas, and what it would tell;
        None where it would be reverted."""
        state = before.copy()
        state.coin[tx.sender] -= tx.value
        state.coin[tx.to] += tx.value
        try:
            logs = carry_out(tx.deed, state, Around(tx.sender, time_s, self.blocked))
        except Reverted:
            return None
        return state, logs

    def reorganise(self, depth: int) -> None:
        """Leave some blocks for a longer branch: the same transactions, elsewhere, or no more."""
        left = self.blocks[len(self.blocks) - depth :]
        del self.blocks[len(self.blocks) - depth :]
        self._trace(f"the chain leaves {depth} blocks")
        pooled, self.pool = self.pool, {}
        for tx in (*(one.tx for block in left for one in block.receipts), *pooled.values()):
            self.pool.setdefault((tx.sender, tx.nonce), tx)
        payers = [tx for tx in self.pool.values() if self.is_strangers(tx)]
        for tx in payers:
            if self.moods.happens(self.moods.double_spends) and not self.take_back(tx):
                self._trace(f"{tx.hash[:10]} is spent otherwise")
        for _ in range(depth + 1):
            self.mine()

    def is_strangers(self, tx: Tx) -> bool:
        """Whether somebody else than the house sends it."""
        return self.blocks[0].state.coin[tx.sender] == _EVERYTHING

    async def live(self) -> None:
        """Find blocks for ever."""
        while True:
            await asyncio.sleep(self.moods.chance.expovariate(1 / self.moods.block_s))
            self.step()

    def step(self) -> None:
        """What happens around one block."""
        moods = self.moods
        if moods.happens(moods.forgets) and self.pool:
            self._forget(self.pool[moods.chance.choice(list(self.pool))])
        if moods.happens(moods.fee_jumps):
            self.base_fee = moods.chance.choice(_BASE_FEES)
        self._meddle()
        if moods.happens(moods.reorganises):
            self.reorganise(moods.chance.randint(1, moods.reorganised_most))
        else:
            self.mine()
        if not moods.happens(moods.lags):
            self._seen = ()

    def _meddle(self) -> None:
        """Strangers are quicker with what is not theirs; the token blocks who is to be paid."""
        for tx in list(self.pool.values()):
            if self.is_strangers(tx):
                continue
            if isinstance(tx.deed, Authorized) and self.moods.happens(self.moods.copies):
                self._trace(f"a stranger copies {tx.hash[:10]}")
                self._send(_COPIER, tx.to, 0, tx.deed)
            deed = tx.deed if isinstance(tx.deed, Batch) and tx.deed.is_token else None
            if deed is not None and self.moods.happens(self.moods.blocks_payees):
                payee, _ = self.moods.chance.choice(deed.items)
                self._trace(f"the token blocks {payee}")
                self.blocked |= {payee}

    def _forget(self, tx: Tx) -> None:
        """Only the house sends its own again: what a stranger sent behind it would wait."""
        for sender, nonce in list(self.pool):
            is_behind = nonce > tx.nonce and self.is_strangers(tx)
            if sender == tx.sender and (nonce == tx.nonce or is_behind):
                self._trace(f"the pool forgets {self.pool.pop((sender, nonce)).hash[:10]}")

    def calm_down(self) -> None:
        """From now on it only grows, and there is room for all."""
        self.moods = EvmMoods(self.moods.chance, block_s=_CALM_BLOCK_S)
        self.base_fee = _BASE_FEES[0]
        self._seen = ()

    # ── what is seen of it ───────────────────────────────────────────────────────────────────────

    def seen(self) -> Sequence[Block]:
        """The chain as the house's node knows it: as it is, or as it was some blocks ago."""
        if not self._seen and self.moods.lags:
            self._seen = tuple(self.blocks)
        return self._seen or self.blocks

    def received(self, address: str) -> Counter[str]:
        """What strangers have brought to an address, by "coin" and "token", in the best chain."""
        found: Counter[str] = Counter()
        for one in self._carried_out():
            if one.tx.to == address and self.is_strangers(one.tx):
                found["coin"] += one.tx.value
            found["token"] += sum(move.amount for move in one.moves if move.to == address)
        return found

    def left_to(self, address: str, senders: Sequence[str]) -> Counter[str]:
        """What our senders have paid to an address, alone or with others."""
        found: Counter[str] = Counter()
        for one in self._carried_out():
            if one.tx.sender not in senders:
                continue
            found["coin"] += one.tx.value if one.tx.to == address else 0
            found["token"] += sum(move.amount for move in one.moves if move.to == address)
            if isinstance(one.tx.deed, Batch) and not one.tx.deed.is_token:
                found["coin"] += sum(amount for to, amount in one.tx.deed.items if to == address)
        return found

    def brought(self, senders: Sequence[str]) -> Counter[tuple[str, str]]:
        """What strangers have sent to our senders, by transaction and payer, and "coin" or
        "token"."""
        found: Counter[tuple[str, str]] = Counter()
        for one in self._carried_out():
            if isinstance(one.tx.deed, Authorized) or not self.is_strangers(one.tx):
                continue
            if one.tx.to in senders and one.tx.value:
                found[f"{one.tx.hash}:{one.tx.sender}", "coin"] += one.tx.value
            for move in one.moves:
                if move.to in senders:
                    found[f"{one.tx.hash}:{move.payer}", "token"] += move.amount
        return found

    def settled(self, senders: Sequence[str]) -> Counter[tuple[str, str]]:
        """What signed transfers have brought there, by transaction and their number."""
        found: Counter[tuple[str, str]] = Counter()
        for one in self._carried_out():
            deed = one.tx.deed
            if isinstance(deed, Authorized) and deed.move.to in senders:
                found[f"{one.tx.hash}:{deed.nonce}", "token"] += deed.move.amount
        return found

    def _carried_out(self) -> list[Receipt]:
        return [one for block in self.blocks for one in block.receipts if one.ok]

    def is_there(self, name: str) -> bool:
        """Whether a transaction is in the best chain or waits."""
        txs = (*(one.tx for block in self.blocks for one in block.receipts), *self.pool.values())
        return any(tx.hash == name for tx in txs)

    def waits_for(self, address: str) -> bool:
        """Whether something in the pool is to come to an address."""
        return any(
            tx.to == address
            or (isinstance(tx.deed, Moves) and any(one.to == address for one in tx.deed.moves))
            for tx in self.pool.values()
        )


def _outbids(tx: Tx, rival: Tx) -> bool:
    return all(
        new * 100 >= old * (100 + _MORE_PERCENT)
        for new, old in ((tx.max_fee, rival.max_fee), (tx.tip, rival.tip))
    )
