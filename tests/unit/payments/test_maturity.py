"""Money that may still be taken back stays; where it came from it may go at any time."""

from __future__ import annotations

from farebox.payments.maturity import Lot, Maturing, unripe_msat

NOW = 1_000
KNOWN = Maturing((Lot("first", 60, NOW + 1), Lot("second", 60, NOW + 1), Lot("ripe", 9, NOW)))


def test_all_that_is_not_ripe_stays_whatever_leaves_another_way() -> None:
    assert unripe_msat(KNOWN, NOW, leaving_msat=1) == 120
    assert unripe_msat(None, NOW) == 0


def test_what_goes_back_is_not_held_up_by_what_was_spent_of_other_deposits() -> None:
    assert unripe_msat(KNOWN, NOW, leaving_msat=60, returning="first") == 0


def test_what_leaves_beyond_the_deposit_must_leave_the_others_covered() -> None:
    assert unripe_msat(KNOWN, NOW, leaving_msat=61, returning="first") == 60
    assert unripe_msat(KNOWN, NOW, leaving_msat=9, returning="ripe") == 120
