"""Deposits: asking to be told what to pay, and looking at what became of it."""

from __future__ import annotations

import contextlib
import io

import msgspec
import segno

from farebox.api.amounts import rate, shown, whole
from farebox.api.caller import Caller, identify
from farebox.api.context import ApiContext
from farebox.api.http import Incoming, document, read_json
from farebox.api.once import Told, once, settled
from farebox.api.problems import not_found, unauthorised
from farebox.clock import iso
from farebox.errors import RailError
from farebox.identity import new_account
from farebox.money import BTC
from farebox.payments import Refusal
from farebox.payments.deposits import Deposit, DepositRequest
from farebox.payments.exchange import bought
from farebox.paywall.answers import refused, too_many_failures
from farebox.paywall.model import Answer, BearerMoney, KeyPresented, NothingPresented

_QR_BORDER = 2


class DepositBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be paid in; `amount` is in the asset's smallest unit (BTC: msat), as a number or
    its decimal text; none is the payer's choice."""

    method: str
    asset: str = "BTC"
    amount: int | str | None = None


async def ask(context: ApiContext, incoming: Incoming) -> Answer:
    """`POST /v1/deposits`: what to pay, for the caller's account or for a new one."""
    caller = await _caller(context, incoming)
    if isinstance(caller, Answer):
        return caller
    asked = read_json(incoming, DepositBody)
    if isinstance(asked, Answer):
        return asked
    amount = whole(asked.amount)
    if isinstance(amount, Answer):
        return amount
    # Whoever asks makes the rail keep something: so many at a time from one address.
    wait_s = context.askings.wait_s(incoming.address)
    if wait_s:
        return too_many_failures(wait_s)
    context.askings.failed(incoming.address)

    async def act(_: str) -> Told:
        made = await context.deposits.ask(
            asked.method,
            asked.asset,
            amount,
            caller.account if caller else new_account(),
            opens_account=caller is None,
        )
        if isinstance(made, Refusal):
            return settled(refused(made))
        secret = {"claim_secret": made.claim_secret}
        return settled(document(await _document(context, made.request) | secret, 201))

    scope = caller.account if caller else f"deposits:{incoming.address}"
    return await once(context, incoming, scope, act)


async def show(context: ApiContext, incoming: Incoming) -> Answer:
    """`GET /v1/deposits/{id}`, for the account's key or the claim secret as bearer.

    One that nothing has arrived for is asked about at its rail first, now.
    """
    unknown = not_found("deposit_unknown", "There is no such deposit, or it is another's.")
    presented = context.paywall.read(incoming.headers)
    if isinstance(presented, Answer):
        return presented
    request = await context.deposits.by_id(incoming.path["deposit_id"])
    match presented:
        case KeyPresented():
            caller = await identify(context, incoming, expired_too=True)
            if isinstance(caller, Answer):
                return caller
            if request is None or caller.account != request.account:
                return unknown
        case BearerMoney(secret):
            if request is None or not context.deposits.holds_claim(request, secret):
                return unknown
        case _:
            return unauthorised("Send Authorization: Bearer with the claim secret or account key.")
    if not request.deposits:
        with contextlib.suppress(RailError):  # what is known is told; the poller goes on
            request = await context.deposits.look(request)
    return document(await _document(context, request))


async def _caller(context: ApiContext, incoming: Incoming) -> Caller | Answer | None:
    presented = context.paywall.read(incoming.headers)
    match presented:
        case Answer():
            return presented
        case NothingPresented():
            return None
        case _:
            return await identify(context, incoming)


async def _document(context: ApiContext, request: DepositRequest) -> dict[str, object]:
    standing = await context.deposits.standing(request)
    request = standing.request
    return {
        "deposit": request.id,
        "method": request.method,
        "asset": request.asset,
        "amount": shown(request.amount, request.asset),
        "amount_msat": _worth(request),
        "rate": rate(request.quoted) if request.quoted else None,
        "pay": request.text,
        "uri": request.uri,
        "qr_svg": qr_svg(request.uri),
        "created_at": iso(request.created_at),
        "expires_at": iso(request.expires_at),
        "state": standing.state,
        "marks": list(standing.marks),
        "credited_msat": request.credited_msat,
        "arrived": [_arrived(one) for one in standing.deposits],
    }


def _arrived(deposit: Deposit) -> dict[str, object]:
    return {
        "reference": deposit.reference,
        "index": deposit.index,
        "state": deposit.state.value,
        "asset": deposit.asset,
        "amount": shown(deposit.arrived, deposit.asset),
        "amount_msat": deposit.amount_msat,
        "at": iso(deposit.at),
    }


def _worth(request: DepositRequest) -> int | None:
    """What the amount that was asked for will bring, in msat."""
    if request.amount is None or request.asset == BTC.code:
        return request.amount
    return bought(request.quoted, request.amount).account if request.quoted else None


def qr_svg(uri: str) -> str:
    """A QR code of a link. In capitals where that means the same: it is smaller by a third."""
    scheme, _, rest = uri.partition(":")
    text = uri.upper() if scheme == "lightning" and rest == rest.lower() else uri
    out = io.BytesIO()
    segno.make(text, error="m", micro=False).save(
        out, kind="svg", border=_QR_BORDER, xmldecl=False, nl=False, omitsize=True
    )
    return out.getvalue().decode()
