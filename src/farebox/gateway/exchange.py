"""What a gateway needs of whatever stands behind it: a foreign service, or the user's own app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec

from farebox.errors import RailUnavailable
from farebox.paywall.model import Headers


class UpstreamUnreachable(RailUnavailable):
    """No upstream took the request, or the one that did broke off before an answer."""


class UpstreamFailed(RailUnavailable):
    """The app behind us raised an exception before it answered."""


class UpstreamRefusedUs(RailUnavailable):
    """A foreign service answers about our own credentials, which is no business of the caller's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the upstream answered {status}")
        self.status = status


class UpstreamDied(RailUnavailable):
    """The upstream broke off in the middle of an answer."""


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A request as it goes on. `target` is path and query, as the caller wrote them."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def __repr__(self) -> str:
        return f"Outgoing({self.method} …)"  # keys are in its headers


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an upstream may take: for its first byte, and between two pieces of an answer."""

    first_byte_s: float
    idle_s: float


class Exchange(Protocol):
    """One answer of an upstream, while it arrives."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Headers:
        """Its headers, names in lower case."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether it is known already that nothing more comes."""
        ...

    async def read(self) -> bytes:
        """The next bytes; empty at the end. Raises UpstreamDied."""
        ...

    def close(self) -> None:
        """Have no more of it: an answer that has not ended is cancelled. Never raises."""
        ...
