"""Defects of card money, planted to see whether the seeds would find them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from farebox.payments.cards.method import CardMethod
from farebox.rails.stripe import StripeConnector


def a_refund_is_repeated_under_a_new_key() -> AbstractContextManager[object]:
    honest, tries = StripeConnector._ask, iter(range(1 << 40))

    async def ask(self: StripeConnector, method: str, path: str, **params: Any) -> Any:
        if method == "post" and path == "/v1/refunds":
            params["idempotency_key"] += f"-{next(tries)}"
        return await honest(self, method, path, **params)

    async def refund(self: StripeConnector, *args: Any, asked_before: bool) -> Any:
        return await honest_refund(self, *args, asked_before=False)

    honest_refund = StripeConnector.refund
    return patch.multiple(StripeConnector, _ask=ask, refund=refund)


def chargebacks_are_ignored() -> AbstractContextManager[object]:
    honest = StripeConnector.sync

    async def sync(self: StripeConnector, reference: str) -> Any:
        payment = await honest(self, reference)
        return None if payment is None else replace(payment, disputed=0)

    return patch.object(StripeConnector, "sync", sync)


def only_webhooks_are_heard() -> AbstractContextManager[object]:
    async def notices(self: StripeConnector, cursor: str) -> tuple[list[Any], str]:
        return [], cursor or "nothing"

    return patch.object(StripeConnector, "notices", notices)


def each_notice_is_a_payment_of_its_own() -> AbstractContextManager[object]:
    honest, times = CardMethod._sightings, iter(range(1 << 40))

    async def sightings(self: CardMethod, payment: Any) -> Any:
        return [replace(one, index=next(times)) for one in await honest(self, payment)]

    return patch.object(CardMethod, "_sightings", sightings)
