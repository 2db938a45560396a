"""The play upstream, read by the official OpenAI client and by our own meter."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import openai
import pytest

from farebox.testing.asgi import serving
from farebox.testing.upstream import DEFAULT_WORDS, PlayUpstream
from tests.waiting import eventually

SAID = "money is a promise kept"
PROMPT = "say five words, please"  # four words
MESSAGES: list[Any] = [{"role": "user", "content": PROMPT}]
ROLES = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
PROTOCOLS: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 5},
    "/v1/completions": {"prompt": PROMPT, "max_tokens": 5},
    "/v1/responses": {"input": PROMPT, "max_output_tokens": 5},
    "/v1/messages": {"messages": ROLES, "max_tokens": 5},
}


@dataclass
class Scene:
    upstream: PlayUpstream
    url: str
    client: openai.AsyncOpenAI
    http: aiohttp.ClientSession

    async def post(self, path: str, play: str = "", **members: object) -> tuple[int, bytes]:
        body = {"model": "play-1", **PROTOCOLS[path], **members}
        headers = {"x-play": play} if play else {}
        async with self.http.post(self.url + path, json=body, headers=headers) as answer:
            return answer.status, await answer.read()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    upstream = PlayUpstream()
    async with (
        serving(upstream) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-play", max_retries=0) as client,
        aiohttp.ClientSession() as http,
    ):
        yield Scene(upstream, url, client, http)


def events(raw: bytes) -> list[dict[str, Any]]:
    lines = [line[6:] for line in raw.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


async def test_the_official_client_reads_a_chat(scene: Scene) -> None:
    chat = await scene.client.chat.completions.create(
        model="play-1", messages=MESSAGES, max_tokens=5
    )
    assert chat.choices[0].message.content == SAID
    assert chat.choices[0].finish_reason == "length"
    assert chat.usage is not None
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens) == (4, 5)


@pytest.mark.parametrize("wanted", [True, False])
async def test_the_official_client_reads_a_streamed_chat(scene: Scene, wanted: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if wanted else {}
    stream = await scene.client.chat.completions.create(
        model="play-1", messages=MESSAGES, stream=True, **options
    )
    chunks = [chunk async for chunk in stream]
    words = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    usage = [chunk.usage for chunk in chunks if chunk.usage]
    assert len(words) == DEFAULT_WORDS
    assert "".join(words).startswith(SAID)
    assert [one.completion_tokens for one in usage] == ([DEFAULT_WORDS] if wanted else [])


async def test_the_official_client_reads_several_choices(scene: Scene) -> None:
    chat = await scene.client.chat.completions.create(
        model="play-1", messages=MESSAGES, max_completion_tokens=5, n=2
    )
    assert [choice.message.content for choice in chat.choices] == [SAID, SAID]
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 10


async def test_the_official_client_reads_a_completion(scene: Scene) -> None:
    whole = await scene.client.completions.create(model="play-1", prompt=PROMPT, max_tokens=5)
    stream = await scene.client.completions.create(
        model="play-1", prompt=PROMPT, max_tokens=5, stream=True
    )
    assert whole.choices[0].text == SAID
    assert whole.usage is not None
    assert "".join([chunk.choices[0].text async for chunk in stream]) == SAID


async def test_the_official_client_reads_a_response(scene: Scene) -> None:
    whole = await scene.client.responses.create(model="play-1", input=PROMPT, max_output_tokens=5)
    stream = await scene.client.responses.create(
        model="play-1", input=PROMPT, max_output_tokens=5, stream=True
    )
    got = [event async for event in stream]
    assert whole.output_text == SAID
    assert whole.usage is not None
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (4, 5)
    deltas = [event.delta for event in got if event.type == "response.output_text.delta"]
    assert "".join(deltas) == SAID
    assert got[-1].type == "response.completed"
    assert got[-1].response.usage == whole.usage
    assert [event.sequence_number for event in got] == list(range(len(got)))


async def test_the_official_client_reads_embeddings_and_models(scene: Scene) -> None:
    many = await scene.client.embeddings.create(model="play-1", input=["one two", "three"])
    one = await scene.client.embeddings.create(
        model="play-1", input=[1, 2, 3], encoding_format="float"
    )
    models = [model async for model in scene.client.models.list()]
    assert len(many.data) == 2
    assert many.usage.prompt_tokens == 3
    assert len(one.data) == 1
    assert many.data[0].embedding[:2] == one.data[0].embedding[:2] == [1.0, 0.5]
    assert [model.id for model in models] == ["play-1", "play-plain"]
    assert models[0].pricing["prompt"] == "0.000002"  # type: ignore[attr-defined]


async def test_messages_have_anthropics_shape(scene: Scene) -> None:
    _, raw = await scene.post("/v1/messages", "cached=1")
    message = json.loads(raw)
    assert message["content"] == [{"type": "text", "text": SAID}]
    assert message["stop_reason"] == "max_tokens"
    assert message["usage"] == {
        "input_tokens": 3,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 1,
        "output_tokens": 5,
    }


async def test_streamed_messages_have_anthropics_events(scene: Scene) -> None:
    _, raw = await scene.post("/v1/messages", stream=True)
    got = events(raw)
    assert [event["type"] for event in got] == [
        "message_start",
        "content_block_start",
        "ping",
        *["content_block_delta"] * 5,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert got[0]["message"]["usage"]["input_tokens"] == 4
    assert "".join(one["delta"]["text"] for one in got[3:8]) == SAID
    assert got[-2]["usage"] == {"output_tokens": 5}
    assert b"event: message_start\ndata: {" in raw


@pytest.mark.parametrize("path", PROTOCOLS)
@pytest.mark.parametrize("stream", [True, False])
async def test_it_fails_as_told_in_every_protocol(scene: Scene, path: str, stream: bool) -> None:
    status, raw = await scene.post(path, "status=503", stream=stream)
    assert (status, "error" in json.loads(raw)) == (503, True)
    with pytest.raises(aiohttp.ClientError):
        await scene.post(path, "cut=3", stream=stream)
    with pytest.raises(aiohttp.ClientError):
        await scene.post(path, "drop", stream=stream)
    status, raw = await scene.post(path, "garbage", stream=stream)
    assert (status, raw[:6]) == (200, b"<html>")
    _, raw = await scene.post(path, "nousage", stream=stream)
    assert b"prompt_tokens" not in raw
    assert b'"output_tokens":5' not in raw
    include = {"stream_options": {"include_usage": True}} if stream else {}
    _, raw = await scene.post(path, "lie=123456", stream=stream, **include)
    assert b"123456" in raw
    status, _ = await scene.post(path, "nonsense", stream=stream)
    assert status == 400
    _, raw = await scene.post(path, stream=stream, **{"x-play": "status=500"})
    assert b"failed on purpose" in raw


async def test_a_cut_stream_has_said_what_it_was_told_to(scene: Scene) -> None:
    stream = await scene.client.chat.completions.create(
        model="play-1", messages=MESSAGES, stream=True, extra_headers={"x-play": "cut=3"}
    )
    words: list[str | None] = []

    async def listen() -> None:
        async for chunk in stream:
            words.append(chunk.choices[0].delta.content)  # noqa: PERF401 (kept when it breaks)

    with pytest.raises(openai.APIConnectionError):
        await listen()
    assert words == ["", "money", " is", " a"]


async def test_an_error_in_mid_stream_reaches_the_official_client(scene: Scene) -> None:
    stream = await scene.client.chat.completions.create(
        model="play-1", messages=MESSAGES, stream=True, extra_headers={"x-play": "error=2"}
    )
    with pytest.raises(openai.APIError, match="failed on purpose"):
        async for _ in stream:
            pass


async def test_it_notices_that_a_client_left_a_slow_stream(scene: Scene) -> None:
    body = {"messages": MESSAGES, "stream": True}
    headers = {"x-play": "slow=0.5"}
    url = f"{scene.url}/v1/chat/completions"
    async with scene.http.post(url, json=body, headers=headers) as answer:
        await answer.content.readline()
        answer.close()
    await eventually(lambda: scene.upstream.cancelled == 1)


async def test_plain_bodies_are_fixed_and_what_arrived_is_seen(scene: Scene) -> None:
    for count in (0, 1, 200_000):
        async with scene.http.get(f"{scene.url}/bytes/{count}") as answer:
            assert len(await answer.read()) == count
    async with scene.http.get(f"{scene.url}/echo", headers={"X-Cashu": "cashuB"}) as answer:
        first = await answer.read()
    async with scene.http.get(f"{scene.url}/echo") as answer:
        assert await answer.read() == first
    async with scene.http.post(f"{scene.url}/echo", data=b"as it came") as answer:
        assert await answer.read() == b"as it came"
    async with scene.http.get(f"{scene.url}/nowhere") as answer:
        assert answer.status == 404
    assert (b"x-cashu", b"cashuB") in scene.upstream.seen[3].headers
    assert scene.upstream.seen[5].body == b"as it came"
