"""Jobs that one process does for all that share a book.

    free ──► ours ──► free     its process has ended (`ledger.processes`): the next to ask has it

For work that costs something outside each time it is done, such as questions to a mint. What two
processes do at once here is wasteful, never wrong: the units of every job say what they rest on.
So a process that was taken for dead may finish the round it is in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from farebox.ledger.model import ABSENT, Applied, Put, Unit
from farebox.ledger.processes import Processes
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger


class DutyRow(msgspec.Struct, frozen=True):
    """Who does a job; the key is its name."""

    owner: str


DUTY = RecordType("duty", DutyRow)


class Duty:
    """One job, run only in the process whose it is.

    `leave` ends what the job has left running, where the duty has become another's: of a process
    that was taken for dead and goes on.
    """

    def __init__(
        self,
        name: str,
        job: Callable[[], Awaitable[object]],
        ledger: Ledger,
        processes: Processes,
        leave: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._name = name
        self._job = job
        self._ledger = ledger
        self._processes = processes
        self._leave = leave

    async def run(self) -> bool:
        """Do the job if it is ours, or nobody's; returns whether it was done here."""
        if not await self._is_ours():
            if self._leave is not None:
                await self._leave()
            return False
        await self._job()
        return True

    async def _is_ours(self) -> bool:
        row = await self._ledger.store.get(DUTY, self._name)
        name = self._processes.name
        if row is not None and row.value.owner == name:
            return True
        if row is not None and row.value.owner in await self._processes.others():
            return False
        version = ABSENT if row is None else row.version
        put = Put(DUTY, self._name, DutyRow(name), version)
        # The name is in the id: else of two who take it at once the second is "replayed".
        unit = Unit(f"duty:{self._name}:{version}:{name}", puts=(put,))
        return isinstance(await self._ledger.store.commit(unit), Applied)
