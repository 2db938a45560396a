"""What becomes of card money after it was credited: fees, disputes, refunds that others made.

A provider tells how a payment stands now; what is booked is the difference to what was booked.
`amount` is what the deposit brought its account, `captured` what the payer was charged.

| what happened              | in the currency          | in bitcoin                       |
|----------------------------|--------------------------|----------------------------------|
| the fee the payer paid     | custody → exchange       | exchange → revenue               |
| what the provider kept     | exchange → custody       | revenue, then expense → exchange |
| a fee that it gave again   | custody → exchange       | exchange → revenue               |
| a dispute, or a refund by  | exchange → custody       | account, then receivable →       |
| the provider's dashboard   |                          | exchange; ours: from expense     |
| a dispute that was won, or | custody → exchange       | exchange → account               |
| a refund that was undone   |                          |                                  |
| more than custody has left | custody → payable, first | the provider lends it: see below |
| money there again          | payable → custody        |                                  |

Custody never goes below zero: where more is taken back than lies there, the provider has lent us
the rest, and what comes in next pays that first.
All of it at the rate that the deposit was bought at. What is beyond the deposit's amount was never
its account's: the house bears it. A refund of our own is an operation of the journal and moved by
it; here it only counts against what may still be taken from the account.

| boundary             | what can fail       | recovery                                      |
|----------------------|---------------------|-----------------------------------------------|
| told → booked        | we stop             | the notice is read again: the same difference |
| the commit           | a balance has moved | refused or stale: balances are read again     |
| told before credited |                     | nothing is booked; its own event comes next   |
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import msgspec
import structlog

from farebox.errors import RailUnavailable, StoreBusy
from farebox.ledger.model import (
    ABSENT,
    Event,
    Kind,
    Open,
    Put,
    Refused,
    Step,
    Transfer,
    Unit,
)
from farebox.ledger.service import Ledger, RowName, State
from farebox.money import BTC
from farebox.payments.cards.model import CardPayment
from farebox.payments.cards.records import CARD_MONEY, GIVING, CardMoney, GivingState
from farebox.payments.cards.terms import CardTerms
from farebox.payments.deposits import DEPOSIT, Deposit, DepositState, owed_by
from farebox.payments.exchange import (
    REVENUE,
    Quoted,
    bought,
    buying,
    exchange_account,
    legs,
    taking_back,
)
from farebox.payments.maturity import MATURING, Lot, Maturing, with_lot
from farebox.payments.model import OPERATION, OperationState

_log = structlog.get_logger("farebox.cards")

EXPENSE = "expense:cards"
_TRIES_MAX = 16
_GIVEN_UP = (OperationState.REJECTED, OperationState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Balances:
    """What the accounts that a booking takes from have, and what is owed where."""

    account: int
    owed: int
    revenue: int
    custody: int
    payable: int


@dataclass(frozen=True, slots=True)
class Delta:
    """What is to be booked, in the currency. `taken` below zero comes back to the account."""

    extra: int
    fees: int
    taken: int
    taken_ours: int


_NOTHING = Delta(0, 0, 0, 0)


def delta_of(deposit: Deposit, known: CardMoney, told: CardPayment, given: int) -> Delta:
    """The difference between what the provider tells and what is booked.

    `given` is what our own refunds have given back: with what is taken it comes out of the
    account up to what the account was credited; the rest is ours.
    """
    taken = told.disputed + _outside(told)

    def of_account(taken: int) -> int:
        return min(deposit.amount, given + taken)

    account = of_account(taken) - of_account(known.taken)
    return Delta(
        extra=told.captured - deposit.amount - known.extra,
        fees=told.fees - known.fees,
        taken=account,
        taken_ours=taken - known.taken - account,
    )


def lot_of(deposit: Deposit, gone: int) -> Lot:
    """What its payer could still take back of a payment, of which so much is gone already."""
    here = deposit.amount - min(deposit.amount, gone)
    here_msat = bought(deposit.quoted, here).account if deposit.quoted else 0
    return Lot(deposit.key, here_msat, deposit.matures_at)


def _outside(told: CardPayment) -> int:
    return sum(one.amount for one in told.refunds if not one.key)


class Overtaken(enum.Enum):
    """Somebody has booked the same payment meanwhile, perhaps by something newer."""

    OVERTAKEN = "overtaken"


@dataclass(frozen=True, slots=True)
class _Told:
    """How a payment stands, in words of our books. `undone` are rows of refunds of ours that were
    done, and their money came back."""

    payment: CardPayment
    given: int
    undone: tuple[str, ...]


class Booking:
    """Books what one provider tells of its payments."""

    def __init__(self, terms: CardTerms, ledger: Ledger) -> None:
        self._terms = terms
        self._ledger = ledger

    async def book(self, external: str, sync: Callable[[], Awaitable[CardPayment | None]]) -> None:
        """Ask how a payment stands, and book what is new about it.

        It is asked *after* it was read what is booked, and counts only if that is so still: what
        was told before somebody else booked something newer would take that back.

        Raises RailUnavailable where it has arrived and could not be credited yet, StoreBusy where
        balances move too fast: then the notice is to be read again.
        """
        key = f"{self._terms.provider}:{external}:0"
        for _ in range(_TRIES_MAX):
            row = await self._ledger.store.get(DEPOSIT, key)
            if row is None:
                return  # it was not for us, or a charge of ours is at it
            if row.value.state is not DepositState.CREDITED or not row.value.quoted:
                raise RailUnavailable("what was captured is not credited yet, for want of a rate")
            money = await self._ledger.store.get(CARD_MONEY, key)
            version = money.version if money else ABSENT
            payment = await sync()
            if payment is None:
                return
            told = await self._attributed(payment)
            balances = await self._balances(row.value)

            def decide(
                state: State,
                now_ns: int,
                told: _Told = told,
                balances: Balances = balances,
                version: int = version,
            ) -> Unit | Overtaken | None:
                if state.version(CARD_MONEY, key) != version:
                    return Overtaken.OVERTAKEN
                return self._unit(state, now_ns, told, balances, key)

            rows: list[RowName] = [(CARD_MONEY, key), (DEPOSIT, key), (MATURING, row.value.account)]
            rows += [(GIVING, name) for name in told.undone]
            outcome = await self._ledger.transact(rows, decide)
            if not isinstance(outcome, Refused | Overtaken):
                if outcome is not None:
                    _log.info("cards.booked", deposit=key)
                return
        raise StoreBusy(f"the accounts of {key} move too fast; it is booked with the next notice")

    async def _attributed(self, told: CardPayment) -> _Told:
        """With only those refunds as ours that an operation of this book moves, or has moved: one
        that was given up and was made all the same came out of no account yet."""
        refunds = []
        for one in told.refunds:
            row = await self._ledger.store.get(OPERATION, one.key) if one.key else None
            is_ours = row is not None and row.value.state not in _GIVEN_UP
            refunds.append(one if is_ours else replace(one, key=""))
        undone: list[str] = []
        for one in told.undone:
            where = {"operation_id": one.key}
            rows = await self._ledger.store.find(GIVING, where) if one.key else []
            undone += [name for name, row in rows if row.value.state is GivingState.DONE]
        given = sum(one.amount for one in refunds if one.key)
        return _Told(replace(told, refunds=tuple(refunds)), given, tuple(undone))

    async def _balances(self, deposit: Deposit) -> Balances:
        store = self._ledger.store
        account, revenue = await store.account(deposit.balance), await store.account(REVENUE)
        owing = await store.account(owed_by(deposit.balance))
        custody = await store.account(self._terms.custody(deposit.asset))
        payable = await store.account(self._terms.payable(deposit.asset))
        return Balances(
            account=max(0, account.available) if account else 0,
            owed=owing.held if owing else 0,
            revenue=max(0, revenue.available) if revenue else 0,
            custody=custody.held - custody.credits_pending if custody else 0,
            payable=payable.available if payable else 0,
        )

    def _unit(
        self, state: State, now_ns: int, told: _Told, balances: Balances, key: str
    ) -> Unit | None:
        deposit = state.value(DEPOSIT, key)
        assert deposit is not None, "it was credited"
        known = state.value(CARD_MONEY, key) or CardMoney()
        payment, given = told.payment, told.given
        undone, puts = _undone(state, told.undone)
        delta = delta_of(deposit, known, payment, given)
        delta = replace(delta, taken=delta.taken - undone)
        taken = payment.disputed + _outside(payment)
        booked = CardMoney(extra=known.extra + delta.extra, fees=payment.fees, taken=taken)
        lots = state.value(MATURING, deposit.account)
        ripening = with_lot(lots, lot_of(deposit, given + taken), now_ns)
        version = state.version(CARD_MONEY, key)
        puts += (Put(CARD_MONEY, key, booked, version),)
        if ripening != (lots or Maturing()):
            puts += (
                Put(MATURING, deposit.account, ripening, state.version(MATURING, deposit.account)),
            )
        elif delta == _NOTHING and not undone:
            return None
        steps = postings(deposit, delta, balances, self._terms) if delta != _NOTHING else ()
        name = f"card:{key}:{version}"
        return Unit(name, steps=steps, puts=puts, events=_events(deposit, delta))


def _undone(state: State, names: tuple[str, ...]) -> tuple[int, tuple[Put, ...]]:
    """What comes back of refunds that were done, and their rows from now on."""
    amount, puts = 0, []
    for name in names:
        row = state.row(GIVING, name)
        if row is not None and row.value.state is GivingState.DONE:
            amount += row.value.amount
            gone = msgspec.structs.replace(row.value, state=GivingState.UNDONE)
            puts.append(Put(GIVING, name, gone, row.version))
    return amount, tuple(puts)


def postings(
    deposit: Deposit, delta: Delta, balances: Balances, terms: CardTerms
) -> tuple[Step, ...]:
    """The postings of a difference, given how the accounts stand."""
    quoted = deposit.quoted
    assert quoted is not None, "card money is converted"
    asset, custody, payable = deposit.asset, deposit.custody, terms.payable(deposit.asset)
    again = max(0, -delta.taken) + max(0, -delta.taken_ours) + max(0, -delta.fees)
    arrives = max(0, delta.extra) + again
    leaves = max(0, delta.fees) + max(0, delta.taken) + max(0, delta.taken_ours)
    lent = max(0, leaves - balances.custody - arrives)
    repaid = min(balances.payable, max(0, balances.custody + arrives - leaves))
    steps: list[Step] = [*legs(asset), Open(EXPENSE, BTC.code, Kind.EXPENSE)]
    steps += [Open(custody, asset, Kind.CUSTODY), Open(payable, asset, Kind.PAYABLE)]
    if lent:
        steps.append(Transfer(custody, payable, lent, "provider-debt"))
    revenue = balances.revenue
    for amount, code in (
        (delta.extra, "card-fee"),
        (-delta.taken_ours, "given-again"),
        (-delta.fees, "fee-again"),
    ):
        if amount > 0:
            revenue += bought(quoted, amount).total
            steps += _to_house(quoted, custody, amount, code)
    # All that comes in stands before all that goes out: custody is never short of the sum.
    if delta.taken < 0:
        steps += _to_account(deposit, quoted, -delta.taken, balances)
    for amount, code in ((delta.fees, "provider-fee"), (delta.taken_ours, "dispute")):
        if amount > 0:
            steps += _from_house(quoted, custody, amount, code, revenue)
            revenue = max(0, revenue - bought(quoted, amount).total)
    if delta.taken > 0:
        steps += _from_account(deposit, quoted, delta.taken, balances)
    if repaid:
        steps.append(Transfer(payable, custody, repaid, "provider-debt"))
    return tuple(steps)


def _from_account(
    deposit: Deposit, quoted: Quoted, amount: int, balances: Balances
) -> tuple[Step, ...]:
    owing = owed_by(deposit.balance)
    left_msat = min(balances.account, bought(quoted, amount).account)
    back = taking_back(quoted, deposit.custody, amount, deposit.balance, left_msat, owing)
    return (Open(owing, BTC.code, Kind.RECEIVABLE), *back)


def _to_account(
    deposit: Deposit, quoted: Quoted, amount: int, balances: Balances
) -> tuple[Step, ...]:
    """What the account owes is paid first."""
    again = buying(quoted, deposit.custody, amount, deposit.balance, "given-again")
    paid_msat = min(balances.owed, bought(quoted, amount).account)
    if not paid_msat:
        return again
    return (*again, Transfer(deposit.balance, owed_by(deposit.balance), paid_msat, "debt"))


def _to_house(quoted: Quoted, custody: str, amount: int, code: str) -> tuple[Step, ...]:
    worth_msat = bought(quoted, amount).total
    return (
        Transfer(custody, exchange_account(quoted.asset), amount, code),
        Transfer(exchange_account(BTC.code), REVENUE, worth_msat, code),
    )


def _from_house(
    quoted: Quoted, custody: str, amount: int, code: str, revenue_msat: int
) -> tuple[Step, ...]:
    """Out of what was earned; what that does not cover was spent for good."""
    worth_msat = bought(quoted, amount).total
    earned_msat = min(worth_msat, revenue_msat)
    return (
        Transfer(exchange_account(quoted.asset), custody, amount, code),
        Transfer(REVENUE, exchange_account(BTC.code), earned_msat, code),
        Transfer(EXPENSE, exchange_account(BTC.code), worth_msat - earned_msat, code),
    )


def _events(deposit: Deposit, delta: Delta) -> tuple[Event, ...]:
    moved = delta.taken + delta.taken_ours
    if not moved:
        return ()
    name = "deposit.taken_back" if moved > 0 else "deposit.given_again"
    facts = {"method": deposit.source, "reference": deposit.reference, "asset": deposit.asset}
    return (Event(name, deposit.account, facts | {"amount": str(abs(moved))}),)
