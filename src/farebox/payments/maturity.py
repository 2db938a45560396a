"""Money that may still be taken back: it can be spent here, and is paid out only once it is ripe.

A rail says of what it saw until when (`Sighting.matures_at`): card money comes back for weeks. What
an account has of it stands in one row beside it, written in the commit that credits; whatever lets
money leave reads that row and is refused when less than it would stay behind.

    paid out at most = available - what is not ripe

So what is spent is ripe money first. Back to where it came from it may go at any time: that takes
as much of what is not ripe along, whatever was spent meanwhile. One row, one writer at a time: a
payment out guards the version that it has read.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from farebox.ledger.model import Guard, Hold, Kind, Open, Step, Void, hold_id
from farebox.ledger.records import RecordType, Row
from farebox.money import BTC
from farebox.payments.exchange import REVENUE

#: Deposits that one account remembers as unripe; of more, the two oldest ripen together.
_LOTS_MAX = 256


class Lot(msgspec.Struct, frozen=True):
    """What one deposit has brought, and when that is ripe (UTC nanoseconds)."""

    deposit: str
    amount_msat: int
    until: int


class Maturing(msgspec.Struct, frozen=True):
    """What an account has that is not ripe. The key is the account."""

    lots: tuple[Lot, ...] = ()


MATURING = RecordType("maturing", Maturing)


def unripe_msat(
    known: Maturing | None, now_ns: int, *, leaving_msat: int = 0, returning: str = ""
) -> int:
    """How much has to stay behind where `leaving_msat` leave: what is not ripe of all deposits but
    the one that is given back; nothing where of that one no more leaves than is not ripe."""
    lots = [lot for lot in (known.lots if known else ()) if lot.until > now_ns]
    if any(lot.deposit == returning and lot.amount_msat >= leaving_msat for lot in lots):
        return 0
    return sum(lot.amount_msat for lot in lots if lot.deposit != returning)


def ripe_at(known: Maturing | None) -> int:
    """When all that an account has is ripe, UTC nanoseconds; 0 where nothing is remembered."""
    return max((lot.until for lot in known.lots), default=0) if known else 0


def with_lot(known: Maturing | None, lot: Lot, now_ns: int) -> Maturing:
    """The row with a deposit as it is now, and without what has ripened or gone."""
    lots = list(known.lots if known else ())
    at = next((at for at, one in enumerate(lots) if one.deposit == lot.deposit), len(lots))
    lots[at : at + 1] = [lot]
    lots = [one for one in lots if one.until > now_ns and one.amount_msat]
    while len(lots) > _LOTS_MAX:
        first, second, *rest = lots
        until = max(first.until, second.until)
        lots = [Lot(second.deposit, first.amount_msat + second.amount_msat, until), *rest]
    return Maturing(tuple(lots))


def kept_back(
    row: Row[Maturing] | None,
    account: str,
    unit_id: str,
    before: Sequence[Step],
    now_ns: int,
    returning: str,
) -> tuple[tuple[Step, ...], Guard]:
    """What joins a unit of the steps `before` that lets money leave: it is refused at one of these
    where what is not ripe would not be covered any more, and is stale when that has changed.

    The hold is there for the length of the unit alone.
    """
    guard = Guard(MATURING, account, row.version if row else 0)
    leaving_msat = sum(
        one.amount for one in before if isinstance(one, Hold) and one.debit == account
    )
    kept_msat = unripe_msat(
        row.value if row else None, now_ns, leaving_msat=leaving_msat, returning=returning
    )
    if not kept_msat:
        return (), guard
    probe = hold_id(unit_id, len(before) + 1)
    opened = Open(REVENUE, BTC.code, Kind.REVENUE)
    return (opened, Hold(account, REVENUE, kept_msat, "unripe"), Void(probe)), guard
