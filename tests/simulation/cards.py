"""A model of a card provider: the contract fake of Stripe, in the hands of chance.

The house talks to it through its own connector and Stripe's SDK. Payers pay and dispute, the
operator refunds in the dashboard, refunds hang and fail; webhooks are lost, come twice and late and
in any order. The list of events has them all.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import stripe

from farebox.testing.asgi import Receive, Scope, Send, drop, respond
from tests.contract.rail.fake_stripe import FakeStripe, fee_of, now_s
from tests.simulation.network import Ask, Lost, Reply

STRIPE: Final = "stripe.sim"
API_KEY: Final = "sk_test_simulated"
WEBHOOK_SECRET: Final = "whsec_simulated"
_DISPUTE_FEE: Final = 1_500
_LIVES_EVERY_S: Final = 3


@dataclass
class CardMoods:
    """How provider, payers and operator behave; the defaults do nothing but pay."""

    chance: Random = field(default_factory=lambda: Random(0))
    #: How often a call is refused for coming too fast, and a webhook lost or sent twice.
    refuses: float = 0
    loses_webhook: float = 0
    repeats_webhook: float = 0
    #: How often a refund hangs at first, and how often one that hung fails.
    hangs: float = 0
    fails: float = 0
    #: How often, every few seconds, a payer disputes and the operator refunds in the dashboard.
    disputes: float = 0
    dashboard: float = 0
    is_down: bool = False

    def happens(self, probability: float) -> bool:
        """Whether it does this time."""
        return probability > 0 and self.chance.random() < probability


class ModelStripe(FakeStripe):
    """One account at Stripe."""

    def __init__(
        self,
        moods: CardMoods,
        tell: Callable[[Ask], Awaitable[Reply]],
        spawn: Callable[[Any], object],
        trace: Callable[[str], None],
    ) -> None:
        """`tell` brings a webhook to the house, `spawn` in a task of its own."""
        super().__init__(api_key=API_KEY, webhook_secret=WEBHOOK_SECRET)
        self.moods = moods
        self._tell = tell
        self._spawn = spawn
        self._trace = trace
        self._told = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.moods.is_down:
            return await drop(send)
        if self.moods.happens(self.moods.refuses):
            return await respond(send, 429, b'{"error": {"code": "rate_limit"}}')
        return await super().__call__(scope, receive, send)

    def _refund(self, given: dict[str, Any]) -> dict[str, Any]:
        refund = super()._refund(given)
        if self.moods.happens(self.moods.hangs):
            refund["status"] = "pending"
        return refund

    # ── what happens at it ───────────────────────────────────────────────────────────────────────

    async def live(self) -> None:
        """Let people do what they do, for ever."""
        while True:
            await asyncio.sleep(self.moods.chance.expovariate(1 / _LIVES_EVERY_S))
            self.step()

    def step(self) -> None:
        """What happens within a few seconds."""
        chance, moods = self.moods.chance, self.moods
        for refund in self.refunds.values():
            if refund["status"] == "pending" and chance.random() < 0.3:
                if moods.happens(moods.fails):
                    self._trace(f"the refund {refund['id'][-6:]} fails")
                    self.undo(refund["id"])
                else:
                    refund["status"] = "succeeded"
        for dispute in list(self.disputes.values()):
            if dispute["status"] == "needs_response" and chance.random() < 0.2:
                self._end(dispute)
        paid = self._paid()
        if paid and moods.happens(moods.disputes):
            self._dispute(chance.choice(paid))
        if paid and moods.happens(moods.dashboard):
            intent = chance.choice(paid)
            amount = min(self.left_of(intent), chance.choice((100, 700)))
            if amount > 0:
                self._trace(f"the operator refunds {amount} of {intent['id'][-6:]} by hand")
                self.give_back(intent["id"], amount)
        self._send_webhooks()

    def _dispute(self, intent: dict[str, Any]) -> None:
        if self.left_of(intent) == intent["amount"] and not intent["latest_charge"]["disputed"]:
            self._trace(f"{intent['id'][-6:]} is disputed")
            self.dispute(intent["id"], intent["amount"], _DISPUTE_FEE)

    def _end(self, dispute: dict[str, Any]) -> None:
        if self.moods.chance.random() < 0.5:
            self.win(dispute["id"])
        else:
            dispute["status"] = "lost"
        self._trace(f"the dispute {dispute['id'][-6:]} is {dispute['status']}")

    def left_of(self, intent: dict[str, Any]) -> int:
        """What of a payment was neither refunded nor is disputed."""
        mine = [
            moved["amount"]
            for dispute in self.disputes.values()
            if dispute["payment_intent"] == intent["id"]
            for moved in dispute["balance_transactions"]
        ]
        back = [
            one["amount"]
            for one in self.refunds.values()
            if one["payment_intent"] == intent["id"] and one["status"] != "failed"
        ]
        return int(intent["amount"] + sum(mine) - sum(back))

    def balance(self) -> int:
        """All that the provider owes the house, in cents."""
        left = sum(self.left_of(one) for one in self._paid())
        return left - self.fees()

    def fees(self) -> int:
        """What it has kept for itself."""
        disputes = self.disputes.values()
        moved = [each for one in disputes for each in one["balance_transactions"]]
        taken = [fee_of(one["amount"]) for one in self._paid()]
        return sum(taken) + sum(int(each["fee"]) for each in moved)

    def _paid(self) -> list[dict[str, Any]]:
        return [one for one in self.intents.values() if one["latest_charge"] is not None]

    # ── webhooks ─────────────────────────────────────────────────────────────────────────────────

    def _send_webhooks(self) -> None:
        fresh = self.events[self._told :]
        self._told = len(self.events)
        self.moods.chance.shuffle(fresh)
        for event in fresh:
            if not self.moods.happens(self.moods.loses_webhook):
                self._spawn(self._deliver(event))
            if self.moods.happens(self.moods.repeats_webhook):
                self._spawn(self._deliver(event))

    async def _deliver(self, event: dict[str, Any]) -> None:
        await asyncio.sleep(self.moods.chance.expovariate(1 / 5))
        body = json.dumps(event)
        header = stripe.WebhookSignature.generate_signature_header(
            body, self.webhook_secret, now_s()
        )
        headers = ((b"stripe-signature", header.encode()), (b"content-type", b"application/json"))
        try:
            await self._tell(Ask("POST", "/v1/webhooks/stripe", headers, body.encode()))
        except Lost:
            self._trace(f"the webhook {event['id'][-6:]} is lost")

    def calm_down(self) -> None:
        """From now on nothing new happens; what hangs comes to its end."""
        self.moods = CardMoods(self.moods.chance, fails=self.moods.fails)
