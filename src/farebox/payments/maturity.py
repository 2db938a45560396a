"""Money that may still be taken back: it can be spent here, and is paid out only once it is ripe.

A rail says of what it saw until when (`Sighting.matures_at`): card money comes back for weeks. What
an account has of it stands in one row beside it, written in the commit that credits; whatever lets
money leave reads that row and is refused when less than it would stay behind.

    paid out at most = available - what is not ripe

So what is spent is ripe money first. Back to its payer a deposit that is not ripe may go at any
time, also where others were spent: what could be taken back is less by as much as the account is.
Of the others only what is still here has to stay. A deposit that is ripe has no such way: what went
back to its payer would be others' money.

One row, one writer at a time: a payment out guards the version that it has read.
"""

from __future__ import annotations

import msgspec

from farebox.ledger.model import Hold, Kind, Open, Step, Void, hold_id
from farebox.ledger.records import RecordType
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


def unripe_msat(known: Maturing | None, now_ns: int) -> int:
    """How much is not ripe, also where it was spent."""
    lots = known.lots if known else ()
    return sum(lot.amount_msat for lot in lots if lot.until > now_ns)


def staying_msat(
    known: Maturing | None,
    now_ns: int,
    *,
    leaving_msat: int,
    available_msat: int,
    returning: str = "",
) -> int:
    """How much has to stay on an account of which so much leaves, to the payer of `returning` or
    another way."""
    unripe = unripe_msat(known, now_ns)
    lots = known.lots if known else ()
    own = sum(lot.amount_msat for lot in lots if lot.until > now_ns and lot.deposit == returning)
    if not own:
        return unripe
    # Where rates have moved it may cost more than was credited for it.
    return max(0, min(unripe, available_msat) - own) if leaving_msat > own else 0


def ripe_at(known: Maturing | None) -> int:
    """When all that an account has is ripe, UTC nanoseconds; 0 where nothing is remembered."""
    return max((lot.until for lot in known.lots), default=0) if known else 0


def with_lot(known: Maturing | None, lot: Lot, now_ns: int) -> Maturing:
    """The row with a deposit as it is now, and without what has ripened or gone.

    What had to be put together belongs to no deposit, so that none takes the others' part along.
    """
    lots = list(known.lots if known else ())
    at = next((at for at, one in enumerate(lots) if one.deposit == lot.deposit), len(lots))
    lots[at : at + 1] = [lot]
    lots = [one for one in lots if one.until > now_ns and one.amount_msat]
    while len(lots) > _LOTS_MAX:
        first, second, *rest = lots
        until = max(first.until, second.until)
        lots = [Lot("", first.amount_msat + second.amount_msat, until), *rest]
    return Maturing(tuple(lots))


def kept_back(kept_msat: int, account: str, unit_id: str, steps: int) -> tuple[Step, ...]:
    """What joins a unit of `steps` steps that lets money leave: it is refused at one of these where
    less than `kept_msat` would stay.

    The hold is there for the length of the unit alone.
    """
    if not kept_msat:
        return ()
    probe = hold_id(unit_id, steps + 1)
    opened = Open(REVENUE, BTC.code, Kind.REVENUE)
    return (opened, Hold(account, REVENUE, kept_msat, "unripe"), Void(probe))
