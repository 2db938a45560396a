"""A house with a wallet on a real chain is killed at every commit and at every broadcast.

After each death a fresh process goes on: what was paid in is credited once, what was to be paid out
is paid once, and the books are verified. The blocks are the witness.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import bdkpython as bdk
import pytest

from tests.crash.exploring import die_at, left_behind, rehearse
from tests.crash.points import Kind, points
from tests.crash.scenarios import patiently
from tests.crash.world import Nursery, Outside, Run, new_run
from tests.integration.bitcoin_house import WORDS, bitcoin_settings
from tests.peers.bitcoin import PASSWORD, BitcoinChain

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(900)]

IN_SAT, OUT_SAT = 60_000, 20_000
_TRIES_MAX = 600
_PAUSE_S = 0.1
_places = count(200)


@dataclass
class Story:
    """One house on its chain, and the payer's side of it."""

    run: Run
    chain: BitcoinChain
    since: int
    to: str
    words: str
    address: str = ""
    uri: str = ""
    claim: str = ""
    is_paid_in: bool = False
    fee_msat: int = 0
    out_sat: int = 0

    async def ask(self) -> None:
        """Ask for a deposit; again after a crash, it is the same one or another."""
        body = {"method": "bitcoin", "amount": IN_SAT * 1_000}
        reply = await patiently(lambda: self.run.post("/v1/deposits", body, name="the-deposit"))
        assert reply.status == 201, reply
        self.address, self.uri = reply.json["pay"], reply.json["uri"]
        self.claim = reply.json["claim_secret"]

    async def pay_in(self) -> None:
        """Pay it, make a block, and wait until the house has heard of it."""
        if not self.is_paid_in:
            await asyncio.to_thread(self.chain.payer.pay, self.address, IN_SAT)
            self.is_paid_in = True
        body = {"initial_balance_token": self.uri, "claim_secret": self.claim}
        for _ in range(_TRIES_MAX):
            await self._mine()
            reply = await patiently(lambda: self.run.post("/create", body))
            if reply.status == 200:
                self.run.bearers = [reply.json["api_key"]]
                return
            assert reply.json["code"] == "deposit_unpaid", reply
            await asyncio.sleep(_PAUSE_S)
        raise AssertionError("never credited")

    async def pay_out(self) -> None:
        """Pay somebody, under one name, and make blocks of what waits until it is over."""
        body = {"destination": self.to, "amount_msat": OUT_SAT * 1_000}
        bearer = self.run.bearers[0]
        for _ in range(_TRIES_MAX):
            reply = await self.run.post("/v1/payouts", body, bearer=bearer, name="the-payout")
            if reply.status == 200:
                self.fee_msat, self.out_sat = int(reply.json["fee_msat"]), OUT_SAT
                return
            assert reply.status in (202, 503), reply
            await asyncio.sleep(_PAUSE_S)
            await self._mine()
        raise AssertionError("never paid")

    async def prepare_payout(self) -> None:
        await self.ask()
        await self.pay_in()

    async def assert_right(self) -> None:
        """House, books and chain agree to the unit."""
        await self.run.settle()
        books = await self.run.books()
        assert books.broken == ""
        assert books.unfinished == ()
        assert books.pending == []
        node = self.chain.node
        paid_out = await asyncio.to_thread(node.paid_sat, self.to, self.since)
        assert paid_out == ([self.out_sat] if self.out_sat else [])
        left_msat = IN_SAT * 1_000 * self.is_paid_in - self.out_sat * 1_000 - self.fee_msat
        assert books.custody_msat == left_msat
        assert books.customers_msat == left_msat
        if self.run.bearers:
            assert await self.run.balance_msat() == left_msat

    async def _mine(self) -> None:
        if await asyncio.to_thread(self.chain.node.pool):
            await asyncio.to_thread(self.chain.node.mine)


def story(nursery: Nursery, around: Outside, path: Path, chain: BitcoinChain, source: str) -> Story:
    since = chain.node.height() + 1
    url = chain.node.peer_url if source == "filters" else chain.node.url
    # By filters all blocks are looked through, of other houses with the same words too.
    words = str(bdk.Mnemonic(bdk.WordCount.WORDS12)) if source == "filters" else WORDS
    terms = bitcoin_settings(
        chain, source=source, url=url, key=words, start_height=since, payout_confirmations=1
    )
    run = new_run(nursery, around, path, settings={"bitcoin": terms})
    return Story(run, chain, since, chain.payer.address(next(_places)), words)


Act = Callable[[Story], Awaitable[None]]


async def _nothing(_: Story) -> None:
    """There is nothing to be done before."""


ACTS: dict[str, tuple[Act, Act]] = {
    "ask": (_nothing, Story.ask),
    "pay-in": (Story.ask, Story.pay_in),
    "payout": (Story.prepare_payout, Story.pay_out),
}


@pytest.mark.parametrize(
    ("name", "source"), [*((name, "core") for name in ACTS), ("payout", "filters")]
)
async def test_no_death_loses_or_doubles_a_unit(
    name: str, source: str, nursery: Nursery, around: Outside, tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    (prepare, act), secrets = ACTS[name], {PASSWORD}

    def fresh() -> Story:
        one = story(nursery, around, tmp_path, bitcoin, source)
        secrets.add(one.words)
        return one

    passed = await rehearse(fresh(), prepare, act)
    passed.pop(Kind.ANSWER, None)  # what an answer's loss does, other crash tests show
    # Before a commit book and chain stand as after the one before it: what lies between is NODE's.
    where = [one for one in points(passed) if one.after or one.kind is Kind.NODE]
    if source == "filters":  # its commits are the same
        where = [one for one in where if one.kind is Kind.NODE]
    kinds = {point.kind for point in where}
    assert (Kind.COMMIT in kinds) == (source == "core")
    assert (Kind.NODE in kinds) == (name == "payout")
    deaths = [point for point in where if await die_at(fresh(), prepare, act, point)]
    # What the background does moves a point or two from run to run; most are met.
    assert len(deaths) >= len(where) // 2, (where, deaths)
    for secret in secrets:
        assert all(secret.encode() not in raw for raw in left_behind(tmp_path))
