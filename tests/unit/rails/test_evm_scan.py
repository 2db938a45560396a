"""What contracts pass on is read off a node's traces: what has moved coin, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from farebox.rails.evm.rpc import Rpc, decoded
from farebox.rails.evm.scan import Inner, RpcScan, _Trace, passed_on
from farebox.rails.web.bounded import AnswerTooLong

TO, BLOCK = "0x" + "aB" * 20, "0x" + "bb" * 32
FIRST, SECOND = "0x" + "01" * 32, "0x" + "02" * 32


def trace(
    transaction: str | None, at: list[int], type_: str = "call", **told: object
) -> dict[str, Any]:
    """One trace, as `trace_block` has it."""
    error = {"error": told.pop("error")} if "error" in told else {}
    action = {"callType": "call", "to": TO, "value": "0x5", **told}
    of = {"transactionHash": transaction, "blockHash": BLOCK, "traceAddress": at}
    return {"type": type_, "action": action, **of, **error}


def test_only_what_has_happened_inside_of_a_transaction_counts() -> None:
    reward = {"type": "reward", "action": {"author": TO, "value": "0x5"}, "blockHash": BLOCK}
    told = [
        trace(FIRST, []),  # the transaction itself is found by its value
        trace(FIRST, [0]),
        trace(FIRST, [0, 0], callType="delegatecall"),
        trace(FIRST, [1], value="0x0"),
        trace(FIRST, [2], error="Reverted"),
        trace(FIRST, [2, 0]),
        trace(FIRST, [2, 0, 3]),
        trace(FIRST, [3], "suicide", refundAddress=TO, balance="0x7"),
        trace(FIRST, [4], "create", to=None),
        trace(SECOND, [], error="Reverted"),
        trace(SECOND, [0]),
        reward | {"traceAddress": []},
    ]
    found = passed_on(decoded(json.dumps(told).encode(), list[_Trace]))
    assert found == [
        Inner(FIRST, 1, BLOCK, TO.lower(), 5),
        Inner(FIRST, 7, BLOCK, TO.lower(), 7),
    ]


class Full(Rpc):
    """A node whose blocks are so full that two are more than is read."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def batch(self, shape: type[Any], method: str, params: Sequence[Sequence[object]]) -> Any:
        if len(params) > 1:
            raise AnswerTooLong("the node's answer is too long")
        height = int(str(params[0][0]), 16)
        self.asked.append(height)
        told = {"number": hex(height), "hash": BLOCK, "parentHash": BLOCK, "timestamp": "0x1"}
        return [decoded(json.dumps(told).encode(), shape)]


async def test_full_blocks_are_read_one_by_one() -> None:
    node = Full()
    found = await RpcScan(node).blocks(3, 14)
    assert [int(one.number) for one in found] == node.asked == list(range(3, 15))


class Wordy(Rpc):
    """A node whose answer about a block, and about one transaction, is longer than is read."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def call(self, shape: type[Any], method: str, *params: object) -> Any:
        self.asked.append(method)
        if method == "trace_block" or params == (FIRST,):
            raise AnswerTooLong("the node's answer is too long")
        return decoded(json.dumps([trace(SECOND, []), trace(SECOND, [0])]).encode(), shape)


async def test_who_makes_an_answer_too_long_hides_his_own_payment_and_no_others() -> None:
    node = Wordy()
    assert await RpcScan(node).inner(5, [FIRST, SECOND]) == [Inner(SECOND, 1, BLOCK, TO.lower(), 5)]
    assert node.asked == ["trace_block", "trace_transaction", "trace_transaction"]
