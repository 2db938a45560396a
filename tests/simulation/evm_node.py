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
from farebox.testing.asgi import Receive, Scope, Send, drop, read_body, respond
from tests.simulation.evm import Block, ModelEvm, Receipt, Tx
from tests.simulation.evm_contracts import CHAIN_ID, TOKEN, Moves, State, gas_of, read_deed

NODE: Final = "evm.sim"
_BODY_MAX = 1 << 22
_FINAL_DEPTH: Final = 32
_BALANCE_CALL, _PROBE_CALL, _ALLOWANCE_CALL, _USED_CALL = (
    calldata(name, *arguments)[2:10]
    for name, arguments in (
        ("balanceOf(address)", (TOKEN,)),
        ("tryTransfer(address,address,uint256)", (TOKEN, TOKEN, 0)),
        ("allowance(address,address)", (TOKEN, TOKEN)),
        ("authorizationState(address,bytes32)", (TOKEN, bytes(32))),
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
            case "eth_getTransactionByHash", (name,):
                known = (*(one.tx for _, one in _receipts(blocks)), *chain.pool.values())
                return next((_transaction(tx) for tx in known if tx.hash == name), None)
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
                state = _state(blocks, "latest")
                return "0x60" if state.has_code(to_checksum_address(address)) else "0x"
            case "eth_sendRawTransaction", (raw,):
                return self._take(read_raw(raw))
            case "eth_call", (asked, which, *_):
                return self._run(_state(blocks, which), blocks[-1], asked)
            case "eth_estimateGas", (asked, *_):
                return self._estimate(_state(blocks, "latest"), blocks[-1], asked)
        raise Refused(-32_601, f"the method {method} does not exist")

    def _take(self, tx: Tx) -> str:
        if no := self._chain.accept(tx):
            raise Refused(-32_000, no)
        return tx.hash

    def _run(self, state: State, head: Block, asked: dict[str, Any]) -> str:
        """`eth_call`: something that is asked, a transfer that is measured, or a deed tried."""
        to, data = to_checksum_address(asked["to"]), asked["data"][2:]
        sender = to_checksum_address(asked.get("from", TOKEN))
        match data[:8]:
            case call if call == _PROBE_CALL:
                amount = int(data[136:200], 16)
                if amount > state.token[sender] or _address(data, 1) in self._chain.blocked:
                    raise Refused(3, "execution reverted")
                return f"0x{amount:064x}{amount:064x}"
            case call if call == _BALANCE_CALL and to == TOKEN:
                return f"0x{state.token[_address(data, 0)]:064x}"
            case call if call == _ALLOWANCE_CALL and to == TOKEN:
                return f"0x{state.allowed[_address(data, 0)]:064x}"
            case call if call == _USED_CALL and to == TOKEN:
                is_used = (_address(data, 0), f"0x{data[72:136]}") in state.used
                return f"0x{int(is_used):064x}"
        tx = self._tried(sender, to, asked)
        if tx.value > state.coin[sender]:
            raise Refused(-32_000, "insufficient funds for gas * price + value")
        if self._chain.tried(tx, state, head.time_s) is None:
            raise Refused(3, "execution reverted")
        return f"0x{1:064x}" if isinstance(tx.deed, Moves) else "0x"

    def _tried(self, sender: str, to: str, asked: dict[str, Any]) -> Tx:
        deed = read_deed(sender, to, asked["data"][2:])
        return Tx(sender, 0, to, int(asked.get("value", "0x0"), 16), deed)

    def _estimate(self, state: State, head: Block, asked: dict[str, Any]) -> str:
        self._run(state, head, asked)
        sender, to = to_checksum_address(asked["from"]), to_checksum_address(asked["to"])
        return hex(gas_of(to, self._tried(sender, to, asked).deed))


def read_raw(raw: str) -> Tx:
    """A signed EIP-1559 transaction."""
    data = HexBytes(raw)
    found = TypedTransaction.from_bytes(data).as_dict()
    to, sender = to_checksum_address(found["to"]), Account.recover_transaction(raw)
    return Tx(
        sender=sender,
        nonce=found["nonce"],
        to=to,
        value=found["value"],
        deed=read_deed(sender, to, found["data"].hex()),
        gas=found["gas"],
        max_fee=found["maxFeePerGas"],
        tip=found["maxPriorityFeePerGas"],
        hash=f"0x{keccak(data).hex()}",
    )


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


def _address(data: str, at: int) -> str:
    """One of a call's arguments, which stand behind its selector."""
    start = 8 + 64 * at
    return to_checksum_address(f"0x{data[start + 24 : start + 64]}")


def _state(blocks: Sequence[Block], which: str) -> State:
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
            _transaction(one.tx) if is_full else one.tx.hash for one in block.receipts
        ],
    }


def _transaction(tx: Tx) -> dict[str, Any]:
    return {
        "hash": tx.hash,
        "from": tx.sender.lower(),
        "to": tx.to.lower(),
        "value": hex(tx.value),
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
            "address": log.address.lower(),
            "topics": list(log.topics),
            "data": "0x" if log.data is None else f"0x{log.data:064x}",
            "blockNumber": hex(block.number),
            "blockHash": block.hash,
            "transactionHash": one.tx.hash,
            "logIndex": hex(one.first_log + index),
        }
        for index, log in enumerate(one.logs)
    ]


def _logs(blocks: Sequence[Block], asked: dict[str, Any]) -> list[dict[str, Any]]:
    first, last = int(asked["fromBlock"], 16), asked.get("toBlock", hex(len(blocks)))
    wanted = [set(one) if isinstance(one, list) else one and {one} for one in asked["topics"]]
    found = asked["address"]
    addresses = {one.lower() for one in (found if isinstance(found, list) else [found])}
    return [
        event
        for block, one in _receipts(blocks[first : int(last, 16) + 1])
        for event in _events(block, one)
        if event["address"] in addresses
        and len(event["topics"]) >= len(wanted)
        and all(
            not some or topic in some for some, topic in zip(wanted, event["topics"], strict=False)
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
