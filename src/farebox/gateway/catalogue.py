"""What can be bought here: the upstreams' models with our prices, and prices read from theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec
import structlog

from farebox.clock import Clock
from farebox.errors import InvalidInput, RailUnavailable
from farebox.gateway.exchange import Outgoing
from farebox.gateway.upstream import Upstream, Upstreams
from farebox.paywall.model import Answer
from farebox.paywall.prices import Prices
from farebox.pricing.model import Rule
from farebox.pricing.models import (
    DOCUMENT_MAX_BYTES,
    UpstreamModels,
    models_document,
    read_models,
)

_log = structlog.get_logger("farebox.gateway")

_PATH: Final = "/v1/models"
#: What upstreams list is asked anew after this long, also where they had no list.
_FRESH_S: Final = 60
_TIMEOUT_S: Final = 15


class _Shown(msgspec.Struct):
    data: list[msgspec.Raw]


class Catalogue:
    """The models of all upstreams. Prices in the settings go before those that upstreams state."""

    def __init__(
        self, upstreams: Upstreams, prices: Prices, clock: Clock, rules: Sequence[Rule]
    ) -> None:
        """`rules` are the settings' own."""
        self._upstreams = upstreams
        self._prices = prices
        self._clock = clock
        self._rules = tuple(rules)
        self._lists: dict[Upstream, UpstreamModels] = {}
        self._read_at_s: float | None = None
        self._reading = asyncio.Lock()

    async def answer(self, path: str) -> Answer | None:
        """The list of models, or one of them; None where this path is no such thing."""
        if path != _PATH and not path.startswith(_PATH + "/"):
            return None
        await self._read_if_due()
        name = path[len(_PATH) + 1 :]
        entries = [
            entry
            for listed in self._lists.values()
            for entry in listed.entries
            if not name or entry.get("id") == name
        ]
        book, rates = self._prices.book, self._prices.rates
        body = models_document(entries, book, rates, self._clock.now_ns())
        if name or not entries:
            shown = msgspec.json.decode(body, type=_Shown).data
            if not shown:
                return None
            body = bytes(shown[0])
        headers = (
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        )
        return Answer(200, headers, body)

    async def refresh(self) -> int:
        """Read all lists now, price by them what the settings do not; returns how many models.

        An upstream that cannot be read keeps the prices it had.
        """
        async with self._reading:
            return await self._read_all()

    async def _read_if_due(self) -> None:
        async with self._reading:
            now_s = asyncio.get_running_loop().time()
            if self._read_at_s is None or now_s - self._read_at_s >= _FRESH_S:
                await self._read_all()

    async def _read_all(self) -> int:
        await asyncio.gather(*map(self._read, self._upstreams.all))
        self._read_at_s = asyncio.get_running_loop().time()
        stated = [
            rule
            for upstream, listed in self._lists.items()
            if upstream.states_prices
            for rule in listed.rules
        ]
        rules = (*self._rules, *stated)
        if rules != self._prices.book.rules:
            self._prices.book = self._prices.book.with_rules(rules)
        return sum(len(listed.entries) for listed in self._lists.values())

    async def _read(self, upstream: Upstream) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                document = await self._fetch(upstream)
            path = f"{upstream.path}/*" if upstream.path else "*"
            self._lists[upstream] = read_models(document, path=path)
        except (RailUnavailable, TimeoutError, InvalidInput) as error:
            _log.info("models.unread", upstream=upstream.path or "/", why=str(error))

    async def _fetch(self, upstream: Upstream) -> bytes:
        headers = upstream.headers((), is_metered=True)
        outgoing = Outgoing("GET", upstream.path + _PATH, headers, b"")
        exchange = await self._upstreams.open(upstream, outgoing)
        try:
            if exchange.status != 200:
                raise InvalidInput(f"it answered {exchange.status}")
            document = bytearray()
            while piece := await exchange.read():
                document += piece
                if len(document) > DOCUMENT_MAX_BYTES:
                    raise InvalidInput("the list is too large")
            return bytes(document)
        finally:
            exchange.close()
