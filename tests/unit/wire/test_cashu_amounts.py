"""Amounts: parts that sum up, any change at hand, fees as the mint counts them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.errors import InvalidAmount
from farebox.wire.cashu import amounts
from farebox.wire.cashu.model import Keyset, Proof

POWERS = [1 << bit for bit in range(64)]


@given(st.integers(min_value=0, max_value=2**40))
def test_a_split_sums_to_its_amount_in_ascending_parts(amount: int) -> None:
    parts = amounts.split(amount, POWERS)
    assert sum(parts) == amount
    assert parts == sorted(parts) == amounts.powers_of_two(amount)


def test_a_split_uses_only_amounts_the_keyset_has() -> None:
    assert amounts.split(11, [1, 2, 4]) == [1, 2, 4, 4]
    for amount, available in ((3, [2]), (-1, [1]), (10**9, [1]), (1, [])):
        with pytest.raises(InvalidAmount):
            amounts.split(amount, available)


@given(st.integers(min_value=0, max_value=600))
def test_binary_parts_pay_every_amount_up_to_their_maximum(maximum: int) -> None:
    parts = amounts.binary_parts(maximum)
    assert sum(parts) == maximum
    assert all(part.bit_count() == 1 for part in parts)
    for target in range(maximum + 1):
        chosen = amounts.choose_exact(parts, target)
        assert chosen is not None
        assert sum(parts[index] for index in chosen) == target
    assert amounts.choose_exact(parts, maximum + 1) is None


@given(st.integers(min_value=0, max_value=2**50))
def test_binary_parts_stay_few(maximum: int) -> None:
    assert len(amounts.binary_parts(maximum)) <= 2 * maximum.bit_length()


@given(
    st.lists(st.integers(min_value=0, max_value=6).map(lambda bit: 1 << bit), max_size=9),
    st.integers(min_value=0, max_value=200),
)
def test_an_exact_choice_of_powers_of_two_is_found_whenever_one_exists(
    available: list[int], target: int
) -> None:
    sums = {0}
    for amount in available:
        sums |= {amount + other for other in sums}
    chosen = amounts.choose_exact(available, target)
    assert (chosen is not None) == (target in sums)
    if chosen is not None:
        assert sum(available[index] for index in chosen) == target
        assert len(set(chosen)) == len(chosen)


def test_input_fees_are_summed_before_they_are_rounded_up() -> None:
    keysets = {
        "00aa": Keyset("00aa", "sat", True, 100, None, {}),
        "00bb": Keyset("00bb", "sat", True, 0, None, {}),
    }

    def fee(count: int, keyset_id: str = "00aa") -> int:
        return amounts.input_fee([Proof(1, keyset_id, "s", b"")] * count, keysets)

    assert [fee(count) for count in (0, 1, 3, 10, 11)] == [0, 1, 1, 1, 2]
    assert fee(50, "00bb") == 0


@given(st.integers(min_value=1, max_value=2**40))
def test_blank_outputs_hold_any_overpaid_fee(reserve: int) -> None:
    count = amounts.blank_output_count(reserve)
    assert count == max((reserve - 1).bit_length(), 1)
    if reserve < 2**20:
        assert count == max(math.ceil(math.log2(reserve)), 1)
        assert all(value.bit_count() <= count for value in (reserve, max(reserve - 1, 0)))


def test_no_fee_reserve_needs_no_blank_output() -> None:
    assert amounts.blank_output_count(0) == 0
