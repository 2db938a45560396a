"""A play mint's keysets: every key follows from a seed."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from farebox.wire.cashu import crypto
from farebox.wire.cashu.keysets import VERSION_1, VERSION_2, keyset_id_v1, keyset_id_v2
from farebox.wire.cashu.model import Keyset

VERSIONS = (VERSION_1, VERSION_2)
#: 1 to 2^62: every amount that a token can hold.
_AMOUNTS = tuple(1 << bit for bit in range(63))


class KeysetRow(msgspec.Struct, frozen=True):
    """What a keyset is made of, next to the mint's seed. `final_expiry` in Unix seconds."""

    unit: str
    input_fee_ppk: int
    final_expiry: int | None
    version: str


@dataclass(frozen=True, slots=True, repr=False)
class PlayKeyset:
    """A keyset with the private keys behind it."""

    public: Keyset
    private: Mapping[int, bytes]


class Keyring:
    """The keysets of a mint by id. The youngest of each unit is active, the others are not."""

    def __init__(self, seed: str, rows: Sequence[KeysetRow]) -> None:
        youngest = {row.unit: at for at, row in enumerate(rows)}
        made = [
            _make(seed, at, row, active=youngest[row.unit] == at) for at, row in enumerate(rows)
        ]
        self._by_id = {keyset.public.id: keyset for keyset in made}

    def get(self, keyset_id: str) -> PlayKeyset | None:
        """The keyset of this id."""
        return self._by_id.get(keyset_id)

    def active(self, unit: str) -> PlayKeyset | None:
        """The keyset that signs for `unit`."""
        found = (one for one in self if one.public.unit == unit and one.public.active)
        return next(found, None)

    def __iter__(self) -> Iterator[PlayKeyset]:
        return iter(self._by_id.values())


def _make(seed: str, at: int, row: KeysetRow, *, active: bool) -> PlayKeyset:
    private = {
        amount: hmac.digest(seed.encode(), f"{at}/{row.unit}/{amount}".encode(), hashlib.sha256)
        for amount in _AMOUNTS
    }
    keys = {amount: crypto.public_key(key) for amount, key in private.items()}
    if row.version == VERSION_1:
        keyset_id = keyset_id_v1(keys)
    else:
        keyset_id = keyset_id_v2(keys, row.unit, row.input_fee_ppk, row.final_expiry)
    public = Keyset(keyset_id, row.unit, active, row.input_fee_ppk, row.final_expiry, keys)
    return PlayKeyset(public, private)
