"""Selection: exact where it can be, a swap where it must be, dust left alone."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from farebox.ecash.selection import Exact, Short, SwapFirst, consolidate, cover, select
from farebox.wire.cashu.amounts import choose_exact, input_fee
from farebox.wire.cashu.model import Keyset, Proof

KEYS = {1 << bit: b"" for bit in range(40)}
ACTIVE = Keyset("00" * 8, "sat", True, 100, None, KEYS)
RETIRED = replace(ACTIVE, id="00" * 7 + "01", active=False)
DEAR = replace(ACTIVE, id="00" * 7 + "02", input_fee_ppk=3_000)
KEYSETS = {keyset.id: keyset for keyset in (ACTIVE, RETIRED, DEAR)}


def proofs(*amounts: int, keyset: Keyset = ACTIVE) -> list[Proof]:
    return [Proof(amount, keyset.id, f"{keyset.id} {i}", b"") for i, amount in enumerate(amounts)]


def total(chosen: tuple[Proof, ...]) -> int:
    return sum(proof.amount for proof in chosen)


def test_an_exact_choice_needs_no_swap() -> None:
    found = select(proofs(1, 2, 4, 8), 13, KEYSETS, ACTIVE)
    assert isinstance(found, Exact)
    assert total(found.proofs) == 13


def test_otherwise_the_smallest_proof_that_covers_it_is_swapped() -> None:
    found = select(proofs(64, 8, 32), 5, KEYSETS, ACTIVE)
    assert found == SwapFirst((proofs(64, 8, 32)[1],), 1, (1, 2, 4))


def test_several_proofs_are_swapped_where_no_single_one_suffices() -> None:
    found = select(proofs(4, 4, 4), 9, KEYSETS, ACTIVE)
    assert isinstance(found, SwapFirst)
    assert (total(found.inputs), found.fee) == (12, 1)


def test_too_little_says_how_much_there_is_after_fees() -> None:
    assert select(proofs(4, 4), 8 + 1, KEYSETS, ACTIVE) == Short(7)
    assert select([], 1, KEYSETS, ACTIVE) == Short(0)


def test_proofs_that_cost_more_than_they_are_worth_are_not_swapped() -> None:
    inventory = [*proofs(2, 2, keyset=DEAR), *proofs(8)]
    found = select(inventory, 3, KEYSETS, ACTIVE)
    assert isinstance(found, SwapFirst)
    assert [proof.keyset_id for proof in found.inputs] == [ACTIVE.id]
    assert consolidate(proofs(*[2] * 9, keyset=DEAR), KEYSETS, ACTIVE, **LIMITS) is None


amounts = st.lists(st.integers(min_value=0, max_value=10).map(lambda bit: 1 << bit), max_size=12)


@given(amounts, st.integers(min_value=1, max_value=3000))
def test_every_selection_balances_to_the_last_unit(available: list[int], amount: int) -> None:
    inventory = proofs(*available)
    found = select(inventory, amount, KEYSETS, ACTIVE)
    match found:
        case Exact(chosen):
            assert total(chosen) == amount
        case SwapFirst(inputs, fee, made):
            assert len({proof.secret for proof in inputs}) == len(inputs)
            assert fee == input_fee(inputs, KEYSETS)
            assert sum(made) == total(inputs) - fee
            assert list(made) == sorted(made)
            assert choose_exact(made, amount) is not None
        case Short(most):
            assert most < amount
            assert most == max(sum(available) - input_fee(inventory, KEYSETS), 0)


@given(amounts, st.integers(min_value=1, max_value=3000))
def test_what_covers_an_amount_covers_it_after_its_fee(available: list[int], amount: int) -> None:
    inventory = proofs(*available)
    found = cover(inventory, amount, KEYSETS)
    most = sum(available) - input_fee(inventory, KEYSETS)
    if isinstance(found, Short):
        assert found.available == max(most, 0) < amount
    else:
        assert total(found) - input_fee(found, KEYSETS) >= amount


LIMITS = {"keep_each": 2, "inputs_max": 20}


def test_many_small_proofs_become_few() -> None:
    found = consolidate(proofs(*[1] * 12), KEYSETS, ACTIVE, **LIMITS)
    assert isinstance(found, SwapFirst)
    assert (len(found.inputs), found.fee, found.amounts) == (10, 1, (1, 8))


def test_what_is_kept_for_change_and_what_is_tidy_stays() -> None:
    assert consolidate(proofs(1, 1, 2, 2, 4), KEYSETS, ACTIVE, **LIMITS) is None
    assert consolidate([], KEYSETS, ACTIVE, **LIMITS) is None


def test_proofs_of_a_retired_keyset_always_move() -> None:
    found = consolidate(proofs(64, keyset=RETIRED), KEYSETS, ACTIVE, **LIMITS)
    assert isinstance(found, SwapFirst)
    assert sum(found.amounts) == 63


def test_a_consolidation_takes_a_bounded_number_of_inputs() -> None:
    found = consolidate(proofs(*[1] * 100), KEYSETS, ACTIVE, **LIMITS)
    assert found is not None
    assert len(found.inputs) == 20
