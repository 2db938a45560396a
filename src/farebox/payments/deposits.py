"""Deposits: value that was seen to arrive, credited once whoever reports it how often.

    detected ──► confirmed ──► credited ──► reversed
        ▲                                      │
        └──── seen again, somewhere else ◄─────┘

A deposit is unique by (source, external reference, index), so a webhook, a poller and a rescan may
all report one. Every report is one commit; a report of what is known already changes nothing. What
vanished (its block was replaced) begins anew when it is seen somewhere else: `seen_in` says where,
so that a report which was under way meanwhile counts for nothing.
Most were asked for (`DepositRequest`): the report then also notes the deposit on the request, in
the same commit, and says when it came late or was not what was asked for.

| change              | postings                                                                   |
|---------------------|----------------------------------------------------------------------------|
| detected, confirmed | none: nothing is owed for what may still vanish                            |
| credited            | Transfer custody → account (a journalled receive posts its hold instead);  |
|                     | of another asset than the account's: `exchange.buying`; then what the      |
|                     | account owes: account → receivable                                         |
| reversed            | Transfer account → custody what is left, receivable → custody the rest     |

| boundary               | what can fail            | recovery                                   |
|------------------------|--------------------------|--------------------------------------------|
| arrived there → commit | we stop, the line breaks | cursor and poller: it is reported again    |
| the commit             | the ceiling is reached   | it stays confirmed; the poller tries again |
| commit → cursor        | we stop                  | it is reported again and changes nothing   |
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec
import structlog

from farebox.errors import StoreBusy
from farebox.ledger.model import (
    ABSENT,
    Applied,
    Balancing,
    Code,
    Event,
    Kind,
    Open,
    Put,
    Refused,
    Step,
    Transfer,
    Unit,
)
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger, RowName, State
from farebox.money import BTC
from farebox.payments.exchange import Quoted, balance_of, buying, taking_back
from farebox.payments.maturity import MATURING, Lot, with_lot
from farebox.tally import Counts

_log = structlog.get_logger("farebox.deposits")

_REVERSE_TRIES_MAX = 16
#: Deposits that one request remembers; an address may be paid again and again.
_PER_REQUEST_MAX = 64
#: Places that a deposit remembers to have vanished from.
_GONE_MAX = 8


class DepositState(enum.StrEnum):
    """How far a deposit has come. It moves forward, and begins anew where it was reversed."""

    DETECTED = "detected"
    CONFIRMED = "confirmed"
    CREDITED = "credited"
    REVERSED = "reversed"


_ORDER = list(DepositState)


class Deposit(msgspec.Struct, frozen=True, kw_only=True):
    """Value that arrived. `amount` is in the unit that `currency` names.

    `amount_msat` is what is credited, of an asset that is not converted (`quoted` None, and not
    bitcoin) nothing: `amount` then is. `gone_from` is where it was seen and then was no more.
    """

    source: str
    reference: str
    index: int = 0
    account: str
    custody: str
    asset: str
    amount_msat: int
    currency: str
    amount: int
    state: DepositState = DepositState.DETECTED
    at: int = 0
    quoted: Quoted | None = None
    seen_in: str = ""
    turn: int = 0
    gone_from: tuple[str, ...] = ()
    matures_at: int = 0

    @property
    def key(self) -> str:
        """What makes it unique."""
        return f"{self.source}:{self.reference}:{self.index}"

    @property
    def balance(self) -> str:
        """The ledger account that it is credited to."""
        return self.account if self.quoted else balance_of(self.account, self.asset)

    @property
    def arrived(self) -> int:
        """What came, in the asset's own unit: `currency` may count bitcoin in another."""
        return self.amount_msat if self.asset == BTC.code else self.amount

    @property
    def credit(self) -> int:
        """What is credited there, in that account's asset."""
        return self.amount_msat if self.quoted else self.arrived


DEPOSIT = RecordType("deposit", Deposit, indexes=(("account",), ("state",)))


class Watch(enum.StrEnum):
    """Whether a request is still looked after."""

    OPEN = "open"
    CLOSED = "closed"  # paid, or past its grace; what arrives even later is still credited


class DepositRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody was asked to pay, and whose account it goes to. Its row's key is `key`.

    `opens_account`: nobody had that account when it was asked for; the claim secret opens it.
    `amount` is in the asset's unit; None: the payer chooses. `deposits` are the keys of what has
    arrived, `credited` is their sum in the asset that was asked for, `credited_msat` in all that
    became msat. `quoted` is the rate until it expires, of that amount and no more.
    """

    id: str
    method: str
    reference: str
    account: str
    opens_account: bool
    custody: str
    asset: str
    amount: int | None
    text: str
    uri: str
    claim_hash: str
    created_at: int
    expires_at: int
    watch: Watch = Watch.OPEN
    deposits: tuple[str, ...] = ()
    credited: int = 0
    credited_msat: int = 0
    quoted: Quoted | None = None

    @property
    def is_credited(self) -> bool:
        """Whether anything has been credited for it."""
        return bool(self.credited or self.credited_msat)

    @property
    def key(self) -> str:
        """What makes it unique, and what a sighting finds it by."""
        return request_key(self.method, self.reference)


def request_key(method: str, reference: str) -> str:
    """The key of the request that a method's reference belongs to."""
    return f"{method}:{reference}"


DEPOSIT_REQUEST = RecordType(
    "deposit_request", DepositRequest, indexes=(("id",), ("account",), ("method", "watch"))
)


def credited(deposit: Deposit) -> tuple[Put, Event]:
    """The row and event of a deposit that another commit's posting credits; once, or Taken."""
    done = msgspec.structs.replace(deposit, state=DepositState.CREDITED)
    return Put(DEPOSIT, deposit.key, done, ABSENT), _event(done)


class Deposits:
    """Moves deposits forward."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        #: "lightning credited": how often a deposit has come so far, in this process.
        self.moves = Counts()

    async def report(self, seen: Deposit, *, request: str = "") -> Deposit:
        """Take note of a deposit at `seen.state`; returns how it stands now.

        A state behind the stored one changes nothing. CREDITED credits the account; where that
        would go over the custody's ceiling it stays CONFIRMED, for later. REVERSED undoes what
        was credited; what the account has spent of it becomes a receivable. `request` is the key of
        the request it answers: whose account that says *now* is the one that counts.
        """
        moved = await self._move(seen, seen.state, request)
        if moved is not None:
            return moved
        _log.error("deposit.over_ceiling", deposit=seen.key, custody=seen.custody)
        waiting = await self._move(seen, DepositState.CONFIRMED, request)
        assert waiting is not None, "only crediting meets a ceiling"
        return waiting

    async def _move(self, seen: Deposit, to: DepositState, request_key: str) -> Deposit | None:
        """None: it cannot be credited now because the custody is full."""
        for _ in range(_REVERSE_TRIES_MAX):
            rows: list[RowName] = [(DEPOSIT, seen.key)]
            rows += [(DEPOSIT_REQUEST, request_key)] if request_key else []
            rows += [(MATURING, seen.account)] if seen.matures_at else []
            # What is written says whose account it is: an earlier reading of the balances serves.
            account = await self._ledger.store.account(seen.balance)
            owing = await self._ledger.store.account(owed_by(seen.balance))
            available = account.available if account is not None else 0
            owed = owing.held if owing is not None else 0

            def decide(
                state: State,
                now_ns: int,
                seen: Deposit = seen,
                available: int = available,
                owed: int = owed,
            ) -> Unit | Deposit | _Elsewhere:
                request = state.value(DEPOSIT_REQUEST, request_key) if request_key else None
                known = state.value(DEPOSIT, seen.key)
                moved = _moved(known, seen, to, request, now_ns)
                if isinstance(moved, _Known):
                    return moved.deposit
                if moved.matures_at and moved.account != seen.account:
                    return _Elsewhere(moved.account)
                was_credited = known is not None and known.state is DepositState.CREDITED
                unit = Unit(
                    f"deposit:{seen.key}:{to}" + (f":{moved.turn}" if moved.turn else ""),
                    steps=_postings(moved, available, owed, was_credited=was_credited),
                    puts=(
                        Put(DEPOSIT, seen.key, moved, state.version(DEPOSIT, seen.key)),
                        *_ripening(moved, state, now_ns),
                    ),
                    events=(_event(moved),),
                )
                if request is None:
                    return unit
                version = state.version(DEPOSIT_REQUEST, request_key)
                return _noted(unit, request, moved, version, was_credited=was_credited)

            outcome = await self._ledger.transact(rows, decide)
            if isinstance(outcome, Deposit):
                return outcome
            if isinstance(outcome, Applied):
                self.moves.add(f"{seen.source} {to}")
            if isinstance(outcome, _Elsewhere):
                seen = msgspec.structs.replace(seen, account=outcome.account)
                continue
            if isinstance(outcome, Refused) and outcome.code is Code.EXCEEDS_CEILING:
                return None
            if not isinstance(outcome, Refused):  # refused: the balance moved meanwhile
                row = await self._ledger.store.get(DEPOSIT, seen.key)
                assert row is not None, "it was just stored"
                return row.value
        raise StoreBusy(f"the account of deposit {seen.key} moves too fast; report it again")


@dataclass(frozen=True, slots=True)
class _Known:
    """A report that changes nothing: the deposit stands so."""

    deposit: Deposit


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """The request is another account's by now."""

    account: str


def _ripening(deposit: Deposit, state: State, now_ns: int) -> tuple[Put, ...]:
    """What is remembered of money that is not ripe; what is reversed is not here any more."""
    is_moved = deposit.state in (DepositState.CREDITED, DepositState.REVERSED)
    if not deposit.matures_at or not is_moved or deposit.balance != deposit.account:
        return ()
    known = state.value(MATURING, deposit.account)
    here_msat = deposit.amount_msat if deposit.state is DepositState.CREDITED else 0
    changed = with_lot(known, Lot(deposit.key, here_msat, deposit.matures_at), now_ns)
    version = state.version(MATURING, deposit.account)
    return (Put(MATURING, deposit.account, changed, version),)


def _moved(
    known: Deposit | None,
    seen: Deposit,
    to: DepositState,
    request: DepositRequest | None,
    now_ns: int,
) -> Deposit | _Known:
    """The deposit after a report."""
    at = seen.at or now_ns
    if known is None:
        if to is DepositState.REVERSED:
            return _Known(seen)  # it was never noted, so there is nothing to undo
        # The account may have changed since it was looked up: the commit's own reading counts.
        account = seen.account if request is None else request.account
        return msgspec.structs.replace(seen, account=account, state=to, at=at)
    if known.state is DepositState.REVERSED:
        is_elsewhere = seen.seen_in and seen.seen_in not in known.gone_from
        if to is DepositState.REVERSED or not is_elsewhere:
            return _Known(known)
        anew = {"turn": known.turn + 1, "gone_from": known.gone_from, "account": known.account}
        return msgspec.structs.replace(seen, state=to, at=at, **anew)
    if to is DepositState.REVERSED:
        if seen.seen_in != known.seen_in:
            return _Known(known)  # it is somewhere else by now
        gone_from = (*known.gone_from, known.seen_in)[-_GONE_MAX:]
        return msgspec.structs.replace(known, state=to, at=at, gone_from=gone_from)
    if _ORDER.index(known.state) >= _ORDER.index(to):
        return _Known(known)
    # Rate and worth are those of the moment of crediting.
    rated = {"amount_msat": seen.amount_msat, "quoted": seen.quoted}
    return msgspec.structs.replace(known, state=to, at=at, **rated)


def owed_by(balance: str) -> str:
    """The account of what the owner of a balance owes us."""
    return f"receivable:{balance}"


def _postings(
    deposit: Deposit, available: int, owed: int, *, was_credited: bool
) -> tuple[Step, ...]:
    balance, amount, quoted = deposit.balance, deposit.credit, deposit.quoted
    of = BTC.code if quoted else deposit.asset
    if deposit.state is DepositState.CREDITED:
        opened = (
            Open(deposit.custody, deposit.asset, Kind.CUSTODY),
            Open(balance, of, Kind.CUSTOMER),
        )
        paid_back: tuple[Step, ...] = ()
        if owed:
            paid_back = (
                Transfer(balance, owed_by(balance), min(owed, amount), "debt", Balancing.CREDIT),
            )
        if quoted:
            bought = buying(quoted, deposit.custody, deposit.amount, balance, "deposit")
            return (*opened, *bought, *paid_back)
        return (*opened, Transfer(deposit.custody, balance, amount, "deposit"), *paid_back)
    if deposit.state is not DepositState.REVERSED or not was_credited:
        return ()
    left = min(max(0, available), amount)
    owing = owed_by(balance)
    opening = Open(owing, of, Kind.RECEIVABLE)
    if quoted:
        back = taking_back(quoted, deposit.custody, deposit.amount, balance, left, owing)
        return (opening, *back)
    return (
        opening,
        Transfer(balance, deposit.custody, left, "reversal"),
        Transfer(owing, deposit.custody, amount - left, "reversal"),
    )


def _noted(
    unit: Unit, request: DepositRequest, deposit: Deposit, version: int, *, was_credited: bool
) -> Unit:
    """The unit with the request's part: the deposit on it, and what was unlike what was asked."""
    changed = request
    if deposit.key not in request.deposits and len(request.deposits) < _PER_REQUEST_MAX:
        changed = msgspec.structs.replace(changed, deposits=(*request.deposits, deposit.key))
    events = unit.events
    if deposit.state is DepositState.CREDITED:
        changed = _counted(changed, deposit, 1)
        facts = {"deposit": request.id, "asked": str(request.amount or 0)}
        facts |= {"credited": str(changed.credited), "asset": request.asset}
        marks = marks_of(changed, deposit.at)
        events += tuple(Event(f"deposit.{mark}", deposit.account, facts) for mark in marks)
    elif deposit.state is DepositState.REVERSED and was_credited:
        changed = _counted(changed, deposit, -1)
    put = Put(DEPOSIT_REQUEST, request.key, changed, version)
    return msgspec.structs.replace(unit, puts=(*unit.puts, put), events=events)


def _counted(request: DepositRequest, deposit: Deposit, sign: int) -> DepositRequest:
    """The request with a deposit more, or less. Another asset than it asked for pays none of it."""
    credited, msat = request.credited, 0
    if deposit.asset == request.asset:
        credited += sign * deposit.arrived
    if deposit.balance == deposit.account:
        msat = sign * deposit.amount_msat
    is_enough = credited > 0 if request.amount is None else credited >= request.amount
    return msgspec.structs.replace(
        request,
        credited=credited,
        credited_msat=request.credited_msat + msat,
        watch=Watch.CLOSED if is_enough else Watch.OPEN,
    )


def marks_of(request: DepositRequest, at: int) -> tuple[str, ...]:
    """How what arrived by `at` (UTC nanoseconds) is unlike what was asked for; () is as asked."""
    marks = ["late"] if at >= request.expires_at else []
    if request.amount is not None and request.credited != request.amount:
        marks.append("short" if request.credited < request.amount else "over")
    return tuple(marks)


def _event(deposit: Deposit) -> Event:
    facts: dict[str, str | int] = {
        "method": deposit.source,
        "reference": deposit.reference,
        "amount_msat": deposit.amount_msat,
    }
    if deposit.asset != BTC.code:
        facts |= {"asset": deposit.asset, "amount": str(deposit.amount)}
    return Event(f"deposit.{deposit.state}", deposit.account, facts)
