"""Refunds to the card or account that paid: a part or all, never more than is left there.

| boundary              | what can fail               | recovery                                   |
|-----------------------|-----------------------------|--------------------------------------------|
| plan → opening commit | another refund of the same  | its number is taken: planned anew          |
| opening commit → call | we stop                     | the provider is asked by the operation, or |
|                       |                             | asked again with the same key              |
| call → closing commit | the answer is lost, we stop | the same                                   |
| the closing commit    | what is not ripe has moved  | stale: the provider is asked, found, closed|

A refund is one operation and one payment's; its number among the payment's refunds is a row that
must not exist yet, so two plans made at the same time don't both count on what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from farebox.errors import RailRejected, RailUnavailable
from farebox.ledger.model import ABSENT, Put
from farebox.ledger.service import Ledger
from farebox.payments.cards.booking import lot_of
from farebox.payments.cards.connector import Connector
from farebox.payments.cards.model import Decline, Declined, GivenBack, Unknown
from farebox.payments.cards.records import CARD_MONEY, GIVING, Giving, GivingState
from farebox.payments.cards.terms import CardTerms
from farebox.payments.deposits import DEPOSIT, DEPOSIT_REQUEST, Deposit, DepositState
from farebox.payments.maturity import MATURING, with_lot
from farebox.payments.method import (
    RefundPlan,
    RefundQuote,
    RefundRequest,
    RefundResult,
    Refusal,
)
from farebox.payments.model import Changes, Rejected, Unresolved

#: Of an account's deposits so many payments are asked about, for one that can be given back.
_PAGE, _PAGES_MAX, _ASKED_ABOUT_MAX = 100, 20, 10


class Job(msgspec.Struct, frozen=True):
    """All that giving back needs, now or after a crash."""

    operation_id: str
    giving: str
    external: str
    amount: int
    currency: str


@dataclass(frozen=True, slots=True)
class _Found:
    """A payment, what of it may go back, and the number of its next refund."""

    deposit: Deposit
    room: int
    number: int


class Refunds:
    """Plans and carries out refunds at one provider."""

    def __init__(self, terms: CardTerms, connector: Connector, ledger: Ledger) -> None:
        self._terms = terms
        self._connector = connector
        self._ledger = ledger

    async def quote(self, request: RefundRequest) -> RefundQuote | Refusal:
        """What `plan` would come to. Raises RailUnavailable, RailRejected."""
        found = await self._chosen(request)
        return found if isinstance(found, Refusal) else RefundQuote(_amount(request, found), 0, 0)

    async def plan(self, request: RefundRequest) -> RefundPlan | Refusal:
        """Choose the payment and fix the amount. Raises RailUnavailable, RailRejected."""
        found = await self._chosen(request)
        if isinstance(found, Refusal):
            return found
        amount, deposit = _amount(request, found), found.deposit
        key = f"{deposit.key}:{found.number}"
        job = Job(request.operation_id, key, deposit.reference, amount, deposit.asset)
        giving = Giving(deposit.key, request.operation_id, amount)
        return RefundPlan(
            msgspec.json.encode(job),
            deposit.custody,
            amount,
            (Put(GIVING, key, giving, ABSENT),),
            returns=deposit.key,
        )

    async def give(
        self, payload: bytes, *, asked_before: bool
    ) -> RefundResult | Rejected | Unresolved:
        """Give back as planned, or find out what became of an earlier call."""
        job = msgspec.json.decode(payload, type=Job)
        told = await self._connector.refund(
            job.external, job.amount, job.currency, job.operation_id, asked_before=asked_before
        )
        match told:
            case GivenBack():
                reply = {
                    "recipient": "the card or account that paid",
                    "refund": told.id,
                    "payment": job.external,
                }
                puts = await self._ended(job, GivingState.DONE)
                return RefundResult(job.amount, told.id, reply, puts)
            case Declined(Decline.TECHNICAL):
                return Unresolved(told.message)  # nothing is in the way of trying again
            case Declined():
                puts = await self._ended(job, GivingState.FAILED)
                return Rejected(told.code, told.message, Changes(puts=puts), vague=True)
            case Unknown():
                return Unresolved(told.reason)

    async def give_up(self, payload: bytes) -> tuple[Put, ...]:
        """What joins an operator's word that it was never made: its part may be given back anew."""
        return await self._ended(msgspec.json.decode(payload, type=Job), GivingState.FAILED)

    async def _ended(self, job: Job, state: GivingState) -> tuple[Put, ...]:
        row = await self._ledger.store.get(GIVING, job.giving)
        if row is None:
            return ()
        ended = msgspec.structs.replace(row.value, state=state)
        put = Put(GIVING, job.giving, ended, row.version)
        return (put, *await self._ripening(ended)) if state is GivingState.DONE else (put,)

    async def _ripening(self, given: Giving) -> tuple[Put, ...]:
        """What has gone back is not there to ripen any more: as the provider's notice will say."""
        store = self._ledger.store
        deposit = await store.get(DEPOSIT, given.payment)
        known = await store.get(MATURING, deposit.value.account) if deposit else None
        if deposit is None or known is None:
            return ()
        money = await store.get(CARD_MONEY, given.payment)
        gone = given.amount + (money.value.taken if money else 0)
        for one in await self._givings(deposit.value):
            is_another = one.operation_id != given.operation_id
            gone += one.amount if is_another and one.state is GivingState.DONE else 0
        lot = lot_of(deposit.value, gone)
        ripening = with_lot(known.value, lot, self._ledger.clock.now_ns())
        return (Put(MATURING, deposit.value.account, ripening, known.version),)

    # ── which payment ────────────────────────────────────────────────────────────────────────────

    async def _chosen(self, request: RefundRequest) -> _Found | Refusal:
        """The payment that was named, or of the account's the newest that covers the amount, else
        the one with the most left."""
        if request.is_exact:
            return _NO_PAYOUT
        if request.amount <= 0:
            return Refusal(
                "amount_too_small", f"it is less than the smallest part of {request.asset}"
            )
        best: _Found | None = None
        for deposit in await self._payments(request):
            try:
                found = await self._room(deposit)
            except RailRejected:
                continue  # the provider does not know it any more
            except RailUnavailable:
                if best is None:
                    raise
                break
            if best is None or found.room > best.room:
                best = found
            if best.room >= request.amount:
                break
        if best is None or best.room <= 0:
            return _NOTHING_LEFT
        return best

    async def _payments(self, request: RefundRequest) -> list[Deposit]:
        mine: list[Deposit] = []
        after = ""
        for _ in range(_PAGES_MAX):
            page = await self._ledger.store.find(
                DEPOSIT, {"account": request.account}, after=after, limit=_PAGE
            )
            mine += [
                row.value
                for _, row in page
                if row.value.source == self._terms.provider
                and row.value.custody == self._terms.custody(request.asset)
                and row.value.state is DepositState.CREDITED
            ]
            if len(page) < _PAGE:
                break
            after = page[-1][0]
        if request.destination:
            named = await self._named(request.destination)
            mine = [one for one in mine if one.reference == request.destination or one.key in named]
        left: list[tuple[int, Deposit]] = []
        covering = 0
        for deposit in sorted(mine, key=lambda one: one.at, reverse=True):
            # What is known to have gone back takes nobody's place.
            money = await self._ledger.store.get(CARD_MONEY, deposit.key)
            taken = money.value.taken if money else 0
            rest = deposit.amount - _gone(await self._givings(deposit)) - taken
            if rest > 0:
                left.append((rest, deposit))
                covering += rest >= request.amount
            if covering == _ASKED_ABOUT_MAX:
                break
        # Those that cover the amount, the newest first; then those with the most left.
        left.sort(key=lambda one: -min(one[0], request.amount))
        return [deposit for _, deposit in left[:_ASKED_ABOUT_MAX]]

    async def _givings(self, deposit: Deposit) -> list[Giving]:
        rows = await self._ledger.store.find(GIVING, {"payment": deposit.key})
        return [row.value for _, row in rows]

    async def _named(self, deposit_id: str) -> tuple[str, ...]:
        rows = await self._ledger.store.find(DEPOSIT_REQUEST, {"id": deposit_id}, limit=1)
        return rows[0][1].value.deposits if rows else ()

    async def _room(self, deposit: Deposit) -> _Found:
        """What is left of a payment there, without what is under way here."""
        givings = await self._givings(deposit)
        told = await self._connector.sync(deposit.reference)
        if told is None:
            return _Found(deposit, 0, len(givings))
        there = {one.key for one in told.refunds}
        under_way = _gone([one for one in givings if one.operation_id not in there])
        gone = sum(one.amount for one in told.refunds) + max(0, told.disputed) + under_way
        return _Found(deposit, min(deposit.amount, told.captured) - gone, len(givings))


def _gone(givings: Sequence[Giving]) -> int:
    """What went back by our own doing, or is about to."""
    return sum(one.amount for one in givings if one.state in (GivingState.OPEN, GivingState.DONE))


def _amount(request: RefundRequest, found: _Found) -> int:
    return min(request.amount, found.room)


_NO_PAYOUT = Refusal(
    "payout_not_supported",
    "a card is only given back what it has paid: ask for a refund, or pay out another way",
)
_NOTHING_LEFT = Refusal(
    "nothing_to_refund", "no payment of this account is left there that could be given back"
)
