"""Looking at an account: balance, refunds, operations."""

from __future__ import annotations

from farebox.api.amounts import shown
from farebox.api.caller import Caller, identify
from farebox.api.context import ApiContext
from farebox.api.http import Incoming, document
from farebox.api.problems import not_found
from farebox.api.wallet import refund_document
from farebox.clock import NS_PER_S, iso
from farebox.ledger.store import PAGE_MAX
from farebox.payments.exchange import balance_of
from farebox.payments.model import OPERATION, Operation, OperationState
from farebox.payments.service import PAYOUT, REFUND, Refunded
from farebox.payments.totals import totals
from farebox.paywall.model import Answer

#: The newest refunds that are listed.
_REFUNDS_MAX = 100
_OUT = frozenset({REFUND, PAYOUT})
#: Operations of one account that are looked through for them.
_PAGES_MAX = 20


async def info(context: ApiContext, incoming: Incoming) -> Answer:
    """Balance and terms of the caller's account, in msat."""
    caller = await identify(context, incoming, expired_too=True)
    if isinstance(caller, Answer):
        return caller
    held = await context.ledger.store.account(caller.account)
    sums = await totals(context.ledger, caller.account)
    return document(
        {
            "api_key": caller.masked,
            "balance": held.available if held else 0,
            "reserved": held.debits_pending if held else 0,
            "incoming": held.credits_pending if held else 0,
            "balances": await _other_balances(context, caller),
            "total_spent": sums.spent_msat,
            "total_requests": sums.requests,
            **_terms(caller),
        }
    )


async def _other_balances(context: ApiContext, caller: Caller) -> dict[str, object]:
    """What is held in other assets, each in its own unit."""
    told: dict[str, object] = {}
    for asset in sorted(context.payments.exchange.held):
        held = await context.ledger.store.account(balance_of(caller.account, asset))
        if held is not None:
            told[asset] = shown(held.available, asset)
    return told


def _terms(caller: Caller) -> dict[str, object]:
    key = caller.key
    expires_at = key.expires_at if key else None
    return {
        "refund_address": (key.refund_address or None) if key else None,
        "refund_currency": caller.refund_metadata.get("refund_currency"),
        "refund_mint_url": caller.refund_metadata.get("refund_mint_url"),
        "key_expiry_time": expires_at // NS_PER_S if expires_at is not None else None,
        "label": key.label if key else "",
        "created_at": iso(key.created_at) if key else None,
    }


async def refunds(context: ApiContext, incoming: Incoming) -> Answer:
    """The newest refunds of the caller's account, each with what it gave: for lost answers."""
    caller = await identify(context, incoming, expired_too=True)
    if isinstance(caller, Answer):
        return caller
    found: list[Operation] = []
    after = ""
    for _ in range(_PAGES_MAX):
        page = await context.ledger.store.find(OPERATION, {"account": caller.account}, after=after)
        found.extend(row.value for _, row in page if row.value.kind in _OUT)
        if len(page) < PAGE_MAX:
            break
        after = page[-1][0]
    found.sort(key=lambda one: one.created_at, reverse=True)
    shown = [_operation(context, one) for one in found[:_REFUNDS_MAX]]
    return document({"refunds": shown})


async def operation(context: ApiContext, incoming: Incoming) -> Answer:
    """How one operation of the caller's account stands."""
    caller = await identify(context, incoming, expired_too=True)
    if isinstance(caller, Answer):
        return caller
    found = await context.operations.get(incoming.path["operation_id"])
    if found is None or found.account != caller.account:
        return not_found("operation_unknown", "This account has no such operation.")
    return document(_operation(context, found))


def _operation(context: ApiContext, one: Operation) -> dict[str, object]:
    shown: dict[str, object] = {
        "operation": one.id,
        "kind": one.kind,
        "state": one.state.value,
        "created_at": iso(one.created_at),
        "amount_msat": one.amount,
    }
    if one.state is OperationState.REJECTED:
        shown["reason"] = one.error
    if one.kind in _OUT:
        told = context.payments.refunded(one)
        if isinstance(told, Refunded):
            shown |= refund_document(told)
    return shown
