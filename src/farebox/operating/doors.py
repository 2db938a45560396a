"""Whether a house may serve its book, and how an old copy of a book is known.

| how the book came here                      | known by                                          |
|---------------------------------------------|---------------------------------------------------|
| from `farebox backup` or an export          | the copy itself says that it is closed            |
| its files or its database were put back     | `book.seen` beside it: this data directory saw a  |
|                                             | later unit, or a later life of the book           |
| all of a machine was put back, `book.seen`  | the mints, where they answer: they have signed    |
| too                                         | for counters that the book calls free             |
| the same, all mints are away, or nothing    | nobody: serve no copy that was not made by        |
| was signed since                            | `farebox backup`                                  |
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec
import structlog

from farebox.errors import StoreError, StoreMoved
from farebox.ledger.service import Ledger
from farebox.ledger.standing import BookState, Standing, change_state, read_state
from farebox.tally import Commits

_log = structlog.get_logger("farebox.doors")


class _Seen(msgspec.Struct, frozen=True):
    """How far this data directory has seen the book."""

    life: int
    unit: int


class Doors:
    """Open, or closed with a reason."""

    def __init__(self, ledger: Ledger, commits: Commits, data_dir: Path) -> None:
        self._ledger = ledger
        self._commits = commits
        self._path = data_dir / "book.seen"
        self._last_unit = 0
        self.state = BookState()

    @property
    def is_closed(self) -> bool:
        """Whether nothing may be admitted, and no counter taken."""
        return self.state.standing is not Standing.OPEN

    async def enter(self) -> None:
        """Find out how the book stands; an old copy is closed. Raises StoreMoved, StoreError."""
        self.state = await read_state(self._ledger)
        self.require_here()
        seen = self._read()
        if self.is_closed:
            _log.error("book.closed", reason=self.state.reason, way_out="farebox reconcile")
        elif seen is not None:
            await self._compare(seen)

    def require_here(self) -> None:
        """Raise StoreMoved for a book that is served elsewhere."""
        if self.state.standing is Standing.MOVED:
            raise StoreMoved(
                f"this book was moved: {self.state.reason}. Serve it there. If that never served, "
                "`farebox reconcile --take-back` opens this one again"
            )

    def require_open(self) -> None:
        """Raise StoreError with the way out while the book is closed."""
        self.require_here()
        if self.is_closed:
            raise StoreError(f"the book is closed ({self.state.reason}): run `farebox reconcile`")

    async def _compare(self, seen: _Seen) -> None:
        unit = self._commits.unit  # unknown where the store is not this house's own
        is_later = seen.life > self.state.life
        if unit and (is_later or (seen.life == self.state.life and seen.unit > unit)):
            await self.close(
                f"it ends at unit {unit} of life {self.state.life}, and unit {seen.unit} of life "
                f"{seen.life} was seen here: this is an old copy"
            )

    async def close(self, reason: str) -> None:
        """Close the book for every process that has it."""
        _log.error("book.closed", reason=reason)
        closed = BookState(Standing.CLOSED, self.state.life, reason)
        self.state = await change_state(self._ledger, closed, expected=self.state)

    async def reopen(self) -> None:
        """Begin a new life of the book, open. Raises StoreMoved, StoreError."""
        self.state = await read_state(self._ledger)
        self.require_here()
        life = max(self.state.life, (self._read() or _Seen(0, 0)).life) + 1
        opened = BookState(life=life)
        self.state = await change_state(self._ledger, opened, expected=self.state)
        _log.warning("book.opened", life=life)

    async def look(self) -> None:
        """Hear what others did to the book, and remember how far it was seen."""
        self.state = await read_state(self._ledger)
        # The unit of the last look: by now no crash of a machine can take it back any more.
        seen, self._last_unit = self._last_unit, self._commits.unit
        if seen and not self.is_closed:
            await self._compare(_Seen(self.state.life, seen))  # put back under a running process
        if seen and not self.is_closed:
            self._write(_Seen(self.state.life, seen))

    def _read(self) -> _Seen | None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode(self._path.read_bytes(), type=_Seen)
        return None

    def _write(self, seen: _Seen) -> None:
        draft = self._path.with_suffix(".draft")
        try:
            draft.write_bytes(msgspec.json.encode(seen))
            os.replace(draft, self._path)
        except OSError as error:
            _log.warning("book.seen_not_written", error=error.strerror)
