"""Whatever comes in, the answer is a clear problem document and the books stay balanced."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.clock import ManualClock
from farebox.errors import OutcomeUnknown, StoreBusy, StoreError
from tests.integration.api_world import PlayMoney, World, methods_of, problem_of, world_of


@pytest.fixture
def play() -> PlayMoney:
    return PlayMoney()


@pytest.fixture
async def world(tmp_path: Path, play: PlayMoney) -> AsyncIterator[World]:
    async with world_of(tmp_path / "book.db", methods_of(play), ManualClock()) as made:
        yield made
        held, owed = await made.held_and_owed()
        assert held == owed


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ("", "credential_missing"),
        (" ", "credential_missing"),
        ("nonsense", "credential_not_understood"),
        ("sk-key", "credential_not_understood"),
        ("play:", "credential_malformed"),
        ("play:a:-5", "credential_malformed"),
        ("play:a:0", "credential_malformed"),
        ("play:a:1" + "0" * 400, "credential_malformed"),
        ("play:ä:5", "credential_not_understood"),
        ("play:\u0000:5\ud7ff", "credential_not_understood"),
    ],
)
async def test_a_token_that_is_none_is_400(world: World, token: str, code: str) -> None:
    problem = problem_of(await world.post("/create", {"cashu_token": token}), 400, code)
    if code == "credential_not_understood":
        assert problem["accepted"] == ["play money (play:NAME:MSAT)"]
    key = await world.created("play:good:1")
    problem_of(await world.post("/topup", {"cashu_token": token}, bearer=key), 400, code)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe",
        b'{"cashu_token": "\xff"}',
        b'{"cashu_token": "\\ud800"}',
        b"[" * 5_000,
        b"NaN",
        b"null",
        b"[]",
        b'"text"',
        b'{"cashu_token": 5}',
        b'{"amount_msat": "5", "cashu_token": null}',
        b'{"amount_msat": 1.5, "cashu_token": {}}',
        b'{"amount_msat": true, "cashu_token": []}',
    ],
)
async def test_a_body_that_is_not_as_documented_is_400(world: World, body: bytes) -> None:
    key = await world.created("play:good:5")
    for path in ("/create", "/topup", "/refund"):
        headers = {"Authorization": f"Bearer {key}"}
        answer = await world.http.post(path, content=body, headers=headers)
        assert answer.json()["code"] in ("body_malformed", "body_invalid"), answer.text
        problem_of(answer, 400, answer.json()["code"])
    assert await world.balance(key) == 5


@pytest.mark.parametrize("amount", [0, -1, 2**63, 10**30])
async def test_an_amount_out_of_range_is_400(world: World, amount: int) -> None:
    key = await world.created("play:good:5")
    answer = await world.post("/refund", {"amount_msat": amount}, bearer=key)
    assert answer.status_code == 400
    problem_of(answer, 400, answer.json()["code"])


async def test_more_than_there_is_is_402(world: World) -> None:
    key = await world.created("play:good:5")
    answer = await world.post("/refund", {"amount_msat": 6}, bearer=key)
    problem_of(answer, 402, "insufficient_balance")


@pytest.mark.parametrize(
    "body",
    [
        {"destination": "a@example.com", "lightning_address": "b@example.com"},
        {"destination": "a" * 3_000},
    ],
)
async def test_an_unclear_destination_is_400(world: World, body: dict[str, object]) -> None:
    key = await world.created("play:good:5")
    problem_of(await world.post("/refund", body, bearer=key), 400, "destination_invalid")


async def test_a_destination_that_cannot_be_paid_is_400(world: World) -> None:
    key = await world.created("play:good:5")
    body = {"lightning_address": "nobody@example.com"}
    problem_of(await world.post("/refund", body, bearer=key), 400, "invalid_input")
    assert await world.balance(key) == 5


@pytest.mark.parametrize(
    "terms",
    [
        {"key_expiry_time": 1},
        {"key_expiry_time": -(10**18)},
        {"key_expiry_time": 10**18},
        {"key_expiry_time": 9_300_000_000},  # more nanoseconds than a column takes
        {"refund_address": "x" * 3_000},
        {"label": "line\nbreak"},
    ],
)
async def test_terms_that_cannot_be_kept_are_400_before_the_token_is_taken(
    world: World, play: PlayMoney, terms: dict[str, object]
) -> None:
    answer = await world.post("/create", {"cashu_token": "play:a:5", **terms})
    problem_of(answer, 400, answer.json()["code"])
    assert play.receives == 0


async def test_the_same_in_a_query_is_400_too(world: World) -> None:
    for query in ("key_expiry_time=soon", "initial_balance_token=%FF%FE", ""):
        answer = await world.get(f"/create?{query}")
        problem_of(answer, 400, answer.json()["code"])


async def test_without_a_credential_it_is_401(world: World) -> None:
    for path in ("/info", "/v1/wallet/history", "/v1/wallet/refunds", "/v1/operations/op_1"):
        answer = await world.get(path)
        problem_of(answer, 401, "credential_required")
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_an_unknown_or_revoked_key_is_401(world: World) -> None:
    for secret in ("sk-" + "a" * 43, "sk-", "sk-" + "a" * 3_000):
        answer = await world.get("/info", secret)
        problem_of(answer, 401, "key_unknown")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    secret = await world.created()
    (_, key), *_ = await world.keys.page()
    await world.keys.revoke(key.id)
    for path in ("/info", "/v1/wallet/refunds"):
        problem_of(await world.get(path, secret), 401, "key_revoked")
    problem_of(await world.post("/refund", bearer=secret), 401, "key_revoked")


async def test_guessing_is_slowed_down_and_shuts_no_good_key_out(world: World) -> None:
    good = await world.created()
    for number in range(5):
        problem_of(await world.get("/info", f"sk-{number}"), 401, "key_unknown")
    slowed = await world.get("/info", "sk-again")
    problem_of(slowed, 429, "too_many_failures")
    assert int(slowed.headers["retry-after"]) > 0
    assert await world.balance(good) == 5_000
    world.clock.advance(60)
    problem_of(await world.get("/info", "sk-again"), 401, "key_unknown")


async def test_worthless_tokens_are_refused_and_counted(world: World, play: PlayMoney) -> None:
    play.spent |= {f"play:{number}:5" for number in range(10)}
    for number in range(5):
        answer = await world.post("/create", {"cashu_token": f"play:{number}:5"})
        assert answer.json()["code"] == "token_spent"
        problem_of(answer, answer.status_code, "token_spent")
        assert 400 <= answer.status_code < 500
    calls = play.receives
    slowed = await world.post("/create", {"cashu_token": "play:9:5"})
    problem_of(slowed, 429, "too_many_failures")
    assert play.receives == calls
    assert await world.keys.page() == [], "no key is made of nothing"


async def test_two_credentials_at_once_are_400(world: World) -> None:
    headers = {"Authorization": "Bearer sk-a", "X-Cashu": "play:a:5"}
    problem_of(await world.http.get("/info", headers=headers), 400, "two_payments")


@pytest.mark.parametrize("value", [b"Bearer \xff\xfe", b"Bearer ", b"Bearer nonsense"])
async def test_a_bearer_that_is_no_text_of_ours_is_400_or_401(world: World, value: bytes) -> None:
    answer = await world.http.get("/info", headers=[(b"authorization", value)])
    problem_of(answer, answer.status_code, answer.json()["code"])
    assert answer.status_code in (400, 401)


async def test_a_body_over_the_limit_is_413(world: World) -> None:
    key = await world.created()
    for path in ("/create", "/topup", "/refund"):
        answer = await world.post(path, {"cashu_token": "x" * 20_000}, bearer=key)
        problem_of(answer, 413, "body_too_large")


async def test_headers_over_the_limit_are_431(world: World) -> None:
    answer = await world.http.get("/info", headers={"X-Much": "x" * 6_000})
    problem_of(answer, 431, "headers_too_large")


async def test_unknown_paths_and_methods_are_problems_too(world: World) -> None:
    problem_of(await world.get("/v1/wallet/nothing"), 404, "not_found")
    problem_of(await world.http.delete("/info"), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "query", ["cursor=-1", "cursor=x", "limit=0", "limit=9999", "limit=٣", "format=xml"]
)
async def test_a_bad_page_is_400(world: World, query: str) -> None:
    key = await world.created()
    answer = await world.get(f"/v1/wallet/history?{query}", key)
    problem_of(answer, 400, answer.json()["code"])


async def test_a_mint_that_is_down_is_not_the_clients_loss(world: World, play: PlayMoney) -> None:
    play.is_down = True
    key = (await world.post("/create", {"cashu_token": "play:a:5000"})).json()["api_key"]
    waiting = await world.get("/info", "play:b:1000")
    problem_of(waiting, 503, "payment_pending")
    assert waiting.headers["retry-after"]
    play.is_down = False
    world.clock.advance(10)
    await world.operations.recover()
    assert await world.balance(key) == 5_000
    assert await world.balance("play:b:1000") == 1_000


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreError("disk full"), "books_unavailable"),
        (StoreBusy("full"), "busy"),
        (OutcomeUnknown("unit"), "books_unavailable"),
    ],
)
async def test_a_store_that_fails_is_503(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    async def broken(*_: object) -> None:
        raise error

    key = await world.created()
    with monkeypatch.context() as patch:
        patch.setattr(world.store, "commit", broken)
        answer = await world.post("/refund", bearer=key)
        problem_of(answer, 503, code)
        assert answer.headers["retry-after"]
        assert "disk" not in answer.text
    assert await world.balance(key) == 5_000


async def test_what_nobody_foresaw_is_500_and_tells_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(*_: object, **_k: object) -> None:
        raise RuntimeError("choked on play:secret:5")

    key = await world.created()
    monkeypatch.setattr(world.payments, "refund", broken)
    answer = await world.post("/refund", bearer=key)
    problem_of(answer, 500, "internal")
    captured = capsys.readouterr()
    assert "secret" not in answer.text + captured.out + captured.err
    assert "RuntimeError" in captured.out + captured.err
