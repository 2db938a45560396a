"""Keys are made of money, filled, looked at and emptied, and nothing is lost on the way."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.api import owns_path
from farebox.clock import NS_PER_S, ManualClock
from farebox.identity import KeyTerms, NewKey, new_account
from tests.integration.api_world import PlayMoney, World, methods_of, problem_of, world_of

ALIASES = ["", "/v1/wallet", "/v1/balance"]


@pytest.fixture
def play() -> PlayMoney:
    return PlayMoney()


@pytest.fixture
async def world(tmp_path: Path, play: PlayMoney) -> AsyncIterator[World]:
    async with world_of(tmp_path / "book.db", methods_of(play), ManualClock()) as made:
        yield made


@pytest.mark.parametrize("alias", ALIASES)
async def test_every_endpoint_answers_under_every_name(world: World, alias: str) -> None:
    made = await world.get(f"{alias}/create?initial_balance_token=play:a:5000")
    assert made.json().keys() == {"api_key", "balance"}
    assert made.json()["balance"] == 5_000
    key = made.json()["api_key"]
    assert key.startswith("sk-")
    topped = await world.post(f"{alias}/topup", {"cashu_token": "play:b:1000"}, bearer=key)
    assert topped.json() == {"msats": 1_000}
    info = (await world.get(f"{alias}/info", key)).json()
    assert (info["balance"], info["reserved"]) == (6_000, 0)
    assert info["api_key"] != key
    assert info["api_key"].startswith("sk-")
    refunded = (await world.post(f"{alias}/refund", bearer=key)).json()
    assert (refunded["msats"], refunded["amount_msat"]) == ("6000", 6_000)
    assert refunded["token"].startswith("play:")
    for path in ("", "/v1/wallet", "/v1/balance"):
        for name in ("create", "topup", "info", "refund"):
            assert owns_path(f"{path}/{name}")
    assert not owns_path("/v1/chat/completions")


async def test_a_key_that_the_operator_made_gives_its_money_back(world: World) -> None:
    made = await world.keys.create(new_account(), KeyTerms())
    assert isinstance(made, NewKey)
    problem_of(await world.post("/refund", bearer=made.secret), 402, "insufficient_balance")
    await world.post("/topup", {"cashu_token": "play:b:1000"}, bearer=made.secret)
    refunded = (await world.post("/refund", bearer=made.secret)).json()
    assert refunded["amount_msat"] == 1_000
    assert refunded["token"].startswith("play:")


async def test_a_refund_leaves_by_the_way_that_can_pay_to_its_address(tmp_path: Path) -> None:
    """The money came as play money, and goes to an address of another way; without one, back."""

    class Chain(PlayMoney):
        payment_type = "chain"

        def can_handle(self, credential: str) -> bool:
            return False

        def can_pay_to(self, address: str) -> bool:
            return address.startswith("bc1")

    play, chain = PlayMoney(), Chain()
    play.can_pay_to = lambda address: "@" in address  # type: ignore[method-assign]
    async with world_of(tmp_path / "book.db", methods_of(play, chain), ManualClock()) as world:
        key = await world.created("play:a:5000", refund_address="bc1q")
        for body in ({"amount_msat": 1_000}, {"amount_msat": 200, "destination": "me@example.com"}):
            assert (await world.post("/refund", body, bearer=key)).status_code == 200
    assert (list(chain.sent.values()), list(play.sent.values())) == ([1_000], [200])


async def test_a_refund_address_that_nothing_can_pay_to_takes_no_money(
    world: World, play: PlayMoney, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(play, "can_pay_to", lambda address: "@" in address)
    terms = {"initial_balance_token": "play:a:5000", "refund_address": "mistyped"}
    problem = problem_of(await world.post("/create", terms), 400, "refund_address_invalid")
    assert "mistyped" in problem["detail"]
    assert play.receives == 0
    assert await world.created("play:a:5000", refund_address="me@example.com")


async def test_create_keeps_the_terms_of_its_owner(world: World, play: PlayMoney) -> None:
    expires_at = world.clock.now_ns() // NS_PER_S + 60
    key = await world.created(
        refund_address="me@example.com",
        refund_currency="sat",
        refund_mint_url="https://mint.example.com",
        key_expiry_time=expires_at,
        label="laptop",
    )
    info = (await world.get("/info", key)).json()
    assert info["refund_address"] == "me@example.com"
    assert info["refund_currency"] == "sat"
    assert info["refund_mint_url"] == "https://mint.example.com"
    assert info["key_expiry_time"] == expires_at
    assert info["label"] == "laptop"
    refunded = (await world.post("/refund", bearer=key)).json()
    assert refunded["recipient"] == "me@example.com"
    assert list(play.sent.values()) == [5_000]


async def test_a_token_makes_one_key_however_often_it_is_shown(world: World) -> None:
    key = await world.created("play:a:5000")
    again = await world.post("/create", {"cashu_token": "play:a:5000", "label": "other"})
    assert again.json() == {"api_key": key, "balance": 5_000}
    assert again.headers["idempotent-replayed"] == "true"
    world.clock.advance(24 * 3600 + 1)
    late = await world.post("/create", {"cashu_token": "play:a:5000"})
    assert "Bearer" in problem_of(late, 409, "key_exists")["detail"]
    assert await world.balance("play:a:5000") == await world.balance(key) == 5_000


async def test_of_many_creations_with_one_token_one_makes_a_key(world: World) -> None:
    body = {"initial_balance_token": "play:a:5000"}
    answers = await asyncio.gather(*(world.post("/create", body) for _ in range(20)))
    keys = {answer.json()["api_key"] for answer in answers if answer.status_code == 200}
    assert len(keys) == 1
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert await world.balance(keys.pop()) == 5_000
    assert len(await world.keys.page()) == 1


async def test_a_token_as_bearer_is_redeemed_once_and_then_is_the_key(
    world: World, play: PlayMoney
) -> None:
    token = "play:a:5000"
    assert await world.balance(token) == 5_000
    assert await world.balance(token) == 5_000
    assert play.receives == 1
    await world.post("/topup", {"cashu_token": "play:b:1000"}, bearer=token)
    assert (await world.post("/refund", {"amount_msat": 2_000}, bearer=token)).status_code == 200
    assert await world.balance(token) == 4_000
    info = (await world.get("/info", token)).json()
    assert info["api_key"] == "play:a…"
    key = await world.created(token)
    assert await world.balance(key) == 4_000, "it may still make a proper key"


async def test_a_top_up_counts_once_on_one_account(world: World) -> None:
    one, other = await world.created("play:a:5000"), await world.created("play:b:5000")
    body = {"cashu_token": "play:c:1000"}
    for _ in range(3):
        assert (await world.post("/topup", body, bearer=one)).json() == {"msats": 1_000}
    assert await world.balance(one) == 6_000
    problem_of(await world.post("/topup", body, bearer=other), 409, "already_credited")
    query = await world.post("/topup?cashu_token=play:d:1", bearer=other)
    assert query.json() == {"msats": 1}


async def test_an_empty_balance_is_the_callers_affair_and_no_fault_of_ours(world: World) -> None:
    key = await world.created("play:a:5000")
    assert (await world.post("/refund", bearer=key)).status_code == 200
    for path in ("/refund", "/v1/refunds"):
        problem_of(await world.post(path, bearer=key), 402, "insufficient_balance")


async def test_totals_add_up_across_snapshots(world: World) -> None:
    key = await world.created("play:a:5000")
    for number in range(3):
        await world.charge(key, f"req_{number}", 10)
    assert (await world.get("/info", key)).json()["total_spent"] == 30
    for number in range(3, 230):
        await world.charge(key, f"req_{number}", 10)
    for _ in range(2):
        info = (await world.get("/info", key)).json()
        assert (info["total_spent"], info["total_requests"]) == (2_300, 230)
    await world.charge(key, "req_last", 7)
    info = (await world.get("/info", key)).json()
    assert (info["total_spent"], info["total_requests"], info["balance"]) == (2_307, 231, 2_693)


async def test_the_history_is_paged_and_exported(world: World) -> None:
    key = await world.created("play:a:5000")
    other = await world.created("play:other:5000")
    for number in range(5):
        await world.charge(key, f"req_{number}", 10)
    await world.post("/refund", {"amount_msat": 100}, bearer=key)
    seen: list[dict[str, object]] = []
    cursor: int | None = 0
    while cursor is not None:
        url = f"/v1/wallet/history?cursor={cursor}&limit=3"
        page = (await world.get(url, key)).json()
        assert len(page["history"]) <= 3
        seen += page["history"]
        cursor = page["next_cursor"]
    names = [line["event"] for line in seen]
    assert names.count("payment.completed") == 5
    assert {"deposit.credited", "key.created", "refund.completed"} <= set(names)
    assert sum(int(str(line["received_msat"])) for line in seen) == 5_000
    assert sum(int(str(line["returned_msat"])) for line in seen) == 100
    export = await world.get("/v1/wallet/history?format=csv", key)
    assert export.headers["content-type"].startswith("text/csv")
    lines = list(csv.DictReader(io.StringIO(export.text)))
    assert [line["cursor"] for line in lines] == [str(line["cursor"]) for line in seen]
    assert "req_0" not in (await world.get("/v1/wallet/history", other)).text


async def test_an_expired_key_pays_no_more_but_gives_its_money_back(world: World) -> None:
    expires_at = world.clock.now_ns() // NS_PER_S + 60
    key = await world.created(key_expiry_time=expires_at)
    world.clock.advance(60)
    body = {"cashu_token": "play:b:1000"}
    problem_of(await world.post("/topup", body, bearer=key), 401, "key_expired")
    assert await world.balance(key) == 5_000
    assert (await world.post("/refund", bearer=key)).json()["amount_msat"] == 5_000


async def test_a_lost_refund_is_found_by_its_owner_alone(world: World) -> None:
    key, other = await world.created("play:a:5000"), await world.created("play:b:5000")
    told = (await world.post("/refund", {"amount_msat": 1_000}, bearer=key)).json()
    await world.post("/refund", {"amount_msat": 2_000}, bearer=key)
    listed = (await world.get("/v1/wallet/refunds", key)).json()["refunds"]
    assert told["token"] in {one["token"] for one in listed}
    assert {one["amount_msat"] for one in listed} == {1_000, 2_000}
    assert (await world.get("/v1/wallet/refunds", other)).json() == {"refunds": []}
    path = f"/v1/operations/{told['operation']}"
    assert (await world.get(path, key)).json()["token"] == told["token"]
    problem_of(await world.get(path, other), 404, "operation_unknown")


async def test_a_token_whose_mint_is_silent_makes_a_key_that_fills_later(
    world: World, play: PlayMoney
) -> None:
    play.is_silent = True
    made = await world.post("/create", {"cashu_token": "play:a:5000"})
    assert made.status_code == 202
    assert (made.json()["balance"], made.json()["state"]) == (0, "pending")
    key = made.json()["api_key"]
    path = f"/v1/operations/{made.json()['operation']}"
    assert (await world.get(path, key)).json()["state"] == "open"
    assert (await world.get("/info", key)).json()["incoming"] == 0
    again = await world.post("/create", {"cashu_token": "play:a:5000"})
    assert again.json()["api_key"] == key
    play.is_silent = False
    world.clock.advance(5)
    await world.operations.recover()
    assert (await world.get(path, key)).json()["state"] == "succeeded"
    assert await world.balance(key) == 5_000


async def test_a_refund_whose_answer_is_lost_leaves_once(world: World, play: PlayMoney) -> None:
    key = await world.created("play:a:5000")
    play.is_silent = True
    body = {"amount_msat": 1_000}
    first = await world.post("/refund", body, bearer=key, name="once")
    assert (first.status_code, first.json()["state"]) == (202, "pending")
    assert (await world.get("/info", key)).json()["reserved"] == 1_000
    play.is_silent = False
    again = await world.post("/refund", body, bearer=key, name="once")
    assert again.json()["operation"] == first.json()["operation"]
    assert play.made == {again.json()["token"]}
    assert await world.balance(key) == 4_000
    assert await world.held_and_owed() == (4_000, 4_000)


async def test_a_top_up_and_a_refund_race_a_hundred_times_and_lose_nothing(
    world: World, play: PlayMoney
) -> None:
    key = await world.created("play:start:5000")
    for turn in range(100):
        topped, refunded = await asyncio.gather(
            world.post("/topup", {"cashu_token": f"play:{turn}:1000"}, bearer=key),
            world.post("/refund", bearer=key),
        )
        assert topped.json() == {"msats": 1_000}
        assert refunded.status_code in (200, 402), refunded.text
    given = sum(int(token.rpartition(":")[2]) for token in play.made)
    taken = sum(int(token.rpartition(":")[2]) for token in play.spent)
    assert taken == 5_000 + 100 * 1_000
    assert given + await world.balance(key) == taken
    assert await world.held_and_owed() == (taken - given, taken - given)


async def test_many_full_refunds_at_once_give_the_balance_once(
    world: World, play: PlayMoney
) -> None:
    key = await world.created("play:start:5000")
    answers = await asyncio.gather(*(world.post("/refund", bearer=key) for _ in range(20)))
    given = sum(one.json()["amount_msat"] for one in answers if one.status_code == 200)
    assert given == 5_000
    for one in answers:
        if one.status_code != 200:
            problem_of(one, 402, "insufficient_balance")
    assert await world.held_and_owed() == (0, 0)


async def test_change_is_asked_of_the_paywall(world: World) -> None:
    told = await world.get("/v1/change/req_1", "play:a:5000")
    assert told.json() == {"request_id": "req_1", "by": "BearerMoney"}
