"""Requests through the gateway, on a real book: who pays what, and what passes."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from farebox.gateway import Limits
from farebox.testing.asgi import Send
from tests.integration.gateway_house import Asked, Behaviour, events, open_door, say
from tests.waiting import WAIT_S, eventually

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}
USAGE = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
PER_TOKEN = "0.1 sat / input token + 0.2 sat / output token"


def chat_answer(usage: object = USAGE) -> dict[str, object]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "eight bb"}}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


def receipt_of(answer: aiohttp.ClientResponse) -> dict[str, object]:
    body = answer.headers["x-farebox-receipt"].split(".")[0]
    decoded: dict[str, object] = msgspec.json.decode(
        base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    )
    return decoded


async def test_a_key_pays_for_a_forwarded_request(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (door, caller):
        async with caller.get(f"{door.url}/v1/hello?a=1", headers=door.auth) as answer:
            assert answer.status == 200
            assert await answer.json() == {"hello": "world"}
            assert receipt_of(answer)["charged_msat"] == 10_000
        assert await door.left() == 990_000
        assert (door.upstream.asked[0].path, door.upstream.asked[0].query) == ("/v1/hello", b"a=1")


async def test_a_short_answer_carries_its_change(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (door, caller):
        async with caller.get(door.url, headers={"X-Cashu": "coin:a:25000"}) as answer:
            assert answer.status == 200
            assert answer.headers["x-cashu"] == "coin:change:15000"
            assert 'rel="payment-change"' in answer.headers["link"]


async def test_without_payment_nothing_is_forwarded(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (door, caller):
        async with caller.get(door.url) as answer:
            assert answer.status == 402
            assert answer.headers["x-cashu"].startswith("creqA")
        assert door.upstream.asked == []


async def test_anthropics_place_for_a_key_is_read_where_nothing_else_pays(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (door, caller):
        key = door.auth["Authorization"].removeprefix("Bearer ")
        for pays in ({"X-Api-Key": key}, {"X-Api-Key": "sk-ant-theirs", **door.auth}):
            async with caller.get(door.url, headers=pays) as answer:
                assert answer.status == 200
        assert await door.left() == 980_000
        assert all(asked.header("x-api-key") is None for asked in door.upstream.asked)
        statuses = []
        for other in ("sk-none", "anything else"):
            async with caller.get(door.url, headers={"X-Api-Key": other}) as answer:
                statuses.append(answer.status)
        assert statuses == [401, 402]


async def test_two_payments_at_once_touch_nothing(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (door, caller):
        both = door.auth | {"X-Cashu": "coin:a:25000"}
        async with caller.get(door.url, headers=both) as answer:
            assert answer.status == 400
            assert (await answer.json())["code"] == "two_payments"
        assert (door.house.coins.taken, door.upstream.asked) == ([], [])
        assert await door.left() == 1_000_000


async def test_reported_tokens_are_charged_exactly(tmp_path: Path) -> None:
    upstream = Behaviour()
    upstream.answer = say(chat_answer())
    async with open_door(tmp_path, price=PER_TOKEN, upstream=upstream) as (door, caller):
        url = f"{door.url}/v1/chat/completions"
        async with caller.post(url, json=CHAT, headers=door.auth) as answer:
            assert receipt_of(answer)["charged_msat"] == 10 * 100 + 20 * 200
        assert await door.left() == 1_000_000 - 5_000


@pytest.mark.parametrize("lie", [10**30, -5, "many", 10**8])
async def test_an_upstream_that_lies_about_usage_never_charges_above_the_quote(
    tmp_path: Path, lie: object
) -> None:
    upstream = Behaviour()
    upstream.answer = say(chat_answer({"prompt_tokens": lie, "completion_tokens": lie}))
    async with open_door(tmp_path, price=PER_TOKEN, upstream=upstream) as (door, caller):
        url = f"{door.url}/v1/chat/completions"
        async with caller.post(url, json=CHAT, headers=door.auth) as answer:
            told = receipt_of(answer)
        charged, quoted = told["charged_msat"], told["quoted_msat"]
        assert isinstance(charged, int)
        assert isinstance(quoted, int)
        assert 0 < charged <= quoted
        assert await door.left() == 1_000_000 - charged


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_an_upstream_error_passes_and_charges_nothing(tmp_path: Path, status: int) -> None:
    upstream = Behaviour()
    upstream.answer = say({"error": "no"}, status, (b"retry-after", b"7"))
    async with open_door(tmp_path, upstream=upstream) as (door, caller):
        async with caller.get(door.url, headers={"X-Cashu": "coin:a:25000"}) as answer:
            assert (answer.status, await answer.json()) == (status, {"error": "no"})
            assert answer.headers["x-cashu"] == "coin:change:25000"
            assert answer.headers["retry-after"] == "7"
        assert await door.house.balance("revenue") == 0


ERRORS = [
    ("chat/completions", say({"error": {"message": "overloaded", "code": 503}})),
    ("chat/completions", events(b': hi\n\ndata: {"error":{"code":503}}\n\n', b"data: [DONE]\n\n")),
    ("messages", events(b'event: error\ndata: {"type":"error","error":{"type":"overloaded"}}\n\n')),
    (
        "responses",
        events(b'data: {"type":"response.failed","response":{"error":{"code":"x"}}}\n\n'),
    ),
    ("responses", say({"status": "failed", "error": {"code": "x"}, "output": [], "usage": None})),
]


@pytest.mark.parametrize("price", [PER_TOKEN, "10 sat"])
async def test_an_answer_that_is_only_an_error_charges_nothing(tmp_path: Path, price: str) -> None:
    async with open_door(tmp_path, price=price) as (door, caller):
        for path, answer in ERRORS:
            door.upstream.answer = answer
            request = {"model": "m", "max_tokens": 9, "input": "hello", "stream": True}
            url = f"{door.url}/v1/{path}"
            async with caller.post(url, json=request, headers=door.auth) as answered:
                assert (answered.status, b'"error"' in await answered.read()) == (200, True)
            await door.settled()
            assert await door.left() == 1_000_000, path


async def test_an_error_after_text_or_beside_usage_is_charged(tmp_path: Path) -> None:
    text = b'data: {"choices":[{"delta":{"content":"some text"}}]}\n\n'
    error, usage = {"code": 503}, {"prompt_tokens": 1, "completion_tokens": 2}
    told = events(text, b'data: {"error":{"code":503}}\n\n')
    async with open_door(tmp_path, price=PER_TOKEN) as (door, caller):
        for answer in (told, say({"error": error, "usage": usage})):
            before, door.upstream.answer = await door.left(), answer
            url = f"{door.url}/v1/chat/completions"
            async with caller.post(url, json={"model": "m"}, headers=door.auth) as answered:
                await answered.read()
            await door.settled()
            assert await door.left() < before


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_passes_and_charges_nothing(tmp_path: Path, status: int) -> None:
    """It serves nothing: where the caller goes on to, he may have to pay again."""
    upstream = Behaviour()
    upstream.answer = say({"moved": True}, status, (b"location", b"https://other.example/v2"))
    async with open_door(tmp_path, upstream=upstream) as (door, caller):
        headers = {"X-Cashu": "coin:a:25000"}
        async with caller.get(door.url, headers=headers, allow_redirects=False) as answer:
            assert (answer.status, await answer.json()) == (status, {"moved": True})
            assert answer.headers["location"] == "https://other.example/v2"
            assert answer.headers["x-cashu"] == "coin:change:25000"
        assert await door.house.balance("revenue") == 0
        assert len(door.upstream.asked) == 1, "the gateway itself follows nowhere"


async def test_a_redirect_to_the_service_itself_leads_back_here(tmp_path: Path) -> None:
    """As frameworks do for a slash that is missing: at that address nobody would pay."""
    upstream = Behaviour()

    async def slash(asked: Asked, send: Send) -> None:
        to = f"http://{asked.header('host')}{asked.path}/?a=1"
        await say({}, 307, (b"location", to.encode()))(asked, send)

    upstream.answer = slash
    async with open_door(tmp_path, upstream=upstream) as (door, caller):
        url = f"{door.url}/v1/items"
        async with caller.get(url, headers=door.auth, allow_redirects=False) as answer:
            assert answer.headers["location"] == "/v1/items/?a=1"


async def test_not_modified_charges_nothing(tmp_path: Path) -> None:
    upstream = Behaviour()

    async def unchanged(_: Asked, send: Send) -> None:
        head = {"type": "http.response.start", "status": 304, "headers": [(b"etag", b'"1"')]}
        await send(head)
        await send({"type": "http.response.body", "body": b""})

    upstream.answer = unchanged
    async with open_door(tmp_path, upstream=upstream) as (door, caller):
        headers = door.auth | {"If-None-Match": '"1"'}
        async with caller.get(door.url, headers=headers) as answer:
            assert (answer.status, answer.headers["etag"]) == (304, '"1"')
            assert await answer.read() == b""
        assert await door.left() == 1_000_000


@pytest.mark.parametrize("status", [401, 402, 407])
async def test_an_upstream_that_refuses_the_gateway_is_no_business_of_the_caller(
    tmp_path: Path, status: int
) -> None:
    upstream = Behaviour()
    upstream.answer = say({"error": "bad key sk-upstream"}, status)
    async with open_door(tmp_path, upstream=upstream) as (door, caller):
        async with caller.get(door.url, headers=door.auth) as answer:
            assert answer.status == 502
            assert "sk-upstream" not in await answer.text()
        assert await door.left() == 1_000_000


async def test_an_upstream_that_is_down_charges_nothing(tmp_path: Path, dead_port: int) -> None:
    down = f"http://127.0.0.1:{dead_port}"
    async with open_door(tmp_path, urls=(down,)) as (door, caller):
        async with caller.get(door.url, headers={"X-Cashu": "coin:a:25000"}) as answer:
            assert answer.status == 502
            assert answer.headers["x-cashu"] == "coin:change:25000"
            assert (await answer.json())["code"] == "upstream_unreachable"


async def test_the_next_address_is_tried_when_one_is_down(tmp_path: Path, dead_port: int) -> None:
    upstream = Behaviour()
    from farebox.testing.asgi import serving

    async with serving(upstream) as there:
        down = f"http://127.0.0.1:{dead_port}"
        async with open_door(tmp_path, urls=(down, there)) as (door, caller):
            for _ in range(3):
                async with caller.get(door.url, headers=door.auth) as answer:
                    assert answer.status == 200
    assert len(upstream.asked) == 3


async def test_an_upstream_that_is_slow_charges_nothing(tmp_path: Path) -> None:
    upstream = Behaviour()

    async def sleep(asked: Asked, send: object) -> None:
        await asyncio.sleep(30)

    upstream.answer = sleep
    async with open_door(tmp_path, upstream=upstream, first_byte_timeout_s=0.2) as (door, caller):
        async with caller.get(door.url, headers=door.auth) as answer:
            assert answer.status == 504
            assert (await answer.json())["code"] == "upstream_slow"
        assert await door.left() == 1_000_000
        await asyncio.wait_for(upstream.cancelled.wait(), WAIT_S)


async def test_no_money_and_no_hop_goes_to_the_upstream(tmp_path: Path) -> None:
    async with open_door(tmp_path, headers={"Authorization": "Bearer sk-up"}) as (door, caller):
        sent = door.auth | {
            "Connection": "x-private, keep-alive",
            "X-Private": "hop",
            "X-Payment": "money",
            "X-API-Key": "sk-mine",
            "X-HTTP-Method-Override": "DELETE",
            "X-Kept": "yes",
            "Accept-Encoding": "br",
        }
        async with caller.get(door.url, headers=sent) as answer:
            assert answer.status == 200
            request_id = answer.headers["x-farebox-request-id"]
        asked = door.upstream.asked[0]
        gone = ["x-private", "x-payment", "x-cashu", "x-api-key", "x-http-method-override"]
        assert [asked.header(name) for name in gone] == [None] * 5
        assert asked.header("authorization") == "Bearer sk-up"
        assert (asked.header("x-kept"), asked.header("accept-encoding")) == ("yes", "br")
        assert asked.header("x-request-id") == request_id
        assert asked.header("host") != door.url.removeprefix("http://")


async def test_no_money_of_the_upstream_comes_back(tmp_path: Path) -> None:
    upstream = Behaviour()
    theirs = ((b"x-cashu", b"cashuB"), (b"connection", b"x-hop"), (b"x-hop", b"1"), (b"x-a", b"b"))
    upstream.answer = say({}, 200, *theirs)
    async with open_door(tmp_path, upstream=upstream) as (door, caller):
        async with caller.get(door.url, headers=door.auth) as answer:
            assert "x-cashu" not in answer.headers
            assert "x-hop" not in answer.headers
            assert answer.headers["x-a"] == "b"


async def test_a_body_over_the_limit_is_413_before_money_moves(tmp_path: Path) -> None:
    async with open_door(tmp_path, limits=Limits(body_bytes_max=1000)) as (door, caller):

        async def pieces() -> object:
            for _ in range(20):
                yield b"x" * 100

        for body in (b"x" * 1001, pieces()):
            async with caller.post(door.url, data=body, headers=door.auth) as answer:
                assert answer.status == 413
                assert (await answer.json())["code"] == "body_too_large"
        assert (await door.left(), door.upstream.asked) == (1_000_000, [])


async def test_large_bodies_share_what_memory_there_is_and_keep_no_small_one_out(
    tmp_path: Path,
) -> None:
    mib = 1 << 20
    limits = Limits(body_bytes_max=mib, bodies_bytes_max=mib)
    async with open_door(tmp_path, limits=limits) as (door, caller):
        goes_on = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"x" * (mib - 1)
            await goes_on.wait()
            yield b"x"

        async def ask(body: object) -> int:
            async with caller.post(door.url, data=body, headers=door.auth) as answer:
                return answer.status

        room = door.gateway.room
        for stays in (False, True):
            first = asyncio.ensure_future(ask(slow()))
            await eventually(lambda: mib - room.free > mib // 2)
            assert await ask(b"x" * mib) == 503
            assert await ask(b"x" * 60_000) == 200
            if stays:
                goes_on.set()
                assert await first == 200
            else:
                first.cancel()
            await eventually(lambda: room.free == mib)
            assert await ask(b"x" * mib) == 200


async def test_a_body_that_does_not_come_is_408(tmp_path: Path) -> None:
    async with open_door(tmp_path, limits=Limits(body_timeout_s=0.2)) as (door, _):
        host, port = door.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_headers_over_the_limit_are_431(tmp_path: Path) -> None:
    async with open_door(tmp_path, limits=Limits(header_bytes_max=8192)) as (door, caller):
        sent = door.auth | {"X-Long": "y" * 8000, "X-More": "z" * 500}
        async with caller.get(door.url, headers=sent) as answer:
            assert answer.status == 431
        assert (await door.left(), door.upstream.asked) == (1_000_000, [])


async def test_too_many_requests_are_503_before_money_moves(tmp_path: Path) -> None:
    upstream, goes_on = Behaviour(), asyncio.Event()

    async def wait(asked: Asked, send: Send) -> None:
        await goes_on.wait()
        await say({})(asked, send)

    upstream.answer = wait
    limits = Limits(requests_max=1, queue_max=0)
    async with open_door(tmp_path, upstream=upstream, limits=limits) as (door, caller):
        first = asyncio.ensure_future(caller.get(door.url, headers=door.auth))
        await eventually(lambda: upstream.asked)
        async with caller.get(door.url, headers=door.auth) as second:
            assert second.status == 503
            assert second.headers["retry-after"]
        goes_on.set()
        async with await first as answer:
            assert answer.status == 200
        await door.settled()
        assert await door.left() == 990_000


async def test_a_websocket_is_refused_in_words(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (door, caller):
        sent = door.auth | {"Connection": "Upgrade", "Upgrade": "websocket"}
        async with caller.get(door.url, headers=sent) as answer:
            assert (await answer.json())["code"] == "upgrade_not_supported"
        assert await door.left() == 1_000_000


async def test_head_is_paid_and_has_no_body(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (door, caller):
        for _ in range(2):
            async with caller.head(door.url, headers=door.auth) as answer:
                assert (answer.status, await answer.read()) == (200, b"")
                assert answer.headers["content-length"] == "17"
        assert await door.left() == 980_000


async def test_options_costs_nothing_and_reaches_nobody(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (door, caller):
        async with caller.options(door.url) as answer:
            assert answer.status == 204
            assert "POST" in answer.headers["allow"]
        assert door.upstream.asked == []


async def test_what_is_free_by_rule_needs_no_payment(tmp_path: Path) -> None:
    rules: list[dict[str, object]] = [
        {"path": "/free/*", "free": True},
        {"path": "/paid", "per_request": "10 sat"},
    ]
    async with open_door(tmp_path, rules=rules) as (door, caller):
        async with caller.get(f"{door.url}/free/x") as answer:
            assert answer.status == 200
        async with caller.get(f"{door.url}/other", headers=door.auth) as answer:
            assert answer.status == 403
            assert (await answer.json())["code"] == "no_price"
        assert len(door.upstream.asked) == 1


async def test_models_are_listed_with_our_prices(tmp_path: Path) -> None:
    upstream = Behaviour()
    upstream.answer = say({"object": "list", "data": [{"id": "tiny"}, {"id": "unpriced"}]})
    rules: list[dict[str, object]] = [{"model": "tiny", "per_input_token": "0.1 sat"}]
    async with open_door(tmp_path, rules=rules, upstream=upstream, catalogue=True) as (door, c):
        async with c.get(f"{door.url}/v1/models") as answer:
            listed = (await answer.json())["data"]
        assert [model["id"] for model in listed] == ["tiny"]
        assert listed[0]["sats_pricing"]["prompt"] == 0.1
        async with c.get(f"{door.url}/v1/models/tiny") as answer:
            assert (await answer.json())["id"] == "tiny"


async def test_prices_are_read_from_the_upstream_and_charged(tmp_path: Path) -> None:
    upstream = Behaviour()
    pricing = {"sats_pricing": {"prompt": 1, "completion": 2}}
    listed = say({"object": "list", "data": [{"id": "tiny", **pricing}]})
    chat = say(chat_answer())

    async def answer(asked: Asked, send: object) -> None:
        await (listed if asked.path == "/v1/models" else chat)(asked, send)  # type: ignore[arg-type]

    upstream.answer = answer
    rules: list[dict[str, object]] = [{"path": "/nothing", "per_request": "1 sat"}]
    async with open_door(
        tmp_path, rules=rules, upstream=upstream, catalogue=True, states_prices=True
    ) as (door, caller):
        async with caller.get(f"{door.url}/v1/models") as models:
            assert models.status == 200
        url = f"{door.url}/v1/chat/completions"
        async with caller.post(url, json=CHAT, headers=door.auth) as paid:
            assert paid.status == 200
            assert receipt_of(paid)["charged_msat"] == 10 * 1000 + 20 * 2000


async def test_an_answer_compressed_against_our_wish_is_not_given_away(tmp_path: Path) -> None:
    upstream = Behaviour()
    upstream.answer = say(chat_answer(), 200, (b"content-encoding", b"br"))
    async with open_door(tmp_path, price=PER_TOKEN, upstream=upstream) as (door, caller):
        url = f"{door.url}/v1/chat/completions"
        async with caller.post(url, json=CHAT, headers=door.auth) as answer:
            assert answer.status == 502
        assert upstream.asked[0].header("accept-encoding") == "identity"
        assert await door.left() == 1_000_000
