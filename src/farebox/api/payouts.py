"""Refunds and payouts: money out, with a quote before and a limit to the fees.

A *refund* gives the caller's own money back: at most `amount_msat` leaves the account, fees
included. A *payout* pays somebody: `amount_msat` arrives, and fees come on top.
"""

from __future__ import annotations

import msgspec

from farebox.api.caller import Caller, identify
from farebox.api.context import ApiContext
from farebox.api.deposits import qr_svg
from farebox.api.http import Incoming, document, read_json
from farebox.api.lnurl import withdraw_url
from farebox.api.once import Told, once, settled
from farebox.api.problems import bad_request
from farebox.api.wallet import refund_answer
from farebox.clock import iso
from farebox.errors import InvalidCredential
from farebox.payments import RefundRequest, Refusal
from farebox.payments.service import PAYOUT, REFUND
from farebox.paywall.answers import refused
from farebox.paywall.model import Answer
from farebox.wire.bolt11 import decode_invoice

_ADDRESS_MAX_CHARS = 2_048
_AMOUNT_END = 2**63


class _Out(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    method: str = ""
    amount_msat: int | None = None
    destination: str = ""
    max_fee_msat: int | None = None
    dry_run: bool = False


class RefundsBody(_Out, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`amount_msat` None is all there is; no destination is the way it came. `lnurl` asks for a
    withdraw link, with its QR code, instead of paying at once."""

    lnurl: bool = False


class PayoutBody(_Out, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`destination` must be named; `amount_msat` may be left out for an invoice that has one."""


async def refund(context: ApiContext, incoming: Incoming) -> Answer:
    """`POST /v1/refunds`."""
    caller = await identify(context, incoming, expired_too=True)
    if isinstance(caller, Answer):
        return caller
    asked = read_json(incoming, RefundsBody)
    if isinstance(asked, Answer):
        return asked
    if bad := _bad(asked):
        return bad
    method = asked.method or caller.refund_method
    fallback = caller.key.refund_address if caller.key else ""
    destination = asked.destination or ("" if asked.lnurl else fallback)

    async def act(operation_id: str) -> Told:
        amount_msat = asked.amount_msat
        if amount_msat is None and await context.operations.get(operation_id) is None:
            held = await context.ledger.store.account(caller.account)
            amount_msat = held.available if held else 0
        if asked.lnurl:
            return await _link(context, caller, method, amount_msat or 0, operation_id)
        request = RefundRequest(
            operation_id,
            amount_msat or 0,
            destination,
            dict(caller.refund_metadata),
            fee_max_msat=asked.max_fee_msat,
        )
        return await _send(context, caller, method, request, REFUND, dry_run=asked.dry_run)

    return await once(context, incoming, caller.account, act)


async def payout(context: ApiContext, incoming: Incoming) -> Answer:
    """`POST /v1/payouts`."""
    caller = await identify(context, incoming)
    if isinstance(caller, Answer):
        return caller
    asked = read_json(incoming, PayoutBody)
    if isinstance(asked, Answer):
        return asked
    if bad := _bad(asked):
        return bad
    if not asked.destination:
        return bad_request("destination_required", "A payout names its destination.")
    amount_msat = asked.amount_msat
    if amount_msat is None:
        amount_msat = _named(asked.destination)
        if amount_msat is None:
            return bad_request("amount_required", "Only an invoice names an amount by itself.")
    method = asked.method or caller.refund_method

    async def act(operation_id: str) -> Told:
        request = RefundRequest(
            operation_id,
            amount_msat,
            asked.destination,
            is_exact=True,
            fee_max_msat=asked.max_fee_msat,
        )
        return await _send(context, caller, method, request, PAYOUT, dry_run=asked.dry_run)

    return await once(context, incoming, caller.account, act)


def _bad(asked: _Out) -> Answer | None:
    amounts = [one for one in (asked.amount_msat, asked.max_fee_msat) if one is not None]
    if asked.amount_msat == 0 or not all(0 <= one < _AMOUNT_END for one in amounts):
        return bad_request("amount_invalid", "Amounts are whole numbers of msat, above zero.")
    if len(asked.destination) > _ADDRESS_MAX_CHARS:
        return bad_request("destination_invalid", "A destination has at most 2048 characters.")
    return None


def _named(destination: str) -> int | None:
    try:
        return decode_invoice(destination).amount_msat
    except InvalidCredential:
        return None


async def _send(
    context: ApiContext,
    caller: Caller,
    method: str,
    request: RefundRequest,
    kind: str,
    *,
    dry_run: bool,
) -> Told:
    if method not in {one.payment_type for one in context.payments.methods}:
        return settled(refused(_NO_METHOD))
    if dry_run:
        return Told(await _quoted(context, caller, method, request), final=False)
    told = await context.payments.send(caller.account, request, method=method, kind=kind)
    return settled(refund_answer(told))


async def _quoted(
    context: ApiContext, caller: Caller, method: str, request: RefundRequest
) -> Answer:
    quote = await context.payments.methods[method].quote_refund(request)
    if isinstance(quote, Refusal):
        return refused(quote)
    held = await context.ledger.store.account(caller.account)
    most_msat = quote.amount_msat + quote.fee_max_msat
    return document(
        {
            "dry_run": True,
            "method": method,
            "destination": request.destination,
            "amount_msat": quote.amount_msat,
            "fee_max_msat": quote.fee_max_msat,
            "fee_estimate_msat": quote.fee_estimate_msat,
            "most_msat": most_msat,
            "is_covered": held is not None and held.available >= most_msat,
        }
    )


async def _link(
    context: ApiContext, caller: Caller, method: str, most_msat: int, origin: str
) -> Told:
    if method not in context.deposits.rails():
        return settled(refused(_NO_METHOD))
    made = await context.links.make(caller.account, method, most_msat, origin)
    if isinstance(made, Refusal):
        return settled(refused(made))
    lnurl = withdraw_url(context.public_url, made.secret)
    uri = f"lightning:{lnurl}"
    body = {
        "link": made.link.id,
        "lnurl": lnurl,
        "uri": uri,
        "qr_svg": qr_svg(uri),
        "most_msat": most_msat,
        "expires_at": iso(made.link.expires_at),
    }
    return settled(document(body, 201))


_NO_METHOD = Refusal("method_unknown", "no such way to pay is at hand here; see GET /v1/methods")
