"""Looking through blocks: headers, plain transfers, events, in ranges that a node answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import msgspec
import structlog

from farebox.errors import RailRejected
from farebox.rails.evm.contracts import answered, calldata, topic
from farebox.rails.evm.rpc import Data, Hash, Quantity, Rpc, decoded
from farebox.rails.web.bounded import AnswerTooLong

_log = structlog.get_logger("farebox.evm")

TRANSFER = topic("Transfer(address,address,uint256)")
#: Addresses in one question about events; nodes limit its length.
_TOPICS_MAX = 200
#: Whole blocks in one answer: they have all input data in them.
_BLOCKS_MAX = 10


class Header(msgspec.Struct, frozen=True, rename="camel"):
    """A block by its number and hashes. `timestamp` is Unix seconds."""

    number: Quantity
    hash: Hash
    parent_hash: Hash
    timestamp: Quantity


class Transaction(msgspec.Struct, frozen=True, rename="camel"):
    """What a transaction moves by itself; `to` is None where it makes a contract."""

    hash: Hash
    sender: str = msgspec.field(name="from")
    to: str | None = None
    value: Quantity = Quantity(0)


class Block(Header, frozen=True, rename="camel"):
    """A block with its transactions."""

    transactions: tuple[Transaction, ...] = ()


class Event(msgspec.Struct, frozen=True, rename="camel"):
    """An event in a block. `log_index` counts in the block."""

    address: str
    topics: tuple[str, ...]
    data: Data
    block_number: Quantity
    block_hash: Hash
    transaction_hash: Hash
    log_index: Quantity

    @property
    def to(self) -> str:
        """The receiver of a transfer, in lower case."""
        return f"0x{self.topics[2][-40:].lower()}"

    @property
    def payer(self) -> str:
        """Whose a transfer was, in lower case."""
        return f"0x{self.topics[1][-40:].lower()}"

    @property
    def value(self) -> int:
        """How much a transfer moves."""
        return int.from_bytes(self.data)


class Placed(msgspec.Struct, frozen=True, rename="camel"):
    """A transaction in a block: whether it did what it was for, and its events in their order."""

    transaction_hash: Hash
    block_hash: Hash
    block_number: Quantity
    status: Quantity
    logs: tuple[Event, ...]


class Inner(msgspec.Struct, frozen=True):
    """Coin that a contract passed on inside of a transaction: no event tells of it.

    `number` is its place among all that the transaction did.
    """

    transaction: Hash
    number: int
    block_hash: Hash
    to: str
    value: int


class _Action(msgspec.Struct, frozen=True, rename="camel"):
    call_type: str = ""
    to: str | None = None
    value: Quantity = Quantity(0)
    refund_address: str | None = None
    balance: Quantity = Quantity(0)


class _Trace(msgspec.Struct, frozen=True, rename="camel"):
    """One call of a transaction; `trace_address` says inside of which others."""

    type: str
    action: _Action
    block_hash: Hash
    trace_address: tuple[int, ...] = ()
    transaction_hash: Hash | None = None
    error: str | None = None


class Scan(Protocol):
    """What watching asks of a chain. All raise RailUnavailable, RailRejected."""

    async def header(self, which: int | str) -> Header | None:
        """A block by its number, or "latest", "finalized"; None: there is none."""
        ...

    async def hashes(self, heights: Collection[int]) -> dict[int, str]:
        """The hashes of the blocks at some heights, all of which the chain has reached."""
        ...

    async def blocks(self, first: int, last: int) -> list[Block]:
        """All blocks of a range, with their transactions."""
        ...

    async def inner(self, height: int, transactions: Sequence[str]) -> list[Inner]:
        """What contracts passed on of the coin in a block of these, where the node traces."""
        ...

    async def transfers(
        self, first: int, last: int, tokens: Sequence[str], to: Collection[str]
    ) -> list[Event]:
        """What tokens say was transferred to some addresses, in a range of blocks."""
        ...

    async def receipts(self, transactions: Sequence[str]) -> dict[str, Placed]:
        """The receipts of transactions that are in a block now."""
        ...

    async def transaction(self, transaction: str) -> Transaction | None:
        """A transaction by its hash."""
        ...

    async def held_at(self, address: str, token: str, height: int) -> int:
        """What an address had of a token after a block."""
        ...


class RpcScan:
    """A chain behind one node."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    async def header(self, which: int | str) -> Header | None:
        """A block by its number, or "latest", "finalized"; None: there is none."""
        name = hex(which) if isinstance(which, int) else which
        return await self._rpc.find(Header, "eth_getBlockByNumber", name, False)

    async def hashes(self, heights: Collection[int]) -> dict[int, str]:
        """The hashes of the blocks at some heights, all of which the chain has reached."""
        asked = [(hex(height), False) for height in sorted(heights)]
        told = await self._rpc.batch(Header, "eth_getBlockByNumber", asked)
        return {int(one.number): one.hash for one in told}

    async def blocks(self, first: int, last: int) -> list[Block]:
        """All blocks of a range, with their transactions."""
        found: list[Block] = []
        for start in range(first, last + 1, _BLOCKS_MAX):
            heights = range(start, min(start + _BLOCKS_MAX, last + 1))
            try:
                found += await self._whole(heights)
            except AnswerTooLong:  # somebody fills blocks: they are read one by one
                for height in heights:
                    found += await self._whole([height])
        return found

    async def _whole(self, heights: Sequence[int]) -> list[Block]:
        asked = [(hex(height), True) for height in heights]
        return await self._rpc.batch(Block, "eth_getBlockByNumber", asked)

    async def inner(self, height: int, transactions: Sequence[str]) -> list[Inner]:
        """What contracts passed on of the coin in a block of these, by `trace_block`.

        Whoever makes the answer longer than is read hides what his own transaction has moved, and
        stops nobody.
        """
        try:
            return passed_on(await self._rpc.call(list[_Trace], "trace_block", hex(height)))
        except AnswerTooLong:
            found: list[Inner] = []
        for one in transactions:
            try:
                told = await self._rpc.call(list[_Trace], "trace_transaction", one)
            except AnswerTooLong:
                _log.error("evm.not_traced", height=height, transaction=one)
                continue
            found += passed_on(told)
        return found

    async def transfers(
        self, first: int, last: int, tokens: Sequence[str], to: Collection[str]
    ) -> list[Event]:
        """What tokens say was transferred to some addresses, in a range of blocks."""
        found: list[Event] = []
        names = sorted(to)
        for start in range(0, len(names), _TOPICS_MAX):
            some = [f"0x{one[2:].lower():0>64}" for one in names[start : start + _TOPICS_MAX]]
            found += await self._events(first, last, tokens, [TRANSFER, None, some])
        return found

    async def _events(
        self, first: int, last: int, tokens: Sequence[str], topics: Sequence[object]
    ) -> list[Event]:
        asked = {
            "fromBlock": hex(first),
            "toBlock": hex(last),
            "address": list(tokens),
            "topics": list(topics),
        }
        try:
            return await self._rpc.call(list[Event], "eth_getLogs", asked)
        except (RailRejected, AnswerTooLong):  # too many for one answer, as most nodes put it
            if first == last:
                raise
        middle = (first + last) // 2
        return [
            *await self._events(first, middle, tokens, topics),
            *await self._events(middle + 1, last, tokens, topics),
        ]

    async def receipts(self, transactions: Sequence[str]) -> dict[str, Placed]:
        """The receipts of transactions that are in a block now."""
        asked = [(one,) for one in transactions]
        told = await self._rpc.batch(msgspec.Raw, "eth_getTransactionReceipt", asked)
        found = [decoded(raw, Placed) for raw in map(bytes, told) if raw != b"null"]
        return {one.transaction_hash: one for one in found}

    async def transaction(self, transaction: str) -> Transaction | None:
        """A transaction by its hash."""
        return await self._rpc.find(Transaction, "eth_getTransactionByHash", transaction)

    async def held_at(self, address: str, token: str, height: int) -> int:
        """What an address had of a token after a block."""
        asked = {"to": token, "data": calldata("balanceOf(address)", address)}
        return answered(("uint256",), await self._rpc.call(Data, "eth_call", asked, hex(height)))[0]


def passed_on(traces: Sequence[_Trace]) -> list[Inner]:
    """The calls that moved coin; none inside of one that failed, which has not happened."""
    by_transaction: dict[Hash, list[_Trace]] = {}
    for one in traces:
        if one.transaction_hash is not None:
            by_transaction.setdefault(one.transaction_hash, []).append(one)
    found = []
    for name, calls in by_transaction.items():
        failed = {one.trace_address for one in calls if one.error is not None}
        for number, one in enumerate(calls):
            at, action = one.trace_address, one.action
            if not at or any(at[:depth] in failed for depth in range(len(at) + 1)):
                continue
            to, value = None, 0
            if one.type == "call" and action.call_type == "call":
                to, value = action.to, int(action.value)
            elif one.type == "suicide":
                to, value = action.refund_address, int(action.balance)
            if to is not None and value:
                found.append(Inner(name, number, one.block_hash, to.lower(), value))
    return found
