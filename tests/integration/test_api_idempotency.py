"""The same call under the same name acts once and is answered alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.clock import ManualClock
from tests.integration.api_world import PlayMoney, World, methods_of, problem_of, world_of
from tests.waiting import eventually


@pytest.fixture
def play() -> PlayMoney:
    return PlayMoney()


@pytest.fixture
async def world(tmp_path: Path, play: PlayMoney) -> AsyncIterator[World]:
    async with world_of(tmp_path / "book.db", methods_of(play), ManualClock()) as made:
        yield made


async def under_way(world: World) -> None:
    """Wait until an operation is open."""
    await eventually(world.operations.unfinished)


async def test_a_refund_asked_twice_is_one_refund(world: World, play: PlayMoney) -> None:
    key = await world.created("play:a:5000")
    body = {"amount_msat": 1_000}
    first = await world.post("/refund", body, bearer=key, name="n")
    again = await world.post("/v1/wallet/refund", body, bearer=key, name="n")
    assert again.json() == first.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert len(play.made) == 1
    assert await world.balance(key) == 4_000


async def test_another_body_under_the_same_name_is_422(world: World) -> None:
    key = await world.created("play:a:5000")
    await world.post("/refund", {"amount_msat": 1_000}, bearer=key, name="n")
    other = await world.post("/refund", {"amount_msat": 2_000}, bearer=key, name="n")
    problem_of(other, 422, "idempotency_key_reused")
    topup = await world.post("/topup", {"cashu_token": "play:b:1"}, bearer=key, name="n")
    problem_of(topup, 422, "idempotency_key_reused")
    body = {"cashu_token": "play:c:1000"}
    await world.post("/create", body, name="n")
    changed = await world.post("/create", {**body, "label": "x"}, name="n")
    problem_of(changed, 422, "idempotency_key_reused")


async def test_a_call_that_still_runs_is_409(world: World, play: PlayMoney) -> None:
    key = await world.created("play:a:5000")
    play.gate.clear()
    running = asyncio.create_task(world.post("/refund", bearer=key, name="n"))
    await under_way(world)
    waiting = await world.post("/refund", bearer=key, name="n")
    problem_of(waiting, 409, "call_in_progress")
    assert waiting.headers["retry-after"]
    play.gate.set()
    first = await running
    assert first.status_code == 200
    assert (await world.post("/refund", bearer=key, name="n")).json() == first.json()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/refund", {"amount_msat": 1_000}),
        ("/topup", {"cashu_token": "play:b:1000"}),
        ("/create", {"cashu_token": "play:c:1000"}),
    ],
)
async def test_duplicates_at_once_act_once(
    world: World, play: PlayMoney, path: str, body: dict[str, object]
) -> None:
    key = await world.created("play:a:5000")
    answers = await asyncio.gather(
        *(world.post(path, body, bearer=key, name="n") for _ in range(30))
    )
    last = await world.post(path, body, bearer=key, name="n")
    assert {one.status_code for one in answers} <= {200, 409}
    assert {one.text for one in answers if one.status_code == 200} == {last.text}
    assert len(play.made) <= 1
    held, owed = await world.held_and_owed()
    assert held == owed == {"/refund": 4_000, "/topup": 6_000, "/create": 6_000}[path]


async def test_a_refusal_is_the_same_answer_again(world: World) -> None:
    key = await world.created("play:a:5000")
    body = {"amount_msat": 6_000}
    first = await world.post("/refund", body, bearer=key, name="n")
    problem_of(first, 402, "insufficient_balance")
    await world.post("/topup", {"cashu_token": "play:b:9000"}, bearer=key)
    again = await world.post("/refund", body, bearer=key, name="n")
    assert again.text == first.text
    fresh = await world.post("/refund", body, bearer=key, name="m")
    assert fresh.status_code == 200


async def test_names_belong_to_their_account(world: World) -> None:
    one, other = await world.created("play:a:5000"), await world.created("play:b:5000")
    tokens = {
        (await world.post("/refund", bearer=key, name="n")).json()["token"] for key in (one, other)
    }
    assert len(tokens) == 2


@pytest.mark.parametrize("path", ["/refund", "/topup", "/create"])
async def test_a_call_cut_off_by_a_crash_resumes_and_acts_once(
    tmp_path: Path, play: PlayMoney, path: str
) -> None:
    body = {
        "/refund": {"amount_msat": 1_000},
        "/topup": {"cashu_token": "play:b:1000"},
        "/create": {"cashu_token": "play:c:1000"},
    }[path]
    clock, methods = ManualClock(), methods_of(play)
    async with world_of(tmp_path / "book.db", methods, clock) as world:
        key = await world.created("play:a:5000")
        play.gate.clear()
        running = asyncio.create_task(world.post(path, body, bearer=key, name="n"))
        await under_way(world)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    play.gate.set()
    async with world_of(tmp_path / "book.db", methods, clock) as after:
        resumed = await after.post(path, body, bearer=key, name="n")
        assert resumed.status_code == 200, resumed.text
        again = await after.post(path, body, bearer=key, name="n")
        assert again.text == resumed.text
        held, owed = await after.held_and_owed()
        assert held == owed == {"/refund": 4_000, "/topup": 6_000, "/create": 6_000}[path]
        assert len(play.made) <= 1


async def test_a_key_made_by_a_call_that_was_cut_off_is_replaced(
    tmp_path: Path, play: PlayMoney, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, methods = ManualClock(), methods_of(play)
    async with world_of(tmp_path / "book.db", methods, clock) as world:

        async def stopped(*_: object) -> None:
            raise asyncio.CancelledError

        monkeypatch.setattr(world.context.idempotency, "finish", stopped)
        with pytest.raises(asyncio.CancelledError):
            await world.post("/create", {"cashu_token": "play:a:5000"})
        assert len(await world.keys.page()) == 1
    async with world_of(tmp_path / "book.db", methods, clock) as after:
        key = await after.created("play:a:5000")
        states = sorted(one.state.value for _, one in await after.keys.page())
        assert states == ["active", "revoked"], "nobody ever saw the first one's secret"
        assert await after.balance(key) == 5_000


@pytest.mark.parametrize("name", ["x" * 256, "tab\there"])
async def test_a_bad_name_is_refused_before_anything_moves(
    world: World, play: PlayMoney, name: str
) -> None:
    key = await world.created("play:a:5000")
    problem_of(await world.post("/refund", bearer=key, name=name), 400, "invalid_input")
    assert not play.made
