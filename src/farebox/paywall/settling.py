"""What a settled request looks like in the books and on its receipt. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from farebox.clock import iso
from farebox.ledger.model import Event, Kind, Open, Post, Put, Step, Transfer, Unit, Void
from farebox.money import BTC
from farebox.payments import PlannedChange
from farebox.paywall.model import REQUEST, Admission, Ended, Request, RequestState
from farebox.pricing.usage import Usage

NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Bill:
    """How a request ended, before it is in the books."""

    charged_msat: int
    ended: Ended
    usage: Usage


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
    if done.change_account and done.credited_msat:
        steps += (
            Open(done.change_account, BTC.code, Kind.CUSTOMER),
            Transfer(done.account, done.change_account, done.credited_msat, "change"),
        )
    event = Event(
        "payment.completed",
        done.account,
        {
            "request_id": request_id,
            "charged_msat": charged,
            "returned_msat": done.returned_msat,
            "credited_msat": done.credited_msat,
            "ended": done.ended,
        },
    )
    return Unit(f"{request_id}:settle", steps=steps, puts=puts, events=(event,))


def receipt_facts(request_id: str, request: Request, usage: Usage) -> dict[str, object]:
    """What the receipt says and the signature covers."""
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
