"""A house that is paid on a channel is killed at every commit and every message to its payer.

After each death a fresh process goes on: what the payer has signed is taken once, what it was
served is charged once, and one unsigned request is all that it can owe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from farebox.clock import NS_PER_S, SystemClock
from farebox.ids import new_id
from farebox.wire.subrav.didauth import sign_did_auth
from farebox.wire.subrav.frames import FrameReader, StreamFormat
from farebox.wire.subrav.keys import KeyType, SigningKey, sign_sub_rav
from farebox.wire.subrav.model import SignedSubRAV, SubRAV
from farebox.wire.subrav.payload import (
    HEADER_NAME,
    RequestPayload,
    ResponsePayload,
    parse_response_header,
)
from tests.crash.exploring import rehearse
from tests.crash.points import Kind, Point, points
from tests.crash.scenarios import patiently
from tests.crash.world import MSAT, Lost, Nursery, Outside, Reply, Run, new_run
from tests.integration.channel_house import key_terms

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FUNDS_SAT, COLLATERAL_MSAT, PRICE_MSAT = 500, 200_000, 10 * MSAT
KEY, FRAGMENT = SigningKey(KeyType.ED25519, b"\x01" * 32), "laptop"
CHAT = {"model": "play-1", "max_tokens": 6, "stream": True, "messages": [{"role": "user"}]}
WORD_MSAT = 300
#: The most that one request of these costs.
MOST_MSAT = max(PRICE_MSAT, 6 * WORD_MSAT)
_TRIES_MAX = 1_200


@dataclass
class Story:
    """One house, and a payer that signs only what follows from what it signed before."""

    run: Run
    payer_did: str = ""
    signed: SignedSubRAV | None = None
    owed: SubRAV | None = None
    #: What answers said that they cost, and what was asked for whose answers never came.
    answered_msat: int = 0
    demanded_msat: int = 0

    async def fund(self) -> None:
        """An account with money, and a key to it."""
        self.run.token(0, FUNDS_SAT)
        body = {"initial_balance_token": self.run.tokens[0]}
        reply = await patiently(lambda: self.run.post("/create", body))
        self.run.bearers = [reply.json["api_key"]]

    async def open(self) -> None:
        """Lock the collateral, under one name."""
        body = key_terms(FRAGMENT, KEY, COLLATERAL_MSAT)
        bearer = self.run.bearers[0]
        reply = await patiently(
            lambda: self.run.post("/v1/channels", body, bearer=bearer, name="the-channel")
        )
        assert reply.status == 201, reply
        assert reply.json["collateral_msat"] == COLLATERAL_MSAT
        self.payer_did = reply.json["payer_did"]

    async def echo(self) -> None:
        """A request of a fixed price."""
        await self._pay("GET", "/echo")

    async def chat(self) -> None:
        """A metered stream."""
        await self._pay("POST", "/v1/chat/completions", msgspec.json.encode(CHAT))

    async def close(self) -> None:
        """Close the channel; the house claims what is signed."""
        bearer = self.run.bearers[0]
        for _ in range(_TRIES_MAX):
            reply = await self.run.post("/v1/channels/close", {}, bearer=bearer)
            if reply.status == 202:
                return
            if "not open" in reply.json.get("detail", ""):
                return  # it is closed already
            await asyncio.sleep(0.05)
        raise AssertionError(reply)

    async def prepare_channel(self) -> None:
        await self.fund()
        await self.open()

    async def prepare_request(self) -> None:
        await self.prepare_channel()
        await self.echo()

    async def _pay(self, method: str, path: str, body: bytes = b"") -> None:
        """Ask until it is answered: signing what a lost answer cost, where that follows."""
        for _ in range(_TRIES_MAX):
            self._sign_owed()
            reply = await self._asked(method, path, body)
            told = _told(reply)
            if told is not None and told.error is None and told.sub_rav is not None:
                assert told.cost is not None
                self._check(told.sub_rav, told.cost)
                self.answered_msat += told.cost
                self.owed = told.sub_rav
                return
            if told is not None and told.sub_rav is not None:  # what came to nobody's ears
                self.demanded_msat += self._check(told.sub_rav, None)
                self.owed = told.sub_rav
                continue
            # The client's library sends a GET again by itself, whose answer broke off.
            if told is not None and told.error is not None and told.error.code == "AUTH_INVALID":
                continue
            assert reply.status in (409, 503), reply
            await asyncio.sleep(0.05)
        raise AssertionError(f"never answered: {reply}")

    async def _asked(self, method: str, path: str, body: bytes) -> Reply:
        payload = RequestPayload(client_tx_ref=new_id("tx"), signed_sub_rav=self.signed)
        headers = {HEADER_NAME: payload.header()}
        if self.signed is None:
            headers["Authorization"] = sign_did_auth(
                self.payer_did,
                FRAGMENT,
                KEY,
                operation="http_request",
                params={"uri": f"http://house{path}", "method": method},
                nonce=new_id("nonce"),
                timestamp_s=SystemClock().now_ns() // NS_PER_S,
            ).header()
        return await self.run.call(method, path, body=body, headers=headers)

    def _sign_owed(self) -> None:
        if self.owed is not None:
            self.signed, self.owed = sign_sub_rav(self.owed, KEY), None

    def _check(self, proposal: SubRAV, cost: int | None) -> int:
        """It follows from what was signed: by the stated cost, or by one lost answer's."""
        amount = self.signed.sub_rav.accumulated_amount if self.signed else 0
        nonce = self.signed.sub_rav.nonce if self.signed else 0
        delta = proposal.accumulated_amount - amount
        if (proposal.nonce, delta) == (nonce, 0):
            return 0  # signed before: the payee did not get it
        assert proposal.nonce == nonce + 1
        assert delta == cost if cost is not None else 0 < delta <= MOST_MSAT
        return delta

    async def assert_right(self) -> None:
        """House, books and payer agree to the unit."""
        await self.run.settle()
        books = await self.run.books()
        assert books.broken == ""
        assert books.open_requests == 0
        held = {one.id.partition(":channel:")[0]: 0 for one in books.accounts}
        for one in books.accounts:
            held[one.id.partition(":channel:")[0]] += one.debits_posted - one.credits_posted
        locked, owed = -held.get("escrow", 0), held.get("receivable", 0)
        unclaimed = held.get("custody", 0)
        signed = self.signed.sub_rav.accumulated_amount if self.signed else 0
        revenue = books.revenue_msat
        assert held.get("clearing:channels:BTC", 0) == 0
        assert books.customers_msat + locked + (revenue - owed - unclaimed) == FUNDS_SAT * MSAT
        # The payee has every voucher but the one that died on its way, and is owed one request.
        assert signed - MOST_MSAT <= revenue - owed <= signed
        assert 0 <= owed <= MOST_MSAT
        # Whoever asks until it is answered knows of every unit that was charged.
        assert revenue == self.answered_msat + self.demanded_msat
        assert all(":channel:" in one for one in books.pending)


def _told(reply: Reply) -> ResponsePayload | None:
    header = reply.headers.get(HEADER_NAME)
    if header is None and reply.headers.get("content-type", "").startswith("text/event-stream"):
        frames = FrameReader(StreamFormat.SSE)
        frames.feed(reply.body)
        frames.end()
        header = frames.header
    return None if header is None else parse_response_header(header)


Act = Callable[[Story], Awaitable[None]]

ACTS: dict[str, tuple[Act, Act]] = {
    "open": (Story.fund, Story.open),
    "first": (Story.prepare_channel, Story.echo),
    "next": (Story.prepare_request, Story.echo),
    "stream": (Story.prepare_request, Story.chat),
    "close": (Story.prepare_request, Story.close),
}


def story(nursery: Nursery, around: Outside, path: Path) -> Story:
    return Story(new_run(nursery, around, path))


async def die_at(one: Story, prepare: Act, act: Act, point: Point) -> bool:
    """Live it through with a death at the point; returns whether it came to that."""
    assert await one.run.start()
    await prepare(one)
    await one.run.arm(point)
    met = False
    try:
        await act(one)
    except Lost:
        met = True
        if not point.drops:
            await _reborn(one)
        await act(one)
    try:
        await one.run.arm(None)
    except Lost:  # it died of the last word of an answer, which had arrived
        met = True
        await _reborn(one)
    await one.assert_right()
    await one.run.kill()
    return met


async def _reborn(one: Story) -> None:
    await one.run.died()
    assert await one.run.start()


@pytest.mark.parametrize("name", ACTS)
async def test_no_death_loses_or_doubles_a_voucher_or_a_charge(
    name: str, nursery: Nursery, around: Outside, tmp_path: Path
) -> None:
    prepare, act = ACTS[name]
    passed = await rehearse(story(nursery, around, tmp_path), prepare, act)
    where = list(points(passed))
    assert {point.kind for point in where} == {Kind.COMMIT, Kind.ANSWER}
    deaths = [
        point
        for point in where
        if await die_at(story(nursery, around, tmp_path), prepare, act, point)
    ]
    # What the background does moves a point or two from run to run; most are met.
    assert len(deaths) >= len(where) // 2, (where, deaths)
