"""What sending asks of a chain, over JSON-RPC: answers as typed values, refusals as the port's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from farebox.errors import RailRejected
from farebox.rails.evm.contracts import answered, calldata
from farebox.rails.evm.fees import HISTORY_BLOCKS, HISTORY_PERCENTILES, History
from farebox.rails.evm.outbox import Call
from farebox.rails.evm.rpc import Data, Hash, Quantity, Rpc


class Log(msgspec.Struct, frozen=True):
    """One event that a contract told."""

    address: str
    topics: tuple[str, ...]
    data: Data


class Receipt(msgspec.Struct, frozen=True, rename="camel"):
    """A transaction in a block. Amounts are wei. `l1_fee` is what an OP chain took besides."""

    transaction_hash: Hash
    block_number: Quantity
    block_hash: Hash
    status: Quantity
    gas_used: Quantity
    effective_gas_price: Quantity
    l1_fee: Quantity = Quantity(0)
    logs: tuple[Log, ...] = ()

    @property
    def cost(self) -> int:
        """All that it took from its sender, beside its value."""
        return int(self.gas_used * self.effective_gas_price + self.l1_fee)


class Chain(Protocol):
    """What sending needs to know of a chain, and the one thing it does to it.

    All raise RailUnavailable when nobody knows; those that run a call raise RailRejected too.
    """

    async def height(self) -> int:
        """The number of the newest block."""
        ...

    async def history(self) -> History:
        """What the last blocks took for gas, and what the next will."""
        ...

    async def suggested_tip(self) -> int | None:
        """What the node would offer a block's maker; None where it does not say."""
        ...

    async def receipt(self, transaction: str) -> Receipt | None:
        """Of a transaction in a block of the chain as it is now."""
        ...

    async def used(self, sender: str, at: int | None = None) -> int:
        """How many nonces of a sender are used in the newest block, or in the one at a height."""
        ...

    async def pending(self, sender: str) -> int:
        """The same, with what waits at the node."""
        ...

    async def broadcast(self, raw: str) -> None:
        """Hand a signed transaction to the network. Raises RailRejected for what the node says."""
        ...

    async def balance(self, address: str) -> int:
        """Wei at an address."""
        ...

    async def code(self, address: str) -> bytes:
        """The contract at an address, empty for none."""
        ...

    async def told(self, contract: str, topics: Sequence[str], since: int) -> str | None:
        """The transaction in which a contract told an event, from a height on."""
        ...

    async def run(self, sender: str, call: Call, *, code: Mapping[str, str] | None = None) -> bytes:
        """What a call would answer now; `code` puts contracts where there are others or none."""
        ...

    async def gas(self, sender: str, call: Call) -> int:
        """The gas that a call would use now."""
        ...


async def held(chain: Chain, address: str, token: str) -> int:
    """What an address has of a token; of the chain's coin where that is empty."""
    if not token:
        return await chain.balance(address)
    asked = Call(token, 0, calldata("balanceOf(address)", address))
    return answered(("uint256",), await chain.run(address, asked))[0]


def transfer_of(token: str, to: str, amount: int) -> Call:
    """What moves an amount of a token, or of the chain's coin where that is empty."""
    if not token:
        return Call(to, amount)
    return Call(token, 0, calldata("transfer(address,uint256)", to, amount))


def says_no(answer: bytes) -> bool:
    """Whether a token's transfer answers false: it moves nothing then, and does not revert. Some
    answer with nothing at all, which is no no."""
    return bool(answer) and not any(answer)


class _FeeHistory(msgspec.Struct, frozen=True, rename="camel"):
    base_fee_per_gas: tuple[Quantity, ...]
    gas_used_ratio: tuple[float, ...]  # a ratio of gas_s, no money
    reward: tuple[tuple[Quantity, ...], ...] = ()


class _Told(msgspec.Struct, frozen=True, rename="camel"):
    transaction_hash: Hash


class RpcChain:
    """A chain behind one node."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    async def height(self) -> int:
        """The number of the newest block."""
        return int(await self._rpc.call(Quantity, "eth_blockNumber"))

    async def history(self) -> History:
        """What the last blocks took for gas, and what the next will."""
        asked = (hex(HISTORY_BLOCKS), "latest", list(HISTORY_PERCENTILES))
        told = await self._rpc.call(_FeeHistory, "eth_feeHistory", *asked)
        is_empty = tuple(ratio == 0 for ratio in told.gas_used_ratio)
        rewards = tuple(tuple(map(int, row)) for row in told.reward) or ((),) * len(is_empty)
        return History(tuple(map(int, told.base_fee_per_gas)), rewards, is_empty)

    async def suggested_tip(self) -> int | None:
        """What the node would offer a block's maker; None where it does not say."""
        try:
            return int(await self._rpc.call(Quantity, "eth_maxPriorityFeePerGas"))
        except RailRejected:
            return None

    async def receipt(self, transaction: str) -> Receipt | None:
        """Of a transaction in a block of the chain as it is now."""
        return await self._rpc.find(Receipt, "eth_getTransactionReceipt", transaction)

    async def used(self, sender: str, at: int | None = None) -> int:
        """How many nonces of a sender are used in the newest block, or in the one at a height."""
        when = "latest" if at is None else hex(at)
        return int(await self._rpc.call(Quantity, "eth_getTransactionCount", sender, when))

    async def pending(self, sender: str) -> int:
        """The same, with what waits at the node."""
        return int(await self._rpc.call(Quantity, "eth_getTransactionCount", sender, "pending"))

    async def broadcast(self, raw: str) -> None:
        """Hand a signed transaction to the network. Raises RailRejected for what the node says."""
        await self._rpc.call(Hash, "eth_sendRawTransaction", raw)

    async def balance(self, address: str) -> int:
        """Wei at an address."""
        return int(await self._rpc.call(Quantity, "eth_getBalance", address, "latest"))

    async def code(self, address: str) -> bytes:
        """The contract at an address, empty for none."""
        return bytes(await self._rpc.call(Data, "eth_getCode", address, "latest"))

    async def told(self, contract: str, topics: Sequence[str], since: int) -> str | None:
        """The transaction in which a contract told an event, from a height on."""
        asked = {"address": contract, "topics": topics, "fromBlock": hex(since)}
        found = await self._rpc.call(list[_Told], "eth_getLogs", asked)
        return found[0].transaction_hash if found else None

    async def run(self, sender: str, call: Call, *, code: Mapping[str, str] | None = None) -> bytes:
        """What a call would answer now; `code` puts contracts where there are others or none."""
        asked = _asked(sender, call)
        overrides = {address: {"code": text} for address, text in (code or {}).items()}
        extra: Sequence[object] = (overrides,) if overrides else ()
        return bytes(await self._rpc.call(Data, "eth_call", asked, "latest", *extra))

    async def gas(self, sender: str, call: Call) -> int:
        """The gas that a call would use now."""
        return int(await self._rpc.call(Quantity, "eth_estimateGas", _asked(sender, call)))


def _asked(sender: str, call: Call) -> dict[str, str]:
    return {"from": sender, "to": call.to, "value": hex(call.value), "data": call.data}
