"""Defects of a rail, planted to see whether the seeds would find them."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from farebox.payments import Rejected, Unresolved
from farebox.payments.deposits import Deposit
from farebox.payments.requests import Claimed, DepositRequests
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
        return Claimed(account or request.account, request.credited_msat, opens_account=True)

    return patch.object(DepositRequests, "claim", claim)


def nobody_asks_about_open_deposits() -> AbstractContextManager[object]:
    """What the subscription has missed is found by nobody."""

    async def none(*_: object) -> int:
        return 0

    stack = ExitStack()
    stack.enter_context(patch.object(DepositRequests, "poll", none))
    return stack
