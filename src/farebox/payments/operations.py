"""Operations: the journal of every effect outside this process.

    queued ──► open ──► succeeded ──► reversed
      │          ├────► rejected
      ▼          └────► manual ──► succeeded | rejected   (an operator's named way out)
    cancelled

| boundary                  | what can fail               | recovery                              |
|---------------------------|-----------------------------|---------------------------------------|
| before the opening commit | anything                    | nothing happened, nothing to do       |
| opening commit → call     | we stop                     | the handler asks, then repeats        |
| call → closing commit     | answer lost, we stop        | the handler asks; never a guess       |
| after the closing commit  | our own answer is lost      | the same request finds the closed row |

The opening commit stores what is needed to repeat the call or to ask about it, and the hold that
the operation rests on. The closing commit moves the money. Nothing but a definite rejection by
the rail releases the hold.

One process at a time carries an operation out: the one named in its lease. The opener has it from
the opening commit; others take it in a commit that expects the row's version, and give it back
with the next wait. It lasts while its process runs (`ledger.processes`): nothing is renewed.

| what happens to who has the lease  | then                                                        |
|------------------------------------|-------------------------------------------------------------|
| it is killed                       | another takes the lease and asks before it repeats          |
| it is paused, ended, and goes on   | its close is Stale: it writes nothing, and hears what is so |
| its call leaves after it was ended | a call whose answer was lost: vague refusals count later    |
| its close is in doubt: a no that   | it takes the lease anew first, which expects the version;   |
| may be stored or not               | nothing is repeated while a no of its own may yet be stored |
| a clock jumps, forwards or back    | what waits for a late call is measured by what has passed   |
| it succeeds, the other rejected it | `operation.contradicted`: a person must look                |
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import structlog

from farebox.clock import NS_PER_S
from farebox.errors import RailError, StoreError
from farebox.ledger.model import (
    ABSENT,
    Applied,
    Event,
    Outcome,
    Post,
    Put,
    Refused,
    Replayed,
    Stale,
    Step,
    Unit,
    Void,
)
from farebox.ledger.processes import Processes
from farebox.ledger.records import Row
from farebox.ledger.service import Ledger
from farebox.money import BTC
from farebox.payments.model import (
    NO_CHANGES,
    OPERATION,
    Changes,
    Handler,
    Operation,
    OperationState,
    Rejected,
    Succeeded,
    Unresolved,
    Verdict,
)

_log = structlog.get_logger("farebox.operations")

#: Seconds between two checks of an unresolved operation: 1, 2, 4 … up to this.
_BACKOFF_MAX_S = 300
#: How long an operation may stay unresolved before a person must look at it.
_DEADLINE_S = 7 * 24 * 3600
#: How long a call whose answer was lost may still be on its way, and how many of those waits one
#: process remembers: one that is forgotten begins anew.
_ON_ITS_WAY_S = 300
_DOUBTS_MAX = 10_000
_RECOVERED_AT_ONCE = 16
#: Later than any time that is stored.
_NEVER = (1 << 63) - 1
#: Races for a lease before it is left to the others.
_LEASE_TRIES_MAX = 4


class _CountedLock(asyncio.Lock):
    """A lock that knows how many hold it or wait for it, and whether an attempt was begun."""

    users = 0
    begun = False


class Operations:
    """Opens operations and carries each to its end."""

    def __init__(self, ledger: Ledger, processes: Processes) -> None:
        self._ledger = ledger
        self._processes = processes
        self._handlers: dict[str, Handler] = {}
        self._running: dict[str, _CountedLock] = {}
        self._recovered_at = _NEVER
        #: Since when, by what has passed here, no answer has been lost but vague refusals came.
        self._doubts: dict[str, tuple[int, int]] = {}

    def register(self, kind: str, handler: Handler) -> None:
        """Name the handler of a kind; one kind has one handler."""
        if kind in self._handlers:
            raise ValueError(f"operation kind {kind} has a handler already")
        self._handlers[kind] = handler

    async def get(self, operation_id: str) -> Operation | None:
        """One operation as stored."""
        row = await self._ledger.store.get(OPERATION, operation_id)
        return None if row is None else row.value

    async def open(self, operation: Operation, changes: Changes = NO_CHANGES) -> Outcome:
        """The opening commit: the row, the hold and what else `changes` has, or none of it.

        Applied: the caller should `advance(id, fresh=True)`. Replayed: an operation of this id
        exists; `advance(id)` finds out how it stands.
        """
        opening = opens(operation, self._ledger.clock.now_ns(), self._processes.name)
        return await self._ledger.store.commit(
            Unit(
                operation.id,
                steps=changes.steps,
                puts=(opening, *changes.puts),
                events=changes.events,
                guards=changes.guards,
            )
        )

    async def advance(
        self, operation_id: str, *, fresh: bool = False, also: Changes = NO_CHANGES
    ) -> Operation:
        """Carry one operation as far as it goes now, and return how it stands.

        `fresh`: this process has just opened it, so no attempt can have left before. `also` joins
        the closing commit if it succeeds here; when the ledger refuses the two together the
        operation closes without it, since what happened outside is a fact. An operation that
        another process is carrying out is returned as it stands.
        """
        logged = structlog.contextvars.bind_contextvars(operation=operation_id)
        lock = self._running.setdefault(operation_id, _CountedLock())
        lock.users += 1
        try:
            async with lock:
                # Somebody who waited for the same operation may have been quicker than its opener.
                is_first = fresh and not lock.begun
                row = await self._leased(operation_id, is_first=is_first)
                if isinstance(row, Operation):
                    return row
                asked_before = not is_first or row.value.unanswered_at > 0
                lock.begun = True  # for the next one, should this attempt be cancelled half-way
                verdict = await self._attempt(row.value, asked_before=asked_before)
                if asked_before and isinstance(verdict, Rejected) and verdict.vague:
                    return await self._reject_vaguely(row, verdict)
                return await self._close(row, verdict, also)
        finally:
            lock.users -= 1
            if not lock.users:  # not `locked()`: it is free for a moment while others wait
                self._running.pop(operation_id, None)
            structlog.contextvars.reset_contextvars(**logged)

    async def recover(self) -> int:
        """Advance every operation that is due; returns how many were looked at."""
        now = self._ledger.clock.now_ns()
        # The clock may have stepped back since the last time, or while nobody ran: what was put
        # off by the time before it would wait until it is that late again.
        until = now if self._recovered_at <= now else _NEVER
        seen, after = 0, ""
        limit = asyncio.Semaphore(_RECOVERED_AT_ONCE)

        async def one(key: str) -> None:
            async with limit:
                try:
                    await self.advance(key)
                except StoreError:
                    raise
                except Exception:  # a defect in one way to pay must not keep the others open
                    _log.exception("operation.not_advanced", operation=key)

        for state in (OperationState.OPEN, OperationState.QUEUED):
            after = ""
            while due := await self._ledger.store.find(
                OPERATION,
                {"state": state},
                at_most=("next_check_at", until),
                after=after,
                limit=100,
            ):
                others = await self._processes.others()  # read after the rows, never before
                # An operation that somebody is at work on is not due for another attempt.
                keys = [
                    key
                    for key, row in due
                    if key not in self._running
                    and row.value.lease_owner not in others
                    and _is_due(row.value, now)
                ]
                ends = await asyncio.gather(*(one(key) for key in keys), return_exceptions=True)
                for failed in filter(None, ends):
                    raise failed
                seen += len(keys)
                after = due[-1][0]
        self._recovered_at = now
        return seen

    async def resolve(self, operation_id: str, verdict: Succeeded | Rejected) -> Operation | None:
        """An operator's way out of `manual`: close it by what a person found out.

        None when there is no such operation; one that is not manual is returned as it stands.
        """
        row = await self._ledger.store.get(OPERATION, operation_id)
        if row is None or row.value.state is not OperationState.MANUAL:
            return None if row is None else row.value
        return await self._close(row, verdict, NO_CHANGES)

    async def reopen(self, operation_id: str) -> Operation | None:
        """An operator's other way out of `manual`: ask the rail again, from now on."""
        row = await self._ledger.store.get(OPERATION, operation_id)
        if row is None or row.value.state is not OperationState.MANUAL:
            return None if row is None else row.value
        now = self._ledger.clock.now_ns()
        deadline = now + _DEADLINE_S * NS_PER_S
        opened = msgspec.structs.replace(
            row.value, state=OperationState.OPEN, next_check_at=now, deadline_at=deadline
        )
        put = Put(OPERATION, operation_id, opened, row.version)
        await self._ledger.store.commit(Unit(f"{operation_id}:reopen:{row.version}", puts=(put,)))
        return await self.get(operation_id)

    async def unfinished(self) -> Sequence[Operation]:
        """Operations that are open, queued or manual, oldest id first; at most 1,000 of each."""
        found: list[Operation] = []
        for state in (OperationState.OPEN, OperationState.QUEUED, OperationState.MANUAL):
            rows = await self._ledger.store.find(OPERATION, {"state": state})
            found.extend(row.value for _, row in rows)
        return found

    async def _leased(self, operation_id: str, *, is_first: bool) -> Row[Operation] | Operation:
        """The row with our name in its lease, or how the operation stands where that cannot be.

        The lease is taken again before every attempt but the first: a close of ours whose commit
        is in doubt has then happened, and is found, or it never will.
        """
        is_taken = False
        for _ in range(_LEASE_TRIES_MAX):
            row = await self._ledger.store.get(OPERATION, operation_id)
            if row is None:
                raise KeyError(operation_id)
            operation, name = row.value, self._processes.name
            if operation.state not in (OperationState.OPEN, OperationState.QUEUED):
                return operation
            if operation.lease_owner == name and (is_first or is_taken):
                return row
            if operation.lease_owner in await self._processes.others():
                return operation
            # Whoever had it may have sent its call a moment before it ended.
            lost_at = self._ledger.clock.now_ns() if operation.lease_owner else 0
            lost_at = max(operation.unanswered_at, lost_at)
            taken = msgspec.structs.replace(operation, lease_owner=name, unanswered_at=lost_at)
            put = Put(OPERATION, operation_id, taken, row.version)
            # The name is in the id: else of two who take it at once the second is "replayed".
            unit = Unit(f"{operation_id}:lease:{row.version}:{name}", puts=(put,))
            is_taken = isinstance(await self._ledger.store.commit(unit), Applied)
            # Read again: the row says whose it is.
        return operation

    async def _attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        handler = self._handlers.get(operation.kind)
        if handler is None:
            return Unresolved(f"nothing here handles {operation.kind}", alarm=True)
        try:
            return await handler.attempt(operation, asked_before=asked_before)
        except RailError as error:
            # Also of a no: it was to a question, perhaps, when the payment has long left.
            return Unresolved(str(error))
        except Exception as error:
            _log.exception("operation.attempt_failed", operation=operation.id)
            return Unresolved(f"{type(error).__name__} while it was carried out")

    async def _close(self, row: Row[Operation], verdict: Verdict, also: Changes) -> Operation:
        operation = row.value
        match verdict:
            case Succeeded():
                return await self._succeed(row, verdict, also)
            case Rejected():
                closed = msgspec.structs.replace(
                    operation,
                    state=OperationState.REJECTED,
                    error=f"{verdict.code}: {verdict.message}",
                    may_try_again=verdict.again,
                    lease_owner="",
                    plan=b"",
                )
                holds = filter(None, (operation.hold, operation.far_hold))
                steps: tuple[Step, ...] = tuple(Void(hold) for hold in holds)
                event = _event("operation.rejected", closed)
                return await self._store(row, closed, verdict.changes, steps, event)
            case Unresolved():
                return await self._postpone(row, verdict)

    async def _reject_vaguely(self, row: Row[Operation], verdict: Rejected) -> Operation:
        """Believe it once it was said all the while that an earlier call may have been on its way.

        The time is not taken from the clock, which somebody may set: each process counts what
        passes while it runs, from the first refusal that it hears.
        """
        clock, operation = self._ledger.clock, row.value
        lost_at = operation.unanswered_at or clock.now_ns()
        known, since_ns = self._doubts.pop(operation.id, (0, 0))
        if known != lost_at:
            since_ns = clock.elapsed_ns()
        if clock.elapsed_ns() - since_ns >= _ON_ITS_WAY_S * NS_PER_S:
            return await self._close(row, verdict, NO_CHANGES)
        self._doubts[operation.id] = (lost_at, since_ns)
        if len(self._doubts) > _DOUBTS_MAX:
            del self._doubts[next(iter(self._doubts))]
        waiting = Unresolved(f"refused, perhaps while it is carried out: {verdict.message}")
        return await self._postpone(row, waiting, unanswered_at=lost_at)

    async def _succeed(self, row: Row[Operation], verdict: Succeeded, also: Changes) -> Operation:
        operation = row.value
        closed = msgspec.structs.replace(
            operation,
            state=OperationState.SUCCEEDED,
            amount=verdict.amount,
            result=verdict.result,
            lease_owner="",
            plan=b"",
            error="",
        )
        steps: tuple[Step, ...] = (Post(operation.hold, verdict.amount),) if operation.hold else ()
        if operation.far_hold:
            steps = (*steps, Post(operation.far_hold, verdict.far_amount))
        event = _event("operation.succeeded", closed)
        if also != NO_CHANGES:
            both = Changes(
                (*verdict.changes.steps, *also.steps),
                (*verdict.changes.puts, *also.puts),
                (*verdict.changes.events, *also.events),
            )
            outcome = await self._commit(operation, closed, row.version, both, steps, event)
            if isinstance(outcome, Applied):
                return closed
        return await self._store(row, closed, verdict.changes, steps, event)

    async def _store(
        self,
        row: Row[Operation],
        closed: Operation,
        changes: Changes,
        steps: tuple[Step, ...],
        event: Event,
    ) -> Operation:
        outcome = await self._commit(row.value, closed, row.version, changes, steps, event)
        if isinstance(outcome, Applied):
            return closed
        if isinstance(outcome, Replayed) or outcome == Stale(OPERATION.kind, row.value.id):
            return await self._overtaken(closed)
        if isinstance(outcome, Stale):
            # Another row that this rests on has moved: it is asked about again, and read anew.
            return await self._postpone(row, Unresolved(f"its {outcome.kind} has moved meanwhile"))
        # What happened outside cannot be refused; the hold stays and a person must look.
        reason = outcome.code if isinstance(outcome, Refused) else type(outcome).__name__
        return await self._postpone(row, Unresolved(f"the books refuse it: {reason}", alarm=True))

    async def _overtaken(self, found: Operation) -> Operation:
        """How an operation stands that we found closed, or in other hands, when closing it."""
        stands = await self.get(found.id)
        assert stands is not None, "operations are never removed"
        if (found.state, stands.state) == (OperationState.SUCCEEDED, OperationState.REJECTED):
            _log.error("operation.contradicted", operation=found.id, kind=found.kind)
            event = _event("operation.contradicted", stands)
            await self._ledger.store.commit(Unit(f"{found.id}:contradicted", events=(event,)))
        return stands

    async def _commit(
        self,
        operation: Operation,
        closed: Operation,
        version: int,
        changes: Changes,
        steps: tuple[Step, ...],
        event: Event,
    ) -> Outcome:
        return await self._ledger.store.commit(
            Unit(
                closing_unit(operation.id),
                steps=(*steps, *changes.steps),
                puts=(Put(OPERATION, operation.id, closed, version), *changes.puts),
                events=(event, *changes.events),
            )
        )

    async def _postpone(
        self, row: Row[Operation], verdict: Unresolved, *, unanswered_at: int | None = None
    ) -> Operation:
        now = self._ledger.clock.now_ns()
        operation = row.value
        attempts = operation.attempts + 1
        wait_s = min(2 ** min(attempts - 1, 20), _BACKOFF_MAX_S)
        manual = verdict.alarm or now >= operation.deadline_at
        waiting = msgspec.structs.replace(
            operation,
            state=OperationState.MANUAL if manual else OperationState.OPEN,
            attempts=attempts,
            unanswered_at=now if unanswered_at is None else unanswered_at,
            next_check_at=now + wait_s * NS_PER_S,
            lease_owner="",
            error=verdict.reason,
        )
        if manual or verdict.reason != operation.error:  # what goes on waiting was told
            _log.warning(
                "operation.manual" if manual else "operation.unresolved",
                operation=operation.id,
                kind=operation.kind,
                reason=verdict.reason,
            )
        events = (_event("operation.manual", waiting),) if manual else ()
        unit = Unit(
            f"{operation.id}:wait:{row.version}",
            puts=(Put(OPERATION, operation.id, waiting, row.version),),
            events=events,
        )
        if isinstance(await self._ledger.store.commit(unit), Applied):
            return waiting
        return await self._overtaken(waiting)


def _is_due(operation: Operation, now: int) -> bool:
    """A check that is further off than any wait was put off by a clock that has stepped back."""
    return not now < operation.next_check_at <= now + _BACKOFF_MAX_S * NS_PER_S


def opens(operation: Operation, now_ns: int, owner: str = "") -> Put:
    """What opens an operation. Part of another unit it has no owner: recovery carries it out."""
    row = msgspec.structs.replace(
        operation,
        created_at=now_ns,
        next_check_at=now_ns,
        deadline_at=now_ns + _DEADLINE_S * NS_PER_S,
        lease_owner=owner,
    )
    return Put(OPERATION, operation.id, row, ABSENT)


def closing_unit(operation_id: str) -> str:
    """The id of the unit that closes an operation."""
    return f"{operation_id}:close"


def _event(name: str, operation: Operation) -> Event:
    data = {"operation": operation.id, "kind": operation.kind, "state": operation.state.value}
    if operation.state is OperationState.SUCCEEDED:
        if operation.asset == BTC.code:
            return Event(name, operation.account, data | {"amount_msat": operation.amount})
        data |= {"asset": operation.asset, "amount": str(operation.amount)}
    return Event(name, operation.account, data)
