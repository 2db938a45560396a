"""Defects of the EVM rail, planted to see whether the seeds would find them."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest.mock import patch

import msgspec

from farebox.rails.evm import arrivals, payouts
from farebox.rails.evm.arrivals import Arrivals
from farebox.rails.evm.authorizations import Authorizations
from farebox.rails.evm.claims import Claims
from farebox.rails.evm.outbox import IntentState, SlotState
from farebox.rails.evm.payouts import Payouts
from farebox.rails.evm.records import Arrival, Presence
from farebox.rails.evm.scan import TRANSFER
from farebox.rails.evm.sending import Sending
from tests.simulation import callers


def a_transfer_that_moved_in_its_block_is_another() -> AbstractContextManager[object]:
    """It is named by the node's own number for it, and is there as long as its transaction is."""
    honest = Arrivals._by_event

    async def by_event(self: Arrivals, events: Any, known: Any) -> list[Arrival]:
        found = await honest(self, events, known)
        numbers = {(one.transaction_hash, one.value): int(one.log_index) for one in events}
        return [
            msgspec.structs.replace(one, index=1 + numbers[one.transaction, one.amount])
            for one in found
        ]

    async def look_again(self: Arrivals, head: Any) -> None:
        for _, row in await self._rows(Presence.SEEN):
            if not await self._scan.receipts([row.value.transaction]):
                await self._put([(row.version, arrivals.vanished(row.value))])
        self._checked = head

    stack = ExitStack()
    stack.enter_context(patch.object(Arrivals, "_by_event", by_event))
    stack.enter_context(patch.object(Arrivals, "_look_again", look_again))
    return stack


def what_leaves_the_chain_stays_credited() -> AbstractContextManager[object]:
    async def look_again(self: Arrivals, head: Any) -> None:
        self._checked = head

    return patch.object(Arrivals, "_look_again", look_again)


def what_is_in_no_block_is_sent_under_another_nonce() -> AbstractContextManager[object]:
    honest = Payouts._follow

    async def follow(self: Payouts, job: Any, intent: Any) -> Any:
        told = await honest(self, job, intent)
        slot = await self._sending.slot(intent.value.slot)
        if slot is not None and slot.state is SlotState.SENT:
            await self._change(job.operation_id, IntentState.SENT, state=IntentState.WAITING)
        return told

    stack = ExitStack()
    stack.enter_context(patch.object(Payouts, "_follow", follow))
    # Nobody is ever told: so many tries are enough for an honest house.
    stack.enter_context(patch.object(callers, "_TRIES_IN_CALM", 14))
    return stack


def only_the_newest_offer_is_followed() -> AbstractContextManager[object]:
    honest = Sending._seen

    async def seen(self: Sending, slot: Any) -> Any:
        return await honest(self, msgspec.structs.replace(slot, attempts=slot.attempts[-1:]))

    return patch.object(Sending, "_seen", seen)


def what_a_batch_could_not_pay_counts_as_paid() -> AbstractContextManager[object]:
    stack = ExitStack()
    stack.enter_context(patch.object(payouts, "failed_items", lambda *_: frozenset()))
    stack.enter_context(patch.object(payouts, "_has_arrived", lambda *_: True))
    return stack


def a_claim_takes_what_others_paid_in_the_same_transaction() -> AbstractContextManager[object]:
    honest = Claims._paid

    def paid(self: Claims, payer: str, sent: Any, placed: Any) -> dict[str, int]:
        found = honest(self, payer, sent, placed)
        payers = {one.payer for one in placed.logs if one.topics[:1] == (TRANSFER,)}
        others = (honest(self, one, sent, placed) for one in payers - {payer.lower()})
        return {token: found[token] + sum(one.get(token, 0) for one in others) for token in found}

    return patch.object(Claims, "_paid", paid)


def a_transfer_that_a_stranger_was_quicker_with_never_came() -> AbstractContextManager[object]:
    async def elsewhere(self: Authorizations, job: Any) -> None:
        return None

    return patch.object(Authorizations, "_elsewhere", elsewhere)
