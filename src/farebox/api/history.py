"""The account's payments, page by page, or all of them as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator

import msgspec

from farebox.api.caller import identify
from farebox.api.context import ApiContext
from farebox.api.http import NO_STORE, Incoming, Streamed, document
from farebox.api.problems import bad_request
from farebox.clock import iso
from farebox.ledger.model import StoredEvent
from farebox.ledger.store import PAGE_MAX
from farebox.paywall.model import Answer

_LIMIT_DEFAULT = 100
#: What repeats in other words what another event of the same commit says.
_LEFT_OUT = frozenset({"operation.succeeded"})
#: What raised the balance.
_RECEIPTS = frozenset({"deposit.credited", "conversion.completed"})
#: Money that left for good.
_RETURNS = frozenset({"refund.completed", "payout.completed"})
#: A spreadsheet takes a cell that begins so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the history; amounts in msat. `cursor` continues behind it."""

    cursor: int
    at: str
    event: str
    received_msat: int
    charged_msat: int
    returned_msat: int
    reference: str


async def history(context: ApiContext, incoming: Incoming) -> Answer | Streamed:
    """`?cursor=&limit=&format=json|csv`: events behind a cursor. CSV has all that follow."""
    caller = await identify(context, incoming, expired_too=True)
    if isinstance(caller, Answer):
        return caller
    query = incoming.query
    cursor = _whole(query.get("cursor", "0"))
    limit = _whole(query.get("limit", str(_LIMIT_DEFAULT)))
    if cursor is None or limit is None or not 0 < limit <= PAGE_MAX:
        return bad_request(
            "page_invalid", f"cursor is one that an answer gave, limit is from 1 to {PAGE_MAX}."
        )
    match query.get("format", "json"):
        case "csv":
            name = (b"content-disposition", b'attachment; filename="history.csv"')
            headers = ((b"content-type", b"text/csv; charset=utf-8"), NO_STORE, name)
            return Streamed(headers, _csv(context, caller.account, cursor))
        case "json":
            events = await context.ledger.store.events(cursor, subject=caller.account, limit=limit)
            more = events[-1].number if len(events) == limit else None
            return document({"history": _entries(events), "next_cursor": more})
        case _:
            return bad_request("format_invalid", "format is json or csv.")


async def _csv(context: ApiContext, account: str, cursor: int) -> AsyncIterator[bytes]:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(Entry.__struct_fields__)
    while True:
        events = await context.ledger.store.events(cursor, subject=account)
        for entry in _entries(events):
            writer.writerow(_cell(value) for value in msgspec.structs.astuple(entry))
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()
        if len(events) < PAGE_MAX:
            return
        cursor = events[-1].number


def _entries(events: list[StoredEvent]) -> list[Entry]:
    return [_entry(event) for event in events if event.name not in _LEFT_OUT]


def _entry(event: StoredEvent) -> Entry:
    data = event.data
    moved_msat = int(data.get("amount_msat", 0))
    received = event.name in _RECEIPTS
    returned = event.name in _RETURNS
    names = ("request_id", "reference", "operation", "deposit", "key", "channel")
    return Entry(
        cursor=event.number,
        at=iso(event.at),
        event=event.name,
        received_msat=moved_msat if received else 0,
        charged_msat=int(data.get("charged_msat", 0)),
        returned_msat=int(data.get("returned_msat", 0)) + (moved_msat if returned else 0),
        reference=next((str(data[name]) for name in names if name in data), ""),
    )


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
