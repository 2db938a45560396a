"""The node port: what a Lightning node must do for us. `lnd.py`, `cln.py`, `lnbits.py` do it.

Every call raises RailUnavailable when nobody knows whether it was carried out, and RailRejected
when the node said a definite no. Amounts are in millisatoshi, hashes in lower-case hexadecimal.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """Who the node is. `network` is the prefix of its invoices: bc, tb, tbs, sb or bcrt.

    `send_msat` and `receive_msat` are what its channels could carry now; None: it does not tell.
    """

    id: str
    version: str
    network: str
    is_synced: bool
    send_msat: int | None = None
    receive_msat: int | None = None


@dataclass(frozen=True, slots=True)
class Issued:
    """An invoice that the node made."""

    text: str
    payment_hash: str


@dataclass(frozen=True, slots=True)
class Settled:
    """An invoice of the node that was paid. `at_s` is Unix seconds, 0 where it does not tell.

    `cursor` is what `settled_from` resumes behind; "" where this came without one.
    """

    payment_hash: str
    received_msat: int
    at_s: int
    cursor: str = ""


class PaymentState(enum.Enum):
    """What became of a payment that the node was to make."""

    UNKNOWN = "unknown"  # it never heard of it
    IN_FLIGHT = "in flight"
    PAID = "paid"
    FAILED = "failed"  # for good: nothing of it is in flight


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment as the node knows it. `reason` says why one failed, in the node's words."""

    state: PaymentState
    fee_msat: int = 0
    preimage: str = field(default="", repr=False)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PayOrder:
    """Pay an invoice that names its amount. The node gives up after `timeout_s` by itself."""

    invoice: str
    payment_hash: str
    amount_msat: int
    fee_max_msat: int
    timeout_s: int


class LightningNode(Protocol):
    """One node, or one wallet of somebody's node."""

    #: What the node is, in settings and documents: lnd, cln, lnbits.
    kind: str
    #: The smallest amount it can ask for or tell apart, msat.
    unit_msat: int
    #: Whether it holds back what a payment may cost above the limit, so that we must ask first.
    caps_fees: bool

    async def info(self) -> NodeInfo:
        """Who the node is and whether it can be used."""
        ...

    async def make_invoice(self, amount_msat: int | None, memo: str, expiry_s: int) -> Issued:
        """A new invoice; None leaves the amount to the payer."""
        ...

    async def settled(self, payment_hash: str) -> Settled | None:
        """An invoice of ours if it was paid; None when not, or not one of ours."""
        ...

    def settled_from(self, cursor: str) -> AsyncGenerator[Settled, None]:
        """Every invoice paid behind `cursor`, then each as it is paid, without end.

        "" is from now on. Raises when the line breaks; the caller comes again with its cursor.
        """
        ...

    async def fee_estimate_msat(self, invoice: str, amount_msat: int) -> int | None:
        """What paying would cost, as the node sees it now; None where it cannot say."""
        ...

    async def pay(self, order: PayOrder) -> Payment:
        """Pay, and wait for the end: PAID, FAILED, or IN_FLIGHT when it takes longer.

        Asked again for a hash it has paid or is paying, a node does not pay twice.
        """
        ...

    async def payment(self, payment_hash: str) -> Payment:
        """What became of a payment."""
        ...
