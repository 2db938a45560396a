"""Stored payment methods: kept at their provider by its token, shown, chosen, removed, charged."""

from __future__ import annotations

import re

import msgspec

from farebox.api.amounts import whole
from farebox.api.caller import identify
from farebox.api.context import ApiContext
from farebox.api.http import Incoming, document, read_json
from farebox.api.once import Told, once, settled
from farebox.api.problems import bad_request, not_found
from farebox.clock import iso
from farebox.payments import Refusal
from farebox.payments.cards.gateway import Charged
from farebox.payments.cards.records import StoredMethod
from farebox.payments.model import OperationState
from farebox.paywall.answers import refused
from farebox.paywall.model import Answer

_TOKEN = re.compile("[A-Za-z0-9_-]{1,255}")


class MethodBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`token` is what the provider's script gave the payer's browser."""

    provider: str
    token: str


class ChargeBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`amount` is in the currency's smallest unit. No method is the default one."""

    asset: str
    amount: int | str
    payment_method: str = ""


async def add(context: ApiContext, incoming: Incoming) -> Answer:
    """`POST /v1/payment-methods`."""
    caller = await identify(context, incoming)
    if isinstance(caller, Answer):
        return caller
    asked = read_json(incoming, MethodBody)
    if isinstance(asked, Answer):
        return asked
    if not _TOKEN.fullmatch(asked.token):
        return bad_request("token_invalid", "The token is the provider's: letters and digits.")
    made = await context.cards.add(caller.account, asked.provider, asked.token)
    return refused(made) if isinstance(made, Refusal) else document(_shown(made), 201)


async def show(context: ApiContext, incoming: Incoming) -> Answer:
    """`GET /v1/payment-methods`."""
    caller = await identify(context, incoming, expired_too=True)
    if isinstance(caller, Answer):
        return caller
    kept = await context.cards.stored(caller.account)
    return document({"payment_methods": [_shown(one) for one in kept]})


async def make_default(context: ApiContext, incoming: Incoming) -> Answer:
    """`POST /v1/payment-methods/{id}/default`."""
    caller = await identify(context, incoming)
    if isinstance(caller, Answer):
        return caller
    made = await context.cards.make_default(caller.account, incoming.path["method_id"])
    return _UNKNOWN if made is None else document(_shown(made))


async def remove(context: ApiContext, incoming: Incoming) -> Answer:
    """`DELETE /v1/payment-methods/{id}`."""
    caller = await identify(context, incoming, expired_too=True)
    if isinstance(caller, Answer):
        return caller
    gone = await context.cards.remove(caller.account, incoming.path["method_id"])
    return document({"removed": True}) if gone else _UNKNOWN


async def charge(context: ApiContext, incoming: Incoming) -> Answer:
    """`POST /v1/payment-methods/charge`: top the caller's account up by a stored method."""
    caller = await identify(context, incoming)
    if isinstance(caller, Answer):
        return caller
    asked = read_json(incoming, ChargeBody)
    if isinstance(asked, Answer):
        return asked
    amount = whole(asked.amount)
    if isinstance(amount, Answer):
        return amount

    async def act(operation_id: str) -> Told:
        told = await context.cards.charge(
            caller.account, asked.asset, amount, operation_id, method_id=asked.payment_method
        )
        return settled(refused(told) if isinstance(told, Refusal) else _charged(told))

    return await once(context, incoming, caller.account, act)


def _charged(told: Charged) -> Answer:
    operation = told.operation
    match operation.state:
        case OperationState.SUCCEEDED:
            return document(
                {
                    "operation": operation.id,
                    "state": "succeeded",
                    "amount_msat": operation.amount,
                    "payment": operation.result.decode(),
                }
            )
        case OperationState.REJECTED | OperationState.CANCELLED:
            code, _, message = operation.error.partition(": ")
            return refused(Refusal("card_declined", message, {"reason": code}))
    body = {"operation": operation.id, "state": "pending"}
    if told.action is not None:
        body |= {"state": "requires_action"}
        body |= {"url": told.action.url, "client_secret": told.action.client_secret}
    return document(body, 202)


def _shown(one: StoredMethod) -> dict[str, object]:
    return {
        "payment_method": one.id,
        "provider": one.provider,
        "label": one.label,
        "expires": one.expires,
        "default": one.is_default,
        "created_at": iso(one.created_at),
    }


_UNKNOWN = not_found("method_unknown", "This account has no payment method of that name.")
