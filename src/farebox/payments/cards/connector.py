"""The connector port: what one card provider must do for us. `rails/stripe`, `rails/paypal` do it.

Calls that move money answer with an outcome and never raise. The others raise RailUnavailable
when there is no definite answer and RailRejected for a definite no.

A call that is repeated with the same key is carried out once: by the provider's idempotency keys,
or by what the call is of, where a key would do harm. `asked_before` says that an earlier one may
have left: the connector then looks for what became of it first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from farebox.payments.cards.model import (
    Captured,
    CardOrder,
    CardPayment,
    Checkout,
    CheckoutOrder,
    Declined,
    Forged,
    GivenBack,
    Notice,
    Outcome,
    StoredToken,
    Unknown,
    Voided,
)


class Connector(Protocol):
    """One account at one provider."""

    #: "stripe", "paypal": also the name of the deposit method and of the place in the books.
    provider: str

    def reference_in(self, credential: str) -> str:
        """The payment or page that a text names, as a link of it does; "" for none. No I/O."""
        ...

    async def check_out(self, order: CheckoutOrder) -> Checkout:
        """Make something that a payer can pay."""
        ...

    async def sync(self, reference: str) -> CardPayment | None:
        """How a payment stands now; None: the provider knows none of that name."""
        ...

    async def store(self, token: str, owner: str) -> StoredToken | Declined:
        """Keep a payer's card or account, which the payer's browser gave the provider, for us.

        `owner` is the same for all of one payer.
        """
        ...

    async def forget(self, token: str) -> None:
        """Drop it there as well; one that is not there any more is no error."""
        ...

    async def authorise(self, order: CardOrder, *, asked_before: bool) -> Outcome:
        """Reserve or take money of a stored method."""
        ...

    async def capture(
        self, reference: str, amount: int, currency: str, key: str
    ) -> Captured | Declined | Unknown:
        """Take what was reserved or approved, at most all of it; 0 is all."""
        ...

    async def void(self, reference: str, key: str) -> Voided | Unknown:
        """Release what was reserved."""
        ...

    async def refund(
        self, external: str, amount: int, currency: str, key: str, *, asked_before: bool
    ) -> GivenBack | Declined | Unknown:
        """Give back a part of a captured payment."""
        ...

    async def hear(self, headers: Mapping[str, str], body: bytes) -> Notice | Forged | None:
        """Read a webhook and check that the provider sent it; None: nothing about a payment.

        Header names are in lower case.
        """
        ...

    async def notices(self, cursor: str) -> tuple[list[Notice], str]:
        """What has happened behind `cursor`, oldest first, and the cursor behind that; "" is now.

        A bounded page; none left gives the same cursor again.
        """
        ...

    async def balances(self) -> Mapping[str, int]:
        """What it owes us now in each currency; nothing where it does not tell.

        Raises RailUnavailable, RailRejected.
        """
        ...

    async def probe(self) -> str:
        """What is wrong with the account; "" when nothing is."""
        ...
