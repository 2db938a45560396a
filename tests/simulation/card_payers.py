"""Callers who pay by card, at a link of the provider's or by a card that is stored there, and are
given back what they have paid."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from tests.simulation.callers import Act, bearer, post, read_json
from tests.simulation.cards import ModelProvider
from tests.simulation.depositors import Asked, RailCaller
from tests.simulation.network import Ask, Reply

MSAT_PER_CENT: Final = 10_000
_METHODS: Final = "/v1/payment-methods"
_CHARGE: Final = f"{_METHODS}/charge"
_STORED_MOST: Final = 4


class CardPayer(RailCaller):
    """One of them."""

    amounts_msat = (5_000_000, 12_340_000, 60_000_000)
    filling_msat = 60_000_000
    small_msat = 2 * MSAT_PER_CENT
    #: A refund is of one payment, and there may be many.
    emptyings_max = 300
    provider: ModelProvider

    def enrol(self, provider: ModelProvider, charges: float) -> None:
        """Say where to pay, and how often to have a stored card charged."""
        self.provider, self.way = provider, provider.dialect.provider
        self._charges = charges
        #: The house's names for the cards that each key has stored, as far as one was told.
        self.stored: dict[str, list[str]] = {}

    def _acts(self) -> tuple[Act, ...]:
        acts = super()._acts()
        if not self._charges:
            return acts
        often = (self._charge,) * round(len(acts) * self._charges)
        return (*acts, *often, self._store, self._change_stored)

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

    # ── stored cards ─────────────────────────────────────────────────────────────────────────────

    async def _store(self) -> None:
        if not self.keys:
            return await self._create()
        await self._store_at(self._chance.choice(self.keys))
        return None

    async def _store_at(self, key: str) -> None:
        dialect = self.provider.dialect
        if len(self.stored.get(key, ())) >= _STORED_MOST:
            return
        body = {"provider": self.way, "token": dialect.card(self._chance.choice(dialect.kinds))}
        made = await self._patiently(post(_METHODS, body, bearer(key)))
        if made.status == 201:
            self._trace(f"{self.name} stores {body['token']}")
            self.stored.setdefault(key, []).append(read_json(made)["payment_method"])

    async def _charge(self) -> None:
        """By the card that is named, or by whichever takes it."""
        if not self.keys:
            return await self._create()
        key = self._chance.choice(self.keys)
        if not self.stored.get(key):
            await self._store_at(key)
        cents = self._chance.choice((500, 1_234, 6_000))
        body: dict[str, Any] = {"asset": "USD", "amount": cents}
        if self.stored.get(key) and self._chance.random() < 0.3:
            body["payment_method"] = self._chance.choice(self.stored[key])
        await self._named(post(_CHARGE, body, bearer(key), self._name()))
        return None

    async def _change_stored(self) -> None:
        """Have another charged first, or drop one, perhaps while it is being charged."""
        if not self.stored:
            return await self._store()
        key = self._chance.choice(list(self.stored))
        if not self.stored[key]:
            return None
        name = self._chance.choice(self.stored[key])
        if self._chance.random() < 0.7:
            await self._patiently(post(f"{_METHODS}/{name}/default", {}, bearer(key)))
            return None
        self.stored[key].remove(name)
        await self._patiently(Ask("DELETE", f"{_METHODS}/{name}", (bearer(key),)))
        return None

    async def _hear(self, ask: Ask) -> Reply:
        reply = await super()._hear(ask)
        if ask.target == _CHARGE and reply.status == 200:
            told = read_json(reply)
            self.told.operations[told["operation"]] = told["amount_msat"]
        return reply
