"""What a client does, as the protocol has it: each of these may be asked again until it is told.

An act gives the facts that must be the same however often it is done, and raises Lost where the
connection broke.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tests.crash.world import LOOK_S, MSAT, Reply, Run

_ASKED_MAX = 3_000
_PAUSE_S = 0.02
_WORDS = 5
#: So that they arrive one by one.
_BETWEEN_CHUNKS_S = 0.004

Facts = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One client's intent. `maximum_msat` is the most it may be charged for one request.

    A request on an account has no name: asked again it is another request (`is_named` False).
    """

    name: str
    prepare: Callable[[Run], Awaitable[None]]
    act: Callable[[Run], Awaitable[Facts]]
    fee_ppk: int = 0
    maximum_msat: int = 0
    is_named: bool = True
    settings: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


async def patiently(ask: Callable[[], Awaitable[Reply]]) -> Reply:
    """Ask until the answer is final."""
    reply = await ask()
    for _ in range(_ASKED_MAX):
        unfinished = reply.status in (202, 503) or (
            reply.status == 409
            and reply.json["code"] in ("request_in_progress", "call_in_progress")
        )
        if not unfinished:
            return reply
        await asyncio.sleep(_PAUSE_S)
        reply = await ask()
    raise AssertionError(f"never final: {reply}")


# ── wallet calls ─────────────────────────────────────────────────────────────────────────────────


async def _token_in_hand(run: Run) -> None:
    run.token(0, 70)


async def _create(run: Run) -> Facts:
    body = {"initial_balance_token": run.tokens[0]}
    reply = await patiently(lambda: run.post("/create", body))
    assert reply.status == 200, reply
    run.bearers = [reply.json["api_key"]]
    return reply.json


async def _foreign_token_in_hand(run: Run) -> None:
    run.token(0, 70, foreign=True)


async def _key_and_token(run: Run) -> None:
    await _create_first(run, 64)
    run.token(1, 37)


async def _create_first(run: Run, amount: int) -> None:
    run.token(0, amount)
    await _create(run)


async def _topup(run: Run) -> Facts:
    body = {"cashu_token": run.tokens[1]}
    reply = await patiently(
        lambda: run.post("/topup", body, bearer=run.bearers[0], name="the-top-up")
    )
    assert reply.status == 200, reply
    return reply.json


async def _key_of_seventy(run: Run) -> None:
    await _create_first(run, 70)


async def _refund(run: Run, body: Mapping[str, Any]) -> Facts:
    reply = await patiently(
        lambda: run.post("/refund", body, bearer=run.bearers[0], name="the-refund")
    )
    assert reply.status == 200, reply
    run.holds(reply.json.get("token"))
    return reply.json


async def _refund_all(run: Run) -> Facts:
    return await _refund(run, {})


async def _refund_some(run: Run) -> Facts:
    return await _refund(run, {"amount_msat": 33_000})


async def drain(run: Run) -> None:
    """Take out all that is left, but for what is less than a sat."""
    for number, bearer in enumerate(run.bearers):
        told = await run.call("GET", "/info", bearer=bearer, patience_s=LOOK_S)
        if told.json["balance"] >= MSAT:
            name = f"drain-{number}"
            reply = await patiently(
                lambda bearer=bearer, name=name: run.post(  # type: ignore[misc]
                    "/refund", {}, bearer=bearer, name=name, patience_s=LOOK_S
                )
            )
            assert reply.status == 200, f"what is left cannot be taken out: {reply}"
            run.holds(reply.json["token"])


async def _key_and_invoice(run: Run) -> None:
    await _create_first(run, 70)
    await run.invoice(31)


async def _refund_to_lightning(run: Run) -> Facts:
    return await _refund(run, {"destination": run.invoices[0], "amount_msat": 40_000})


# ── upkeep ───────────────────────────────────────────────────────────────────────────────────────

_SMALL_TOKENS = 7


async def _many_small_proofs(run: Run) -> None:
    await _create_first(run, 1)
    for number in range(1, _SMALL_TOKENS):
        run.token(number, 1)
        await run.post("/topup", {"cashu_token": run.tokens[number]}, bearer=run.bearers[0])


async def _tidy(run: Run) -> Facts:
    await run.control("upkeep")
    return {}


# ── paid requests ────────────────────────────────────────────────────────────────────────────────


async def _embedded(run: Run, ask: Callable[[], Awaitable[Reply]]) -> Facts:
    """Pay within a request, then ask for the change by presenting the token."""
    token = run.tokens[0]
    run.bearers = [token]  # what cannot be given back as a token is on its account
    reply = await patiently(ask)
    assert reply.status == 200 or reply.json["code"] == "payment_used", reply
    run.holds(reply.headers.get("X-Cashu"))
    request_id = reply.headers.get("x-farebox-request-id") or reply.json["request_id"]
    told = await patiently(
        lambda: run.call("GET", f"/v1/change/{request_id}", headers={"X-Cashu": token})
    )
    assert told.status == 200, told
    change = run.holds(told.json["token"])
    in_header = reply.headers.get("X-Cashu", change)
    assert in_header == change, "the answer's change is not the change that is told"
    return told.json


async def _echo(run: Run) -> Facts:
    headers = {"X-Cashu": run.tokens[0]}
    return await _embedded(run, lambda: run.call("POST", "/echo", headers=headers))


def _chat(run: Run, *, stream: bool) -> Awaitable[Reply]:
    body = {
        "model": "play-1",
        "max_tokens": _WORDS,
        "stream": stream,
        "messages": [{"role": "user", "content": "hello"}],
        "x-play": f"slow={_BETWEEN_CHUNKS_S}",
    }
    headers = {"X-Cashu": run.tokens[0], "Content-Type": "application/json"}
    return run.call("POST", "/v1/chat/completions", body=msgspec.json.encode(body), headers=headers)


async def _answered(run: Run) -> Facts:
    return await _embedded(run, lambda: _chat(run, stream=False))


async def _streamed(run: Run) -> Facts:
    return await _embedded(run, lambda: _chat(run, stream=True))


async def _token_as_key(run: Run) -> Facts:
    run.bearers = [run.tokens[0]]
    reply = await patiently(lambda: run.call("POST", "/echo", bearer=run.tokens[0]))
    assert reply.status == 200, reply
    return {}


async def _on_account(run: Run) -> Facts:
    reply = await patiently(lambda: run.call("POST", "/echo", bearer=run.bearers[0]))
    assert reply.status == 200, reply
    return {}


async def _abandoned(run: Run) -> Facts:
    """Pay within a request; if no answer comes, take the money out with the token as a key."""
    token = run.tokens[0]
    headers = {"X-Cashu": token}
    if not run.bearers:
        run.bearers = [token]
        reply = await run.call("POST", "/echo", headers=headers)
        run.holds(reply.headers.get("X-Cashu"))
    # Refused where all of it was charged or has become change.
    body: Mapping[str, object] = {}
    refund = await patiently(lambda: run.post("/refund", body, bearer=token, name="rest"))
    assert refund.status in (200, 402), refund
    run.holds(refund.json.get("token"))
    reply = await patiently(lambda: run.call("POST", "/echo", headers=headers))
    assert reply.status in (402, 409), reply
    run.holds(reply.headers.get("X-Cashu"))
    return {}


_METERED_MAX = _WORDS * 300
SCENARIOS = (
    Scenario("create", _token_in_hand, _create),
    Scenario("create-with-fees", _token_in_hand, _create, fee_ppk=100),
    Scenario("create-across", _foreign_token_in_hand, _create, settings={"ecash.foreign": "swap"}),
    Scenario("top-up", _key_and_token, _topup),
    Scenario("fixed", _token_in_hand, _echo, 0, 10 * MSAT),
    Scenario("fixed-with-fees", _token_in_hand, _echo, 100, 10 * MSAT),
    Scenario("metered", _token_in_hand, _answered, 0, _METERED_MAX),
    Scenario("streamed", _token_in_hand, _streamed, 0, _METERED_MAX),
    Scenario("abandoned", _token_in_hand, _abandoned, 0, 10 * MSAT),
    Scenario("token-as-key", _token_in_hand, _token_as_key, 0, 10 * MSAT, is_named=False),
    Scenario("on-account", _key_of_seventy, _on_account, 0, 10 * MSAT, is_named=False),
    Scenario("refund-exact", _key_of_seventy, _refund_all),
    Scenario("refund-swap", _key_of_seventy, _refund_some),
    Scenario("refund-swap-with-fees", _key_of_seventy, _refund_some, fee_ppk=100),
    Scenario("tidy", _many_small_proofs, _tidy, settings={"ecash.consolidate_proofs": 3}),
    Scenario("refund-lightning", _key_and_invoice, _refund_to_lightning),
)
