"""Money that may be taken back stays, unless it goes back to who may take it."""

from __future__ import annotations

import pytest

from farebox.payments.maturity import Lot, Maturing, staying_msat, unripe_msat, with_lot

NOW, LATER = 1_000, 2_000
BOTH = Maturing((Lot("a", 10, LATER), Lot("b", 10, LATER)))


def test_all_that_is_not_ripe_stays_whatever_was_spent() -> None:
    assert [staying_msat(BOTH, NOW, available) for available in (50, 20, 15, 0)] == [20] * 4
    assert staying_msat(BOTH, LATER, 50) == 0
    assert staying_msat(None, NOW, 50) == 0


@pytest.mark.parametrize(("available", "may_go"), [(50, 40), (20, 10), (15, 10), (5, 5)])
def test_what_goes_back_to_its_payer_leaves_what_is_here_of_others(
    available: int, may_go: int
) -> None:
    assert available - staying_msat(BOTH, NOW, available, returning="a") == may_go


def test_a_payer_whose_money_is_ripe_is_not_given_others_money() -> None:
    ripe = Maturing((Lot("a", 10, NOW), Lot("b", 10, LATER)))
    assert staying_msat(ripe, NOW, 10, returning="a") == 10
    assert staying_msat(ripe, NOW, 5, returning="gone") == 10


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
