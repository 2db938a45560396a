"""Deposits: value that was seen to arrive, credited once whoever reports it how often.

    detected ──► confirmed ──► credited ──► reversed

A deposit is unique by (source, external reference, index), so a webhook, a poller and a rescan may
all report one. Every report is one commit; a report of what is known already changes nothing.

| change              | postings                                                                   |
|---------------------|----------------------------------------------------------------------------|
| detected, confirmed | none: nothing is owed for what may still vanish                            |
| credited            | Transfer custody → account (a journalled receive posts its hold instead)   |
| reversed            | Transfer account → custody what is left, receivable → custody the rest     |
"""

from __future__ import annotations

import enum

import msgspec

from farebox.errors import StoreBusy
from farebox.ledger.model import ABSENT, Event, Kind, Open, Put, Refused, Step, Transfer, Unit
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger, State

_REVERSE_TRIES_MAX = 16


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


def credited(deposit: Deposit) -> tuple[Put, Event]:
    """The row and event of a deposit that another commit's posting credits; once, or Taken."""
    done = msgspec.structs.replace(deposit, state=DepositState.CREDITED)
    return Put(DEPOSIT, deposit.key, done, ABSENT), _event(done)


class Deposits:
    """Moves deposits forward."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def report(self, seen: Deposit) -> Deposit:
        """Take note of a deposit at `seen.state`; returns how it stands now.

        A state behind the stored one changes nothing. CREDITED credits the account.
        """
        return await self._move(seen, seen.state)

    async def reverse(self, key: str) -> Deposit | None:
        """Undo a deposit that was taken back. What the account has spent becomes a receivable."""
        row = await self._ledger.store.get(DEPOSIT, key)
        return None if row is None else await self._move(row.value, DepositState.REVERSED)

    async def _move(self, seen: Deposit, to: DepositState) -> Deposit:
        for _ in range(_REVERSE_TRIES_MAX):
            account = await self._ledger.store.account(seen.account)
            available = account.available if account is not None else 0

            def decide(state: State, now_ns: int, available: int = available) -> Unit | Deposit:
                known = state.value(DEPOSIT, seen.key)
                if known is not None and _ORDER.index(known.state) >= _ORDER.index(to):
                    return known
                moved = msgspec.structs.replace(known or seen, state=to, at=now_ns)
                was_credited = known is not None and known.state is DepositState.CREDITED
                return Unit(
                    f"deposit:{seen.key}:{to}",
                    steps=_postings(moved, available, was_credited=was_credited),
                    puts=(Put(DEPOSIT, seen.key, moved, state.version(DEPOSIT, seen.key)),),
                    events=(_event(moved),),
                )

            outcome = await self._ledger.transact([(DEPOSIT, seen.key)], decide)
            if isinstance(outcome, Deposit):
                return outcome
            if not isinstance(outcome, Refused):  # refused: the balance moved meanwhile
                row = await self._ledger.store.get(DEPOSIT, seen.key)
                assert row is not None, "it was just stored"
                return row.value
        raise StoreBusy(f"the account of deposit {seen.key} moves too fast; report it again")


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
