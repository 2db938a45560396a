"""What can be made to go wrong at a play mint, call by call."""

from __future__ import annotations

from collections import deque
from typing import Annotated

import msgspec

from farebox.errors import InvalidInput

#: The names under which calls are counted and faults are set.
CALLS = frozenset(
    {
        "info",
        "keys",
        "keysets",
        "swap",
        "checkstate",
        "restore",
        "mint_quote",
        "mint_quote_state",
        "mint",
        "melt_quote",
        "melt_quote_state",
        "melt",
    }
)
_QUEUED_MAX = 10_000

Seconds = Annotated[float, msgspec.Meta(ge=0, le=3_600)]


class _Fault(msgspec.Struct, frozen=True, tag=True):
    """In JSON an object whose `type` is the name of the class."""


class DropBefore(_Fault, frozen=True):
    """The connection breaks before the call is carried out."""


class DropAfter(_Fault, frozen=True):
    """The call is carried out, then the connection breaks without an answer."""


class ExecutesLate(_Fault, frozen=True):
    """The call waits, and is carried out even if the caller has given up by then."""

    seconds: Seconds


class AnswersLate(_Fault, frozen=True):
    """The call is carried out at once, its answer waits."""

    seconds: Seconds


class Garbage(_Fault, frozen=True):
    """The call is carried out and answered with 200 and `body` instead of the answer."""

    body: str = "<html>502 Bad Gateway</html>"


class Refuse(_Fault, frozen=True):
    """The call is not carried out; the answer is an error document with this code."""

    code: int
    detail: str = "refused on purpose"


class Fail(_Fault, frozen=True):
    """The call is not carried out; the answer is this status with no error document."""

    status: Annotated[int, msgspec.Meta(ge=400, le=599)] = 500


class StaysPending(_Fault, frozen=True):
    """A melt is left pending until it is settled; `checkstate` says PENDING of every proof."""


Fault = DropBefore | DropAfter | ExecutesLate | AnswersLate | Garbage | Refuse | Fail | StaysPending


class Faults:
    """Faults waiting for their call: the queued ones first, then the standing one."""

    def __init__(self) -> None:
        self._queued: dict[str, deque[Fault]] = {}
        self._standing: dict[str, Fault] = {}

    def next(self, call: str, *faults: Fault | None) -> None:
        """Let the next calls of this name fail so, one each; None lets one pass."""
        queue = self._queued.setdefault(_known(call), deque())
        if len(queue) + len(faults) > _QUEUED_MAX:
            raise InvalidInput("too many faults are waiting")
        queue.extend(fault or _NOTHING for fault in faults)

    def always(self, call: str, fault: Fault) -> None:
        """Let every call of this name fail so, until `clear`."""
        self._standing[_known(call)] = fault

    def clear(self) -> None:
        """Forget every fault."""
        self._queued.clear()
        self._standing.clear()

    def take(self, call: str) -> Fault | None:
        """The fault of the call that is about to be carried out, if it has one."""
        queue = self._queued.get(call)
        fault = queue.popleft() if queue else self._standing.get(call)
        return None if fault is _NOTHING else fault


#: A place in the queue for a call that goes well.
_NOTHING = AnswersLate(0)


def _known(call: str) -> str:
    if call not in CALLS:
        raise InvalidInput(f"no call is named {call!r}; there are: {', '.join(sorted(CALLS))}")
    return call
