"""Whether a root key belongs to a book: a book that is opened with another one is spoiled.

Proofs would be derived that nobody can derive again, and what was sealed before stays shut. So
the first opening leaves a seal in the book, and every later one opens it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from farebox.errors import InvalidSettings, SignerError
from farebox.ids import new_id
from farebox.ledger.model import ABSENT, Put, Unit
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger
from farebox.signer import Signer

_KEY: Final = "root"


class RootSeal(msgspec.Struct, frozen=True):
    """Something sealed with the book's root key."""

    sealed: bytes


ROOT_SEAL = RecordType("root_seal", RootSeal)


async def require_root_key(ledger: Ledger, signer: Signer) -> None:
    """Raise InvalidSettings unless the book was made with this root key, or is new."""
    row = await ledger.store.get(ROOT_SEAL, _KEY)
    if row is None:
        put = Put(ROOT_SEAL, _KEY, RootSeal(signer.seal(b"", _KEY)), ABSENT)
        # Another process may be first, with the same key or not: what it left is what counts.
        await ledger.store.commit(Unit(new_id("seal"), puts=(put,)))
        row = await ledger.store.get(ROOT_SEAL, _KEY)
    assert row is not None, "it was just stored"
    try:
        signer.unseal(row.value.sealed, _KEY)
    except SignerError:
        allowed = "the key that this book was made with: put it back from your copy"
        raise InvalidSettings("root_key", "another book's key (hidden)", allowed) from None
