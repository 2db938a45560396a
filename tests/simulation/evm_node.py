"""A node of the model chain: as much of Ethereum's JSON-RPC as the rail asks for.

`test_evm_model.py` asks the same of it and of anvil.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from hexbytes import HexBytes

from farebox.rails.evm.accounts import Account
from farebox.rails.evm.contracts import calldata
from farebox.rails.evm.scan import TRANSFER
from farebox.testing.asgi import Receive, Scope, Send, drop, read_body, respond
from tests.simulation.evm import CHAIN_ID, COIN_GAS, TOKEN, Block, ModelEvm, Receipt, Tx, gas_of

NODE: Final = "evm.sim"
_BODY_MAX = 1 << 22
_FINAL_DEPTH: Final = 32
_TRANSFER_CALL, _BALANCE_CALL, _PROBE_CALL = (
    calldata(name, *arguments)[2:10]
    for name, arguments in (
        ("transfer(address,uint256)", (TOKEN, 0)),
        ("balanceOf(address)", (TOKEN,)),
        ("tryTransfer(address,address,uint256)", (TOKEN, TOKEN, 0)),
    )
)


class Refused(Exception):
    """The node's no."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class ModelNode:
    """Answers the house's calls, over the network of the simulation or any other."""

    def __init__(self, chain: ModelEvm) -> None:
        self._chain = chain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await read_body(receive, _BODY_MAX)
        if self._chain.moods.is_down:
            return await drop(send)
        asked = msgspec.json.decode(raw)
        told = (
            [self._answer(one) for one in asked] if isinstance(asked, list) else self._answer(asked)
        )
        return await respond(send, 200, msgspec.json.encode(told))

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        about = {"jsonrpc": "2.0", "id": asked["id"]}
        try:
            return about | {"result": self.call(asked["method"], *asked["params"])}
        except Refused as no:
            return about | {"error": {"code": no.code, "message": str(no)}}

    def call(self, method: str, *params: Any) -> Any:
        """One call. Raises Refused."""
        blocks, chain = self._chain.seen(), self._chain
        match method, params:
            case "eth_chainId", _:
                return hex(CHAIN_ID)
            case "eth_blockNumber", _:
                return hex(blocks[-1].number)
            case "eth_getBlockByNumber", (which, is_full):
                block = _block_at(blocks, which)
                return None if block is None else _block(block, is_full=is_full)
            case "eth_getLogs", (asked,):
                return _logs(blocks, asked)
            case "eth_getTransactionReceipt", (name,):
                return next(
                    (_receipt(*one) for one in _receipts(blocks) if one[1].tx.hash == name), None
                )
            case "eth_feeHistory", (count, _, percentiles):
                return _history(blocks[-int(count, 16) :], chain.base_fee, len(percentiles))
            case "eth_maxPriorityFeePerGas", _:
                return hex(10**6)
            case "eth_getTransactionCount", (address, "pending"):
                return hex(chain.next_nonce(to_checksum_address(address)))
            case "eth_getTransactionCount", (address, which):
                return hex(_state(blocks, which).nonces[to_checksum_address(address)])
            case "eth_getBalance", (address, which):
                return hex(_state(blocks, which).coin[to_checksum_address(address)])
            case "eth_getCode", (address, _):
                return "0x60" if address == TOKEN else "0x"
            case "eth_sendRawTransaction", (raw,):
                return self._take(read_raw(raw))
            case "eth_call", (asked, which, *_):
                return _run(_state(blocks, which), asked)
            case "eth_estimateGas", (asked, *_):
                return _estimate(_state(blocks, "latest"), asked)
        raise Refused(-32_601, f"the method {method} does not exist")

    def _take(self, tx: Tx) -> str:
        if no := self._chain.accept(tx):
            raise Refused(-32_000, no)
        return tx.hash


def read_raw(raw: str) -> Tx:
    """A signed EIP-1559 transaction."""
    data = HexBytes(raw)
    found = TypedTransaction.from_bytes(data).as_dict()
    to = to_checksum_address(found["to"])
    return Tx(
        sender=Account.recover_transaction(raw),
        nonce=found["nonce"],
        to=to,
        value=found["value"],
        moves=_moves(to, found["data"].hex()),
        gas=found["gas"],
        max_fee=found["maxFeePerGas"],
        tip=found["maxPriorityFeePerGas"],
        hash=f"0x{keccak(data).hex()}",
    )


def _moves(to: str, call: str) -> tuple[tuple[str, int], ...]:
    if to != TOKEN or call[:8] != _TRANSFER_CALL:
        return ()
    return ((to_checksum_address(f"0x{call[32:72]}"), int(call[72:136], 16)),)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def _block_at(blocks: Sequence[Block], which: str) -> Block | None:
    match which:
        case "latest":
            return blocks[-1]
        case "finalized":
            return blocks[max(0, len(blocks) - _FINAL_DEPTH)]
        case _:
            number = int(which, 16)
            return blocks[number] if number < len(blocks) else None


def _state(blocks: Sequence[Block], which: str) -> Any:
    block = _block_at(blocks, which)
    if block is None:
        raise Refused(-32_000, "header not found")
    return block.state


def _block(block: Block, *, is_full: bool) -> dict[str, Any]:
    return {
        "number": hex(block.number),
        "hash": block.hash,
        "parentHash": block.parent,
        "timestamp": hex(block.time_s),
        "baseFeePerGas": hex(block.base_fee),
        "transactions": [
            {
                "hash": one.tx.hash,
                "from": one.tx.sender.lower(),
                "to": one.tx.to.lower(),
                "value": hex(one.tx.value),
            }
            if is_full
            else one.tx.hash
            for one in block.receipts
        ],
    }


def _receipts(blocks: Iterable[Block]) -> Iterable[tuple[Block, Receipt]]:
    return ((block, one) for block in blocks for one in block.receipts)


def _receipt(block: Block, one: Receipt) -> dict[str, Any]:
    return {
        "transactionHash": one.tx.hash,
        "blockNumber": hex(block.number),
        "blockHash": block.hash,
        "status": hex(int(one.ok)),
        "gasUsed": hex(one.gas_used),
        "effectiveGasPrice": hex(one.price),
        "logs": _events(block, one),
    }


def _events(block: Block, one: Receipt) -> list[dict[str, Any]]:
    return [
        {
            "address": TOKEN,
            "topics": [TRANSFER, _word(one.tx.sender), _word(to)],
            "data": f"0x{amount:064x}",
            "blockNumber": hex(block.number),
            "blockHash": block.hash,
            "transactionHash": one.tx.hash,
            "logIndex": hex(one.first_log + index),
        }
        for index, (to, amount) in enumerate(one.tx.moves if one.ok else ())
    ]


def _logs(blocks: Sequence[Block], asked: dict[str, Any]) -> list[dict[str, Any]]:
    first, last = (int(asked[name], 16) for name in ("fromBlock", "toBlock"))
    wanted = [set(one) if isinstance(one, list) else one and {one} for one in asked["topics"]]
    addresses = {one.lower() for one in asked["address"]}
    return [
        event
        for block, one in _receipts(blocks[first : last + 1])
        for event in _events(block, one)
        if event["address"] in addresses
        and all(
            not some or topic in some for some, topic in zip(wanted, event["topics"], strict=True)
        )
    ]


def _history(blocks: Sequence[Block], next_fee: int, columns: int) -> dict[str, Any]:
    return {
        "oldestBlock": hex(blocks[0].number),
        "baseFeePerGas": [hex(one.base_fee) for one in blocks] + [hex(next_fee)],
        "gasUsedRatio": [0.5 if one.receipts else 0 for one in blocks],
        "reward": [
            [hex(min((r.price - one.base_fee for r in one.receipts), default=0))] * columns
            for one in blocks
        ],
    }


def _run(state: Any, asked: dict[str, Any]) -> str:
    """`eth_call`: a balance, a transfer that is tried, or one that is measured."""
    to, data = asked["to"], asked["data"][2:]
    sender = to_checksum_address(asked.get("from", TOKEN))
    if data[:8] == _PROBE_CALL:
        amount = int(data[136:200], 16)
        if amount > state.token[sender]:
            raise Refused(3, "execution reverted")
        return f"0x{amount:064x}{amount:064x}"
    if to != TOKEN:
        return "0x"
    if data[:8] == _BALANCE_CALL:
        return f"0x{state.token[to_checksum_address('0x' + data[32:72])]:064x}"
    moves = _moves(to, data)
    if not moves or not state.copy().moves_token(moves, sender):
        raise Refused(3, "execution reverted")
    return f"0x{1:064x}"


def _estimate(state: Any, asked: dict[str, Any]) -> str:
    to, sender = asked["to"], to_checksum_address(asked["from"])
    if to != TOKEN:
        if int(asked["value"], 16) > state.coin[sender]:
            raise Refused(-32_000, "insufficient funds for gas * price + value")
        return hex(COIN_GAS)
    _run(state, asked)
    return hex(gas_of(TOKEN, ()))


def _word(address: str) -> str:
    return f"0x{address[2:].lower():0>64}"
