"""What contracts pass on is read off a node's traces: what has moved coin, and nothing else."""

from __future__ import annotations

import json
from typing import Any

from farebox.rails.evm.rpc import decoded
from farebox.rails.evm.scan import Inner, _Trace, passed_on

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
