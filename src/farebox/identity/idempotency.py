"""`Idempotency-Key`: one caller's name for one intent, answered once.

    begin ──► Ticket ──► act ──► finish      the answer is kept, sealed, for a day
      │                   └────► release     not final yet: the same call may come again and resume,
      │                                      for as long as what it began may take (a month)
      ├──► Recorded     same key, same request: the same answer
      ├──► InProgress   the first call is still running, here or in another process
      └──► KeyReused    same key, other request

| boundary       | what can fail      | recovery                                                   |
|----------------|--------------------|------------------------------------------------------------|
| begin → act    | we stop            | the same call resumes: nothing runs it any more            |
| act → finish   | we stop            | the same call resumes with the same operation id, so what  |
|                |                    | it started is found, not started again                     |
| after finish   | the answer is lost | the same call reads it                                     |

A row in progress names the process that runs it: once that has ended (`ledger.processes`), or has
released it, the same call resumes wherever it comes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import msgspec
import structlog

from farebox.clock import NS_PER_S
from farebox.errors import InvalidInput, StoreError
from farebox.ids import derived_id
from farebox.ledger.model import Applied, Put, Unit
from farebox.ledger.processes import Processes
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger, State
from farebox.signer import Signer

_log = structlog.get_logger("farebox.idempotency")

#: How long an answer can be had again, and how long a call that has none yet is the same one: what
#: it began is carried on for a week, and after that waits for a person.
KEPT_S, _RESUMED_S = 24 * 3600, 31 * 24 * 3600
NAME_MAX_CHARS = 255
_BODY_MAX_BYTES = 1 << 20
_PRUNED_AT_ONCE = 500


class IdempotentState(enum.StrEnum):
    """Where a call stands."""

    STARTED = "started"
    DONE = "done"
    WIPED = "wiped"  # too old: the name is free again, the answer is gone


class Idempotent(msgspec.Struct, frozen=True, kw_only=True):
    """One named call. The answer is sealed: it may hold a token or a key.

    `owner` is the process that runs it; "" once it has released the call. `started_at` is, of one
    that is done, when it was answered.
    """

    fingerprint: bytes
    started_at: int
    owner: str = ""
    state: IdempotentState = IdempotentState.STARTED
    status: int = 0
    body: bytes = b""

    def __repr__(self) -> str:
        return f"Idempotent({self.state}, {self.status})"


IDEMPOTENT = RecordType("idempotent", Idempotent, indexes=(("state", "started_at"),))


@dataclass(frozen=True, slots=True)
class Ticket:
    """Leave to act. `operation_id` is the same whenever this call resumes."""

    key: str
    operation_id: str
    fingerprint: bytes
    owner: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """The answer that was given before."""

    status: int
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class InProgress:
    """The same call is running now."""


@dataclass(frozen=True, slots=True)
class KeyReused:
    """The name was used for another request."""


class Idempotency:
    """Gives each named call one answer."""

    def __init__(self, ledger: Ledger, signer: Signer, processes: Processes) -> None:
        self._ledger = ledger
        self._signer = signer
        self._processes = processes
        self._running: dict[str, bytes] = {}

    async def begin(
        self, scope: str, name: str, fingerprint: bytes
    ) -> Ticket | Recorded | InProgress | KeyReused:
        """Start or resume a call, or say what became of it.

        `scope` is whose name it is (an account, a credential): names of others are never met.
        Every Ticket must be given to `finish` or `release`. Raises InvalidInput on a bad name.
        """
        if not 0 < len(name) <= NAME_MAX_CHARS or not (name.isascii() and name.isprintable()):
            raise InvalidInput(f"an idempotency key has 1 to {NAME_MAX_CHARS} printable characters")
        key = derived_id("idem", scope, name)
        if key in self._running:
            return InProgress() if self._running[key] == fingerprint else KeyReused()
        self._running[key] = fingerprint
        begun: Ticket | Recorded | InProgress | KeyReused | None = None
        try:
            begun = await self._begin(key, fingerprint)
            return begun
        finally:
            if not isinstance(begun, Ticket):
                del self._running[key]

    async def finish(self, ticket: Ticket, status: int, body: bytes) -> None:
        """Keep the final answer for whoever asks again. An answer over 1 MiB is not kept."""
        if len(body) > _BODY_MAX_BYTES:
            await self.release(ticket)
            return
        sealed = self._signer.seal(body, ticket.key)
        try:
            await self._end(ticket, state=IdempotentState.DONE, status=status, body=sealed)
        finally:
            self._running.pop(ticket.key, None)

    async def release(self, ticket: Ticket) -> None:
        """End a call whose answer is not final; the same call may come again and resumes.

        Nothing after `finish`. Where this cannot be stored, the call resumes in this process only,
        until it ends.
        """
        if self._running.pop(ticket.key, None) is None:
            return
        try:
            await self._end(ticket, owner="")
        except StoreError as error:
            _log.warning("idempotency.not_released", error=str(error))

    async def _end(self, ticket: Ticket, **changes: object) -> None:
        def decide(state: State, now: int) -> Unit | None:
            row = state.row(IDEMPOTENT, ticket.key)
            assert row is not None  # rows are never removed
            if row.value.state is not IdempotentState.STARTED or row.value.owner != ticket.owner:
                return None  # we were taken for dead, and whoever resumed it answers for it
            ended = msgspec.structs.replace(row.value, **changes)
            if ended.state is IdempotentState.DONE:
                ended = msgspec.structs.replace(ended, started_at=now)
            return _put(ticket.key, ended, row.version)

        await self._ledger.transact([(IDEMPOTENT, ticket.key)], decide)

    async def prune(self) -> int:
        """Wipe answers that are older than a day, and what never had one; returns how many."""
        wiped, now = 0, self._ledger.clock.now_ns()
        for old in (IdempotentState.DONE, IdempotentState.STARTED):
            after, before = "", now - _kept_ns(old)
            while rows := await self._ledger.store.find(
                IDEMPOTENT,
                {"state": old},
                at_most=("started_at", before),
                after=after,
                limit=_PRUNED_AT_ONCE,
            ):
                for key, row in rows:
                    if key not in self._running:
                        tomb = Idempotent(
                            fingerprint=b"",
                            started_at=row.value.started_at,
                            state=IdempotentState.WIPED,
                        )
                        await self._ledger.store.commit(_put(key, tomb, row.version))
                        wiped += 1
                after = rows[-1][0]
        return wiped

    async def _begin(
        self, key: str, fingerprint: bytes
    ) -> Ticket | Recorded | InProgress | KeyReused:
        made: list[Ticket] = []
        name = self._processes.name
        free = await self._free_owners(key)

        def decide(state: State, now: int) -> Unit | Ticket | Recorded | InProgress | KeyReused:
            row = state.row(IDEMPOTENT, key)
            if row is None or row.value.started_at <= now - _kept_ns(row.value.state):
                # The start is part of the operation id: a name that is free again means new money.
                started = Idempotent(fingerprint=fingerprint, started_at=now, owner=name)
            elif row.value.fingerprint != fingerprint:
                return KeyReused()
            elif row.value.state is IdempotentState.DONE:
                return Recorded(row.value.status, self._signer.unseal(row.value.body, key))
            elif row.value.owner == name:
                return _ticket(key, row.value)
            elif row.value.owner not in free:
                return InProgress()
            else:
                started = msgspec.structs.replace(row.value, owner=name)
            made[:] = [_ticket(key, started)]
            return _put(key, started, 0 if row is None else row.version)

        begun = await self._ledger.transact([(IDEMPOTENT, key)], decide)
        if isinstance(begun, Ticket | Recorded | InProgress | KeyReused):
            return begun
        # Not applied: the same version was written by another process a moment ago.
        return made[0] if isinstance(begun, Applied) else InProgress()

    async def _free_owners(self, key: str) -> set[str]:
        """Whose call may be resumed here: nobody's, and that of whoever has it and has ended."""
        row = await self._ledger.store.get(IDEMPOTENT, key)
        if row is None or row.value.owner in await self._processes.others():
            return {""}
        return {"", row.value.owner}


def _kept_ns(state: IdempotentState) -> int:
    return (_RESUMED_S if state is IdempotentState.STARTED else KEPT_S) * NS_PER_S


def _ticket(key: str, row: Idempotent) -> Ticket:
    operation_id = derived_id("op", key, str(row.started_at))
    return Ticket(key, operation_id, row.fingerprint, row.owner)


def _put(key: str, row: Idempotent, version: int) -> Unit:
    return Unit(f"{key}:{version + 1}", puts=(Put(IDEMPOTENT, key, row, version),))
