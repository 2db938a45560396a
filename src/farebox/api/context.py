"""What the endpoints work with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from farebox.channels.ledger_desk import LedgerDesk
from farebox.identity import FailureLimit, Idempotency, Keys
from farebox.ledger.service import Ledger
from farebox.payments.cards.gateway import PaymentGateway
from farebox.payments.conversions import Conversions
from farebox.payments.links import WithdrawLinks
from farebox.payments.operations import Operations
from farebox.payments.requests import DepositRequests
from farebox.payments.service import Payments
from farebox.paywall.model import Answer, Presented
from farebox.tally import Counts


class ChangeDesk(Protocol):
    """The part of the paywall that the API needs."""

    def read(self, headers: Iterable[tuple[bytes, bytes]]) -> Presented | Answer:
        """The payment in a request's headers, or why there is none to read."""
        ...

    async def change(self, request_id: str, presented: Presented) -> Answer:
        """The status and change of a paid request, for whoever holds the money that paid."""
        ...


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The collaborators of every endpoint, and the bounds on what comes in.

    `key_expiry_s` is how long a new key lives unless
    it says so itself; 0 is for ever. `askings` counts what an address asks rails to make.
    """

    ledger: Ledger
    operations: Operations
    payments: Payments
    keys: Keys
    paywall: ChangeDesk
    idempotency: Idempotency
    failures: FailureLimit
    askings: FailureLimit
    deposits: DepositRequests
    cards: PaymentGateway
    conversions: Conversions
    links: WithdrawLinks
    public_url: str
    key_expiry_s: int = 0
    channels: LedgerDesk | None = None
    body_bytes_max: int = 256 * 1024
    header_bytes_max: int = 64 * 1024
    #: "refund 200": an endpoint and the status of its answer.
    calls: Counts = field(default_factory=Counts)
