"""Decides what a unit does to the books. Pure: no clock, no store, no I/O.

Precedence of outcomes: a known id (`Replayed`, `Mismatch`), then rows in the order puts, guards
(`Taken`, `Stale`), then the steps in order, each with the precedence of `Code`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from farebox.ledger.model import (
    ABSENT,
    CREDIT_LIMITED,
    DEBIT_LIMITED,
    Account,
    Applied,
    Balancing,
    Code,
    Hold,
    HoldRow,
    HoldState,
    Mismatch,
    Open,
    Outcome,
    Post,
    Refused,
    Replayed,
    SetCeiling,
    Stale,
    Taken,
    Transfer,
    Unit,
    Void,
    hold_id,
)
from farebox.money import AMOUNT_END

RowKey = tuple[str, str]


class Movement(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One stored transfer. `kind`: transfer, hold, post, void or expire; `hold` for the last three.

    The amount is a decimal string: the widest integer of the audit encoding has 64 bits.
    """

    step: int
    kind: str
    debit: str
    credit: str
    amount: str
    code: str
    hold: str = ""
    expires_at: int = 0


class Known(msgspec.Struct, frozen=True, gc=False):
    """A unit decided before."""

    fingerprint: bytes
    outcome: Applied | Refused


@dataclass(slots=True)
class Overlay:
    """The part of the books that a batch reads, and on top of it what the batch has changed.

    A store loads it before evaluation; every key that a unit names must be present, with None (or
    version 0) for what does not exist.
    """

    accounts: dict[str, Account | None] = field(default_factory=dict)
    holds: dict[str, HoldRow | None] = field(default_factory=dict)
    versions: dict[RowKey, int] = field(default_factory=dict)
    units: dict[str, Known] = field(default_factory=dict)


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What one unit did, to be stored with it: accounts and holds as they stand after it."""

    unit: Unit
    outcome: Applied | Refused
    movements: Sequence[Movement] = ()
    accounts: Mapping[str, Account] = {}
    holds: Mapping[str, HoldRow] = {}


class _Refusal(Exception):
    def __init__(self, code: Code) -> None:
        self.code = code


class _Trial:
    """One unit's own changes, kept apart until all of it is known to succeed."""

    __slots__ = ("accounts", "amounts", "at", "holds", "movements", "overlay", "unit")

    def __init__(self, unit: Unit, overlay: Overlay, at: int) -> None:
        self.unit = unit
        self.overlay = overlay
        self.at = at
        self.accounts: dict[str, Account] = {}
        self.holds: dict[str, HoldRow] = {}
        self.movements: list[Movement] = []
        self.amounts: list[int] = []

    def account(self, account_id: str) -> Account | None:
        return self.accounts.get(account_id) or self.overlay.accounts[account_id]

    def pair(self, debit: str, credit: str) -> tuple[Account, Account]:
        if debit == credit:
            raise _Refusal(Code.ACCOUNTS_MUST_BE_DIFFERENT)
        own, known = self.accounts, self.overlay.accounts
        debtor = own.get(debit) or known[debit]
        creditor = own.get(credit) or known[credit]
        if debtor is None:
            raise _Refusal(Code.DEBIT_ACCOUNT_NOT_FOUND)
        if creditor is None:
            raise _Refusal(Code.CREDIT_ACCOUNT_NOT_FOUND)
        if debtor.asset != creditor.asset:
            raise _Refusal(Code.ACCOUNTS_MUST_HAVE_THE_SAME_ASSET)
        return debtor, creditor

    def move(
        self, debtor: Account, creditor: Account, pending: int, posted: int, *, check: bool
    ) -> None:
        """Add to the pending and posted balances of both sides; `check` the limits."""
        debits_pending = debtor.debits_pending + pending
        debits_posted = debtor.debits_posted + posted
        credits_pending = creditor.credits_pending + pending
        credits_posted = creditor.credits_posted + posted
        if check:
            debits = debits_pending + debits_posted
            _check_limits(debtor, creditor, debits, credits_pending + credits_posted)
        self.accounts[debtor.id] = Account(
            debtor.id,
            debtor.asset,
            debtor.kind,
            debits_pending,
            debits_posted,
            debtor.credits_pending,
            debtor.credits_posted,
            debtor.ceiling,
        )
        self.accounts[creditor.id] = Account(
            creditor.id,
            creditor.asset,
            creditor.kind,
            creditor.debits_pending,
            creditor.debits_posted,
            credits_pending,
            credits_posted,
            creditor.ceiling,
        )

    def record(
        self, kind: str, debit: str, credit: str, amount: int, code: str, hold: str, expires: int
    ) -> None:
        step = len(self.amounts)
        self.movements.append(Movement(step, kind, debit, credit, str(amount), code, hold, expires))
        self.amounts.append(amount)

    def close_hold(self, hold: str, amount: int | None, state: HoldState, kind: str) -> None:
        row = self.holds.get(hold) or self.overlay.holds[hold]
        if row is None:
            raise _Refusal(Code.PENDING_TRANSFER_NOT_FOUND)
        if row.state is not HoldState.OPEN:
            raise _Refusal(_CLOSED[row.state])
        if state is not HoldState.EXPIRED and 0 < row.expires_at <= self.at:
            raise _Refusal(Code.PENDING_TRANSFER_EXPIRED)  # due, and not yet released
        taken = row.amount if amount is None else amount
        if taken > row.amount:
            raise _Refusal(Code.EXCEEDS_PENDING_TRANSFER_AMOUNT)
        debtor, creditor = self.pair(row.debit, row.credit)
        # No limit can break: what is posted here was within every limit when it was held.
        self.move(debtor, creditor, -row.amount, taken, check=False)
        self.holds[hold] = msgspec.structs.replace(row, state=state)
        self.record(kind, row.debit, row.credit, taken, row.code, hold, 0)


_CLOSED = {
    HoldState.POSTED: Code.PENDING_TRANSFER_ALREADY_POSTED,
    HoldState.VOIDED: Code.PENDING_TRANSFER_ALREADY_VOIDED,
    HoldState.EXPIRED: Code.PENDING_TRANSFER_EXPIRED,
}


def _check_limits(debtor: Account, creditor: Account, debits: int, credits_: int) -> None:
    """Of two sides that shall have so many debits and credits, pending ones too."""
    if debits >= AMOUNT_END or credits_ >= AMOUNT_END:
        raise _Refusal(Code.OVERFLOWS_ACCOUNT)
    if debtor.kind in CREDIT_LIMITED and debits > debtor.credits_posted:
        raise _Refusal(Code.EXCEEDS_CREDITS)
    if creditor.kind in DEBIT_LIMITED and credits_ > creditor.debits_posted:
        raise _Refusal(Code.EXCEEDS_DEBITS)
    if debtor.ceiling is not None and debits - debtor.credits_posted > debtor.ceiling:
        raise _Refusal(Code.EXCEEDS_CEILING)


def _check_amount(amount: int) -> None:
    if not 0 <= amount < AMOUNT_END:
        raise _Refusal(Code.AMOUNT_OUT_OF_RANGE)


def _open(trial: _Trial, step: Open) -> None:
    existing = trial.account(step.account)
    if existing is None:
        trial.accounts[step.account] = Account(step.account, step.asset, step.kind)
    elif existing.asset != step.asset:
        raise _Refusal(Code.EXISTS_WITH_DIFFERENT_ASSET)
    elif existing.kind != step.kind:
        raise _Refusal(Code.EXISTS_WITH_DIFFERENT_KIND)
    trial.amounts.append(0)


def _set_ceiling(trial: _Trial, step: SetCeiling) -> None:
    if step.ceiling is not None:
        _check_amount(step.ceiling)
    account = trial.account(step.account)
    if account is None:
        raise _Refusal(Code.ACCOUNT_NOT_FOUND)
    if account.kind not in DEBIT_LIMITED:
        raise _Refusal(Code.CEILING_NOT_ALLOWED)
    trial.accounts[account.id] = msgspec.structs.replace(account, ceiling=step.ceiling)
    trial.amounts.append(0)


def _transfer(trial: _Trial, step: Transfer) -> None:
    _check_amount(step.amount)
    debtor, creditor = trial.pair(step.debit, step.credit)
    amount = step.amount
    if step.balancing is not None:
        amount = min(amount, max(0, _balance(step.balancing, debtor, creditor)))
    trial.move(debtor, creditor, 0, amount, check=True)
    trial.record("transfer", step.debit, step.credit, amount, step.code, "", 0)


def _balance(side: Balancing, debtor: Account, creditor: Account) -> int:
    match side:
        case Balancing.DEBIT:
            return debtor.available
        case Balancing.CREDIT:
            return creditor.held - creditor.credits_pending


def _hold(trial: _Trial, step: Hold) -> None:
    _check_amount(step.amount)
    debtor, creditor = trial.pair(step.debit, step.credit)
    trial.move(debtor, creditor, step.amount, 0, check=True)
    key = hold_id(trial.unit.id, len(trial.amounts))
    expires_at = trial.at + step.timeout_ns if step.timeout_ns else 0
    trial.holds[key] = HoldRow(key, step.debit, step.credit, step.amount, step.code, expires_at)
    trial.record("hold", step.debit, step.credit, step.amount, step.code, key, expires_at)


def _post(trial: _Trial, step: Post) -> None:
    if step.amount is not None:
        _check_amount(step.amount)
    trial.close_hold(step.hold, step.amount, HoldState.POSTED, "post")


def _void(trial: _Trial, step: Void) -> None:
    trial.close_hold(step.hold, 0, HoldState.VOIDED, "void")


_APPLY: dict[type, Any] = {
    Open: _open,
    SetCeiling: _set_ceiling,
    Transfer: _transfer,
    Hold: _hold,
    Post: _post,
    Void: _void,
}


def evaluate(unit: Unit, overlay: Overlay, seq: int, at: int) -> Outcome | Decision:
    """Decide one unit as number `seq` at time `at` (ns).

    A `Decision` must be stored and its changes are now in the overlay; any other outcome changed
    nothing. A refusal comes as a Decision only when the unit is sticky.
    """
    known = overlay.units.get(unit.id)
    if known is not None:
        return Replayed(known.outcome) if known.fingerprint == unit.fingerprint else Mismatch()
    if unit.puts or unit.guards:
        blocked = _rows_blocked(unit, overlay.versions)
        if blocked is not None:
            return blocked
    trial = _Trial(unit, overlay, at)
    try:
        for step in unit.steps:
            _APPLY[type(step)](trial, step)
    except _Refusal as refusal:
        refused = Refused(len(trial.amounts), refusal.code)
        if not unit.sticky:
            return refused
        overlay.units[unit.id] = Known(unit.fingerprint, refused)
        return Decision(unit, refused)
    overlay.accounts.update(trial.accounts)
    if trial.holds:
        overlay.holds.update(trial.holds)
    for put in unit.puts:
        overlay.versions[put.record.kind, put.key] = put.expect + 1
    outcome = Applied(seq, at, tuple(trial.amounts), unit.reply)
    overlay.units[unit.id] = Known(unit.fingerprint, outcome)
    return Decision(unit, outcome, trial.movements, trial.accounts, trial.holds)


def _rows_blocked(unit: Unit, versions: dict[RowKey, int]) -> Stale | Taken | None:
    for put in unit.puts:
        if versions[put.record.kind, put.key] != put.expect:
            outcome = Taken if put.expect == ABSENT else Stale
            return outcome(put.record.kind, put.key)
    for guard in unit.guards:
        if versions[guard.record.kind, guard.key] != guard.version:
            return Stale(guard.record.kind, guard.key)
    return None


def expire(row: HoldRow, overlay: Overlay, unit: Unit, seq: int, at: int) -> Decision:
    """Release a hold that is due, as a unit of the ledger's own."""
    trial = _Trial(unit, overlay, at)
    trial.close_hold(row.id, 0, HoldState.EXPIRED, "expire")
    overlay.accounts.update(trial.accounts)
    overlay.holds.update(trial.holds)
    outcome = Applied(seq, at, (0,))
    return Decision(unit, outcome, trial.movements, trial.accounts, trial.holds)
