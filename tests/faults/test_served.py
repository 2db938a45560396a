"""`farebox serve` itself, killed at random moments while every way to it and from it breaks.

Every caller is told in the end what he was charged, and the sum of that is what was earned.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.acceptance.world import Mint
from tests.faults.proxy import FaultProxy, Side, Strike, What, nothing, seeded
from tests.faults.served import PRICE_SAT, House, Money, NutshellMoney, Peer, PlayMoney
from tests.faults.test_storm import SEED
from tests.peers.nutshell import Nutshell

_CALLERS = 3
_KILLS = 2
_TOKENS = 60
_SHARE = 0.08
#: A black hole would cost each caller half a minute here.
_STRIKES = tuple(
    Strike(what, side, at, seconds=0.1)
    for what in What
    if what is not What.BLACK_HOLE
    for side in Side
    for at in (0, 30, 150)
)


@pytest.mark.slow
async def test_what_callers_are_told_to_be_charged_is_what_was_earned(tmp_path: Path) -> None:
    """Mint and upstream are killed as well."""
    state = str(tmp_path / "mint.state")
    mint = Peer("farebox.testing.mint", "/v1/info", tmp_path, "--state", state)
    upstream = Peer("farebox.testing.upstream", "/echo", tmp_path)
    for peer in (mint, upstream):
        peer.start()
    try:
        money = partial(PlayMoney, Mint(mint.url))
        await _storm(mint.url, money, upstream.url, tmp_path, (mint, upstream))
    finally:
        for peer in (mint, upstream):
            peer.kill()


@pytest.mark.slow
@pytest.mark.peer
async def test_the_same_holds_at_a_nutshell_mint(
    nutshell: Nutshell, upstream: str, tmp_path: Path
) -> None:
    await _storm(nutshell.url, partial(NutshellMoney, nutshell), upstream, tmp_path, ())


async def _storm(
    mint_url: str,
    money_at: Callable[[str], Money],
    upstream: str,
    folder: Path,
    peers: Sequence[Peer],
) -> None:
    seed = os.environ.get(SEED) or str(random.SystemRandom().randrange(1_000_000))
    async with (
        FaultProxy(mint_url) as to_mint,
        FaultProxy(upstream) as to_upstream,
        FaultProxy("") as to_house,
    ):
        flags = ("--upstream", to_upstream.url, "--mint", to_mint.url)
        house = House(
            folder,
            (*flags, "--price", f"{PRICE_SAT} sat", "--data", "data"),
            await asyncio.to_thread(money_at, to_mint.url),
            door=to_house.url,
        )
        try:
            to_house.target = (await asyncio.to_thread(house.start)).url
            proxies = (to_mint, to_upstream, to_house)
            for number, proxy in enumerate(proxies):
                proxy.plan = seeded(f"{seed}:{number}", _STRIKES, _SHARE)
            storm = _Storm(house, to_house, peers, random.Random(seed))
            callers = await storm.rage()
            for proxy in proxies:
                proxy.plan = nothing
            told_msat = sum(await asyncio.gather(*callers))
            balance = await asyncio.to_thread(house.prove)
            assert balance["revenue_msat"] == told_msat
        except BaseException as error:
            error.add_note(f"{SEED}={seed}")
            raise
        finally:
            await asyncio.to_thread(house.stop)


class _Storm:
    """Callers with tokens in their hands, and processes that are killed under them."""

    def __init__(
        self, house: House, to_house: FaultProxy, peers: Sequence[Peer], chance: random.Random
    ) -> None:
        self._house = house
        self._to_house = to_house
        self._peers = peers
        self._chance = chance
        self._tokens: list[str] = []
        self._is_over = False

    async def rage(self) -> list[asyncio.Task[int]]:
        """Kill often enough; gives what each caller will be told to be charged."""
        for _ in range(_TOKENS):
            self._tokens.append(await asyncio.to_thread(self._house.token, 64))
        callers = [asyncio.create_task(self._caller()) for _ in range(_CALLERS)]
        for _ in range(_KILLS):
            await asyncio.sleep(self._chance.uniform(0.5, 1.5))
            await asyncio.to_thread(self._kill_one_more)
            self._to_house.target = (await asyncio.to_thread(self._house.start)).url
        await asyncio.sleep(1)
        self._is_over = True
        return callers

    def _kill_one_more(self) -> None:
        """The server, and one of those that it needs."""
        self._house.kill()
        if self._peers:
            peer = self._chance.choice(self._peers)
            peer.kill()
            peer.start()

    async def _caller(self) -> int:
        charged_msat = 0
        while self._tokens and not self._is_over:
            charged_msat += await asyncio.to_thread(self._house.pays, self._tokens.pop())
        return charged_msat
