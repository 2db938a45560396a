"""Usage as protocols report it, and what is made of reports that cannot be."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.pricing import tokens
from farebox.pricing.model import UnitSource
from farebox.pricing.request import ApiProtocol
from farebox.pricing.tokens import EstimatingCounter, TiktokenCounter, local_tokenizer, prompt_texts
from farebox.pricing.usage import (
    Usage,
    UsageSource,
    count_prompt,
    measure_answer,
    read_units,
    read_usage,
)

CHAT, MESSAGES = ApiProtocol.CHAT, ApiProtocol.MESSAGES


def read(protocol: ApiProtocol, usage: object) -> Usage | None:
    return read_usage(protocol, json.dumps({"usage": usage}).encode())


@pytest.mark.parametrize(
    ("protocol", "reported", "usage"),
    [
        (
            CHAT,
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "total_tokens": 150,
                "prompt_tokens_details": {"cached_tokens": 40},
                "completion_tokens_details": {"reasoning_tokens": 30},
            },
            Usage(input_tokens=100, cached_tokens=40, output_tokens=50, reasoning_tokens=30),
        ),
        (  # reasoning that the total alone tells
            CHAT,
            {"prompt_tokens": 8, "completion_tokens": 9, "total_tokens": 39},
            Usage(input_tokens=8, output_tokens=31, reasoning_tokens=22),
        ),
        (  # reasoning beside the completion, as the total shows
            CHAT,
            {
                "prompt_tokens": 100,
                "completion_tokens": 20,
                "total_tokens": 150,
                "completion_tokens_details": {"reasoning_tokens": 30},
            },
            Usage(input_tokens=100, output_tokens=50, reasoning_tokens=30),
        ),
        (
            ApiProtocol.COMPLETIONS,
            {"prompt_tokens": 1, "completion_tokens": 2},
            Usage(input_tokens=1, output_tokens=2),
        ),
        (
            ApiProtocol.RESPONSES,
            {
                "input_tokens": 9,
                "output_tokens": 8,
                "input_tokens_details": {"cached_tokens": 7},
                "output_tokens_details": {"reasoning_tokens": 6},
            },
            Usage(input_tokens=9, cached_tokens=7, output_tokens=8, reasoning_tokens=6),
        ),
        (
            ApiProtocol.EMBEDDINGS,
            {"prompt_tokens": 4, "total_tokens": 4},
            Usage(input_tokens=4),
        ),
        (ApiProtocol.EMBEDDINGS, {"total_tokens": 4}, Usage(input_tokens=4)),
        (  # Anthropic counts what the cache held beside the input
            MESSAGES,
            {
                "input_tokens": 10,
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": 5,
                "output_tokens": 3,
            },
            Usage(input_tokens=115, cached_tokens=100, output_tokens=3),
        ),
    ],
)
def test_each_protocol_s_totals_are_understood(
    protocol: ApiProtocol, reported: dict[str, Any], usage: Usage
) -> None:
    assert read(protocol, reported) == usage


@pytest.mark.parametrize(
    "reported",
    [
        None,
        [],
        "much",
        {},
        {"prompt_tokens": 1},
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": 10**10},
        {"prompt_tokens": 1.0, "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1},
        {"prompt_tokens": "1", "completion_tokens": 1},
    ],
)
def test_a_report_that_cannot_be_is_no_report(reported: object) -> None:
    assert read(CHAT, reported) is None


def test_parts_larger_than_their_whole_give_no_discount() -> None:
    usage = read(
        CHAT,
        {
            "prompt_tokens": 10,
            "completion_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 11},
            "completion_tokens_details": {"reasoning_tokens": 11},
        },
    )
    assert usage == Usage(input_tokens=10, output_tokens=10)


@given(
    st.sampled_from(ApiProtocol),
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(["usage", "prompt_tokens", "prompt_tokens_details", "choices"]),
                inner,
            )
        ),
        max_leaves=6,
    ),
)
def test_reading_usage_never_raises(protocol: ApiProtocol, document: object) -> None:
    answer = json.dumps(document).encode()
    read_usage(protocol, answer)
    measure_answer(protocol, answer, answer, EstimatingCounter())


REQUEST = {"model": "m", "messages": [{"role": "user", "content": "12345678"}]}


@pytest.mark.parametrize(
    ("protocol", "answer", "output_tokens"),
    [
        (CHAT, {"choices": [{"message": {"role": "assistant", "content": "1234"}}]}, 1),
        (ApiProtocol.COMPLETIONS, {"choices": [{"text": "12345"}, {"text": "1"}]}, 3),
        (
            ApiProtocol.RESPONSES,
            {"output": [{"content": [{"text": "1234"}]}, {"arguments": "1234"}]},
            2,
        ),
        (MESSAGES, {"content": [{"type": "text", "text": "1234"}, {"input": {"a": 1}}]}, 3),
        (CHAT, {"choices": "none"}, 0),
        (CHAT, [], 0),
    ],
)
def test_an_answer_without_usage_is_counted_and_marked(
    protocol: ApiProtocol, answer: object, output_tokens: int
) -> None:
    raw = json.dumps(answer).encode()
    usage = measure_answer(protocol, json.dumps(REQUEST).encode(), raw, EstimatingCounter())
    assert (usage.input_tokens, usage.output_tokens) == (2, output_tokens)
    assert (usage.source, usage.body_bytes) == (UsageSource.ESTIMATED, len(raw))


def test_only_what_a_report_leaves_out_is_counted() -> None:
    answer = {"choices": [{"message": {"content": "12345678"}}], "usage": {"prompt_tokens": 77}}
    usage = measure_answer(
        CHAT, json.dumps(REQUEST).encode(), json.dumps(answer).encode(), EstimatingCounter()
    )
    assert (usage.input_tokens, usage.output_tokens, usage.estimated) == (77, 2, True)


@pytest.mark.parametrize(
    ("protocol", "zeros"),
    [
        (CHAT, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}),
        (MESSAGES, {"input_tokens": 0, "output_tokens": 0}),
        (ApiProtocol.EMBEDDINGS, {"prompt_tokens": 0, "total_tokens": 0}),
    ],
)
def test_a_report_of_zeros_is_no_report(protocol: ApiProtocol, zeros: dict[str, int]) -> None:
    answer = {"choices": [{"message": {"content": "12345678"}}], "usage": zeros}
    answer["content"] = [{"text": "12345678"}]
    usage = measure_answer(
        protocol, json.dumps(REQUEST).encode(), json.dumps(answer).encode(), EstimatingCounter()
    )
    written = 0 if protocol is ApiProtocol.EMBEDDINGS else 2
    assert (usage.input_tokens, usage.output_tokens, usage.estimated) == (2, written, True)


def test_input_that_was_all_in_the_cache_is_no_zero() -> None:
    usage = read(MESSAGES, {"input_tokens": 0, "cache_read_input_tokens": 9, "output_tokens": 1})
    assert usage == Usage(input_tokens=9, cached_tokens=9, output_tokens=1)


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        ({"prompt": [5, 6, 7]}, 3),
        ({"input": [[5, 6], [7]]}, 3),
        ({"input": ["1234", [5, 6]]}, 3),
        ({"prompt": [True, None, 1.5]}, 0),
    ],
)
def test_a_prompt_of_token_numbers_is_counted(asked: dict[str, Any], tokens: int) -> None:
    assert count_prompt(json.dumps(asked).encode(), EstimatingCounter()) == tokens


def test_other_protocols_use_bytes_and_no_tokens() -> None:
    usage = measure_answer(ApiProtocol.OTHER, b"{}", b'{"usage":{}}', EstimatingCounter())
    assert usage == Usage(body_bytes=12)


@pytest.mark.parametrize(
    ("value", "micro_units"),
    [
        ("3", 3_000_000),
        (" 12.5 ", 12_500_000),
        ("0.000001", 1),
        ("0", 0),
        ("0.0000001", None),
        ("-1", None),
        ("1e3", None),
        ("", None),
        ("1.2.3", None),
        ("9" * 30, None),
        ("NaN", None),
        ("٣", None),
    ],
)
def test_units_in_a_header_are_exact_or_not_reported(value: str, micro_units: int | None) -> None:
    assert read_units(UnitSource(header="X-Units"), {"x-units": value}, b"") == micro_units


@pytest.mark.parametrize(
    ("answer", "micro_units"),
    [
        (b'{"usage":[{"a/b":2}]}', 2_000_000),
        (b'{"usage":[{"a/b":0.1}]}', 100_000),
        (b'{"usage":[{"a/b":"7"}]}', 7_000_000),
        (b'{"usage":[{"a/b":1e-999999999}]}', None),
        (b'{"usage":[{"a/b":1e999999999999999999999}]}', None),
        (b'{"usage":[{"a/b":-1}]}', None),
        (b'{"usage":[{"a/b":true}]}', None),
        (b'{"usage":[]}', None),
        (b'{"usage":5}', None),
        (b"nonsense", None),
    ],
)
def test_units_in_a_field_are_exact_or_not_reported(answer: bytes, micro_units: int | None) -> None:
    assert read_units(UnitSource(field="/usage/0/a~1b"), {}, answer) == micro_units


def test_units_that_are_not_reported_are_none() -> None:
    assert read_units(UnitSource(header="X-Units"), {}, b"") is None


def test_estimates_round_up_a_quarter_of_the_bytes() -> None:
    counter = EstimatingCounter()
    assert [counter.count(text) for text in ("", "a", "abcd", "abcde", "ää", "\ud800")] == [
        *(0, 1, 1, 2, 1, 1)
    ]


def test_prompts_are_read_without_attached_data() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:..."}}
    document = {
        "system": "s",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "t"}, part]}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "input": ["i"],
        "metadata": "not read",
    }
    assert list(prompt_texts(document)) == ["s", "t", "i", "f"]
    assert list(prompt_texts([])) == []


def test_a_tokenizer_without_its_data_is_not_touched(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("empty")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    assert local_tokenizer().is_estimate
    for address, _ in tokens._ENCODINGS.values():
        name = hashlib.sha1(address.encode()).hexdigest()
        (folder / name).write_bytes(b"damaged")
    # tiktoken would delete damaged data and fetch it anew.
    assert local_tokenizer().is_estimate
    assert len(list(folder.iterdir())) == 2
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert local_tokenizer().is_estimate


def test_a_tokenizer_counts_long_texts_piece_by_piece() -> None:
    class Encoding:
        longest = 0

        def encode_ordinary(self, text: str) -> list[int]:
            self.longest = max(self.longest, len(text))
            return [0] * len(text)

    encoding = Encoding()
    counter = TiktokenCounter(encoding)
    assert counter.count("a" * 10_000) == 10_000
    assert encoding.longest == 4_096
    assert not counter.is_estimate


HALF_AN_EMOJI = b'"text cut in an emoji \\ud83d"'


@pytest.mark.parametrize("odd", [HALF_AN_EMOJI, b"NaN", b"-Infinity"])
def test_a_report_counts_though_the_answer_is_no_strict_json(odd: bytes) -> None:
    answer = (
        b'{"choices":[{"message":{"content":"words"},"odd":' + odd + b"}],"
        b'"usage":{"prompt_tokens":3,"completion_tokens":7}}'
    )
    usage = measure_answer(ApiProtocol.CHAT, b"{}", answer, EstimatingCounter())
    assert (usage.input_tokens, usage.output_tokens, usage.source) == (3, 7, UsageSource.REPORTED)


@pytest.mark.parametrize("odd", [HALF_AN_EMOJI, b"NaN", b"[" * 900 + b"]" * 900])
def test_odd_input_of_a_tool_is_counted(odd: bytes) -> None:
    answer = b'{"content":[{"type":"tool_use","name":"f","input":{"a":' + odd + b"}}]}"
    usage = measure_answer(ApiProtocol.MESSAGES, b"{}", answer, EstimatingCounter())
    assert usage.output_tokens >= 3
