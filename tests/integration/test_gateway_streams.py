"""Streams through the gateway: metered as they pass, settled before they end, whoever leaves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import msgspec

from farebox.gateway import Limits, Supervision
from farebox.paywall.model import REQUEST, Ended
from farebox.testing.asgi import Send, drop
from tests.integration.gateway_house import Asked, Behaviour, Door, events, open_door
from tests.integration.test_gateway_requests import CHAT, PER_TOKEN
from tests.waiting import WAIT_S, eventually

STREAM = CHAT | {"stream": True}


def chunk(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}}
    return b"data: " + msgspec.json.encode({"choices": [choice]}) + b"\n\n"


USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":20,"total_tokens":30}}'
    b"\n\n"
)
DONE = b"data: [DONE]\n\n"


def stream(*chunks: bytes, pause_s: float = 0.01) -> Behaviour:
    upstream = Behaviour()
    upstream.answer = events(*chunks, pause_s=pause_s)
    return upstream


def chat(
    door: Door, caller: aiohttp.ClientSession, **headers: str
) -> aiohttp.client._RequestContextManager:
    url = f"{door.url}/v1/chat/completions"
    return caller.post(url, json=STREAM, headers=headers or door.auth)


async def begin(send: Send, body: bytes) -> None:
    """The head of a stream, and its first bytes."""
    head = {"type": "http.response.start", "status": 200}
    await send(head | {"headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def ended(door: Door) -> list[str]:
    await door.settled()
    rows = await door.house.store.find(REQUEST, {})
    return [row.value.ended for _, row in rows]


async def test_a_stream_is_charged_by_the_usage_it_was_asked_for(tmp_path: Path) -> None:
    upstream = stream(chunk("a"), chunk("b"), USAGE, DONE)
    async with open_door(tmp_path, price=PER_TOKEN, upstream=upstream) as (door, caller):
        async with chat(door, caller) as answer:
            assert answer.headers["x-farebox-request-id"]
            assert await answer.read() == chunk("a") + chunk("b") + DONE
        assert msgspec.json.decode(upstream.asked[0].body)["stream_options"] == {
            "include_usage": True
        }
        assert await door.left() == 1_000_000 - 5_000


async def test_a_stream_announces_where_its_change_is(tmp_path: Path) -> None:
    upstream = stream(chunk("a"), USAGE, DONE)
    async with open_door(tmp_path, price=PER_TOKEN, upstream=upstream) as (door, caller):
        async with chat(door, caller, **{"X-Cashu": "coin:a:100000"}) as answer:
            assert 'rel="payment-change"' in answer.headers["link"]
            assert "x-cashu" not in answer.headers
            assert b"farebox" not in await answer.read()


async def test_a_receipt_at_the_end_is_a_comment_on_request(tmp_path: Path) -> None:
    upstream = stream(chunk("a"), USAGE, DONE)
    async with open_door(tmp_path, price=PER_TOKEN, upstream=upstream) as (door, caller):
        wish = {"X-Cashu": "coin:a:100000", "X-Farebox-Stream-Receipt": "1"}
        async with chat(door, caller, **wish) as answer:
            *_, last = (await answer.read()).strip().split(b"\n\n")
        assert last.startswith(b": farebox receipt=")
        assert b"change=coin:change:95000" in last


async def test_the_end_leaves_after_the_settling_commit(tmp_path: Path) -> None:
    upstream = stream(chunk("a"), USAGE, DONE)
    async with open_door(tmp_path, price=PER_TOKEN, upstream=upstream) as (door, caller):
        async with chat(door, caller) as answer:
            async for piece in answer.content.iter_any():
                if b"[DONE]" in piece:
                    rows = await door.house.store.find(REQUEST, {})
                    assert [row.value.state for _, row in rows] == ["settled"]


async def test_chunks_arrive_when_they_are_sent(tmp_path: Path) -> None:
    upstream, goes_on = Behaviour(), asyncio.Event()

    async def wait(_: Asked, send: Send) -> None:
        await begin(send, chunk("a"))
        await goes_on.wait()
        await send({"type": "http.response.body", "body": chunk("b") + DONE})

    upstream.answer = wait
    async with open_door(tmp_path, price=PER_TOKEN, upstream=upstream) as (door, caller):
        async with chat(door, caller) as answer:
            assert await answer.content.readany() == chunk("a")
            goes_on.set()
            assert await answer.read() == chunk("b") + DONE


async def test_a_stream_of_json_documents_is_one_too(tmp_path: Path) -> None:
    upstream, goes_on = Behaviour(), asyncio.Event()

    async def wait(_: Asked, send: Send) -> None:
        fields = [(b"content-type", b"application/json-seq")]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"\x1e{}\n", "more_body": True})
        await goes_on.wait()
        await send({"type": "http.response.body", "body": b"\x1e{}\n"})

    upstream.answer = wait
    async with open_door(tmp_path, upstream=upstream) as (door, caller):
        async with asyncio.timeout(WAIT_S), caller.get(door.url, headers=door.auth) as answer:
            assert await answer.content.readany() == b"\x1e{}\n"
            goes_on.set()
            assert await answer.read() == b"\x1e{}\n"


async def test_a_caller_who_leaves_pays_for_what_was_produced(tmp_path: Path) -> None:
    upstream = Behaviour()

    async def wait(_: Asked, send: Send) -> None:
        await begin(send, chunk("word word word "))
        await asyncio.Event().wait()

    upstream.answer = wait
    async with open_door(tmp_path, price=PER_TOKEN, upstream=upstream) as (door, caller):
        async with chat(door, caller) as answer:
            await answer.content.readany()
            answer.close()
        await asyncio.wait_for(upstream.cancelled.wait(), WAIT_S)
        assert await ended(door) == [Ended.CLIENT_LEFT]
        charged = 1_000_000 - await door.left()
        assert 0 < charged < 3_000


async def test_a_caller_who_leaves_before_the_answer_pays_nothing(tmp_path: Path) -> None:
    upstream = Behaviour()

    async def sleep(asked: Asked, send: Send) -> None:
        await asyncio.sleep(30)

    upstream.answer = sleep
    async with open_door(tmp_path, upstream=upstream) as (door, caller):
        asking = asyncio.ensure_future(caller.get(door.url, headers=door.auth))
        await eventually(lambda: upstream.asked)
        asking.cancel()
        await asyncio.wait_for(upstream.cancelled.wait(), WAIT_S)
        assert await ended(door) == [Ended.REFUSED]
        assert await door.left() == 1_000_000


async def test_an_upstream_that_breaks_off_is_paid_for_what_it_gave(tmp_path: Path) -> None:
    upstream = Behaviour()

    async def break_off(asked: Asked, send: Send) -> None:
        await begin(send, chunk("sixteen letters!"))
        await asyncio.sleep(0.1)
        await drop(send)

    upstream.answer = break_off
    async with open_door(tmp_path, price=PER_TOKEN, upstream=upstream) as (door, caller):
        async with chat(door, caller) as answer:
            told = await answer.read()
        assert told.startswith(chunk("sixteen letters!"))
        assert b'event: error\ndata: {"type":"error"' in told
        assert b"upstream_died" in told
        assert await ended(door) == [Ended.UPSTREAM_DIED]
        assert 1_000_000 - await door.left() == 4 * 200 + 1 * 100


async def test_an_upstream_that_breaks_off_a_short_answer_is_paid_nothing(tmp_path: Path) -> None:
    upstream = Behaviour()

    async def break_off(asked: Asked, send: Send) -> None:
        headers = [(b"content-length", b"100"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        await asyncio.sleep(0.05)
        await drop(send)

    upstream.answer = break_off
    async with open_door(tmp_path, upstream=upstream) as (door, caller):
        async with caller.get(door.url, headers=door.auth) as answer:
            assert answer.status == 502
        assert await door.left() == 1_000_000


async def test_an_upstream_that_falls_silent_is_cut_off(tmp_path: Path) -> None:
    upstream = stream(chunk("a"), chunk("b"), pause_s=10)
    async with open_door(tmp_path, price=PER_TOKEN, upstream=upstream, idle_timeout_s=0.3) as (
        door,
        caller,
    ):
        async with chat(door, caller) as answer:
            assert b"upstream_silent" in await answer.read()
        assert await ended(door) == [Ended.UPSTREAM_DIED]


async def test_a_stream_is_cut_where_the_hold_ends(tmp_path: Path) -> None:
    upstream = stream(*[chunk("x" * 1000)] * 200, pause_s=0)
    async with open_door(tmp_path, price=PER_TOKEN, upstream=upstream) as (door, caller):
        async with chat(door, caller) as answer:
            told = await answer.read()
        assert b"hold_exhausted" in told
        assert len(told) < 60_000
        assert await ended(door) == [Ended.CUT]
        rows = await door.house.store.find(REQUEST, {})
        request = rows[0][1].value
        assert request.charged_msat == request.quote.maximum_msat


async def test_long_streams_are_made_durable_on_the_way(tmp_path: Path) -> None:
    upstream = stream(*[chunk("x" * 40)] * 500, DONE, pause_s=0.1)
    often = Supervision(checkpoint_s=0.2)
    async with open_door(tmp_path, price=PER_TOKEN, upstream=upstream, supervision=often) as (
        door,
        caller,
    ):
        body = STREAM | {"max_tokens": 1000}
        url = f"{door.url}/v1/chat/completions"
        async with caller.post(url, json=body, headers=door.auth) as answer:
            await eventually(
                lambda: door.house.store.find(REQUEST, {}),
                lambda rows: rows[0][1].value.checkpoint_msat > 0,
            )
            answer.close()
        await door.settled()


async def test_a_slow_reader_slows_the_upstream_down(tmp_path: Path) -> None:
    sent = 0
    upstream = Behaviour()

    async def pour(asked: Asked, send: Send) -> None:
        nonlocal sent
        head = {"type": "http.response.start", "status": 200}
        await send(head | {"headers": [(b"content-type", b"application/octet-stream")]})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
            sent += 65_536
        await send({"type": "http.response.body", "body": b""})

    upstream.answer = pour
    async with open_door(tmp_path, upstream=upstream) as (door, _):
        host, port = door.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=4096)
        request = (
            f"GET / HTTP/1.1\r\nhost: x\r\nauthorization: {door.auth['Authorization']}\r\n\r\n"
        )
        writer.write(request.encode())
        await reader.read(1)
        await asyncio.sleep(0.7)
        held_back = sent
        assert held_back < 40_000_000
        total = 1
        while total < 65_536_000:
            total += len(await reader.read(1 << 20))
        writer.close()
        await door.settled()
        assert await door.left() == 990_000


async def test_a_stop_cuts_and_settles_what_does_not_end(tmp_path: Path) -> None:
    upstream = stream(*[chunk("word ")] * 1000, pause_s=0.02)
    limits = Limits(stop_grace_s=0.2)
    async with open_door(tmp_path, price=PER_TOKEN, upstream=upstream, limits=limits) as (
        door,
        caller,
    ):
        async with chat(door, caller) as answer:
            await answer.content.readany()
            await door.gateway.stop()
            assert b"stopping" in await answer.read()
        assert await ended(door) == [Ended.CUT]
        async with caller.get(door.url, headers=door.auth) as answer:
            assert answer.status == 503


async def test_a_download_of_announced_length_keeps_it(tmp_path: Path) -> None:
    upstream = Behaviour()
    size = 3 * 1024 * 1024

    async def pour(asked: Asked, send: Send) -> None:
        headers = [(b"content-length", str(size).encode()), (b"content-type", b"image/png")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * size})

    upstream.answer = pour
    async with open_door(tmp_path, upstream=upstream) as (door, caller):
        async with caller.get(door.url, headers=door.auth) as answer:
            assert answer.headers["content-length"] == str(size)
            assert len(await answer.read()) == size


async def test_bytes_are_charged_as_they_are_counted(tmp_path: Path) -> None:
    upstream = stream(b"x" * 1000, b"y" * 500)
    async with open_door(tmp_path, price="1 msat / byte", upstream=upstream) as (door, caller):
        async with caller.get(door.url, headers=door.auth) as answer:
            assert answer.status == 402  # a hold of the most it could be is above the balance
        rules: list[dict[str, object]] = [{"per_byte": "1 msat", "max_bytes": 100_000}]
        from farebox.pricing.parse import parse_rules

        door.house.prices.book = door.house.prices.book.with_rules(parse_rules(rules))
        async with caller.get(door.url, headers=door.auth) as answer:
            assert len(await answer.read()) == 1500
        assert await door.left() == 1_000_000 - 1500
