"""What is read from a request, and which requests are too ambiguous to be priced."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.pricing.request import ApiProtocol, Problem, RequestFacts, ask_for_usage, read_request

CHAT = "/v1/chat/completions"


def read(body: object, path: str = CHAT) -> RequestFacts:
    return read_request("POST", path, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("method", "path", "protocol"),
    [
        ("POST", "/v1/chat/completions", ApiProtocol.CHAT),
        ("POST", "/openai/v1/chat/completions/", ApiProtocol.CHAT),
        ("POST", "//v1//chat/completions", ApiProtocol.CHAT),
        ("POST", "/v1/%63hat/completions", ApiProtocol.CHAT),
        ("POST", "/v1/completions", ApiProtocol.COMPLETIONS),
        ("POST", "/v1/responses", ApiProtocol.RESPONSES),
        ("POST", "/v1/embeddings", ApiProtocol.EMBEDDINGS),
        ("POST", "/v1/messages", ApiProtocol.MESSAGES),
        ("POST", "/v1/threads/1/messages", ApiProtocol.OTHER),
        ("POST", "/v1/messages/count_tokens", ApiProtocol.OTHER),
        ("GET", "/v1/chat/completions", ApiProtocol.OTHER),
    ],
)
def test_every_spelling_of_a_path_speaks_the_same_protocol(
    method: str, path: str, protocol: ApiProtocol
) -> None:
    assert read_request(method, path, None).protocol is protocol


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../admin",
        "/v1/%2e%2e/admin",
        "/./v1",
        "/v1/%252e",
        "/v1\\chat",
        "v1",
        "",
        "/a;b",
        "/a%00",
        "/v1/..",
        "/a%3Fb",
        "/a%0a",
    ],
)
def test_a_path_with_two_readings_is_a_problem(path: str) -> None:
    facts = read_request("POST", path, b"{}")
    assert facts.problem is Problem.PATH_AMBIGUOUS
    assert not facts.is_readable


def test_a_long_path_is_a_problem() -> None:
    assert read_request("GET", "/" + "a" * 5000, None).problem is Problem.PATH_TOO_LONG


@pytest.mark.parametrize("path", [CHAT, "/v1/anything"])
def test_a_long_model_is_a_problem_at_any_path(path: str) -> None:
    """Models are remembered with their prices: any length would be any amount of memory."""
    facts = read({"model": "m" * 300}, path)
    assert (facts.problem, facts.model) == (Problem.FIELD_INVALID, None)
    assert not facts.is_readable


def test_limits_and_choices_of_a_chat_are_read() -> None:
    facts = read(
        {"model": "m", "stream": True, "max_tokens": 5, "max_completion_tokens": 9, "n": 3}
    )
    assert (facts.model, facts.stream, facts.max_output_tokens, facts.choices) == ("m", True, 9, 3)


@pytest.mark.parametrize(
    ("path", "body", "limit", "choices"),
    [
        ("/v1/completions", {"max_tokens": 7, "prompt": ["a", "b"], "best_of": 3, "n": 2}, 7, 6),
        ("/v1/completions", {"prompt": [1, 2, 3]}, None, 1),
        # Some servers take zero for no limit.
        (CHAT, {"max_tokens": 0}, None, 1),
        (CHAT, {"max_tokens": 0, "max_completion_tokens": 9}, 9, 1),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}, None, 2),
        ("/v1/responses", {"max_output_tokens": 7}, 7, 1),
        ("/v1/messages", {"max_tokens": 7, "max_output_tokens": 1}, 7, 1),
        # A limit that chat servers ignore must not make the quote smaller.
        (CHAT, {"max_output_tokens": 1}, None, 1),
        ("/v1/embeddings", {"input": ["a"]}, None, 1),
    ],
)
def test_only_the_limits_a_protocol_obeys_count(
    path: str, body: dict[str, Any], limit: int | None, choices: int
) -> None:
    facts = read({"model": "m", **body}, path)
    assert (facts.problem, facts.max_output_tokens, facts.choices) == (None, limit, choices)


@pytest.mark.parametrize(
    "field",
    [
        {"max_tokens": -1},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"max_tokens": "9"},
        {"max_tokens": 10**12},
        {"n": 10**9},
        {"n": "2"},
        {"stream": 1},
        {"stream_options": []},
        {"model": 5},
        {"model": "m" * 300},
    ],
)
def test_a_limit_of_the_wrong_kind_is_a_problem(field: dict[str, Any]) -> None:
    facts = read({"model": "m", **field})
    assert facts.problem is Problem.FIELD_INVALID
    assert facts.model is None


@pytest.mark.parametrize("key", ["models", "fallbacks", "context_window_fallbacks"])
def test_a_model_to_fall_back_to_is_a_problem(key: str) -> None:
    assert read({"model": "cheap", key: ["dear"]}).problem is Problem.MODELS_MANY
    assert read({"model": "cheap", key: []}).problem is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"cheap","model":"dear"}',
        b'{"model":"cheap","\\u006dodel":"dear"}',
        b'{"model":"cheap","Model":"dear"}',
        b'{"model":"m","max_tokens":1,"max_tokens":9999}',
        b'{"model":"m","MAX_TOKENS":9999}',
        b'{"model":"cheap","x":{"model":1},"model":"dear","y":"\\u0041"}',
    ],
)
def test_a_body_with_two_readings_is_a_problem(body: bytes) -> None:
    assert read_request("POST", CHAT, body).problem is Problem.BODY_AMBIGUOUS


def test_a_price_key_inside_a_tool_is_no_ambiguity() -> None:
    assert read({"model": "m", "stop": ["model", "n"], "metadata": {"n": "\x01"}}).problem is None
    schema = {"properties": {"model": {"type": "string"}, "n": {"type": "integer"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    assert read({"model": "m", "tools": tools}).problem is None


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"\xff"', b"[" * 100_000, b'{"a":1}x', b"\x00"]
)
def test_a_broken_body_is_a_problem_and_no_exception(body: bytes) -> None:
    facts = read_request("POST", CHAT, body)
    assert facts.problem is Problem.BODY_NOT_JSON
    assert facts.model is None
    assert not facts.is_readable
    assert read_request("POST", "/upload", body).is_readable


@given(st.binary(max_size=60), st.text(max_size=30))
def test_reading_never_raises(body: bytes, path: str) -> None:
    read_request("POST", path, body)
    read_request("POST", CHAT, body)


@given(
    st.dictionaries(
        st.sampled_from(["model", "messages", "tools", "input", "n", "stream", "content", "type"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["type", "content", "image_url"]), inner)
            ),
            max_leaves=8,
        ),
    )
)
def test_reading_odd_documents_never_raises(document: dict[str, Any]) -> None:
    for path in (CHAT, "/v1/responses", "/v1/messages", "/v1/embeddings"):
        facts = read(document, path)
        ask_for_usage(facts, json.dumps(document).encode())


def chat_with(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}]}


def test_an_inline_picture_counts_as_a_picture_and_not_as_text() -> None:
    url = "data:image/png;base64," + "A" * 50_000
    facts = read(chat_with({"type": "image_url", "image_url": {"url": url}}))
    assert facts.images == 1
    assert facts.text_bytes < 300
    anthropic = read(
        chat_with({"type": "image", "source": {"type": "base64", "data": "A" * 50_000}}),
        "/v1/messages",
    )
    assert anthropic.images == 1
    assert anthropic.text_bytes < 300


def test_a_picture_in_a_tool_result_is_found() -> None:
    picture = {"type": "image", "source": {"data": "AAAA"}}
    facts = read(chat_with({"type": "tool_result", "content": [picture]}), "/v1/messages")
    assert facts.images == 1


def test_text_that_looks_like_a_picture_stays_text() -> None:
    text = "data:image/png;base64," + "A" * 5_000
    assert read(chat_with({"type": "text", "text": text})).text_bytes > 5_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat_with({"type": "input_audio", "input_audio": {}})),
        (CHAT, chat_with({"type": "never seen"})),
        (CHAT, chat_with({"type": ["image"]})),
        (CHAT, {"model": "m", "web_search_options": {}}),
        ("/v1/responses", {"model": "m", "previous_response_id": "r"}),
        ("/v1/responses", {"model": "m", "tools": [{"type": "web_search"}]}),
        ("/v1/messages", {"model": "m", "tools": [{"type": "web_search_20250305"}]}),
    ],
)
def test_input_from_elsewhere_is_open(path: str, body: dict[str, Any]) -> None:
    assert read(body, path).open_input


def test_usage_is_asked_for_where_a_stream_would_not_report_it() -> None:
    body = b'{"model":"m","stream":true,"temperature":0.10000000000000001}'
    asked = ask_for_usage(read_request("POST", CHAT, body), body)
    assert asked.strip_usage_chunk
    assert json.loads(asked.body)["stream_options"] == {"include_usage": True}
    assert asked.body.endswith(body[1:])


@pytest.mark.parametrize(
    "options", [None, {}, {"include_usage": False}, {"include_obfuscation": False}]
)
def test_other_stream_options_are_kept(options: dict[str, Any] | None) -> None:
    body = json.dumps({"model": "m", "stream": True, "stream_options": options}).encode()
    asked = ask_for_usage(read_request("POST", CHAT, body), body)
    found = json.loads(asked.body)["stream_options"]
    assert asked.strip_usage_chunk
    assert found == {**(options or {}), "include_usage": True}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"model": "m", "stream": True, "stream_options": {"include_usage": True}}),
        (CHAT, {"model": "m"}),
        ("/v1/responses", {"model": "m", "stream": True}),
        ("/v1/messages", {"model": "m", "stream": True}),
        ("/other", {"model": "m", "stream": True}),
    ],
)
def test_a_body_that_needs_no_asking_is_sent_as_it_came(path: str, body: dict[str, Any]) -> None:
    raw = json.dumps(body).encode()
    asked = ask_for_usage(read_request("POST", path, raw), raw)
    assert (asked.body, asked.strip_usage_chunk) == (raw, False)


def test_facts_survive_serialisation() -> None:
    facts = read({"model": "m", "stream": True, "max_tokens": 9})
    assert msgspec.json.decode(msgspec.json.encode(facts), type=RequestFacts) == facts
