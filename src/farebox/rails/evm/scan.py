"""Looking through blocks: headers, plain transfers, events, in ranges that a node answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import msgspec

from farebox.errors import RailRejected
from farebox.rails.evm.contracts import answered, calldata, topic
from farebox.rails.evm.rpc import Data, Hash, Quantity, Rpc, decoded

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
        asked = [(hex(height), True) for height in range(first, last + 1)]
        found: list[Block] = []
        for start in range(0, len(asked), _BLOCKS_MAX):
            some = asked[start : start + _BLOCKS_MAX]
            found += await self._rpc.batch(Block, "eth_getBlockByNumber", some)
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
        except RailRejected:  # too many for one answer, as most nodes put it
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
