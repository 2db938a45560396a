"""Conversions: what is held in another asset becomes bitcoin, which requests are paid with."""

from __future__ import annotations

import msgspec

from farebox.api.amounts import rate, shown, whole
from farebox.api.caller import identify
from farebox.api.context import ApiContext
from farebox.api.http import Incoming, document, read_json
from farebox.api.once import Told, once, settled
from farebox.payments import Refusal
from farebox.payments.conversions import Conversion
from farebox.paywall.answers import refused
from farebox.paywall.model import Answer


class ConversionBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No amount is all that is held of the asset, in its own unit. `dry_run` only tells."""

    asset: str
    amount: int | str | None = None
    dry_run: bool = False


async def convert(context: ApiContext, incoming: Incoming) -> Answer:
    """`POST /v1/conversions`."""
    caller = await identify(context, incoming)
    if isinstance(caller, Answer):
        return caller
    asked = read_json(incoming, ConversionBody)
    if isinstance(asked, Answer):
        return asked
    amount = whole(asked.amount)
    if isinstance(amount, Answer):
        return amount
    desk = context.conversions
    if asked.dry_run:
        told = await desk.quote(caller.account, asked.asset, amount)
        return refused(told) if isinstance(told, Refusal) else _document(told)

    async def act(operation_id: str) -> Told:
        made = await desk.convert(caller.account, asked.asset, amount, operation_id)
        return settled(refused(made) if isinstance(made, Refusal) else _document(made))

    return await once(context, incoming, caller.account, act)


def _document(made: Conversion) -> Answer:
    quoted = made.quoted
    told: dict[str, object] = {
        "asset": quoted.asset,
        "amount": shown(made.amount, quoted.asset),
        "credited_msat": made.credited_msat,
        "rate": rate(quoted),
    }
    return document(told | ({"conversion": made.id} if made.id else {"dry_run": True}))
