"""Money, ids, time and secrets: small promises that everything stands on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.clock import NS_PER_S, ManualClock, iso
from farebox.errors import InvalidAmount, SignerError
from farebox.ids import derived_id, new_id, new_secret, secret_hash
from farebox.money import (
    AMOUNT_END,
    Rounding,
    check_amount,
    divide,
    format_decimal,
    parse_decimal,
    sat_to_msat,
)
from farebox.signer import Signer

AMOUNTS = st.integers(0, AMOUNT_END - 1)


@given(AMOUNTS, st.integers(0, 18))
def test_a_decimal_says_exactly_the_amount_it_was_written_from(amount: int, scale: int) -> None:
    assert parse_decimal(format_decimal(amount, scale), scale) == amount


@pytest.mark.parametrize("text", ["", "-1", "+1", "1e3", ".5", "01", "1.", "1,5", "٣", "9" * 61])
def test_what_is_no_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(InvalidAmount):
        parse_decimal(text, 3)


def test_a_decimal_finer_than_the_asset_is_refused_not_rounded() -> None:
    with pytest.raises(InvalidAmount, match="more than 3 decimals"):
        parse_decimal("0.0001", 3)


@pytest.mark.parametrize("amount", [-1, AMOUNT_END, 1.0, True, "1", None])
def test_only_whole_amounts_in_range_are_amounts(amount: object) -> None:
    with pytest.raises(InvalidAmount):
        check_amount(amount)  # type: ignore[arg-type]


@given(AMOUNTS, st.integers(1, 10**9))
def test_rounding_goes_the_way_it_is_told(numerator: int, denominator: int) -> None:
    down = divide(numerator, denominator, Rounding.DOWN)
    up = divide(numerator, denominator, Rounding.UP)
    assert down * denominator <= numerator <= up * denominator
    assert up - down == (numerator % denominator != 0)


def test_satoshi_and_millisatoshi() -> None:
    assert sat_to_msat(21) == 21_000
    assert divide(1_999, 1_000, Rounding.DOWN) == 1
    assert divide(1_001, 1_000, Rounding.UP) == 2


def test_ids_are_unique_and_sorted_by_time() -> None:
    ids = [new_id("req") for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    assert all(len(one) == len("req_") + 26 for one in ids)
    milliseconds = [one[:14] for one in ids]
    assert milliseconds == sorted(milliseconds)


def test_a_derived_id_repeats_and_does_not_run_parts_together() -> None:
    assert derived_id("op", "ab", "c") == derived_id("op", b"ab", "c")
    assert derived_id("op", "ab", "c") != derived_id("op", "a", "bc")


def test_a_secret_is_long_and_stored_as_its_hash() -> None:
    secret = new_secret("sk-")
    assert secret.startswith("sk-")
    assert len(secret) >= 46
    assert secret not in secret_hash(secret)


def test_sealed_bytes_open_only_with_their_key_and_context() -> None:
    signer = Signer(b"a" * 32)
    sealed = signer.seal(b"token", "op_1")
    assert signer.unseal(sealed, "op_1") == b"token"
    for other, bytes_, context in (
        (signer, sealed, "op_2"),
        (Signer(b"b" * 32), sealed, "op_1"),
        (signer, sealed[:-1] + bytes([sealed[-1] ^ 1]), "op_1"),
        (signer, b"", "op_1"),
    ):
        with pytest.raises(SignerError):
            other.unseal(bytes_, context)


def test_a_signer_shows_nothing_and_takes_no_short_root() -> None:
    assert "a" * 8 not in repr(Signer(b"a" * 32))
    with pytest.raises(SignerError):
        Signer(b"short")


def test_times_are_written_in_utc_with_milliseconds() -> None:
    assert iso(1_795_253_990_123_456_789) == "2026-11-21T09:39:50.123Z"
    clock = ManualClock(5 * NS_PER_S)
    clock.advance(-1)
    assert clock.now_ns() == 4 * NS_PER_S
