"""A model of a card provider: one account there, in the hands of chance, in a dialect of its own.

The house talks to it through its own connector. Payers pay and dispute, the operator refunds in the
dashboard, refunds hang and fail; webhooks are lost, come twice and late and in any order. The list
of events has them all. Money and chance are the same everywhere and are here; how a provider writes
them down and tells them (Stripe's, PayPal's contract fake) is its dialect's.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Protocol

from farebox.testing.asgi import Receive, Scope, Send, drop, respond
from tests.simulation.network import Ask, Lost, Reply

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
    #: How often a payer's card declines at first what was agreed to, or a charge of it.
    declines: float = 0
    #: How often a refund or a payment hangs at first, and one that hung fails.
    hangs: float = 0
    fails: float = 0
    #: How often, every few seconds, a payer disputes and the operator refunds in the dashboard.
    disputes: float = 0
    dashboard: float = 0
    is_down: bool = False

    def happens(self, probability: float) -> bool:
        """Whether it does this time."""
        return probability > 0 and self.chance.random() < probability


# ── what lies at a provider, in nobody's dialect; amounts are in cents ───────────────────────────


@dataclass(frozen=True, slots=True)
class Taken:
    """A payment that was taken. `order` is the house's name for what it is for."""

    name: str
    order: str
    amount: int
    fee: int


class BackState(enum.Enum):
    """How a refund stands."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Back:
    """A refund of a payment. `key` is the operation of the house that asked for it, or ""."""

    name: str
    payment: str
    amount: int
    key: str
    state: BackState


@dataclass(frozen=True, slots=True)
class Disputed:
    """A dispute: what it has withdrawn less what it gave again, and what it cost."""

    name: str
    payment: str
    withdrawn: int
    fees: int
    is_open: bool


class Dialect(Protocol):
    """A provider's account as the provider writes it down and tells it."""

    #: "stripe", "paypal": the way to pay, and the place in the books.
    provider: str
    host: str
    events: list[dict[str, Any]]
    #: The kinds of cards that payers have stored, by how charges of them fare.
    kinds: tuple[str, ...]
    #: What chance makes of the call that is being carried out.
    hangs: Callable[[], bool]
    declines: Callable[[], bool]
    fails: Callable[[], bool]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Its API."""

    def taken(self) -> list[Taken]:
        """All payments that were taken."""
        ...

    def agreed(self) -> list[str]:
        """The house's names for what payers have agreed to pay, and it has not taken yet."""
        ...

    def card(self, kind: str) -> str:
        """The provider's name for a new card of a kind, as a payer's browser has it."""
        ...

    def stuck(self) -> list[str]:
        """Names of payments that wait for the provider or for the payer."""
        ...

    def go_on(self, name: str) -> None:
        """One of those: it is taken, or fails, or the payer agrees."""

    def given_back(self) -> list[Back]:
        """All refunds."""
        ...

    def disputed(self) -> list[Disputed]:
        """All disputes."""
        ...

    def pay(self, link: str) -> str:
        """A payer does what the link is for; gives a name of what was paid."""
        ...

    def give(self, payment: str, cents: int) -> None:
        """The operator refunds past the house."""

    def end_refund(self, back: Back, *, fails: bool) -> None:
        """One that hung is carried out, or its money comes back."""

    def take(self, payment: str, cents: int, fee: int) -> None:
        """A payer disputes."""

    def end_dispute(self, dispute: Disputed, *, is_won: bool) -> None:
        """The house is given the money again, or not."""

    def webhook(self, event: dict[str, Any]) -> Ask:
        """An event as the house is told of it."""
        ...

    def tire(self) -> None:
        """What lets the house in has ended, where it does end."""


class ModelProvider:
    """One account at a provider, and what happens there."""

    def __init__(
        self,
        dialect: Dialect,
        moods: CardMoods,
        tell: Callable[[Ask], Awaitable[Reply]],
        spawn: Callable[[Any], object],
        trace: Callable[[str], None],
    ) -> None:
        """`tell` brings a webhook to the house, `spawn` in a task of its own."""
        self.dialect = dialect
        self.moods = moods
        self._tell = tell
        self._spawn = spawn
        self._trace = trace
        self._told = 0
        dialect.hangs = lambda: self.moods.happens(self.moods.hangs)
        dialect.declines = lambda: self.moods.happens(self.moods.declines)
        dialect.fails = lambda: self.moods.happens(self.moods.fails)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.moods.is_down:
            return await drop(send)
        if self.moods.happens(self.moods.refuses):  # perhaps a copy of what was carried out
            return await respond(send, 429, b'{"error": {"code": "rate_limit"}}')
        return await self.dialect(scope, receive, send)

    # ── what happens at it ───────────────────────────────────────────────────────────────────────

    async def live(self) -> None:
        """Let people do what they do, for ever."""
        while True:
            await asyncio.sleep(self.moods.chance.expovariate(1 / _LIVES_EVERY_S))
            self.step()

    def step(self) -> None:
        """What happens within a few seconds."""
        chance, moods, dialect = self.moods.chance, self.moods, self.dialect
        for name in dialect.stuck():
            if chance.random() < 0.15:
                self._trace(f"the payment {name[-6:]} goes on")
                dialect.go_on(name)
        for back in dialect.given_back():
            if back.state is BackState.PENDING and chance.random() < 0.3:
                fails = moods.happens(moods.fails)
                if fails:
                    self._trace(f"the refund {back.name[-6:]} fails")
                dialect.end_refund(back, fails=fails)
        for dispute in dialect.disputed():
            if dispute.is_open and chance.random() < 0.2:
                is_won = chance.random() < 0.5
                dialect.end_dispute(dispute, is_won=is_won)
                self._trace(f"the dispute {dispute.name[-6:]} is {'won' if is_won else 'lost'}")
        paid = dialect.taken()
        if paid and moods.happens(moods.disputes):
            self._dispute(chance.choice(paid))
        if paid and moods.happens(moods.dashboard):
            one = chance.choice(paid)
            amount = min(self._left_of(one), chance.choice((100, 700)))
            if amount > 0:
                self._trace(f"the operator refunds {amount} of {one.name[-6:]} by hand")
                dialect.give(one.name, amount)
        if moods.happens(moods.refuses):
            dialect.tire()
        self._send_webhooks()

    def _dispute(self, paid: Taken) -> None:
        if self._left_of(paid) == paid.amount and not self._was_disputed(paid):
            self._trace(f"{paid.name[-6:]} is disputed")
            self.dialect.take(paid.name, paid.amount, _DISPUTE_FEE)

    def _was_disputed(self, paid: Taken) -> bool:
        return any(one.payment == paid.name for one in self.dialect.disputed())

    # ── its money ────────────────────────────────────────────────────────────────────────────────

    def _left_of(self, paid: Taken) -> int:
        """What of a payment was neither refunded nor is disputed."""
        disputes, backs = self.dialect.disputed(), self.dialect.given_back()
        gone = sum(one.withdrawn for one in disputes if one.payment == paid.name)
        return paid.amount - gone - sum(_gone(one) for one in backs if one.payment == paid.name)

    def balance(self) -> int:
        """All that the provider owes the house."""
        gone = sum(one.withdrawn for one in self.dialect.disputed())
        back = sum(map(_gone, self.dialect.given_back()))
        return sum(one.amount for one in self.dialect.taken()) - gone - back - self.fees()

    def fees(self) -> int:
        """What it has kept for itself."""
        kept = sum(one.fee for one in self.dialect.taken())
        return kept + sum(one.fees for one in self.dialect.disputed())

    # ── webhooks ─────────────────────────────────────────────────────────────────────────────────

    def _send_webhooks(self) -> None:
        fresh = self.dialect.events[self._told :]
        self._told = len(self.dialect.events)
        self.moods.chance.shuffle(fresh)
        for event in fresh:
            if not self.moods.happens(self.moods.loses_webhook):
                self._spawn(self._deliver(event))
            if self.moods.happens(self.moods.repeats_webhook):
                self._spawn(self._deliver(event))

    async def _deliver(self, event: dict[str, Any]) -> None:
        await asyncio.sleep(self.moods.chance.expovariate(1 / 5))
        try:
            await self._tell(self.dialect.webhook(event))
        except Lost:
            self._trace(f"the webhook {event['id'][-6:]} is lost")

    def calm_down(self) -> None:
        """From now on nothing new happens; what hangs comes to its end."""
        self.moods = CardMoods(self.moods.chance, fails=self.moods.fails)


def _gone(back: Back) -> int:
    return 0 if back.state is BackState.FAILED else back.amount
