"""What an account has spent, kept as a running sum so that asking costs only what is new."""

from __future__ import annotations

import msgspec

from farebox.ledger.model import Put, Unit
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger
from farebox.ledger.store import PAGE_MAX

#: So many new events are worth a new snapshot.
_SNAPSHOT_EVENTS = 200


class Totals(msgspec.Struct, frozen=True):
    """The sums over an account's events up to number `upto`."""

    upto: int = 0
    spent_msat: int = 0
    requests: int = 0


TOTALS = RecordType("totals", Totals)


async def totals(ledger: Ledger, account: str) -> Totals:
    """The sums as of now."""
    row = await ledger.store.get(TOTALS, account)
    sums, version = (row.value, row.version) if row else (Totals(), 0)
    seen = 0
    while True:
        events = await ledger.store.events(sums.upto, subject=account)
        paid = [event.data for event in events if event.name == "payment.completed"]
        seen += len(events)
        if events:
            spent_msat = sums.spent_msat + sum(int(data["charged_msat"]) for data in paid)
            sums = Totals(events[-1].number, spent_msat, sums.requests + len(paid))
        if len(events) < PAGE_MAX:
            break
    if seen >= _SNAPSHOT_EVENTS:
        # Another reader may have been first; its snapshot is as good.
        await ledger.store.commit(
            Unit(
                f"totals:{account}:{version + 1}",
                puts=(Put(TOTALS, account, sums, version),),
            )
        )
    return sums
