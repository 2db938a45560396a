"""Blocks and transactions are read as everybody reads them, and nothing else is."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.errors import InvalidInput
from farebox.wire.bitcoin import read_block, read_tx, read_uri, uri_of

#: The first block of the chain.
GENESIS = bytes.fromhex(
    "0100000000000000000000000000000000000000000000000000000000000000000000003ba3edfd7a7b12b27ac72c"
    "3e67768f617fc81bc3888a51323a9fb8aa4b1e5e4a29ab5f49ffff001d1dac2b7c010100000001000000000000000"
    "0000000000000000000000000000000000000000000000000ffffffff4d04ffff001d0104455468652054696d6573"
    "2030332f4a616e2f32303039204368616e63656c6c6f72206f6e206272696e6b206f66207365636f6e64206261696"
    "c6f757420666f722062616e6b73ffffffff0100f2052a01000000434104678afdb0fe5548271967f1a67130b7105c"
    "d6a828e03909a67962e0ea1f61deb649f6bc3f4cef38c4f35504e51ec112de5c384df7ba0b8d578a4c702b6bf11d5"
    "fac00000000"
)


def test_the_first_block_is_what_everybody_says_it_is() -> None:
    block = read_block(GENESIS)
    assert block.hash == "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f"
    assert block.parent == "00" * 32
    assert block.time_s == 1_231_006_505
    (tx,) = block.txs
    assert tx.txid == "4a5e1e4baab89f3a32518a88c31bc87f618f76673e2cc77ab2127b7afdeda33b"
    assert [one.amount_sat for one in tx.outputs] == [5_000_000_000]


@pytest.mark.parametrize("cut", [1, 50, 80, 82, 150, len(GENESIS) - 1])
def test_what_ends_too_early_is_refused(cut: int) -> None:
    with pytest.raises(InvalidInput):
        read_block(GENESIS[:cut])


def test_what_stands_behind_a_block_is_refused() -> None:
    with pytest.raises(InvalidInput, match="behind"):
        read_block(GENESIS + b"\x00")


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_but_be_read_or_refused(raw: bytes) -> None:
    with suppress(InvalidInput):
        read_tx(raw)


@given(st.integers(0, len(GENESIS) - 1), st.integers(0, 255))
def test_a_byte_that_changed_changes_the_name_or_is_refused(place: int, value: int) -> None:
    changed = bytearray(GENESIS)
    changed[place] = value
    with suppress(InvalidInput):
        found = read_block(bytes(changed))
        is_same = found.hash == read_block(GENESIS).hash and found.txs == read_block(GENESIS).txs
        assert is_same == (bytes(changed) == GENESIS)


def test_an_address_is_shown_as_wallets_open_it() -> None:
    assert uri_of("bc1q", None) == "bitcoin:bc1q"
    assert uri_of("bc1q", 1) == "bitcoin:bc1q?amount=0.00000001"
    assert uri_of("bc1q", 123_456_789_012) == "bitcoin:bc1q?amount=1234.56789012"


@given(st.integers(0, 21 * 10**14))
def test_what_is_shown_is_read_again(amount_sat: int) -> None:
    assert read_uri(uri_of("bc1q", amount_sat)) == ("bc1q", amount_sat)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("bc1q", ("bc1q", None)),
        (" BITCOIN:BC1Q ", ("BC1Q", None)),
        ("bitcoin:bc1q?label=a%20b", ("bc1q", None)),
        ("bitcoin:bc1q?amount=0.5&label=x", ("bc1q", 50_000_000)),
        ("bitcoin:bc1q?amount=20", ("bc1q", 2_000_000_000)),
    ],
)
def test_wallets_write_addresses_in_many_ways(text: str, read: tuple[str, int | None]) -> None:
    assert read_uri(text) == read


@pytest.mark.parametrize(
    "query",
    [
        "amount=1e3",
        "amount=-1",
        "amount=0.123456789",
        "amount=.5",
        "req-new=1",
        "&".join(["a=1"] * 50),
    ],
)
def test_what_cannot_be_understood_is_refused_not_guessed(query: str) -> None:
    with pytest.raises(InvalidInput):
        read_uri(f"bitcoin:bc1q?{query}")
