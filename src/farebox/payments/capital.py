"""The operator's own money in the books, so that a loss is covered there as it is in reality.

| flow                   | postings                                                          |
|------------------------|-------------------------------------------------------------------|
| bitcoin is paid in     | custody → capital                                                 |
| another asset, which   | custody:USD → exchange:USD; exchange:BTC → capital, what it is    |
| is converted           | worth now, without any spread                                     |
| to a provider that had | payable → custody as well, what is owed to it                     |
| lent us                |                                                                   |
| it is taken out        | the same, the other way round                                     |

Nothing is sent: the operator moves the money, at the node or from the bank, and says so here. It
bears losses: custody must cover what customers and providers are owed, and of what is ours, earned
or paid in, no more goes out than is beyond that. Whatever lets some of it go moves one row of the
book in the same commit: of two that counted on the same, whoever is second counts anew, in
whichever process.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec

from farebox.ledger.cover import covers_of
from farebox.ledger.model import (
    ABSENT,
    Applied,
    Code,
    Event,
    Kind,
    Open,
    Outcome,
    Put,
    Refused,
    Replayed,
    Stale,
    Step,
    Taken,
    Transfer,
    Unit,
)
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger
from farebox.money import BTC
from farebox.payments.exchange import (
    REVENUE,
    Exchange,
    Quoted,
    balance_of,
    bought,
    buying,
    exchange_account,
    legs,
    ours,
    sold,
)
from farebox.payments.method import Refusal, no_rate
from farebox.payments.rail import DepositMethod

CAPITAL = "capital"
_TRIES_MAX = 16


class Ours(msgspec.Struct, frozen=True):
    """What of our own money went out last; the key is the asset."""

    left_by: str


OURS = RecordType("ours", Ours)


@dataclass(frozen=True, slots=True)
class Free:
    """How much of an asset may go out as ours: what is there beyond what others own."""

    asset: str
    amount: int
    version: int

    def taken(self, by: str) -> Put:
        """What joins the unit that lets some of it go."""
        return Put(OURS, self.asset, Ours(by), self.version)


async def free_of(ledger: Ledger, asset: str) -> Free:
    """As it stands now; what is on its way out counts as gone. Every account is read."""
    row = await ledger.store.get(OURS, asset)
    revenue = await ledger.store.account(balance_of(REVENUE, asset))
    cover = (await covers_of(ledger.store)).get(asset)
    leaving = revenue.debits_pending if revenue else 0
    amount = max(0, cover.surplus - leaving) if cover else 0
    return Free(asset, amount, row.version if row else ABSENT)


class Flow(enum.StrEnum):
    """Which way it goes."""

    IN = "in"
    OUT = "out"


class CapitalMove(msgspec.Struct, frozen=True):
    """Capital that is to move, once for one `id`: an amount of an asset at a rail."""

    id: str
    flow: Flow
    asset: str
    amount: int

    @property
    def unit(self) -> str:
        """The unit that moves it."""
        return f"capital:{self.id}"


class CapitalMoved(msgspec.Struct, frozen=True):
    """What has moved: `counted` stands on the account, in `kept_in`'s smallest unit."""

    account: str
    kept_in: str
    counted: int


async def move_capital(
    ledger: Ledger, exchange: Exchange, rail: DepositMethod, move: CapitalMove
) -> CapitalMoved | Refusal:
    """Book capital that the operator has put in at a rail, or takes out there."""
    quoted = None
    if exchange.converts(move.asset):
        quoted = exchange.quote(move.asset)
        if quoted is None:
            return no_rate(move.asset)
        quoted = msgspec.structs.replace(quoted, spread_ppm=0)  # nothing is earned from oneself
    kept_in = BTC.code if quoted else move.asset
    moved = CapitalMoved(balance_of(CAPITAL, kept_in), kept_in, _counted(move, quoted))
    told = f"{move.flow} {rail.custody(move.asset)} {move.asset} {move.amount}"
    for _ in range(_TRIES_MAX):
        puts: tuple[Put, ...] = ()
        if move.flow is Flow.OUT and await ledger.store.outcome(move.unit) is None:
            free = await free_of(ledger, kept_in)
            if free.amount < moved.counted:
                return _NOT_FREE
            puts = (free.taken(move.unit),)
        unit = Unit(
            move.unit,
            await _steps(ledger, rail, move, moved, quoted),
            puts=puts,
            events=(Event(f"capital.{move.flow}", moved.account, {"amount": str(moved.counted)}),),
            fingerprint=told.encode(),
            reply=msgspec.json.encode(moved),
        )
        outcome = await ledger.store.commit(unit)
        if not isinstance(outcome, Stale | Taken):
            return _told(outcome)
    return _BUSY


def _told(outcome: Outcome) -> CapitalMoved | Refusal:
    match outcome:
        case Applied(reply=reply) | Replayed(Applied(reply=reply)):
            return msgspec.json.decode(reply, type=CapitalMoved)
        case Refused(code=Code.EXCEEDS_CEILING):
            return Refusal("custody_full", "this place would hold more than its ceiling")
        case Refused(code=Code.EXCEEDS_CREDITS):
            return Refusal("insufficient_balance", "there is not so much capital")
        case Refused(code=Code.EXCEEDS_DEBITS):
            return Refusal("insufficient_funds", "not so much is held there")
        case _:
            return Refusal("operation_taken", "this name has moved something else already")


_BUSY = Refusal("busy", "too much of it is going out at once; try again")
_NOT_FREE = Refusal(
    "capital_bound", "custody would not cover what is owed any more: it has borne a loss"
)


def _counted(move: CapitalMove, quoted: Quoted | None) -> int:
    if quoted is None:
        return move.amount
    split = bought if move.flow is Flow.IN else sold
    return split(quoted, move.amount).account


async def _steps(
    ledger: Ledger,
    rail: DepositMethod,
    move: CapitalMove,
    moved: CapitalMoved,
    quoted: Quoted | None,
) -> tuple[Step, ...]:
    custody, account, code = rail.custody(move.asset), moved.account, f"capital-{move.flow}"
    opened = (Open(custody, move.asset, Kind.CUSTODY), Open(account, moved.kept_in, Kind.CAPITAL))
    if move.flow is Flow.OUT:
        if quoted is None:
            return (*opened, Transfer(account, custody, move.amount, code))
        return (
            *opened,
            *legs(quoted.asset),
            Transfer(account, exchange_account(BTC.code), moved.counted, code),
            Transfer(exchange_account(quoted.asset), custody, move.amount, code),
            *ours(sold(quoted, move.amount)),
        )
    steps: tuple[Step, ...] = (Transfer(custody, account, move.amount, code),)
    if quoted is not None:
        steps = buying(quoted, custody, move.amount, account, code)
    payable = rail.payable(move.asset)
    lent = await ledger.store.account(payable) if payable else None
    if lent is not None and lent.available > 0:
        repaid = min(move.amount, lent.available)
        steps = (*steps, Transfer(payable, custody, repaid, "provider-debt"))
    return (*opened, *steps)
