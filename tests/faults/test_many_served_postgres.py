"""Several `farebox serve` on one book in PostgreSQL, of which some are killed under load.

Callers go on at those that are left: each is told in the end what he was charged, the sum of that
is what was earned, and the mint owes what callers and book together have.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.acceptance.world import Mint
from tests.faults.served import PRICE_SAT, Money, NutshellMoney, PlayMoney
from tests.faults.street import Street
from tests.faults.test_storm import SEED
from tests.peers.nutshell import Nutshell
from tests.peers.pgbouncer import running
from tests.peers.postgres import Postgres

_SERVERS = 3
_KILLS = 2
_CALLERS = 3
_TOKENS = 24

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


async def test_what_killed_processes_leave_is_taken_over_and_no_unit_is_lost(
    postgres: Postgres,
    mint: Mint,
    upstream: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with postgres.database() as name:
        dsn = postgres.dsn_at(postgres.port, dbname=name)
        monkeypatch.setenv("FAREBOX_DATABASE", dsn)
        await _live(mint.url, partial(PlayMoney, mint), upstream, tmp_path, dsn)


@pytest.mark.peer
async def test_the_same_holds_at_a_nutshell_mint_and_behind_a_pooler(
    postgres: Postgres,
    nutshell: Nutshell,
    upstream: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By transaction, with fewer connections to the server than there are processes' own."""
    with postgres.database() as name, running(postgres, "transaction", 4) as pooler:
        dsn = postgres.dsn_at(pooler.port, dbname=name)
        monkeypatch.setenv("FAREBOX_DATABASE", dsn)
        await _live(nutshell.url, partial(NutshellMoney, nutshell), upstream, tmp_path, dsn)


async def _live(
    mint_url: str, money_at: Callable[[str], Money], upstream: str, folder: Path, dsn: str
) -> None:
    seed = os.environ.get(SEED) or str(random.SystemRandom().randrange(1_000_000))
    flags = ("--upstream", upstream, "--mint", mint_url, "--price", f"{PRICE_SAT} sat")
    money = await asyncio.to_thread(money_at, mint_url)
    street = Street(folder, (*flags, "--data", "data"), money, random.Random(seed), dsn, _SERVERS)
    try:
        await asyncio.to_thread(street.open_all)
        tokens = [await asyncio.to_thread(street.token, 64) for _ in range(_TOKENS)]
        callers = [asyncio.create_task(_caller(street, tokens)) for _ in range(_CALLERS)]
        for _ in range(_KILLS):
            await asyncio.sleep(street.chance.uniform(0.3, 1.0))
            await asyncio.to_thread(street.kill_one)
        told_msat = sum(await asyncio.gather(*callers))
        balance = await asyncio.to_thread(street.look().prove)
        assert balance["revenue_msat"] == told_msat
        assert told_msat > 0
    except BaseException as error:
        error.add_note(f"{SEED}={seed}")
        raise
    finally:
        await asyncio.to_thread(street.stop)


async def _caller(street: Street, tokens: list[str]) -> int:
    """Hands each token in twice at the same moment, mostly at two of them; it pays once."""
    charged_msat = 0
    while tokens:
        token = tokens.pop()
        one, two = await asyncio.gather(
            asyncio.to_thread(street.pays, token), asyncio.to_thread(street.pays, token)
        )
        assert one == two
        charged_msat += one
    return charged_msat
