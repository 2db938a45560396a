"""Values that carry money to its receiver do not show it to whoever prints them."""

from __future__ import annotations

import pytest

from farebox.payments.service import Refunded
from farebox.paywall.model import Answer, Settlement

MONEY = "cashuBsecret"


@pytest.mark.parametrize(
    "value",
    [
        Refunded("ref_1", 1_000, {"token": MONEY}),
        Answer(200, ((b"x-cashu", MONEY.encode()),), MONEY.encode()),
        Settlement(0, 1_000, ((b"x-cashu", MONEY.encode()),), "receipt", MONEY),
    ],
    ids=lambda value: type(value).__name__,
)
def test_money_on_its_way_out_is_not_in_a_repr(value: object) -> None:
    assert MONEY not in repr(value)
