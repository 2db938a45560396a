"""What a payment has moved of our balance, counted in the currency that it was charged in.

Stripe converts what is paid in a currency that the account does not settle
(https://docs.stripe.com/currencies): fees and disputes are then told in another one than the
payment. Fees are counted at the rate that the payment itself was converted at, rounded up; what a
dispute takes or gives back is the disputed amount. So the books stay in one currency, and what the
exchange rates do in between is the operator's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from farebox.errors import RailUnavailable
from farebox.money import Rounding, divide
from farebox.rails.stripe.documents import BalanceTransaction, Charge, Dispute


@dataclass(frozen=True, slots=True)
class Moved:
    """In the currency of the payment. `settled` is the currency that it was converted to, or ""."""

    disputed: int = 0
    fees: int = 0
    settled: str = ""


def moved(charge: Charge, currency: str, disputes: Sequence[Dispute]) -> Moved:
    """What was withdrawn over disputes and kept as fees.

    Raises RailUnavailable where a rate is needed and not told.
    """
    told = charge.balance_transaction
    own = told if isinstance(told, BalanceTransaction) else BalanceTransaction()

    def fee_of(one: BalanceTransaction) -> int:
        if one.is_in(currency) or not one.fee:
            return one.fee
        if own.currency != one.currency or own.amount <= 0:
            raise RailUnavailable(f"Stripe tells a fee in {one.currency} and no rate for it")
        return divide(one.fee * charge.taken, own.amount, Rounding.UP)

    withdrawn = [(dispute, one) for dispute in disputes for one in dispute.balance_transactions]
    both = [own, *(one for _, one in withdrawn)]
    return Moved(
        disputed=-sum(_amount(dispute, one, currency) for dispute, one in withdrawn),
        fees=sum(map(fee_of, both)),
        settled=next((one.currency for one in both if not one.is_in(currency)), ""),
    )


def _amount(dispute: Dispute, one: BalanceTransaction, currency: str) -> int:
    if one.is_in(currency) or not one.amount:
        return one.amount
    return dispute.amount if one.amount > 0 else -dispute.amount
