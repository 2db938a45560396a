"""`farebox serve` itself, killed at random moments while every way to it and from it breaks.

Every caller is told in the end what he was charged, and the sum of that is what was earned.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.world import Mint
from tests.faults.proxy import FaultProxy, Side, Strike, What, nothing, seeded
from tests.faults.served import PRICE_SAT, House, Money, NutshellMoney, PlayMoney
from tests.faults.test_storm import SEED
from tests.peers.nutshell import Nutshell

_CALLERS = 3
_KILLS = 2
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
async def test_what_callers_are_told_to_be_charged_is_what_was_earned(
    mint: Mint, upstream: str, tmp_path: Path
) -> None:
    await _storm(mint.url, lambda url: PlayMoney(mint, url), upstream, tmp_path)


@pytest.mark.slow
@pytest.mark.peer
async def test_the_same_holds_at_a_real_mint(
    nutshell: Nutshell, upstream: str, tmp_path: Path
) -> None:
    await _storm(nutshell.url, lambda url: NutshellMoney(nutshell, url), upstream, tmp_path)


async def _storm(
    mint_url: str, money_at: Callable[[str], Money], upstream: str, folder: Path
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
            told_msat = await _callers(house, to_house, random.Random(seed), proxies)
            balance = await asyncio.to_thread(house.prove)
            assert balance["revenue_msat"] == told_msat
        except BaseException as error:
            error.add_note(f"{SEED}={seed}")
            raise
        finally:
            await asyncio.to_thread(house.stop)


async def _callers(
    house: House, to_house: FaultProxy, chance: random.Random, proxies: tuple[FaultProxy, ...]
) -> int:
    """What all of them were told to be charged, once the server has been killed often enough."""
    over = asyncio.Event()

    async def caller() -> int:
        charged_msat = 0
        while not over.is_set():
            token = await asyncio.to_thread(house.token, 64)
            charged_msat += await asyncio.to_thread(house.pays, token)
        return charged_msat

    callers = [asyncio.create_task(caller()) for _ in range(_CALLERS)]
    for _ in range(_KILLS):
        await asyncio.sleep(chance.uniform(0.5, 1.5))
        await asyncio.to_thread(house.kill)
        to_house.target = (await asyncio.to_thread(house.start)).url
    await asyncio.sleep(1)
    over.set()
    for proxy in proxies:
        proxy.plan = nothing
    return sum(await asyncio.gather(*callers))
