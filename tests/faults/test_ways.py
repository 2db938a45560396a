"""Whatever breaks on whichever way, and wherever in an exchange, no unit is lost or made.

After each fault: everything open is settled, the sum of what callers, house and mint hold is what
it was, `verify` passes, nothing is held any more, and asking again gets the answer that was given.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.crash.scenarios import drain
from tests.crash.world import Nursery, Run
from tests.faults.acts import CREATE, FIXED, ON_KEY, REFUND, STREAMED, Act
from tests.faults.proxy import ANSWER_DROPPED, WHOLE, FaultProxy, Side, Strike, What, once
from tests.faults.town import Town, Way, town
from tests.peers.postgres import Postgres

STRIKES = (
    Strike(What.LATENCY, Side.REQUEST, 20),
    Strike(What.LATENCY, Side.ANSWER, 20),
    Strike(What.RESET, Side.REQUEST, 30),
    Strike(What.RESET, Side.REQUEST, WHOLE),
    ANSWER_DROPPED,
    Strike(What.RESET, Side.ANSWER, 150),
    Strike(What.TRUNCATE, Side.REQUEST, 30),
    Strike(What.TRUNCATE, Side.ANSWER, 150),
    Strike(What.HALF_CLOSE, Side.REQUEST, WHOLE),
    Strike(What.HALF_CLOSE, Side.ANSWER, 150),
    Strike(What.BLACK_HOLE, Side.REQUEST, 30),
    Strike(What.BLACK_HOLE, Side.ANSWER, 150),
)
#: In the middle of a stream's body, behind its head.
IN_STREAM = tuple(
    Strike(what, Side.ANSWER, 1_500) for what in (What.RESET, What.TRUNCATE, What.BLACK_HOLE)
)
#: Within a trip, behind it, and before and within its answer.
AT_DATABASE = (
    Strike(What.LATENCY, Side.ANSWER, 5),
    Strike(What.RESET, Side.REQUEST, 30),
    Strike(What.RESET, Side.REQUEST, WHOLE),
    ANSWER_DROPPED,
    Strike(What.TRUNCATE, Side.ANSWER, 5),
    Strike(What.HALF_CLOSE, Side.REQUEST, WHOLE),
    Strike(What.HALF_CLOSE, Side.ANSWER, 5),
    Strike(What.BLACK_HOLE, Side.REQUEST, 30),
)
SWAP = "POST /v1/swap"
#: A mint that failed some times in a row is left alone for less than this.
_BREAKER_PAUSE_S = 20
_CLIENTS_MAX = 10

CASES = [
    *((Way.CALLER, act, act.line) for act in (FIXED, STREAMED, CREATE, REFUND)),
    *((Way.UPSTREAM, act, act.line) for act in (FIXED, STREAMED, ON_KEY)),
    *((Way.MINT, act, SWAP) for act in (FIXED, CREATE, REFUND)),
]


@pytest.mark.parametrize(
    ("way", "act", "line"), CASES, ids=[f"{way.value}-{act}" for way, act, _ in CASES]
)
async def test_no_unit_is_lost_or_made_whatever_breaks(
    way: Way, act: Act, line: str, nursery: Nursery, tmp_path: Path
) -> None:
    strikes = STRIKES + (IN_STREAM if act in (STREAMED, ON_KEY) and way is not Way.MINT else ())
    async with town(nursery, tmp_path) as here:
        for strike in strikes:
            await _through(here, act, here.ways[way], strike, line)
        await drain(here.house)
        await here.look()


async def _through(here: Town, act: Act, proxy: FaultProxy, strike: Strike, line: str) -> None:
    """On a machine so slow that a patience ends before the strike, another client comes."""
    proxy.struck.clear()
    for _ in range(_CLIENTS_MAX):
        client = here.house.another()
        await act.prepare(here, client)
        proxy.plan = once(strike, line)
        await _lived_through(here, act, client, strike)
        if proxy.struck:
            return
    raise AssertionError(f"never struck by {strike}")


async def _lived_through(here: Town, act: Act, client: Run, strike: Strike) -> None:
    try:
        facts = await act.act(here, client)
        await here.house.settle()
        if act.is_named:
            assert await act.act(here, client) == facts
        here.house.takes_over(client)
        await here.look()
        await drain(client)
        for token in client.tokens:
            here.house.holds(token)
    except AssertionError as error:
        error.add_note(f"struck by {strike}")
        raise


@pytest.mark.parametrize(
    ("act", "line"), [(FIXED, "COMMIT"), (REFUND, "COMMIT"), (CREATE, "BEGIN")]
)
async def test_no_unit_is_lost_or_made_whatever_breaks_on_the_way_to_postgres(
    act: Act, line: str, nursery: Nursery, tmp_path: Path, postgres: Postgres
) -> None:
    async with town(nursery, tmp_path, postgres) as here:
        for strike in AT_DATABASE:
            await _through(here, act, here.ways[Way.DATABASE], strike, line)
        await drain(here.house)
        await here.look()


@pytest.mark.parametrize("way", [Way.CALLER, Way.UPSTREAM, Way.MINT])
async def test_who_cannot_be_reached_costs_nobody_anything(
    way: Way, nursery: Nursery, tmp_path: Path
) -> None:
    """Connections are refused, and those that are open are reset; then all is well again."""
    async with town(nursery, tmp_path) as here:
        for act in (FIXED, STREAMED, CREATE):
            proxy, client = here.ways[way], here.house.another()
            await act.prepare(here, client)
            await proxy.refuse()
            asked = asyncio.create_task(act.act(here, client))
            await asyncio.wait((asked,), timeout=0.2)
            await proxy.accept()
            await here.house.jump(_BREAKER_PAUSE_S)
            facts = await asked
            await here.house.settle()
            assert await act.act(here, client) == facts
            here.house.takes_over(client)
            await here.look()
