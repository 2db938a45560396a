"""What `farebox withdraw --list` tells: every withdrawal that was begun, oldest first."""

from __future__ import annotations

from farebox.bootstrap import Farebox
from farebox.cli.requests import Facts, ListWithdrawals
from farebox.clock import iso
from farebox.money import BTC
from farebox.payments.exchange import REVENUE
from farebox.payments.model import OPERATION, Operation, OperationState
from farebox.payments.service import REFUND, Refunded


async def withdrawals(house: Farebox, wanted: ListWithdrawals) -> Facts:
    """A page of them, and where the next one begins: None behind the last."""
    found: list[Operation] = []
    after = wanted.after
    while page := await house.store.find(OPERATION, {"account": REVENUE}, after=after):
        # What mints took for making proofs anew stands on this account as well.
        found += [row.value for _, row in page if row.value.kind == REFUND]
        if len(found) > wanted.limit:
            found = found[: wanted.limit]
            return {"withdrawals": _facts(house, found), "next": found[-1].id}
        after = page[-1][0]
    return {"withdrawals": _facts(house, found), "next": None}


def _facts(house: Farebox, operations: list[Operation]) -> list[Facts]:
    return [_withdrawal(house, one) for one in operations]


def _withdrawal(house: Farebox, operation: Operation) -> Facts:
    """One of them, without its token: who reads a list is not to spend what is in it."""
    told = house.payments.refunded(operation)
    reply = told.reply if isinstance(told, Refunded) else {}
    left = operation.amount if operation.state is OperationState.SUCCEEDED else None
    facts: Facts = {
        "id": operation.id,
        "at": iso(operation.created_at),
        "method": operation.method,
        "state": operation.state.value,
        "asset": operation.asset,
    }
    if operation.asset == BTC.code:
        facts["amount_msat"] = left
    else:
        facts["amount"] = None if left is None else str(left)
    to = "a token" if "token" in reply else reply.get("recipient", "")
    return facts | {"to": to, "reason": operation.error}
