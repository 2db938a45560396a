"""Charging a stored method: an operation of the journal that never charges twice.

    open ──► captured ──► credited, booked ──► succeeded
      ├────► action: the payer proves it is them, or does not in time: voided ──► rejected
      ├────► declined, soft or technical ──► the next candidate, if there is one
      ├────► declined, hard ──► rejected
      └────► unknown ──► asked again, the same candidate with the same key, and nothing else

| boundary                      | what can fail               | recovery                           |
|-------------------------------|-----------------------------|------------------------------------|
| opening commit → call         | we stop                     | asked for, then called: same key   |
| call → answer                 | it is lost                  | asked for, then called: same key   |
| told its name, under way      | it takes days               | the name is stored, and asked for  |
| declined → next one stored    | we stop                     | the same candidate declines again  |
| next one stored → its call    | we stop                     | the next one is asked for, then    |
|                               |                             | called; the one before never again |
| captured → credited → booked  | we stop                     | asked: captured; credited once     |

So the candidate that may have been charged is always the one that is stored, and a second is tried
only when the first has definitely declined.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from farebox.clock import NS_PER_S
from farebox.ledger.model import Put, Unit
from farebox.ledger.service import Ledger, State
from farebox.payments.cards.method import CardMethod
from farebox.payments.cards.model import (
    Authorised,
    Captured,
    CardOrder,
    Decline,
    Declined,
    Outcome,
    RequiresAction,
    Unknown,
    Voided,
)
from farebox.payments.cards.records import CHARGE_PROGRESS, ChargeProgress
from farebox.payments.cards.routing import Successes
from farebox.payments.deposits import Deposit, Deposits, DepositState
from farebox.payments.exchange import Quoted, bought
from farebox.payments.model import Operation, Rejected, Succeeded, Unresolved, Verdict
from farebox.signer import Signer

CHARGE = "card_charge"
#: Operations whose payers have to act, that are remembered: one that is forgotten is asked about.
_ACTIONS_MAX = 4_096


class Candidate(msgspec.Struct, frozen=True):
    """One stored method."""

    provider: str
    token: str
    customer: str


class ChargePlan(msgspec.Struct, frozen=True):
    """What a charge keeps, sealed. `amount` is credited; the fee for paying so comes on top."""

    asset: str
    amount: int
    fees: tuple[int, ...]
    quoted: Quoted
    candidates: tuple[Candidate, ...]
    act_until: int


class Charging:
    """Carries out `card_charge` operations."""

    def __init__(
        self,
        rails: Mapping[str, CardMethod],
        ledger: Ledger,
        signer: Signer,
        successes: Successes,
    ) -> None:
        self._rails = rails
        self._ledger = ledger
        self._signer = signer
        self._deposits = Deposits(ledger)
        self._successes = successes
        #: What the payers of open operations have to do.
        self.actions: dict[str, RequiresAction] = {}

    async def attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        """Charge the candidate it is at, or find out what became of that; then the next."""
        raw = self._signer.unseal(operation.plan, operation.id)
        plan = msgspec.json.decode(raw, type=ChargePlan)
        row = await self._ledger.store.get(CHARGE_PROGRESS, operation.id)
        progress = row.value if row else ChargeProgress(0)
        while True:
            told = await self._charged(operation, plan, progress, asked_before=asked_before)
            if not isinstance(told, Declined):
                return told
            is_last = told.decline is Decline.HARD or progress.at + 1 >= len(plan.candidates)
            if is_last:
                return Rejected(told.code, told.message, again=told.decline is not Decline.HARD)
            progress, asked_before = ChargeProgress(progress.at + 1), False
            await self._advance_to(operation, progress)

    async def _charged(
        self,
        operation: Operation,
        plan: ChargePlan,
        progress: ChargeProgress,
        *,
        asked_before: bool,
    ) -> Verdict | Declined:
        at = progress.at
        one = plan.candidates[at]
        rail = self._rails.get(one.provider)
        if rail is None:
            return Unresolved(f"{one.provider} is not in the settings any more", alarm=True)
        order = f"{operation.id}-{at}"
        amount = plan.amount + plan.fees[at]
        asked = CardOrder(
            order=order,
            amount=amount,
            currency=plan.asset,
            customer=one.customer,
            token=one.token,
            made_at_s=operation.created_at // NS_PER_S,
            reference=progress.reference,
        )
        told: Outcome = await rail.connector.authorise(asked, asked_before=asked_before)
        if isinstance(told, Authorised):  # a provider that reserves first
            key = f"{order}-capture"
            reserved = told.reference
            told = await rail.connector.capture(reserved, 0, plan.asset, key)
            if isinstance(told, Declined) and told.decline is Decline.TECHNICAL:
                told = Unknown(told.message, reserved)  # it is reserved still
        if isinstance(told, RequiresAction) and self._ledger.clock.now_ns() >= plan.act_until:
            told = await rail.connector.void(told.reference, f"{order}-void")
        if isinstance(told, RequiresAction | Unknown) and told.reference:
            await self._advance_to(operation, ChargeProgress(at, told.reference))
        self._note(one.provider, told)
        self.actions.pop(operation.id, None)
        match told:
            case Captured():
                return await self._credited(operation, plan, rail, told)
            case RequiresAction():
                self.actions[operation.id] = told
                if len(self.actions) > _ACTIONS_MAX:
                    del self.actions[next(iter(self.actions))]
                return Unresolved("the payer has to prove that it is them")
            case Voided():
                return Rejected("action_not_taken", "the payer did not prove that it is them")
            case Declined():
                return told
            case Unknown(reason):
                return Unresolved(reason)

    def _note(self, provider: str, told: Outcome) -> None:
        match told:
            case Unknown() | Declined(Decline.TECHNICAL):
                self._successes.note(provider, answered=False)
            case _:
                self._successes.note(provider, answered=True)

    async def _credited(
        self, operation: Operation, plan: ChargePlan, rail: CardMethod, told: Captured
    ) -> Verdict:
        now_ns = self._ledger.clock.now_ns()
        deposit = Deposit(
            source=rail.payment_type,
            reference=told.external,
            account=operation.account,
            custody=rail.card_terms.custody(plan.asset),
            asset=plan.asset,
            amount_msat=bought(plan.quoted, plan.amount).account,
            currency=plan.asset,
            amount=plan.amount,
            state=DepositState.CREDITED,
            at=now_ns,
            quoted=plan.quoted,
            matures_at=rail.card_terms.matures_at(now_ns // NS_PER_S),
        )
        done = await self._deposits.report(deposit)
        if done.state is not DepositState.CREDITED:
            return Unresolved("it was taken and cannot be credited now")
        # Its notice may have come before it was credited: what is kept of it is booked now.
        await rail.book(told.external, told.reference)
        return Succeeded(deposit.amount_msat, result=told.external.encode())

    async def _advance_to(self, operation: Operation, progress: ChargeProgress) -> None:
        key = operation.id

        def decide(state: State, _: int) -> Unit | None:
            known = state.value(CHARGE_PROGRESS, key)
            if known is not None and (known.at, known.reference) >= (
                progress.at,
                progress.reference,
            ):
                return None
            version = state.version(CHARGE_PROGRESS, key)
            put = Put(CHARGE_PROGRESS, key, progress, version)
            return Unit(f"{key}:candidate:{version}:{progress.at}", puts=(put,))

        await self._ledger.transact([(CHARGE_PROGRESS, key)], decide)
