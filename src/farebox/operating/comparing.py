"""What the books say lies with a rail, held against what the rail says itself.

A rail has the operator's own money as well, so a difference is told and never booked: only a person
knows which it is.

| the rail has | then                                                                              |
|--------------|-----------------------------------------------------------------------------------|
| more         | the operator's own; or it came in after the copy that this book was restored from |
| less         | it left after that copy, is reserved there, or is what networks took in fees; or  |
|              | coin that sweeps have left beside them for their gas                              |
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import structlog

from farebox.errors import RailError
from farebox.ledger.service import Ledger
from farebox.payments.rail import DepositMethod
from farebox.payments.requests import DepositRequests

_log = structlog.get_logger("farebox.rails")


class Compared(msgspec.Struct, frozen=True):
    """One place, in the asset's smallest unit (bitcoin: msat).

    `booked` is what the books have there, `leaving` how much of that is on its way out; `held` is
    what the rail says.
    """

    method: str
    place: str
    asset: str
    booked: int
    leaving: int
    held: int

    @property
    def lacks(self) -> int:
        """What the rail has too little of, even if all that is on its way out has left; or 0."""
        return max(0, self.booked - self.leaving - self.held)


async def compare(
    rails: Iterable[DepositMethod], ledger: Ledger
) -> tuple[list[Compared], list[str]]:
    """Every place that some rail tells of, and the rails that do not answer."""
    found: list[Compared] = []
    away: list[str] = []
    for rail in rails:
        try:
            holdings = await rail.holdings()
        except RailError as error:
            _log.warning("rail.not_compared", rail=rail.payment_type, reason=str(error))
            away.append(rail.payment_type)
            continue
        for one in holdings:
            account = await ledger.store.account(one.custody)
            found.append(
                Compared(
                    method=rail.payment_type,
                    place=one.custody,
                    asset=one.asset,
                    booked=account.held if account else 0,
                    leaving=account.credits_pending if account else 0,
                    held=one.amount,
                )
            )
    return found, away


async def catch_up(rails: Iterable[DepositMethod], deposits: DepositRequests) -> list[str]:
    """Ask every rail about every deposit that a restored book waits for, and credit what came.

    Returns the rails that do not answer.
    """
    away: list[str] = []
    for rail in rails:
        try:
            await deposits.poll(rail.payment_type)
        except RailError as error:
            _log.warning("rail.not_reconciled", rail=rail.payment_type, reason=str(error))
            away.append(rail.payment_type)
    return away
