"""Two `farebox serve` on a PostgreSQL with a standby that is waited for, under load.

Backends are cut, the primary is killed and comes back, and then its machine is gone for good and
the standby takes over. Callers are served or told in one sentence to try again; whoever was served
was charged, whoever was not was not; and the new primary has every unit of it.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from functools import partial
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.acceptance.world import Mint
from tests.faults.served import PRICE_SAT, PlayMoney
from tests.faults.street import Street
from tests.faults.test_storm import SEED
from tests.peers.standby import Pair
from tests.waiting import eventually

_MSAT = 1_000
_KEYS = 4
_FUNDED_SAT = 16_384
_TOKENS = 40
#: Between two requests of a caller.
_PAUSE_S = 0.02
#: What an answer may take, and more: the store tries for ten seconds by itself, and a request may
#: ask it to read, to hold and to void, one after the other.
_PATIENCE_S = 120


class Caller:
    """Pays with a key, at one gateway and then at the other, until it is enough."""

    def __init__(self, http: httpx.AsyncClient, doors: list[str], key: str) -> None:
        self._http = http
        self._doors = doors
        self._pays = {"Authorization": f"Bearer {key}"}
        self.served = 0
        self.refused = Counter[str]()
        #: When each gateway last served us.
        self.served_at_s = dict.fromkeys(doors, 0.0)

    async def go_on(self, enough: asyncio.Event) -> None:
        """One request after the other."""
        turn = 0
        while not enough.is_set():
            door = self._doors[turn % len(self._doors)]
            turn += 1
            answer = await self._http.post(f"{door}/echo", content=b"hello", headers=self._pays)
            if answer.status_code == 200:
                self.served += 1
                self.served_at_s[door] = time.monotonic()
            else:
                self._told_to_come_again(answer)
            await asyncio.sleep(_PAUSE_S)

    def _told_to_come_again(self, answer: httpx.Response) -> None:
        assert answer.status_code == 503, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"]
        self.refused[answer.json()["code"]] += 1

    async def balance_msat(self) -> int:
        """What is left, at any of them."""
        told = await self._http.get(f"{self._doors[0]}/info", headers=self._pays)
        assert told.status_code == 200, told.text
        return int(told.json()["balance"])


@pytest.mark.slow
@pytest.mark.peer
async def test_whatever_becomes_of_the_database_what_was_told_is_what_it_has(
    pair: Pair, mint: Mint, upstream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAREBOX_DATABASE", pair.dsn)
    flags = ("--upstream", upstream, "--mint", mint.url, "--price", f"{PRICE_SAT} sat")
    chance = random.Random(os.environ.get(SEED))
    money = PlayMoney(mint, mint.url)
    street = Street(tmp_path, (*flags, "--data", "data"), money, chance, pair.dsn)
    try:
        await asyncio.to_thread(street.open_all)
        await asyncio.to_thread(pair.wait_for_standby)
        doors = [house.url for house in street.open]
        async with httpx.AsyncClient(timeout=_PATIENCE_S, verify=False) as http:
            keys = [await _key(http, street) for _ in range(_KEYS)]
            callers = [Caller(http, doors, key) for key in keys]
            tokens = [await asyncio.to_thread(street.token, 64) for _ in range(_TOKENS)]
            enough = asyncio.Event()
            async with asyncio.TaskGroup() as load:
                for one in callers:
                    load.create_task(one.go_on(enough))
                spending = load.create_task(_spend(street, tokens, enough))
                for happens in (_cut_all, _restart):
                    await _served_again(callers, doors)
                    await asyncio.to_thread(happens, pair)
                await _served_again(callers, doors)
                await asyncio.to_thread(pair.primary.kill)
                await _refused(http, callers, doors)
                await asyncio.to_thread(pair.standby.promote)
                await _served_again(callers, doors)
                enough.set()
            await eventually(partial(_are_charged, callers))
            balance = await asyncio.to_thread(street.look().prove)
            assert await _are_charged(callers)
        by_key_msat = sum(one.served for one in callers) * PRICE_SAT * _MSAT
        assert balance["revenue_msat"] == by_key_msat + spending.result()
        assert {code for one in callers for code in one.refused} == {"store_unavailable"}
    finally:
        await asyncio.to_thread(street.stop)


async def _key(http: httpx.AsyncClient, street: Street) -> str:
    token = await asyncio.to_thread(street.token, _FUNDED_SAT)
    made = await http.post(f"{street.url}/create", json={"initial_balance_token": token})
    assert made.status_code == 200, made.text
    return str(made.json()["api_key"])


async def _are_charged(callers: list[Caller]) -> bool:
    """Whether each paid for what it was served, and for nothing else. A gateway may have served
    what the database has forgotten the hold of: it has the bill, and soon the books do."""
    paid_msat = [_FUNDED_SAT * _MSAT - await one.balance_msat() for one in callers]
    return paid_msat == [one.served * PRICE_SAT * _MSAT for one in callers]


async def _spend(street: Street, tokens: list[str], enough: asyncio.Event) -> int:
    """Hand in tokens as long as it lasts; gives what they were charged, in msat."""
    charged_msat = 0
    while tokens and not enough.is_set():
        charged_msat += await asyncio.to_thread(street.pays, tokens.pop())
    return charged_msat


async def _refused(http: httpx.AsyncClient, callers: list[Caller], doors: list[str]) -> None:
    """Nobody takes over: callers are told, and balancers sent elsewhere."""

    async def is_known() -> bool:
        told = [(await http.get(f"{door}/readyz")).status_code for door in doors]
        return set(told) == {503} and any(one.refused["store_unavailable"] for one in callers)

    await eventually(is_known)


async def _served_again(callers: list[Caller], doors: list[str]) -> None:
    well_s = time.monotonic()

    async def is_so() -> bool:
        return all(any(one.served_at_s[door] > well_s for one in callers) for door in doors)

    await eventually(is_so)


def _restart(pair: Pair) -> None:
    """As if the primary's processes had been killed, and started again."""
    pair.primary.restart("immediate")


def _cut_all(pair: Pair) -> None:
    """End every backend of the gateways, wherever in a commit it is, three times."""
    with psycopg.connect(pair.primary.dsn, autocommit=True) as db:
        for _ in range(3):
            db.execute(
                "SELECT pg_terminate_backend(pid), pg_sleep(0.05) FROM pg_stat_activity "
                "WHERE application_name = 'farebox'"
            )
