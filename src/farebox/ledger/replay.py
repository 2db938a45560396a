"""Replays units from what is stored of them, and stops at the first rule that one breaks.

Written apart from `evaluator` on purpose: an error in one of them does not hide in the other.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from farebox.ledger.audit import Body
from farebox.ledger.evaluator import Movement
from farebox.ledger.model import (
    CREDIT_LIMITED,
    DEBIT_LIMITED,
    EXPIRY_PREFIX,
    Account,
    HoldRow,
    HoldState,
    Kind,
    hold_id,
)
from farebox.money import AMOUNT_END


class Invariant(enum.StrEnum):
    """What must always hold of a book, in the order in which it is checked."""

    MEDIUM = "what the book is kept in is sound, every page and index of it"
    ORDER = "units and events are numbered without gaps, and time never goes back"
    CHAIN = "every unit hashes to its digest, from the first on"
    UNIT = "a unit is well formed"
    ACCOUNTS = "accounts are what the units made them"
    LIMITS = "no limit is broken"
    HOLDS = "each hold is resolved at most once"
    ROWS = "rows are what the units wrote"
    BALANCE = "debits equal credits"
    COVER = "what is held in custody covers what is owed"


class Broken(msgspec.Struct, frozen=True):
    """The first thing found wrong: which rule, where, what should be there, what is."""

    invariant: Invariant
    where: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}"


class BrokenError(Exception):
    """Carries a `Broken` from where it was found to `verify`."""

    def __init__(self, invariant: Invariant, where: str, expected: object, found: object) -> None:
        self.broken = Broken(invariant, where, str(expected), str(found))


class StoredUnit(msgspec.Struct, frozen=True, gc=False):
    """A unit as its row has it."""

    seq: int
    id: str
    at: int
    body: bytes
    digest: bytes

    @property
    def name(self) -> str:
        """How a unit is named to people."""
        return f"unit {self.seq} ({self.id})"


@dataclass(slots=True)
class Balance:
    """One account while it is replayed."""

    asset: str
    kind: Kind
    debits_pending: int = 0
    debits_posted: int = 0
    credits_pending: int = 0
    credits_posted: int = 0
    ceiling: int | None = None

    def account(self, account_id: str) -> Account:
        """As the store should have it."""
        return Account(
            account_id,
            self.asset,
            self.kind,
            self.debits_pending,
            self.debits_posted,
            self.credits_pending,
            self.credits_posted,
            self.ceiling,
        )


_RESOLVED = {
    "post": HoldState.POSTED,
    "void": HoldState.VOIDED,
    "expire": HoldState.EXPIRED,
}


@dataclass(slots=True)
class Replay:
    """The books as the units make them: every balance, and the holds that are open."""

    accounts: dict[str, Balance] = field(default_factory=dict)
    open_holds: dict[str, HoldRow] = field(default_factory=dict)
    holds_made: int = 0

    def apply(self, unit: StoredUnit, body: Body) -> list[HoldRow]:
        """Replay one unit; returns the holds it resolved. Raises BrokenError."""
        if body.refused is not None:
            if body.movements or body.opens or body.ceilings or body.puts:
                raise BrokenError(Invariant.UNIT, unit.name, "nothing done (refused)", "changes")
            return []
        resolved: list[HoldRow] = []
        for number, step in enumerate(_steps(unit, body)):
            if isinstance(step, Movement):
                hold = self._move(unit, number, step)
                if hold is not None:
                    resolved.append(hold)
            elif len(step) == 4:
                self._open(unit, *step[1:])
            else:
                self._set_ceiling(unit, *step[1:])
        return resolved

    def _open(self, unit: StoredUnit, account: str, asset: str, kind: str) -> None:
        existing = self.accounts.get(account)
        if existing is None:
            self.accounts[account] = Balance(asset, Kind(kind))
        elif (existing.asset, existing.kind) != (asset, kind):
            where = f"account {account}, opened by {unit.name}"
            found = f"{asset} {kind}"
            raise BrokenError(Invariant.ACCOUNTS, where, f"{existing.asset} {existing.kind}", found)

    def _set_ceiling(self, unit: StoredUnit, account: str, ceiling: str | None) -> None:
        self._account(unit, account).ceiling = (
            None if ceiling is None else amount_of(ceiling, unit.name)
        )

    def _account(self, unit: StoredUnit, account: str) -> Balance:
        found = self.accounts.get(account)
        if found is None:
            raise BrokenError(Invariant.ACCOUNTS, unit.name, "an account that was opened", account)
        return found

    def _move(self, unit: StoredUnit, number: int, move: Movement) -> HoldRow | None:
        debtor = self._account(unit, move.debit)
        creditor = self._account(unit, move.credit)
        if debtor is creditor or debtor.asset != creditor.asset:
            where = f"step {number} of {unit.name}"
            found = f"{move.debit} ({debtor.asset}) and {move.credit} ({creditor.asset})"
            raise BrokenError(Invariant.BALANCE, where, "two accounts of one asset", found)
        amount = amount_of(move.amount, unit.name)
        if move.kind == "transfer":
            debtor.debits_posted += amount
            creditor.credits_posted += amount
            self._check_limits(unit, move)
            return None
        if move.kind == "hold":
            debtor.debits_pending += amount
            creditor.credits_pending += amount
            self._check_limits(unit, move)
            self._make_hold(unit, number, move)
            return None
        hold = self._resolve(unit, move)
        debtor.debits_pending -= hold.amount
        debtor.debits_posted += amount
        creditor.credits_pending -= hold.amount
        creditor.credits_posted += amount
        return hold

    def _check_limits(self, unit: StoredUnit, move: Movement) -> None:
        debtor, creditor = self.accounts[move.debit], self.accounts[move.credit]
        debits = debtor.debits_pending + debtor.debits_posted
        credits_ = creditor.credits_pending + creditor.credits_posted
        most, found, account = AMOUNT_END - 1, max(debits, credits_), move.debit
        if debtor.kind in CREDIT_LIMITED and debits > debtor.credits_posted:
            most, found = debtor.credits_posted, debits
        elif creditor.kind in DEBIT_LIMITED and credits_ > creditor.debits_posted:
            most, found, account = creditor.debits_posted, credits_, move.credit
        elif debtor.ceiling is not None and debits - debtor.credits_posted > debtor.ceiling:
            most, found = debtor.ceiling, debits - debtor.credits_posted
        if found > most:
            where = f"account {account} after {unit.name}"
            raise BrokenError(Invariant.LIMITS, where, f"at most {most}", found)

    def _make_hold(self, unit: StoredUnit, number: int, move: Movement) -> None:
        key = hold_id(unit.id, number)
        if move.hold != key or key in self.open_holds:
            raise BrokenError(Invariant.HOLDS, unit.name, f"a new hold {key}", move.hold)
        amount = int(move.amount)
        self.open_holds[key] = HoldRow(
            key, move.debit, move.credit, amount, move.code, move.expires_at
        )
        self.holds_made += 1

    def _resolve(self, unit: StoredUnit, move: Movement) -> HoldRow:
        hold = self.open_holds.pop(move.hold, None)
        state = _RESOLVED.get(move.kind)
        where = f"hold {move.hold}, {move.kind} by {unit.name}"
        if hold is None or state is None:
            raise BrokenError(
                Invariant.HOLDS, where, "an open hold", "none, or one resolved before"
            )
        amount = int(move.amount)
        most = hold.amount if state is HoldState.POSTED else 0
        if (hold.debit, hold.credit) != (move.debit, move.credit) or amount > most:
            expected = f"at most {most} from {hold.debit} to {hold.credit}"
            found = f"{amount} from {move.debit} to {move.credit}"
            raise BrokenError(Invariant.HOLDS, where, expected, found)
        due = 0 < hold.expires_at <= unit.at
        if due != (state is HoldState.EXPIRED) or (due and unit.id != EXPIRY_PREFIX + hold.id):
            expected = "an expiry" if due else "no expiry"
            raise BrokenError(Invariant.HOLDS, where, expected, move.kind)
        return msgspec.structs.replace(hold, state=state)


def amount_of(text: str, where: str) -> int:
    """Read a stored amount. Raises BrokenError."""
    if type(text) is not str or not (
        text.isascii() and text.isdigit() and len(text) < 40 and int(text) < AMOUNT_END
    ):
        raise BrokenError(Invariant.UNIT, where, "an amount", repr(text))
    return int(text)


def _steps(unit: StoredUnit, body: Body) -> Iterable[Any]:
    """Opens, ceilings and movements in the order of their steps, which has no gap."""
    if not body.opens and not body.ceilings:
        numbered: Sequence[Any] = body.movements
        numbers = [move.step for move in body.movements]
    else:
        pairs = [(move.step, move) for move in body.movements]
        pairs += [(step[0], step) for step in (*body.opens, *body.ceilings)]  # type: ignore[misc]
        pairs.sort(key=lambda pair: pair[0])
        numbers = [number for number, _ in pairs]
        numbered = [step for _, step in pairs]
    if numbers != list(range(len(numbers))):
        raise BrokenError(Invariant.UNIT, unit.name, "steps without a gap", f"steps {numbers}")
    return numbered
