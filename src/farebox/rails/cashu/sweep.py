"""Swaps, in batches, the locked proofs that were credited without a call to their mint.

An operation of its own. Postings, where the proofs stand in the books with W and the mint leaves
N of them (W is what their payers were credited; N is as much or, rounded once, a little more):

| opening commit                                        | closing commit                     |
|-------------------------------------------------------|------------------------------------|
| Hold unswapped → custody, the smaller of both         | Post it, or Void                   |
| N > W: Hold custody ← revenue, what is over           | Post it, or Void                   |
| N < W (a fee that rose): Hold revenue → unswapped     | Post it, or Void                   |
| a proof that the mint let somebody else spend         | Transfer expense ← unswapped, W    |

| boundary               | what can fail         | recovery                                        |
|------------------------|-----------------------|-------------------------------------------------|
| opening commit → call  | we stop               | the mint is asked, then the swap sent again     |
| call → closing commit  | answer lost, we stop  | the same; signed outputs are restored           |
| refused, some spent    | the mint broke a lock | those are a loss, booked and alarmed; the rest  |
|                        |                       | waits again                                     |
| refused, none spent    | one of many is bad    | all wait again, each to be swapped by itself;   |
|                        |                       | one that is refused alone: an alarm, each hour  |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import structlog

from farebox.clock import NS_PER_S
from farebox.ecash import saga
from farebox.ecash.codes import NutError
from farebox.ecash.mint import ProofState
from farebox.ecash.plan import SwapPlan
from farebox.ecash.receive import output_keyset
from farebox.errors import InvalidAmount, RailRejected, RailUnavailable, StoreCorrupt
from farebox.ids import new_id
from farebox.ledger.model import (
    Applied,
    Event,
    Hold,
    Kind,
    Open,
    Post,
    Step,
    Transfer,
    Void,
    hold_id,
)
from farebox.ledger.service import Ledger
from farebox.money import BTC
from farebox.payments.model import Changes, Operation, Rejected, Succeeded, Unresolved, Verdict
from farebox.payments.operations import Operations
from farebox.rails.cashu.config import MSAT_PER_UNIT, custody_account, unswapped_account
from farebox.rails.cashu.inventory import added
from farebox.rails.cashu.locked import Claimed
from farebox.rails.cashu.method import CashuMethod
from farebox.rails.cashu.mints import MintPlace
from farebox.rails.cashu.records import LockedUse
from farebox.signer import Signer
from farebox.wire.cashu.amounts import input_fee, split
from farebox.wire.cashu.model import Keyset, Proof

_log = structlog.get_logger("farebox.cashu")

KIND = "cashu.sweep"
#: Where what a mint has let somebody else spend is booked.
LOSS = "expense:cashu-loss"
_REVENUE = "revenue"
#: Proofs in one swap, and proofs looked at for one.
_INPUTS_MAX = 100
_LOOKED_AT = 400
#: Batches of one mint and unit in one round.
_BATCHES_MAX = 16
_SKIPPED_COUNTERS = 1 << 14
_REFUSED_WAIT_S = 3_600
#: Refusals that no input is to blame for: the next batch has other outputs.
_NOT_THE_INPUTS = (
    NutError.OUTPUTS_SIGNED,
    NutError.OUTPUTS_PENDING,
    NutError.OUTPUTS_TOO_MANY,
    NutError.KEYSET_INACTIVE,
    NutError.UNBALANCED,
)


class _Plan(msgspec.Struct, frozen=True):
    """The swap, and the hold that covers the difference between the books and the mint."""

    swap: SwapPlan
    moved_msat: int
    fee_ppk: int
    difference: str


class Sweep:
    """The job that swaps, and the handler of its operations."""

    def __init__(
        self, method: CashuMethod, ledger: Ledger, operations: Operations, signer: Signer
    ) -> None:
        self._mints = method.mints
        self._inventory = method.inventory
        self._locked = method.locked
        self._ledger = ledger
        self._operations = operations
        self._signer = signer
        operations.register(KIND, self)

    async def run(self) -> int:
        """Swap what waits, batch after batch; returns how many proofs were swapped."""
        swept = 0
        for place in self._mints.listed():
            for unit in place.terms.units:
                if unit not in MSAT_PER_UNIT or place.is_left_alone:
                    continue
                try:
                    swept += await self._sweep(place, unit)
                except (RailUnavailable, RailRejected) as error:
                    _log.info("cashu.sweep_put_off", mint=place.url, reason=str(error))
        return swept

    async def _sweep(self, place: MintPlace, unit: str) -> int:
        swept = 0
        waiting = await self._locked.waiting(place.url, unit, _LOOKED_AT)
        for batch in _batches(waiting, self._ledger.clock.now_ns())[:_BATCHES_MAX]:
            operation_id = await self._open(place, unit, batch)
            if operation_id is None:
                continue
            await self._operations.advance(operation_id, fresh=True)
            swept += len(await self._locked.owned(operation_id, LockedUse.GONE))
        return swept

    async def _open(self, place: MintPlace, unit: str, batch: Sequence[Claimed]) -> str | None:
        """The opening commit; None where it cannot be. Raises RailUnavailable, RailRejected."""
        known = {one.key: self._locked.proof(one) for one in batch}
        keysets = await place.keysets(unit, {proof.keyset_id for proof in known.values()})
        # One of a keyset that the mint denies must not keep the others waiting.
        batch = [one for one in batch if known[one.key].keyset_id in keysets]
        proofs = [known[one.key] for one in batch]
        target = output_keyset(keysets.values(), unit, place.now_s())
        amounts = None if target is None else _amounts(proofs, keysets, target)
        if target is None or not amounts:
            _log.warning("cashu.sweep_impossible", mint=place.url, proofs=len(known))
            return None
        operation_id = new_id("swp")
        worth_msat = sum(one.row.worth_msat for one in batch)
        steps, moved_msat = _holds(place.url, unit, worth_msat, sum(amounts) * MSAT_PER_UNIT[unit])
        swap = SwapPlan(
            mint=place.url,
            unit=unit,
            keyset_id=target.id,
            first_counter=await self._inventory.take_counters(target.id, len(amounts)),
            inputs=tuple(proofs),
            amounts=amounts,
        )
        difference = hold_id(operation_id, 2) if len(steps) > 2 else ""
        plan = _Plan(swap, moved_msat, target.input_fee_ppk, difference)
        operation = Operation(
            id=operation_id,
            kind=KIND,
            account=unswapped_account(place.url, unit),
            hold=hold_id(operation_id, 1),
            plan=self._signer.seal(msgspec.json.encode(plan), operation_id),
        )
        puts = tuple(one.becomes(LockedUse.SWAPPING, operation_id) for one in batch)
        outcome = await self._operations.open(operation, Changes(steps, puts))
        if isinstance(outcome, Applied):
            return operation_id
        _log.warning("cashu.sweep_refused", mint=place.url, outcome=str(outcome))
        return None

    async def attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        """Make one step towards the end of a batch."""
        plan = self._plan(operation)
        swap, place = plan.swap, self._mints.any(plan.swap.mint)
        end = await saga.advance_swap(
            swap, place.mint, self._inventory.keys, asked_before=asked_before
        )
        batch = await self._locked.owned(operation.id, LockedUse.SWAPPING)
        match end:
            case saga.Done(proofs):
                steps = (Post(plan.difference),) if plan.difference else ()
                puts = [one.becomes(LockedUse.GONE, operation.id) for one in batch]
                puts += [
                    added(swap.mint, swap.unit, counter, proof, plan.fee_ppk)
                    for counter, proof in enumerate(proofs, swap.first_counter)
                ]
                return Succeeded(plan.moved_msat, changes=Changes(steps, tuple(puts)))
            case saga.Rejected():
                try:
                    return await self._refused(plan, place, batch, end)
                except RailRejected as error:  # a question refused: nobody knows yet what is lost
                    return Unresolved(str(error))
            case saga.Unknown(reason, alarm):
                return Unresolved(reason, alarm)

    async def _refused(
        self, plan: _Plan, place: MintPlace, batch: Sequence[Claimed], end: saga.Rejected
    ) -> Rejected:
        """What is spent is lost; the rest waits again. Raises RailUnavailable, RailRejected."""
        if end.code == NutError.OUTPUTS_SIGNED:  # in an earlier life of this book
            await self._inventory.skip_counters(plan.swap.keyset_id, _SKIPPED_COUNTERS)
        states = await place.mint.check_state([bytes.fromhex(one.key) for one in batch])
        lost = [one for one, state in zip(batch, states, strict=True) if state is ProofState.SPENT]
        retry_at = None
        if not lost and end.code not in _NOT_THE_INPUTS:
            wait_s = _REFUSED_WAIT_S if len(batch) == 1 else 0
            retry_at = self._ledger.clock.now_ns() + wait_s * NS_PER_S
        puts = [one.becomes(LockedUse.LOST) for one in lost]
        puts += [
            one.becomes(LockedUse.WAITING, retry_at=retry_at) for one in batch if one not in lost
        ]
        steps: tuple[Step, ...] = (Void(plan.difference),) if plan.difference else ()
        account = unswapped_account(plan.swap.mint, plan.swap.unit)
        events: tuple[Event, ...] = ()
        if lost:
            lost_msat = sum(one.row.worth_msat for one in lost)
            steps += (
                Open(LOSS, BTC.code, Kind.EXPENSE),
                Transfer(LOSS, account, lost_msat, "loss"),
            )
            events = (_alarm("cashu.lock_broken", account, lost_msat, end),)
        elif retry_at is not None and len(batch) == 1:
            events = (_alarm("cashu.swap_refused", account, batch[0].row.worth_msat, end),)
        changes = Changes(steps, tuple(puts), events)
        return Rejected("sweep_refused", end.reason, changes, vague=end.vague)

    def _plan(self, operation: Operation) -> _Plan:
        try:
            return msgspec.json.decode(
                self._signer.unseal(operation.plan, operation.id), type=_Plan
            )
        except msgspec.DecodeError:
            raise StoreCorrupt("a stored sweep cannot be read") from None


def _alarm(name: str, account: str, amount_msat: int, end: saga.Rejected) -> Event:
    """A person must hear of it: a mint that lies is no place to hold money at."""
    _log.error(name, account=account, amount_msat=amount_msat, reason=end.reason)
    return Event(name, account, {"amount_msat": amount_msat, "reason": end.reason})


def _batches(waiting: Sequence[Claimed], now_ns: int) -> list[list[Claimed]]:
    """Many at once; each that a batch was refused with by itself, last."""
    clean = [one for one in waiting if not one.row.retry_at]
    batches = [clean[at : at + _INPUTS_MAX] for at in range(0, len(clean), _INPUTS_MAX)]
    return batches + [[one] for one in waiting if 0 < one.row.retry_at <= now_ns]


def _amounts(
    proofs: Sequence[Proof], keysets: Mapping[str, Keyset], target: Keyset
) -> tuple[int, ...] | None:
    net = sum(proof.amount for proof in proofs) - input_fee(proofs, keysets)
    try:
        return tuple(split(net, target.keys.keys()))
    except InvalidAmount:
        return None


def _holds(mint: str, unit: str, worth_msat: int, net_msat: int) -> tuple[tuple[Step, ...], int]:
    """The steps that open a sweep, and how much of the unswapped its first hold moves."""
    custody, unswapped = custody_account(mint, unit), unswapped_account(mint, unit)
    moved_msat = min(worth_msat, net_msat)
    steps: tuple[Step, ...] = (
        Open(custody, BTC.code, Kind.CUSTODY),
        Hold(custody, unswapped, moved_msat, "sweep"),
    )
    if net_msat > worth_msat:
        steps += (Hold(custody, _REVENUE, net_msat - worth_msat, "mint_fee"),)
    elif worth_msat > net_msat:
        steps += (Hold(_REVENUE, unswapped, worth_msat - net_msat, "mint_fee"),)
    return steps, moved_msat
