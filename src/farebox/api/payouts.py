"""Refunds and payouts: money out, with a quote before and a limit to the fees.

A *refund* gives the caller's own money back: at most the amount leaves the account, fees
included. A *payout* pays somebody: the amount arrives, and fees come on top.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from farebox.api.amounts import shown, whole
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
from farebox.money import BTC
from farebox.payments import RefundRequest, Refusal
from farebox.payments.exchange import balance_of, sold
from farebox.payments.service import PAYOUT, REFUND
from farebox.paywall.answers import refused
from farebox.paywall.model import Answer
from farebox.wire.bolt11 import decode_invoice

_ADDRESS_MAX_CHARS = 2_048


class _Out(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`amount_msat` and `max_fee_msat` are the account's, `amount` and `max_fee` those of `asset`.

    The two of a pair are never sent together. No asset is the account's, where the method pays
    out in it.
    """

    method: str = ""
    asset: str = ""
    amount: int | str | None = None
    amount_msat: int | None = None
    destination: str = ""
    max_fee: int | str | None = None
    max_fee_msat: int | None = None
    dry_run: bool = False


class RefundsBody(_Out, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No amount is all there is; no destination is the way it came. `lnurl` asks for a withdraw
    link, with its QR code, instead of paying at once."""

    lnurl: bool = False


class PayoutBody(_Out, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`destination` must be named; the amount may be left out for an invoice that has one."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What was asked for. `amount` is msat or of the asset, as `in_msat` says; None is all."""

    asset: str
    amount: int | None
    fee_max: int | None
    in_msat: bool


async def refund(context: ApiContext, incoming: Incoming) -> Answer:
    """`POST /v1/refunds`."""
    caller = await identify(context, incoming, expired_too=True)
    if isinstance(caller, Answer):
        return caller
    asked = read_json(incoming, RefundsBody)
    if isinstance(asked, Answer):
        return asked
    method = asked.method or (_invoice_payer(context) if asked.lnurl else caller.refund_method)
    wanted = _wanted(context, caller, method, asked)
    if isinstance(wanted, Answer):
        return wanted
    rail = context.deposits.rails().get(method)
    if asked.lnurl and (rail is None or not rail.pays_invoices):
        return refused(_NO_METHOD)
    if asked.lnurl and (asked.destination or wanted.fee_max is not None):
        return bad_request("link_unlimited", "A withdraw link has no destination, and no most fee.")
    needs_none = asked.lnurl or context.payments.gives_back_only(method)
    fallback = caller.key.refund_address if caller.key and not needs_none else ""
    destination = asked.destination or fallback

    async def act(operation_id: str) -> Told:
        amount, in_msat = wanted.amount, wanted.in_msat
        if amount is None and await context.operations.get(operation_id) is None:
            is_held = wanted.asset in context.payments.exchange.held
            balance = balance_of(caller.account, wanted.asset) if is_held else caller.account
            held = await context.ledger.store.account(balance)
            amount, in_msat = held.available if held else 0, not is_held
            if amount == 0:
                return settled(refused(_NOTHING))
        if asked.lnurl:
            if asked.dry_run:
                return Told(await _quoted_link(context, caller, method, amount or 0), final=False)
            return await _link(context, caller, method, amount or 0, operation_id)
        request = RefundRequest(
            operation_id,
            amount or 0,
            destination,
            dict(caller.refund_metadata),
            fee_max=wanted.fee_max,
            asset=wanted.asset,
        )
        way = _Way(method, REFUND, in_msat=in_msat, dry_run=asked.dry_run)
        return await _send(context, caller, request, way)

    return await once(context, incoming, caller.account, act)


async def payout(context: ApiContext, incoming: Incoming) -> Answer:
    """`POST /v1/payouts`."""
    caller = await identify(context, incoming)
    if isinstance(caller, Answer):
        return caller
    asked = read_json(incoming, PayoutBody)
    if isinstance(asked, Answer):
        return asked
    method = asked.method or caller.refund_method
    wanted = _wanted(context, caller, method, asked)
    if isinstance(wanted, Answer):
        return wanted
    if not asked.destination:
        return bad_request("destination_required", "A payout names its destination.")
    amount = wanted.amount or _named(asked.destination)
    if amount is None:
        return bad_request("amount_required", "Only an invoice names an amount by itself.")

    async def act(operation_id: str) -> Told:
        request = RefundRequest(
            operation_id,
            amount,
            asked.destination,
            is_exact=True,
            fee_max=wanted.fee_max,
            asset=wanted.asset,
        )
        way = _Way(method, PAYOUT, in_msat=wanted.in_msat, dry_run=asked.dry_run)
        return await _send(context, caller, request, way)

    return await once(context, incoming, caller.account, act)


def _wanted(context: ApiContext, caller: Caller, method: str, asked: _Out) -> _Wanted | Answer:
    if len(asked.destination) > _ADDRESS_MAX_CHARS:
        return bad_request("destination_invalid", "A destination has at most 2048 characters.")
    if method not in {one.payment_type for one in context.payments.methods}:
        return refused(_NO_METHOD)
    currency = caller.refund_metadata.get("refund_currency", "")
    asset = asked.asset or context.payments.asset_out(method, currency)
    paid_out = context.payments.assets_out(method)
    if asset not in paid_out:
        said = f"{method} pays out {', '.join(paid_out) or 'nothing'}"
        return refused(Refusal("asset_unknown", said))
    in_msat = asked.amount is None and asked.max_fee is None
    if not in_msat and (asked.amount_msat is not None or asked.max_fee_msat is not None):
        return bad_request("amount_invalid", "Amounts are all in msat, or all in the asset's unit.")
    if in_msat and asset in context.payments.exchange.held and asked.amount_msat is not None:
        said = f"{asset} is held as it came: say `amount`, in its own unit."
        return bad_request("amount_invalid", said)
    amount = whole(asked.amount_msat if in_msat else asked.amount)
    if isinstance(amount, Answer):
        return amount
    told = asked.max_fee_msat if in_msat else asked.max_fee
    fee_max = 0 if told in (0, "0") else whole(told)
    if isinstance(fee_max, Answer):
        return fee_max
    return _Wanted(asset, amount, fee_max, in_msat)


def _named(destination: str) -> int | None:
    try:
        return decode_invoice(destination).amount_msat
    except InvalidCredential:
        return None


@dataclass(frozen=True, slots=True)
class _Way:
    """How a request is to be carried out. `in_msat`: its amounts are the account's."""

    method: str
    kind: str
    in_msat: bool
    dry_run: bool


async def _send(context: ApiContext, caller: Caller, request: RefundRequest, way: _Way) -> Told:
    if way.dry_run:
        return Told(await _quoted(context, caller, request, way), final=False)
    told = await context.payments.send(
        caller.account, request, method=way.method, kind=way.kind, in_msat=way.in_msat
    )
    return settled(refund_answer(told))


async def _quoted(context: ApiContext, caller: Caller, asked: RefundRequest, way: _Way) -> Answer:
    request = context.payments.ordered(asked, in_msat=way.in_msat)
    if isinstance(request, Refusal):
        return refused(request)
    request = replace(request, account=caller.account)
    quote = await context.payments.methods[way.method].quote_refund(request)
    if isinstance(quote, Refusal):
        return refused(quote)
    asset, most = request.asset, quote.amount + quote.fee_max
    cost = sold(request.quoted, most).account if request.quoted else most
    balance = caller.account if request.quoted else balance_of(caller.account, asset)
    held = await context.ledger.store.account(balance)
    told: dict[str, object] = {
        "dry_run": True,
        "method": way.method,
        "destination": request.destination,
        "asset": asset,
        "amount": shown(quote.amount, asset),
        "fee_max": shown(quote.fee_max, asset),
        "fee_estimate": shown(quote.fee_estimate, asset),
        "most": shown(most, asset),
        "is_covered": held is not None and held.available >= cost,
    }
    if request.quoted or asset == BTC.code:
        told["most_msat"] = cost
    return document(told)


def _invoice_payer(context: ApiContext) -> str:
    """The first method that pays what withdraw links draw; "": there is none."""
    rails = context.deposits.rails().values()
    return next((one.payment_type for one in rails if one.pays_invoices), "")


async def _quoted_link(context: ApiContext, caller: Caller, method: str, most_msat: int) -> Answer:
    held = await context.ledger.store.account(caller.account)
    told: dict[str, object] = {"dry_run": True, "method": method, "asset": BTC.code}
    told |= {"most_msat": most_msat}
    return document(told | {"is_covered": held is not None and held.available >= most_msat})


async def _link(
    context: ApiContext, caller: Caller, method: str, most_msat: int, origin: str
) -> Told:
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


_NOTHING = Refusal("insufficient_balance", "the balance is empty")
_NO_METHOD = Refusal("method_unknown", "no such way to pay is at hand here; see GET /v1/methods")
