"""Withdraw links: a secret that whoever holds it may draw a part of an account with, once.

    open ──► drawn      a payment by it went through, or is on its way
      └────► expired    by its time

A link holds nothing: what it may draw is looked for when it is used. One payment at a time is made
by it, and another only when the last was definitely rejected.

| boundary              | what can fail | recovery                                                |
|-----------------------|---------------|---------------------------------------------------------|
| used → payment opened | we stop       | the payment's name follows from the link: opened once   |
| payment opened → paid | anything      | the journal's; the link tells the same payment again    |
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from farebox.clock import NS_PER_S
from farebox.ids import derived_id, new_secret, secret_hash
from farebox.ledger.model import ABSENT, Applied, Event, Put, Unit
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger
from farebox.payments.method import RefundRequest, Refusal
from farebox.payments.model import OperationState
from farebox.payments.operations import Operations
from farebox.payments.service import Payments, Pending, Refunded

_SECRET_MAX_CHARS = 128
#: How often a link may be tried with an invoice that could not be paid.
_ATTEMPTS_MAX = 16
LIFE_S = 7 * 86_400


class WithdrawLink(msgspec.Struct, frozen=True):
    """A link as stored, under the hash of its secret. `expires_at` is UTC nanoseconds."""

    id: str
    account: str
    method: str
    most_msat: int
    expires_at: int


WITHDRAW_LINK = RecordType("withdraw_link", WithdrawLink, indexes=(("account",),))


@dataclass(frozen=True, slots=True)
class NewLink:
    """A link that was just made. The secret exists here and in its holder's hands."""

    secret: str = field(repr=False)
    link: WithdrawLink


class WithdrawLinks:
    """Makes links and pays by them."""

    def __init__(self, ledger: Ledger, operations: Operations, payments: Payments) -> None:
        self._ledger = ledger
        self._operations = operations
        self._payments = payments

    async def make(
        self, account: str, method: str, most_msat: int, origin: str
    ) -> NewLink | Refusal:
        """A link to at most `most_msat` of an account. `origin` is the call that asks for it."""
        held = await self._ledger.store.account(account)
        if held is None or held.available < most_msat or most_msat <= 0:
            return Refusal("insufficient_balance", "the balance does not cover this amount")
        secret = new_secret("")
        expires_at = self._ledger.clock.now_ns() + LIFE_S * NS_PER_S
        link = WithdrawLink(derived_id("wdl", origin), account, method, most_msat, expires_at)
        event = Event("withdraw_link.made", account, {"link": link.id, "most_msat": most_msat})
        put = Put(WITHDRAW_LINK, secret_hash(secret), link, ABSENT)
        outcome = await self._ledger.store.commit(Unit(link.id, puts=(put,), events=(event,)))
        if not isinstance(outcome, Applied):
            return Refusal("link_made", "a link was made by this very call; its answer is lost")
        return NewLink(secret, link)

    async def find(self, secret: str) -> WithdrawLink | Refusal:
        """The link that a secret opens, unless it is over or was drawn."""
        unknown = Refusal("link_unknown", "this link is not known here, or is used up")
        if not secret.isascii() or len(secret) > _SECRET_MAX_CHARS:
            return unknown
        row = await self._ledger.store.get(WITHDRAW_LINK, secret_hash(secret))
        if row is None or self._ledger.clock.now_ns() >= row.value.expires_at:
            return unknown
        return row.value

    async def drawable_msat(self, link: WithdrawLink) -> int:
        """What it could draw now, fees included; 0 once it was drawn."""
        if await self._next_name(link) is None:
            return 0
        held = await self._ledger.store.account(link.account)
        return min(link.most_msat, held.available if held else 0)

    async def draw(self, link: WithdrawLink, destination: str) -> Refunded | Pending | Refusal:
        """Pay an invoice by a link; the same one again tells what became of it."""
        for attempt in range(_ATTEMPTS_MAX):
            name = _name(link, attempt)
            known = await self._operations.get(name)
            if known is None:
                request = RefundRequest(name, await self.drawable_msat(link), destination)
                told = await self._payments.send(link.account, request, method=link.method)
                return _told_of(told, destination)
            if known.state is not OperationState.REJECTED:
                return _told_of(self._payments.refunded(known), destination)
        return Refusal("link_used_up", "too many invoices of this link could not be paid")

    async def _next_name(self, link: WithdrawLink) -> str | None:
        """The payment that may be opened next; None while one is on its way or after it."""
        for attempt in range(_ATTEMPTS_MAX):
            known = await self._operations.get(_name(link, attempt))
            if known is None:
                return _name(link, attempt)
            if known.state is not OperationState.REJECTED:
                return None
        return None


def _told_of(told: Refunded | Pending | Refusal, destination: str) -> Refunded | Pending | Refusal:
    """Of two invoices at once one is paid: who brought the other must not hear that it was his."""
    if isinstance(told, Refunded) and told.reply.get("recipient") != destination:
        return Refusal("link_used_up", "this link has paid another invoice")
    return told


def _name(link: WithdrawLink, attempt: int) -> str:
    return derived_id("op", link.id, str(attempt))
