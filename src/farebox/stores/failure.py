"""Why a batch was not committed, and how each of its callers is told."""

from __future__ import annotations

from dataclasses import dataclass

from farebox.errors import OutcomeUnknown, StoreError


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a batch was not committed; or may have been, when `unknown`."""

    cause: Exception
    unknown: bool = False

    def told(self, unit_id: str = "") -> StoreError:
        """An exception of its own for each caller."""
        error = (
            OutcomeUnknown(unit_id)
            if self.unknown and unit_id
            else StoreError(f"the book could not be written, nothing was done: {self.cause}")
        )
        error.__cause__ = self.cause
        return error
