"""Callers who pay by card, at a link of the provider's, and are given back what they have paid."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from tests.simulation.callers import bearer, post
from tests.simulation.cards import ModelProvider
from tests.simulation.depositors import Asked, RailCaller

MSAT_PER_CENT: Final = 10_000


class CardPayer(RailCaller):
    """One of them."""

    amounts_msat = (5_000_000, 12_340_000, 60_000_000)
    filling_msat = 60_000_000
    small_msat = 2 * MSAT_PER_CENT
    #: A refund is of one payment, and there may be many.
    emptyings_max = 300
    provider: ModelProvider

    def enrol(self, provider: ModelProvider) -> None:
        """Say where to pay."""
        self.provider, self.way = provider, provider.dialect.provider

    def _order(self, amount_msat: int | None) -> dict[str, Any]:
        cents = (amount_msat or self.filling_msat) // MSAT_PER_CENT
        return {"method": self.way, "asset": "USD", "amount": str(cents)}

    def _outs(self) -> list[dict[str, Any]]:
        return [{"method": "cashu"}, {"method": self.way}]

    async def _pay(self, asked: Asked) -> None:
        if asked.paid_msat or asked.amount_msat is None:
            return
        asked.paid_msat = asked.amount_msat
        self._trace(f"{self.name} pays {self.provider.dialect.pay(asked.text)[-6:]}")

    async def collect(self) -> None:
        """Once what was paid has come to its end at the provider: until then it is not paid."""
        while self.provider.dialect.stuck():  # noqa: ASYNC110 - in simulated time
            await asyncio.sleep(5)
        await super().collect()

    async def _send(self) -> None:
        if not self.keys:
            return await self._create()
        key = self._chance.choice(self.keys)
        if self._chance.random() < self._fills:
            await self._fill(key)
        body: dict[str, Any] = {"method": self.way}
        body["amount_msat"] = self._chance.choice((1_000_000, 3_210_000, 70_000_000))
        if self._chance.random() < 0.1:
            body["dry_run"] = True
        await self._named(post("/v1/refunds", body, bearer(key), self._name()))
        return None
