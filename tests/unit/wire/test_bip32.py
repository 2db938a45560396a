"""Extended keys derive what BIP-32's own test vectors say, public ones the same as private ones."""

from __future__ import annotations

import pytest

from farebox.errors import InvalidCredential
from farebox.wire.bip32 import (
    HARDENED,
    master_key,
    read_extended_key,
    write_public,
)

#: BIP-32, test vector 2: the seed, then m/0 as xpub and xprv.
SEED = bytes.fromhex(
    "fffcf9f6f3f0edeae7e4e1dedbd8d5d2cfccc9c6c3c0bdbab7b4b1aeaba8a5a2"
    "9f9c999693908d8a8784817e7b7875726f6c696663605d5a5754514e4b484542"
)
M = (
    "xpub661MyMwAqRbcFW31YEwpkMuc5THy2PSt5bDMsktWQcFF8syAmRUapSCG"
    "u8ED9W6oDMSgv6Zz8idoc4a6mr8BDzTJY47LJhkJ8UB7WEGuduB"
)
M_PRIVATE = (
    "xprv9s21ZrQH143K31xYSDQpPDxsXRTUcvj2iNHm5NUtrGiGG5e2DtALGdso"
    "3pGz6ssrdK4PFmM8NSpSBHNqPqm55Qn3LqFtT2emdEXVYsCzC2U"
)
M_0 = (
    "xpub69H7F5d8KSRgmmdJg2KhpAK8SR3DjMwAdkxj3ZuxV27CprR9LgpeyGmX"
    "UbC6wb7ERfvrnKZjXoUmmDznezpbZb7ap6r1D3tgFxHmwMkQTPH"
)


def test_children_are_those_of_the_standard() -> None:
    private = read_extended_key(M_PRIVATE)
    assert private == master_key(SEED)
    assert private.public == read_extended_key(M)
    child = private.child(0)
    assert child.public == read_extended_key(M).child(0) == read_extended_key(M_0)
    hardened = private.child(HARDENED)
    assert hardened.point != child.point


def test_what_a_public_key_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="no such child"):
        read_extended_key(M).child(HARDENED)
    assert read_extended_key(write_public(master_key(SEED))) == read_extended_key(M)


@pytest.mark.parametrize(
    "text", ["", "xpub", M[:-1] + "C", M[:-1], "x" * 300, M_PRIVATE[:-1] + "V"]
)
def test_what_is_mistyped_is_refused_and_never_quoted(text: str) -> None:
    with pytest.raises(InvalidCredential) as raised:
        read_extended_key(text)
    assert len(text) < 4 or text not in str(raised.value)
