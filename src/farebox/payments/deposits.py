"""Deposits: value that was seen to arrive, credited once whoever reports it how often.

    detected ──► confirmed ──► credited ──► reversed

A deposit is unique by (source, external reference, index), so a webhook, a poller and a rescan may
all report one. Every report is one commit; a report of what is known already changes nothing.
Most were asked for (`DepositRequest`): the report then also notes the deposit on the request, in
the same commit, and says when it came late or was not what was asked for.

| change              | postings                                                                   |
|---------------------|----------------------------------------------------------------------------|
| detected, confirmed | none: nothing is owed for what may still vanish                            |
| credited            | Transfer custody → account (a journalled receive posts its hold instead)   |
| reversed            | Transfer account → custody what is left, receivable → custody the rest     |

| boundary               | what can fail            | recovery                                   |
|------------------------|--------------------------|--------------------------------------------|
| arrived there → commit | we stop, the line breaks | cursor and poller: it is reported again    |
| the commit             | the ceiling is reached   | it stays confirmed; the poller tries again |
| commit → cursor        | we stop                  | it is reported again and changes nothing   |
"""

from __future__ import annotations

import enum

import msgspec
import structlog

from farebox.errors import StoreBusy
from farebox.ledger.model import (
    ABSENT,
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

_log = structlog.get_logger("farebox.deposits")

_REVERSE_TRIES_MAX = 16
#: Deposits that one request remembers; an address may be paid again and again.
_PER_REQUEST_MAX = 64


class DepositState(enum.StrEnum):
    """How far a deposit has come; it only moves forward."""

    DETECTED = "detected"
    CONFIRMED = "confirmed"
    CREDITED = "credited"
    REVERSED = "reversed"


_ORDER = list(DepositState)


class Deposit(msgspec.Struct, frozen=True, kw_only=True):
    """Value that arrived. `amount` is in the asset's own unit, `amount_msat` what is credited."""

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

    @property
    def key(self) -> str:
        """What makes it unique."""
        return f"{self.source}:{self.reference}:{self.index}"


DEPOSIT = RecordType("deposit", Deposit, indexes=(("account",), ("state",)))


class Watch(enum.StrEnum):
    """Whether a request is still looked after."""

    OPEN = "open"
    CLOSED = "closed"  # paid, or past its grace; what arrives even later is still credited


class DepositRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody was asked to pay, and whose account it goes to. Its row's key is `key`.

    `opens_account`: nobody had that account when it was asked for; the claim secret opens it.
    `amount_msat` None: the payer chooses. `deposits` are the keys of what has arrived.
    """

    id: str
    method: str
    reference: str
    account: str
    opens_account: bool
    custody: str
    asset: str
    amount_msat: int | None
    text: str
    uri: str
    claim_hash: str
    created_at: int
    expires_at: int
    watch: Watch = Watch.OPEN
    deposits: tuple[str, ...] = ()
    credited_msat: int = 0

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

    async def report(self, seen: Deposit, *, request: str = "") -> Deposit:
        """Take note of a deposit at `seen.state`; returns how it stands now.

        A state behind the stored one changes nothing. CREDITED credits the account; where that
        would go over the custody's ceiling it stays CONFIRMED, for later. `request` is the key of
        the request it answers: whose account that says *now* is the one that counts.
        """
        moved = await self._move(seen, seen.state, request)
        if moved is not None:
            return moved
        _log.error("deposit.over_ceiling", deposit=seen.key, custody=seen.custody)
        waiting = await self._move(seen, DepositState.CONFIRMED, request)
        assert waiting is not None, "only crediting meets a ceiling"
        return waiting

    async def reverse(self, key: str) -> Deposit | None:
        """Undo a deposit that was taken back. What the account has spent becomes a receivable."""
        row = await self._ledger.store.get(DEPOSIT, key)
        return None if row is None else await self._move(row.value, DepositState.REVERSED, "")

    async def _move(self, seen: Deposit, to: DepositState, request_key: str) -> Deposit | None:
        """None: it cannot be credited now because the custody is full."""
        rows: list[RowName] = [(DEPOSIT, seen.key)]
        if request_key:
            rows.append((DEPOSIT_REQUEST, request_key))
        for _ in range(_REVERSE_TRIES_MAX):
            account = await self._ledger.store.account(seen.account)
            available = account.available if account is not None else 0

            def decide(state: State, now_ns: int, available: int = available) -> Unit | Deposit:
                request = state.value(DEPOSIT_REQUEST, request_key) if request_key else None
                known = state.value(DEPOSIT, seen.key)
                if known is not None and _ORDER.index(known.state) >= _ORDER.index(to):
                    return known
                before = known or _addressed(seen, request)
                moved = msgspec.structs.replace(before, state=to, at=seen.at or now_ns)
                was_credited = known is not None and known.state is DepositState.CREDITED
                put = Put(DEPOSIT, seen.key, moved, state.version(DEPOSIT, seen.key))
                unit = Unit(
                    f"deposit:{seen.key}:{to}",
                    steps=_postings(moved, available, was_credited=was_credited),
                    puts=(put,),
                    events=(_event(moved),),
                )
                if request is None:
                    return unit
                return _noted(unit, request, moved, state.version(DEPOSIT_REQUEST, request_key))

            outcome = await self._ledger.transact(rows, decide)
            if isinstance(outcome, Deposit):
                return outcome
            if outcome == Refused(2, Code.EXCEEDS_CEILING):
                return None
            if not isinstance(outcome, Refused):  # refused: the balance moved meanwhile
                row = await self._ledger.store.get(DEPOSIT, seen.key)
                assert row is not None, "it was just stored"
                return row.value
        raise StoreBusy(f"the account of deposit {seen.key} moves too fast; report it again")


def _addressed(seen: Deposit, request: DepositRequest | None) -> Deposit:
    """The account may have changed since it was looked up: the commit's own reading counts."""
    return seen if request is None else msgspec.structs.replace(seen, account=request.account)


def _postings(deposit: Deposit, available: int, *, was_credited: bool) -> tuple[Step, ...]:
    if deposit.state is DepositState.CREDITED:
        return (
            Open(deposit.custody, deposit.asset, Kind.CUSTODY),
            Open(deposit.account, deposit.asset, Kind.CUSTOMER),
            Transfer(deposit.custody, deposit.account, deposit.amount_msat, "deposit"),
        )
    if deposit.state is not DepositState.REVERSED or not was_credited:
        return ()
    left = min(max(0, available), deposit.amount_msat)
    owed_by = f"receivable:{deposit.account}"
    return (
        Open(owed_by, deposit.asset, Kind.RECEIVABLE),
        Transfer(deposit.account, deposit.custody, left, "reversal"),
        Transfer(owed_by, deposit.custody, deposit.amount_msat - left, "reversal"),
    )


def _noted(unit: Unit, request: DepositRequest, deposit: Deposit, version: int) -> Unit:
    """The unit with the request's part: the deposit on it, and what was unlike what was asked."""
    changed = request
    if deposit.key not in request.deposits and len(request.deposits) < _PER_REQUEST_MAX:
        changed = msgspec.structs.replace(changed, deposits=(*request.deposits, deposit.key))
    events = unit.events
    if deposit.state is DepositState.CREDITED:
        total_msat = request.credited_msat + deposit.amount_msat
        is_enough = request.amount_msat is None or total_msat >= request.amount_msat
        watch = Watch.CLOSED if is_enough else request.watch
        changed = msgspec.structs.replace(changed, credited_msat=total_msat, watch=watch)
        facts = {"deposit": request.id, "asked_msat": request.amount_msat or 0}
        facts["credited_msat"] = total_msat
        marks = marks_of(changed, deposit.at)
        events += tuple(Event(f"deposit.{mark}", deposit.account, facts) for mark in marks)
    put = Put(DEPOSIT_REQUEST, request.key, changed, version)
    return msgspec.structs.replace(unit, puts=(*unit.puts, put), events=events)


def marks_of(request: DepositRequest, at: int) -> tuple[str, ...]:
    """How what arrived by `at` (UTC nanoseconds) is unlike what was asked for; () is as asked."""
    marks = ["late"] if at >= request.expires_at else []
    asked_msat = request.amount_msat
    if asked_msat is not None and request.credited_msat != asked_msat:
        marks.append("short" if request.credited_msat < asked_msat else "over")
    return tuple(marks)


def _event(deposit: Deposit) -> Event:
    return Event(
        f"deposit.{deposit.state}",
        deposit.account,
        {
            "method": deposit.source,
            "reference": deposit.reference,
            "amount_msat": deposit.amount_msat,
        },
    )
