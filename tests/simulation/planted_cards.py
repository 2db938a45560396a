"""Defects of card money, planted to see whether the seeds would find them."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any, Final
from unittest.mock import patch

from farebox.payments.cards.method import CardMethod
from farebox.payments.cards.model import Decline, Declined, Unknown
from farebox.rails.paypal import PaypalConnector, PaypalLine
from farebox.rails.stripe import StripeConnector

_CONNECTORS: Final[tuple[Any, ...]] = (StripeConnector, PaypalConnector)


def a_refund_is_repeated_under_a_new_key() -> AbstractContextManager[object]:
    tries = iter(range(1 << 40))
    by_stripe, by_paypal = StripeConnector._ask, PaypalLine.ask

    async def ask_stripe(self: StripeConnector, method: str, path: str, **params: Any) -> Any:
        if method == "post" and path == "/v1/refunds":
            params["idempotency_key"] += f"-{next(tries)}"
        return await by_stripe(self, method, path, **params)

    async def ask_paypal(self: PaypalLine, *args: Any, request_id: str = "", **how: Any) -> Any:
        if request_id.startswith("refund-"):
            request_id += f"-{next(tries)}"
        return await by_paypal(self, *args, request_id=request_id, **how)

    def forgetful(honest: Any) -> Any:
        async def refund(self: Any, *args: Any, asked_before: bool) -> Any:
            return await honest(self, *args, asked_before=False)

        return refund

    stack = ExitStack()
    stack.enter_context(patch.object(StripeConnector, "_ask", ask_stripe))
    stack.enter_context(patch.object(PaypalLine, "ask", ask_paypal))
    for kind in _CONNECTORS:
        stack.enter_context(patch.object(kind, "refund", forgetful(kind.refund)))
    return stack


def chargebacks_are_ignored() -> AbstractContextManager[object]:
    def blind(honest: Any) -> Any:
        async def sync(self: Any, reference: str) -> Any:
            payment = await honest(self, reference)
            return None if payment is None else replace(payment, disputed=0)

        return sync

    stack = ExitStack()
    for kind in _CONNECTORS:
        stack.enter_context(patch.object(kind, "sync", blind(kind.sync)))
    return stack


def only_webhooks_are_heard() -> AbstractContextManager[object]:
    async def notices(self: Any, cursor: str) -> tuple[list[Any], str]:
        return [], cursor or "nothing"

    stack = ExitStack()
    for kind in _CONNECTORS:
        stack.enter_context(patch.object(kind, "notices", notices))
    return stack


def each_notice_is_a_payment_of_its_own() -> AbstractContextManager[object]:
    honest, times = CardMethod._sightings, iter(range(1 << 40))

    async def sightings(self: CardMethod, payment: Any) -> Any:
        return [replace(one, index=next(times)) for one in await honest(self, payment)]

    return patch.object(CardMethod, "_sightings", sightings)


def a_lost_answer_leads_to_the_next_card() -> AbstractContextManager[object]:
    def hasty(honest: Any) -> Any:
        async def authorise(self: Any, order: Any, *, asked_before: bool) -> Any:
            told = await honest(self, order, asked_before=asked_before)
            if isinstance(told, Unknown):
                return Declined(Decline.TECHNICAL, "no_answer", "another may have one")
            return told

        return authorise

    stack = ExitStack()
    for kind in _CONNECTORS:
        stack.enter_context(patch.object(kind, "authorise", hasty(kind.authorise)))
    return stack
