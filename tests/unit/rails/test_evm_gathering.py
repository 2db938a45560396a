"""What a payment needs and no sender has alone is brought together, and nothing else is moved."""

from __future__ import annotations

from farebox.rails.evm.gathering import Gathered, gathered

FREE = {"a": 30, "b": 50, "c": 20}


def test_the_richest_is_brought_what_it_lacks_by_as_few_as_it_takes() -> None:
    assert gathered(FREE, [60]) == Gathered("b", {"a": 10})
    assert gathered(FREE, [95]) == Gathered("b", {"a": 30, "c": 15})


def test_nothing_moves_for_what_one_has_or_for_what_all_have_not() -> None:
    assert gathered(FREE, [50, 30]) is None
    assert gathered(FREE, [101]) is None
    assert gathered(FREE, []) is None
    assert gathered({"a": 5}, [9]) is None


def test_what_cannot_be_paid_at_all_keeps_nobody_else_waiting() -> None:
    assert gathered(FREE, [101, 51]) == Gathered("b", {"a": 1})


def test_a_sender_that_owes_more_than_it_has_counts_for_nothing() -> None:
    assert gathered({"a": -40, "b": 50, "c": 20}, [60]) == Gathered("b", {"c": 10})
