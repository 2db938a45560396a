"""What Stripe converts is counted in the currency that the payer was charged in."""

from __future__ import annotations

import pytest

from farebox.errors import RailUnavailable
from farebox.rails.stripe.documents import BalanceTransaction, Charge, Dispute
from farebox.rails.stripe.moved import Moved, moved

CHARGED, CONVERTED = 1_065, 980


def charge(told: BalanceTransaction) -> Charge:
    return Charge("ch", CHARGED, captured=True, balance_transaction=told)


def dispute(*told: BalanceTransaction) -> Dispute:
    return Dispute("dp", "lost", CHARGED, list(told))


def test_what_is_settled_as_it_is_counts_as_it_is_told() -> None:
    took = dispute(BalanceTransaction(-CHARGED, 1_500, "usd"))
    own = charge(BalanceTransaction(CHARGED, 61, "usd"))
    assert moved(own, "usd", [took]) == Moved(CHARGED, 1_561)
    assert moved(charge(BalanceTransaction(CHARGED, 61)), "usd", []) == Moved(0, 61)


def test_a_fee_in_another_currency_is_counted_at_the_rate_of_its_payment_rounded_up() -> None:
    told = moved(charge(BalanceTransaction(CONVERTED, 60, "eur")), "usd", [])
    assert told == Moved(0, 66, "eur")  # 65.2


def test_a_dispute_takes_and_gives_back_what_was_disputed_whatever_rates_did() -> None:
    own = charge(BalanceTransaction(CONVERTED, 0, "eur"))
    took = BalanceTransaction(-1_010, 1_500, "eur")
    assert moved(own, "usd", [dispute(took)]) == Moved(CHARGED, 1_631, "eur")
    won = dispute(took, BalanceTransaction(975, 0, "eur"))
    assert moved(own, "usd", [won]) == Moved(0, 1_631, "eur")


def test_without_a_rate_nothing_is_guessed() -> None:
    with pytest.raises(RailUnavailable):
        moved(charge(BalanceTransaction(0, 60, "eur")), "usd", [])
    took = dispute(BalanceTransaction(-900, 1_500, "gbp"))
    with pytest.raises(RailUnavailable):
        moved(charge(BalanceTransaction(CONVERTED, 60, "eur")), "usd", [took])
