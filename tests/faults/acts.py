"""What a caller wants, and does again until he has it, whatever breaks on the way.

Every act of a caller has a name of its own in the books (its token, its idempotency key), so that
asking again is the same act; but for a request on a key, which is a new one each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tests.crash.scenarios import patiently
from tests.crash.world import MSAT, Reply, Run
from tests.faults.town import Town

PRICE_MSAT = 10 * MSAT
#: The most that a chat of five words can cost.
CHAT_MSAT = 5 * 300
#: What the gateway answers for an upstream that failed it; nothing is charged then.
_UPSTREAM_FAILED = {502, 504}
_ASKED_MAX = 3_000
_PAUSE_S = 0.02

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Act:
    """`line` is the request that it is about; `act` gives facts that asking again must repeat.

    `prepare` is done while nothing goes wrong.
    """

    name: str
    line: str
    prepare: Callable[[Town, Run], Coroutine[Any, Any, object]]
    act: Callable[[Town, Run], Coroutine[Any, Any, Facts]]
    is_named: bool = True

    def __str__(self) -> str:
        return self.name


async def _surely(town: Town, ask: Callable[[], Awaitable[Reply]]) -> Reply:
    return await patiently(lambda: town.surely(ask))


async def _token_in_hand(_: Town, run: Run) -> None:
    run.token(0, 70)


# ── paid requests ────────────────────────────────────────────────────────────────────────────────


def _chat(run: Run, pays: Mapping[str, str], *, stream: bool) -> Awaitable[Reply]:
    body = {
        "model": "play-1",
        "max_tokens": 5,
        "stream": stream,
        "messages": [{"role": "user", "content": "hello"}],
        "x-play": "slow=0.005",
    }
    headers = {**pays, "Content-Type": "application/json"}
    return run.call("POST", "/v1/chat/completions", body=msgspec.json.encode(body), headers=headers)


def _echo(run: Run, pays: Mapping[str, str]) -> Awaitable[Reply]:
    return run.call("POST", "/echo", body=b"x" * 500, headers=pays)


async def _embedded(
    town: Town, run: Run, ask: Callable[[Run, Mapping[str, str]], Awaitable[Reply]], most_msat: int
) -> Facts:
    token = run.tokens[0]
    pays = {"X-Cashu": token}
    reply = await _surely(town, lambda: ask(run, pays))
    is_final = reply.status in (200, *_UPSTREAM_FAILED)
    assert is_final or reply.json["code"] == "payment_used", reply
    run.holds(reply.headers.get("X-Cashu"))
    request_id = reply.headers.get("x-farebox-request-id") or reply.json["request_id"]
    told = await _surely(town, lambda: run.call("GET", f"/v1/change/{request_id}", headers=pays))
    assert told.status == 200, told
    run.holds(told.json["token"])
    run.bearers = [token]  # what cannot be given back as a token is on its account
    charged_msat = told.json["charged_msat"]
    assert 0 <= charged_msat <= most_msat
    assert charged_msat + told.json["returned_msat"] + told.json["credited_msat"] == 70 * MSAT
    if reply.status in _UPSTREAM_FAILED:
        assert charged_msat == 0, reply
    return told.json


async def _fixed(town: Town, run: Run) -> Facts:
    told = await _embedded(town, run, _echo, PRICE_MSAT)
    assert told["charged_msat"] in (0, PRICE_MSAT)
    return told


async def _streamed(town: Town, run: Run) -> Facts:
    return await _embedded(town, run, lambda run, pays: _chat(run, pays, stream=True), CHAT_MSAT)


async def _metered(town: Town, run: Run) -> Facts:
    return await _embedded(town, run, lambda run, pays: _chat(run, pays, stream=False), CHAT_MSAT)


async def _on_key(town: Town, run: Run) -> Facts:
    pays = {"Authorization": f"Bearer {run.bearers[0]}"}
    reply = await _surely(town, lambda: _chat(run, pays, stream=True))
    assert reply.status in (200, *_UPSTREAM_FAILED), reply
    return {}


# ── wallet calls ─────────────────────────────────────────────────────────────────────────────────


async def _create(town: Town, run: Run) -> Facts:
    """Where nobody knows yet whether the token was taken, the key is made all the same."""
    body = {"initial_balance_token": run.tokens[0]}
    reply = await town.surely(lambda: run.post("/create", body))
    for _ in range(_ASKED_MAX):
        if "api_key" in reply.json:
            break
        await asyncio.sleep(_PAUSE_S)
        reply = await town.surely(lambda: run.post("/create", body))
    assert reply.status in (200, 202), reply
    run.bearers = [reply.json["api_key"]]
    return reply.json


async def _key_in_hand(town: Town, run: Run) -> None:
    """A key, and its money on it: which may take until a mint is asked again."""
    await _token_in_hand(town, run)
    await _create(town, run)
    for _ in range(_ASKED_MAX):
        told = await town.surely(lambda: run.call("GET", "/info", bearer=run.bearers[0]))
        if told.json.get("balance"):
            return
        await asyncio.sleep(_PAUSE_S)
    raise AssertionError(f"the money never came: {told}")


async def _key_and_token_in_hand(town: Town, run: Run) -> None:
    await _key_in_hand(town, run)
    run.token(1, 37)


async def _topup(town: Town, run: Run) -> Facts:
    body = {"cashu_token": run.tokens[1]}
    key = run.bearers[0]
    reply = await _surely(town, lambda: run.post("/topup", body, bearer=key, name="the-top-up"))
    assert reply.json == {"msats": 37 * MSAT}, reply
    return reply.json


async def _refund(town: Town, run: Run) -> Facts:
    """Less than all, so that proofs have to be swapped for it."""
    key, body = run.bearers[0], {"amount_msat": 33 * MSAT}
    reply = await _surely(town, lambda: run.post("/refund", body, bearer=key, name="the-refund"))
    assert reply.status == 200, reply
    run.holds(reply.json["token"])
    return reply.json


_CHAT = "POST /v1/chat/completions"
FIXED = Act("fixed", "POST /echo", _token_in_hand, _fixed)
STREAMED = Act("streamed", _CHAT, _token_in_hand, _streamed)
METERED = Act("metered", _CHAT, _token_in_hand, _metered)
ON_KEY = Act("on-key", _CHAT, _key_in_hand, _on_key, is_named=False)
CREATE = Act("create", "POST /create", _token_in_hand, _create)
TOPUP = Act("top-up", "POST /topup", _key_and_token_in_hand, _topup)
REFUND = Act("refund", "POST /refund", _key_in_hand, _refund)
ACTS = (FIXED, STREAMED, METERED, ON_KEY, CREATE, TOPUP, REFUND)
