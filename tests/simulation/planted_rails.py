"""Defects of a rail, planted to see whether the seeds would find them."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from farebox.payments import Rejected, Unresolved
from farebox.payments.deposits import Deposit, DepositState
from farebox.payments.requests import Claimed, DepositRequests
from farebox.rails.bitcoin import arrivals
from farebox.rails.bitcoin.arrivals import Arrivals
from farebox.rails.bitcoin.batches import Batches, winner
from farebox.rails.bitcoin.chain import View
from farebox.rails.bitcoin.config import BitcoinConfig
from farebox.rails.bitcoin.records import BATCH, Batch
from farebox.rails.lightning.paying import Paying


def a_payment_in_flight_counts_as_failed() -> AbstractContextManager[object]:
    honest = Paying.pay

    async def pay(self: Paying, payload: bytes, *, asked_before: bool) -> Any:
        end = await honest(self, payload, asked_before=asked_before)
        return Rejected("payment_failed", "it takes long") if isinstance(end, Unresolved) else end

    return patch.object(Paying, "pay", pay)


def a_failed_payment_is_believed_at_once() -> AbstractContextManager[object]:
    honest = Paying.pay

    async def pay(self: Paying, payload: bytes, *, asked_before: bool) -> Any:
        end = await honest(self, payload, asked_before=asked_before)
        return replace(end, vague=False) if isinstance(end, Rejected) else end

    return patch.object(Paying, "pay", pay)


def every_sighting_is_a_deposit_of_its_own() -> AbstractContextManager[object]:
    seen = DepositRequests.seen
    times = iter(range(1 << 40))

    async def seen_anew(self: DepositRequests, method: str, sighting: Any) -> Deposit | None:
        return await seen(self, method, replace(sighting, index=next(times)))

    return patch.object(DepositRequests, "seen", seen_anew)


def whoever_hands_in_an_invoice_has_its_money() -> AbstractContextManager[object]:
    async def claim(
        self: DepositRequests, method: str, reference: str, *, account: str = "", secret: str = ""
    ) -> Any:
        request = await self.by_reference(method, reference)
        if request is None:
            return Rejected("deposit_unknown", "not ours")
        request = await self.look(request)
        to = account or request.account
        return Claimed(to, request.credited_msat, opens_account=True, asset=request.asset)

    return patch.object(DepositRequests, "claim", claim)


def nobody_asks_about_open_deposits() -> AbstractContextManager[object]:
    """What the subscription has missed is found by nobody."""

    async def none(*_: object) -> int:
        return 0

    stack = ExitStack()
    stack.enter_context(patch.object(DepositRequests, "poll", none))
    return stack


# ── on the chain ─────────────────────────────────────────────────────────────────────────────────


def what_leaves_the_chain_stays_credited() -> AbstractContextManager[object]:
    honest = arrivals.judged

    def judged(booked: DepositState | None, depth: int, needed: int) -> DepositState | None:
        told = honest(booked, depth, needed)
        return None if told is DepositState.REVERSED else told

    async def gone(*_: object) -> None:
        return None

    stack = ExitStack()
    stack.enter_context(patch.object(arrivals, "judged", judged))
    stack.enter_context(patch.object(Arrivals, "_gone", gone))
    return stack


def one_block_is_enough_for_any_value() -> AbstractContextManager[object]:
    return patch.object(BitcoinConfig, "confirmations", lambda *_: 1)


def a_block_that_comes_back_counts_no_more() -> AbstractContextManager[object]:
    def where(booked: Deposit | None, block: Any, told: DepositState) -> str:
        if booked is not None and told is DepositState.REVERSED:
            return booked.seen_in
        return "" if block is None else str(block.hash)

    return patch.object(arrivals, "where", where)


def a_payment_that_the_pool_forgot_leaves_anew() -> AbstractContextManager[object]:
    async def is_dead(_: Batches, batch: Batch, view: View) -> bool:
        return winner(batch, view) == (None, None)

    return patch.object(Batches, "_is_dead", is_dead)


def a_payment_is_over_once_it_is_sent() -> AbstractContextManager[object]:
    honest = Batches.attempt

    async def attempt(self: Batches, operation: Any, *, asked_before: bool) -> Any:
        end = await honest(self, operation, asked_before=asked_before)
        row = await self._ledger.store.get(BATCH, operation.id)
        if isinstance(end, Unresolved) and row is not None:
            return await self._paid(row, operation.id, row.value.tries[-1])
        return end

    return patch.object(Batches, "attempt", attempt)
