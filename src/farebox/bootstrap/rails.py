"""The rails beside eCash that the settings name: opened here, each closed again by the stack."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp

from farebox.bootstrap.bitcoin import open_bitcoin
from farebox.bootstrap.cards import open_cards
from farebox.bootstrap.lightning import open_lightning
from farebox.errors import InvalidSettings
from farebox.ledger.processes import Processes
from farebox.ledger.service import Ledger
from farebox.payments.cards.method import CardMethod
from farebox.payments.exchange import Exchange
from farebox.payments.operations import Operations
from farebox.payments.rail import DepositMethod
from farebox.settings import Settings
from farebox.worker import Job


@dataclass(frozen=True, slots=True)
class Rail:
    """An open rail: what puts its accounts into the books, and its own jobs, where it has any."""

    method: DepositMethod
    start: Callable[[], Awaitable[None]] | None = None
    jobs: tuple[Job, ...] = ()


@dataclass(frozen=True, slots=True)
class Ground:
    """What rails stand on. `session` goes where the operator says, `guarded` where strangers do."""

    ledger: Ledger
    operations: Operations
    processes: Processes
    exchange: Exchange
    session: aiohttp.ClientSession
    guarded: aiohttp.ClientSession
    public_url: str


async def open_rails(settings: Settings, ground: Ground, closing: AsyncExitStack) -> list[Rail]:
    """All that the settings name, in the order they are asked in. Raises InvalidSettings."""
    rails: list[Rail] = []
    lightning = await open_lightning(settings.lightning, ground.ledger, ground.guarded, closing)
    if lightning is not None:
        rails.append(Rail(lightning, lightning.start))
    bitcoin = open_bitcoin(settings, ground.ledger, ground.operations, closing.push_async_callback)
    if bitcoin is not None:
        rails.append(Rail(bitcoin, bitcoin.start))
    rails += await _open_chains(settings, ground, closing)
    cards = open_cards(settings, ground.session, ground.ledger, ground.public_url)
    return rails + [Rail(card) for card in cards]


async def _open_chains(settings: Settings, ground: Ground, closing: AsyncExitStack) -> list[Rail]:
    """The EVM chains; their libraries are loaded only for them."""
    if not settings.evm:
        return []
    try:
        from farebox.bootstrap.evm import open_chains
    except ImportError:
        allowed = "`pip install 'farebox[evm]'` first, or leave it out"
        raise InvalidSettings("evm", settings.evm[0].name, allowed) from None
    chains = await open_chains(settings.evm, ground, closing)
    return [Rail(one.method, one.method.start, one.jobs) for one in chains]


def card_methods(rails: Iterable[Rail]) -> dict[str, CardMethod]:
    """Those of them whose money a card provider keeps."""
    cards = (rail.method for rail in rails if isinstance(rail.method, CardMethod))
    return {card.payment_type: card for card in cards}
