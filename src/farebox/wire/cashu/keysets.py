"""Keyset ids (NUT-02): what a mint calls a keyset follows from what is in it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from farebox.wire.cashu.model import Keyset

VERSION_1 = "00"
VERSION_2 = "01"


def keyset_id_v1(keys: Mapping[int, bytes]) -> str:
    """The 8-byte id of a version 00 keyset: only its keys count."""
    joined = b"".join(keys[amount] for amount in sorted(keys))
    return VERSION_1 + hashlib.sha256(joined).hexdigest()[:14]


def keyset_id_v2(
    keys: Mapping[int, bytes], unit: str, input_fee_ppk: int, final_expiry: int | None
) -> str:
    """The 33-byte id of a version 01 keyset: keys, unit, fee and expiry all count."""
    preimage = ",".join(f"{amount}:{keys[amount].hex()}" for amount in sorted(keys))
    preimage += f"|unit:{unit}"
    if input_fee_ppk:
        preimage += f"|input_fee_ppk:{input_fee_ppk}"
    if final_expiry:
        preimage += f"|final_expiry:{final_expiry}"
    return VERSION_2 + hashlib.sha256(preimage.encode()).hexdigest()


def has_honest_id(keyset: Keyset) -> bool:
    """Whether a keyset with its keys bears the id that follows from them.

    A mint that lets two keysets share an id could make a wallet use the wrong keys.
    """
    if keyset.id.startswith(VERSION_1):
        return keyset.id == keyset_id_v1(keyset.keys)
    if keyset.id.startswith(VERSION_2):
        return keyset.id == keyset_id_v2(
            keyset.keys, keyset.unit, keyset.input_fee_ppk, keyset.final_expiry
        )
    return False
