"""Every exception Farebox raises, in one tree.

FareboxError
├── InvalidInput            what came in cannot be read; the caller must change it
│   ├── InvalidAmount       not a whole, non-negative amount of its asset
│   ├── InvalidCredential   a payment credential is malformed
│   └── InvalidSettings     a setting is missing or wrong; names key, found, allowed
├── StoreError              the store could not do its work
│   ├── OutcomeUnknown      the answer to a commit was lost; ask by unit id
│   ├── StoreBusy           the queue in front of the store is full; nothing was done
│   ├── StoreLocked         another process owns this book
│   ├── StoreOutdated       program and database are of different versions
│   ├── StoreMoved          the book was moved to another database and is served there
│   ├── StoreCorrupt        what is stored breaks an invariant
│   └── StoreRewound        the book lacks what it had acknowledged
├── RailError               a foreign network did not do as asked
│   ├── RailRejected        a definite no: it was not and will not be executed
│   └── RailUnavailable     no definite answer: it may or may not have been executed
├── SigningRefused          a payee asks for a signature that it may not have
└── SignerError             a secret is missing, or sealed bytes were altered

Outcomes that a caller is expected to handle (refusals, challenges) are types, not exceptions.
"""

from __future__ import annotations


class FareboxError(Exception):
    """Root of every exception Farebox raises."""


class InvalidInput(FareboxError):
    """What came in cannot be read; the caller must change it."""


class InvalidAmount(InvalidInput):
    """Not a whole, non-negative amount of its asset."""


class InvalidCredential(InvalidInput):
    """A payment credential is malformed. The message never contains the credential."""


class InvalidSettings(InvalidInput):
    """A setting is missing or wrong."""

    def __init__(self, key: str, found: object, allowed: str) -> None:
        self.key = key
        self.found = found
        self.allowed = allowed
        super().__init__(f"setting {key}: found {found!r}, allowed: {allowed}")


class StoreError(FareboxError):
    """The store could not do its work."""


class OutcomeUnknown(StoreError):
    """The answer to a commit was lost: it may or may not have happened. Ask by unit id."""

    def __init__(self, unit_id: str) -> None:
        self.unit_id = unit_id
        super().__init__(f"the outcome of unit {unit_id} is unknown; ask the store by its id")


class StoreBusy(StoreError):
    """The queue in front of the store is full; nothing was done."""


class StoreLocked(StoreError):
    """Another process owns this book."""


class StoreOutdated(StoreError):
    """The database is older or newer than this program."""


class StoreMoved(StoreError):
    """The book was moved to another database, and is served there."""


class StoreCorrupt(StoreError):
    """What is stored breaks an invariant."""


class StoreRewound(StoreError):
    """The book lacks what it had acknowledged: a fail-over or a restore has lost its end."""


class RailError(FareboxError):
    """A foreign network did not do as asked."""


class RailRejected(RailError):
    """A definite no: the call was not executed and never will be."""

    def __init__(self, message: str, *, code: int | None = None) -> None:
        self.code = code
        super().__init__(message)


class RailUnavailable(RailError):
    """No definite answer: the call may or may not have been executed."""


class SigningRefused(FareboxError):
    """A payee asks for a signature that does not follow, or exceeds a limit. Nothing was signed."""


class SignerError(FareboxError):
    """A secret is missing, or sealed bytes were altered."""
