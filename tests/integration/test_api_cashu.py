"""The wallet API on the assembled house, with real tokens of a mint of play money."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from farebox.bootstrap import Farebox
from farebox.settings import load_settings
from farebox.testing.asgi import serving
from farebox.testing.mint import DropAfter, PlayMint
from farebox.wire.cashu.token import decode_token, encode_token
from tests.integration.api_world import problem_of
from tests.waiting import eventually


@dataclass
class Doors:
    mint: PlayMint
    farebox: Farebox
    http: httpx.AsyncClient

    def token(self, amount: int, unit: str = "sat") -> str:
        return encode_token(self.mint.issue(amount, unit))

    async def post(self, path: str, body: object, bearer: str = "") -> httpx.Response:
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        return await self.http.post(path, json=body, headers=headers)

    async def balance(self, bearer: str) -> int:
        answer = await self.http.get("/info", headers={"Authorization": f"Bearer {bearer}"})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["balance"])

    async def assert_whole(self) -> None:
        """What the mint owes for our proofs covers what we owe; both are the same here."""
        accounts = await self.farebox.store.accounts()
        held = sum(one.held for one in accounts if one.kind == "custody")
        owed = sum(one.available for one in accounts if one.kind == "customer")
        assert held == owed


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    mint = PlayMint(units=("sat", "msat"))
    async with serving(mint) as url:
        mint.url = url
        overrides = {
            "data_dir": str(tmp_path),
            "mint": [{"url": url}],
            "upstream": [{"urls": ["http://127.0.0.1:9"]}],
            "price": [{"per_request": "10 sat"}],
        }
        async with Farebox(load_settings(None, {}, overrides), b"k" * 32) as farebox:
            transport = httpx.ASGITransport(farebox.api)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://x.test") as http:
                yield Doors(mint, farebox, http)


async def test_a_token_becomes_a_key_is_topped_up_and_comes_back(doors: Doors) -> None:
    made = await doors.post("/create", {"initial_balance_token": doors.token(100)})
    assert (made.status_code, made.json()["balance"]) == (200, 100_000), made.text
    key = made.json()["api_key"]
    topped = await doors.post("/topup", {"cashu_token": doors.token(28)}, key)
    assert topped.json() == {"msats": 28_000}
    part = (await doors.post("/refund", {"amount_msat": 40_000}, key)).json()
    assert decode_token(part["token"]).amount == 40
    assert part["sats"] == "40"
    rest = (await doors.post("/refund", {}, key)).json()
    assert decode_token(rest["token"]).amount == 88
    assert await doors.balance(key) == 0
    assert await doors.balance(rest["token"]) == 88_000
    await doors.assert_whole()


async def test_a_swap_whose_answer_is_lost_is_credited_later(doors: Doors) -> None:
    doors.mint.faults.next("swap", DropAfter())
    doors.mint.faults.always("restore", DropAfter())
    token = doors.token(64)
    made = await doors.post("/create", {"cashu_token": token})
    assert made.status_code in (200, 202), made.text
    key = made.json()["api_key"]
    doors.mint.faults.clear()

    async def balance() -> int:
        await doors.farebox.recover()
        return await doors.balance(key)

    assert await eventually(balance) == 64_000
    await doors.assert_whole()


async def test_top_ups_and_refunds_race_with_real_tokens(doors: Doors) -> None:
    made = await doors.post("/create", {"cashu_token": doors.token(10)})
    key, given = made.json()["api_key"], 0
    for _ in range(10):
        topped, refunded = await asyncio.gather(
            doors.post("/topup", {"cashu_token": doors.token(3)}, key),
            doors.post("/refund", {}, key),
        )
        assert topped.json() == {"msats": 3_000}, topped.text
        if refunded.status_code == 200:
            given += decode_token(refunded.json()["token"]).amount
        else:
            problem_of(refunded, refunded.status_code, refunded.json()["code"])
            assert refunded.status_code < 500
    assert given * 1_000 + await doors.balance(key) == (10 + 10 * 3) * 1_000
    await doors.assert_whole()


async def test_bad_tokens_are_told_apart_and_cost_nothing(doors: Doors) -> None:
    good = doors.mint.issue(8)
    whole = encode_token(good)
    spent = doors.token(4)
    await doors.post("/create", {"cashu_token": spent})
    foreign = encode_token(replace(good, mint="https://mint.example.com"))
    twice = encode_token(replace(good, proofs=(*good.proofs, *good.proofs)))
    cases = {
        "cashuB": 400,
        whole[: len(whole) // 2]: 400,
        "cashuB" + base64.urlsafe_b64encode(b"\xa1\xff").decode(): 400,
        "cashuB!!!!": 400,
        "cashuA" + base64.urlsafe_b64encode(b"{}").decode(): 400,
        "cashuB" + "A" * 70_000: 400,
        foreign: 400,
        twice: 400,
        doors.token(5, "msat"): 400,
    }
    for token, status in cases.items():
        answer = await doors.post("/create", {"cashu_token": token})
        problem = problem_of(answer, status, answer.json()["code"])
        assert len(token) < 10 or token not in answer.text
        if token == foreign:
            assert problem["code"] == "mint_not_accepted"
            assert problem["mints"] == [doors.mint.url]
    made = await doors.post("/create", {"cashu_token": whole})
    assert made.json()["balance"] == 8_000, "what was refused in part is still good"
    await doors.assert_whole()


async def test_a_token_spent_elsewhere_is_400(doors: Doors) -> None:
    token = doors.mint.issue(9)
    await doors.post("/create", {"cashu_token": encode_token(token)})
    # The same proofs in part are other money to us, and spent to the mint.
    part = encode_token(replace(token, proofs=token.proofs[:1]))
    answer = await doors.post("/topup", {"cashu_token": part}, encode_token(token))
    problem_of(answer, 400, "token_spent")
    await doors.assert_whole()
