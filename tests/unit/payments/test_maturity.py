"""Money that may be taken back stays, unless it goes back to who may take it."""

from __future__ import annotations

import pytest

from farebox.payments.maturity import Lot, Maturing, staying_msat, unripe_msat, with_lot

NOW, LATER = 1_000, 2_000
BOTH = Maturing((Lot("a", 10, LATER), Lot("b", 10, LATER)))


def stays(known: Maturing | None, available: int, leaving: int = 1, returning: str = "") -> int:
    """How much has to stay behind."""
    return staying_msat(
        known, NOW, leaving_msat=leaving, available_msat=available, returning=returning
    )


@pytest.mark.parametrize("available", [50, 20, 15, 0])
def test_all_that_is_not_ripe_stays_whatever_was_spent(available: int) -> None:
    assert stays(BOTH, available) == 20
    assert stays(Maturing((Lot("a", 10, NOW),)), available) == 0
    assert stays(None, available) == 0


@pytest.mark.parametrize("available", [50, 20, 15, 5])
def test_what_goes_back_to_its_payer_is_in_nobodys_way(available: int) -> None:
    assert all(stays(BOTH, available, leaving, "a") == 0 for leaving in (1, 10))


@pytest.mark.parametrize(("available", "may_go"), [(50, 40), (20, 10), (15, 10)])
def test_what_costs_more_than_was_credited_leaves_what_is_here_of_others(
    available: int, may_go: int
) -> None:
    assert available - stays(BOTH, available, 11, "a") == may_go


def test_a_payer_whose_money_is_ripe_is_not_given_others_money() -> None:
    ripe = Maturing((Lot("a", 10, NOW), Lot("b", 10, LATER)))
    assert stays(ripe, 10, 10, "a") == 10
    assert stays(ripe, 5, 5, "gone") == 10


def test_of_too_many_deposits_none_takes_the_part_of_another_along() -> None:
    known = None
    for number in range(400):
        known = with_lot(known, Lot(f"d{number}", 10 if number else 1_000, LATER), NOW)
    assert known is not None
    assert len(known.lots) == 256
    assert unripe_msat(known, NOW) == 1_000 + 399 * 10
    for number in range(400):  # all of them go back to their payers
        known = with_lot(known, Lot(f"d{number}", 0, LATER), NOW)
    assert unripe_msat(known, NOW) >= 1_000
