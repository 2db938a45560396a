"""What a request looks like in the books, before and after, and on its receipt. Pure."""

from __future__ import annotations

import msgspec

from farebox.clock import iso
from farebox.ledger.model import (
    ABSENT,
    Event,
    Hold,
    Kind,
    Open,
    Post,
    Put,
    Step,
    Transfer,
    Unit,
    Void,
)
from farebox.money import BTC
from farebox.payments import PlannedChange
from farebox.payments.exchange import REVENUE
from farebox.payments.model import Changes
from farebox.paywall import channel_dialect, dialects
from farebox.paywall.model import (
    REQUEST,
    Admission,
    Ended,
    Headers,
    Request,
    RequestState,
    Settlement,
)
from farebox.pricing.book import Quote, charge
from farebox.pricing.usage import Usage

NO_USAGE = Usage()


class Live(msgspec.Struct, frozen=True, gc=False):
    """A request of this process between its authorising and its settling commit."""

    request: Request
    version: int


class Bill(msgspec.Struct, frozen=True, gc=False):
    """How a request ended, before it is in the books."""

    charged_msat: int
    ended: Ended
    usage: Usage


def admitting(request_id: str, request: Request) -> Changes:
    """What admits a request: the hold of the most it can cost, and its row."""
    return Changes(
        (Hold(request.account, REVENUE, request.quote.maximum_msat, "request"),),
        (Put(REQUEST, request_id, request, ABSENT),),
    )


def admitting_unit(request_id: str, request: Request, named: tuple[Put, ...] = ()) -> Unit:
    """The commit that admits a request which money on an account pays for."""
    changes = admitting(request_id, request)
    return Unit(request_id, steps=changes.steps, puts=changes.puts + named)


def admission_of(
    request_id: str, request: Request, public_url: str, client_tx_ref: str = ""
) -> Admission:
    """What lets an admitted request pass, with where its change will be, if money came with it."""
    headers = request_headers(request_id)
    if request.credential:
        link = f'<{public_url}/v1/change/{request_id}>; rel="payment-change"'
        headers = (*headers, (b"link", link.encode()))
    return Admission(request_id, request.account, request.quote, headers, client_tx_ref)


def request_headers(request_id: str) -> Headers:
    """How a caller finds a request again."""
    return ((b"x-farebox-request-id", request_id.encode()),)


def bill_of(quote: Quote, usage: Usage, ended: Ended) -> Bill:
    """What a request comes to: nothing when it was refused, else its usage."""
    if ended is Ended.REFUSED:
        return Bill(0, ended, NO_USAGE)
    return Bill(charge(quote, usage).amount_msat, ended, usage)


def checkpointing(request_id: str, live: Live, usage: Usage) -> tuple[Request, Unit]:
    """The row of a request with what was metered so far, and the commit that writes it."""
    metered_msat = charge(live.request.quote, usage).amount_msat
    request = msgspec.structs.replace(live.request, checkpoint_msat=metered_msat)
    put = Put(REQUEST, request_id, request, live.version)
    return request, Unit(f"{request_id}:checkpoint:{live.version}", puts=(put,))


def settled(
    request: Request, bill: Bill, left_msat: int, change: PlannedChange | None, now_ns: int
) -> Request:
    """The request row after it ended; `left_msat` is the change, as money and as credit."""
    returned_msat = change.amount_msat if change else 0
    return msgspec.structs.replace(
        request,
        state=RequestState.SETTLED,
        charged_msat=bill.charged_msat,
        returned_msat=returned_msat,
        credited_msat=left_msat - returned_msat,
        ended=bill.ended,
        settled_at=now_ns,
        change=change.reference if change and change.amount_msat else b"",
    )


def forgotten(request: Request, bill: Bill, now_ns: int) -> Request:
    """What is told of a request that the books have forgotten and can hold for no more."""
    return settled(request, Bill(0, bill.ended, NO_USAGE), 0, None, now_ns)


def settling_unit(
    request_id: str, version: int, done: Request, change: PlannedChange | None
) -> Unit:
    """The one commit that ends a request; `version` is the row's own before it."""
    charged = done.charged_msat
    steps: tuple[Step, ...] = (Post(done.hold, charged) if charged else Void(done.hold),)
    puts: tuple[Put, ...] = (Put(REQUEST, request_id, done, version),)
    if change is not None:
        puts += change.puts
        if change.amount_msat:
            steps += (Transfer(done.account, change.custody, change.amount_msat, "change"),)
    # A key may open the very account that the change is on already.
    if done.credited_msat and done.change_account not in ("", done.account):
        steps += (
            Open(done.change_account, BTC.code, Kind.CUSTOMER),
            Transfer(done.account, done.change_account, done.credited_msat, "change"),
        )
    events = (completed(request_id, done),)
    return Unit(f"{request_id}:settle", steps=steps, puts=puts, events=events)


def completed(request_id: str, done: Request) -> Event:
    """What a settled request is in the history of its payer."""
    return Event(
        "payment.completed",
        done.account,
        {
            "request_id": request_id,
            "charged_msat": done.charged_msat,
            "returned_msat": done.returned_msat,
            "credited_msat": done.credited_msat,
            "ended": done.ended,
        },
    )


def settlement(request: Request, receipt: str, change: str, proposal: str = "") -> Settlement:
    """How a settled request is told: its receipt, its change where there is any, and what a channel
    is to sign for it."""
    headers: Headers = (
        (b"x-farebox-receipt", receipt.encode()),
        *dialects.change_headers(change),
        *(channel_dialect.headers(proposal) if proposal else ()),
    )
    return Settlement(
        request.charged_msat, request.returned_msat, headers, receipt, change, proposal
    )


def receipt_facts(request_id: str, request: Request, usage: Usage) -> dict[str, object]:
    """What the receipt of a settled request says and its signature covers."""
    facts: dict[str, object] = {
        "request_id": request_id,
        "quoted_msat": request.quote.maximum_msat,
        "charged_msat": request.charged_msat,
        "returned_msat": request.returned_msat,
        "credited_msat": request.credited_msat,
        "ended": request.ended,
        "at": iso(request.settled_at),
    }
    if usage is not NO_USAGE and (usage.input_tokens or usage.output_tokens):
        facts["input_tokens"] = usage.input_tokens
        facts["output_tokens"] = usage.output_tokens
        facts["usage_source"] = usage.source.value
    return facts


def free(admission: Admission) -> Request:
    """A request that was never held for, so that its receipt can be written like any other."""
    return Request(
        account="", hold="", owner="", quote=admission.quote, created_at=0, ended=Ended.COMPLETE
    )
