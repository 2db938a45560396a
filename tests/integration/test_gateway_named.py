"""A request on an account that its caller named is charged once, however often it is sent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from farebox.testing.asgi import Send
from tests.integration.gateway_house import Asked, Behaviour, Door, funded_key, open_door, say
from tests.integration.test_gateway_requests import receipt_of

DAY_S = 24 * 3_600
FUNDED_MSAT, PRICE_MSAT = 1_000_000, 10_000


def ask(
    door: Door,
    caller: aiohttp.ClientSession,
    path: str = "/a?b=1",
    body: bytes = b"{}",
    *,
    name: str = "mine",
) -> aiohttp.client._RequestContextManager:
    headers = door.auth | {"Idempotency-Key": name}
    return caller.post(door.url + path, data=body, headers=headers)


async def test_the_same_request_again_is_told_what_it_came_to_and_not_charged(
    tmp_path: Path,
) -> None:
    async with open_door(tmp_path) as (door, caller):
        async with ask(door, caller) as first:
            assert (first.status, await first.json()) == (200, {"hello": "world"})
        for _ in range(2):
            async with ask(door, caller) as again:
                told = await again.json()
            assert (again.status, told["code"]) == (409, "answer_not_stored")
            assert told["request_id"] == first.headers["x-farebox-request-id"]
            assert told["charged_msat"] == PRICE_MSAT
            assert receipt_of(again) == receipt_of(first)
        assert len(door.upstream.asked) == 1
        assert await door.left() == FUNDED_MSAT - PRICE_MSAT


@pytest.mark.parametrize("other", [("/a?b=2", b"{}"), ("/c?b=1", b"{}"), ("/a?b=1", b"[]")])
async def test_another_request_by_the_same_name_is_422(
    tmp_path: Path, other: tuple[str, bytes]
) -> None:
    async with open_door(tmp_path) as (door, caller):
        async with ask(door, caller) as first:
            assert first.status == 200
        async with ask(door, caller, *other) as refused:
            assert (refused.status, (await refused.json())["code"]) == (
                422,
                "idempotency_key_reused",
            )
        async with ask(door, caller, *other, name="other") as second:
            assert second.status == 200
        assert await door.left() == FUNDED_MSAT - 2 * PRICE_MSAT


async def test_of_many_at_once_one_goes_on_and_the_others_hear_of_it(tmp_path: Path) -> None:
    upstream, goes_on = Behaviour(), asyncio.Event()

    async def wait(asked: Asked, send: Send) -> None:
        await goes_on.wait()
        await say({})(asked, send)

    upstream.answer = wait
    async with open_door(tmp_path, upstream=upstream) as (door, caller):

        async def once() -> tuple[int, str]:
            async with ask(door, caller) as answer:
                told = await answer.json()
                if answer.status == 409:
                    goes_on.set()
                return answer.status, told.get("code", "")

        told = await asyncio.gather(*(once() for _ in range(8)))
        assert sorted(told)[0] == (200, "")
        assert {code for _, code in told} <= {"", "request_in_progress", "answer_not_stored"}
        assert len(upstream.asked) == 1
        assert await door.left() == FUNDED_MSAT - PRICE_MSAT


async def test_what_was_charged_nothing_is_carried_out_under_the_same_name(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (door, caller):
        door.upstream.answer = say({}, 503)
        async with ask(door, caller) as failed:
            assert failed.status == 503
        door.upstream.answer = say({"hello": "again"})
        async with ask(door, caller) as second:
            assert (second.status, await second.json()) == (200, {"hello": "again"})
        async with ask(door, caller) as again:
            assert (await again.json())["code"] == "answer_not_stored"
        assert await door.left() == FUNDED_MSAT - PRICE_MSAT


async def test_the_service_never_takes_the_names_of_two_accounts_for_one(tmp_path: Path) -> None:
    """It knows all callers by one credential: it would give one the answer of the other."""
    async with open_door(tmp_path) as (door, caller):
        _, secret = await funded_key(door.house)
        other = {"Authorization": f"Bearer {secret}"}
        door.upstream.answer = say({}, 503)
        for auth in (door.auth, other, door.auth):  # charged nothing, so each is carried out
            named = auth | {"Idempotency-Key": "1"}
            async with caller.post(door.url + "/a", data=b"{}", headers=named) as answer:
                assert answer.status == 503
        mine, others, again = (asked.header("idempotency-key") for asked in door.upstream.asked)
        assert mine == again != others
        assert None not in (mine, others)
        assert "1" not in (mine, others)  # else a caller could say the name that another one has


async def test_a_name_is_free_again_after_a_day(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (door, caller):
        for _ in range(2):
            async with ask(door, caller) as answer:
                assert answer.status == 200
            door.house.clock.advance(DAY_S)
        assert await door.left() == FUNDED_MSAT - 2 * PRICE_MSAT


async def test_a_name_that_is_none_is_400_and_charges_nothing(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (door, caller):
        async with ask(door, caller, name="x" * 256) as refused:
            assert (refused.status, (await refused.json())["code"]) == (
                400,
                "idempotency_key_unreadable",
            )
        assert await door.left() == FUNDED_MSAT


async def test_without_a_name_each_request_is_charged(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (door, caller):
        for _ in range(2):
            async with caller.post(door.url, data=b"{}", headers=door.auth) as answer:
                assert answer.status == 200
        assert await door.left() == FUNDED_MSAT - 2 * PRICE_MSAT
