"""What the operator decides about card money, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from farebox.clock import NS_PER_S
from farebox.money import Rounding, divide
from farebox.payments.rail import Limits

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CardTerms:
    """How one provider's account is used. Amounts are in the currency's smallest unit.

    `name` tells this account's money in the books from another's. What a payer is charged for
    paying by card is `fee_fixed` and `fee_ppm` millionths on top of what is credited. Until
    `maturity_s` after it was paid, card money is spent here and not paid out another way.
    """

    provider: str
    name: str = "main"
    currencies: Mapping[str, Limits]
    fee_fixed: int = 0
    fee_ppm: int = 0
    expiry_s: int = 3_600
    maturity_s: int = 0

    @property
    def place(self) -> str:
        """This account, in the books."""
        return f"custody:{self.provider}:{self.name}"

    def custody(self, currency: str) -> str:
        """The ledger account of what the provider owes us in a currency."""
        return f"{self.place}:{currency}"

    def payable(self, currency: str) -> str:
        """The ledger account of what we owe the provider, where it took back more than it held."""
        return f"payable:{self.provider}:{self.name}:{currency}"

    def fee(self, amount: int) -> int:
        """What a payer is charged on top of an amount, rounded up."""
        return self.fee_fixed + divide(amount * self.fee_ppm, _MILLION, Rounding.UP)

    def matures_at(self, paid_at_s: int) -> int:
        """When money that was paid then is ripe, in UTC nanoseconds; 0 is at once."""
        return (paid_at_s + self.maturity_s) * NS_PER_S if self.maturity_s else 0
