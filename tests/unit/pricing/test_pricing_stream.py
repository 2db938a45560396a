"""Metering streams: the same bytes and the same usage however the stream is cut."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.pricing import stream as stream_module
from farebox.pricing.request import ApiProtocol
from farebox.pricing.stream import StreamMeter
from farebox.pricing.tokens import EstimatingCounter
from farebox.pricing.usage import Usage, UsageSource

REQUEST = b'{"model":"m","messages":[{"role":"user","content":"twelve bytes"}]}'


def event(document: object, end: str = "\n", name: str | None = None) -> bytes:
    head = f"event: {name}{end}" if name else ""
    return f"{head}data: {json.dumps(document)}{end}{end}".encode()


def chat_delta(text: str, **extra: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}], **extra}


USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
USAGE_CHUNK = {"choices": [], "usage": USAGE}
DONE = b"data: [DONE]\n\n"


def run(
    chunks: list[bytes], protocol: ApiProtocol = ApiProtocol.CHAT, *, strip: bool = False
) -> tuple[bytes, Usage]:
    meter = StreamMeter(protocol, EstimatingCounter(), request=REQUEST, strip_usage_chunk=strip)
    sent = [meter.feed(chunk) for chunk in chunks]
    sent.append(meter.finish())
    return b"".join(sent), meter.usage()


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    marks = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(marks)]


def chat(end: str = "\n") -> bytes:
    return b"".join(
        [
            f": hello{end}{end}".encode(),
            event(chat_delta("Grüße", usage=None), end),
            event(chat_delta(' the word "usage" '), end),
            event(USAGE_CHUNK, end),
            DONE,
        ]
    )


def test_reported_usage_is_read_and_the_bytes_are_untouched() -> None:
    sent, usage = run([chat()])
    assert sent == chat()
    assert (usage.input_tokens, usage.output_tokens) == (11, 7)
    assert (usage.source, usage.body_bytes) == (UsageSource.REPORTED, len(sent))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_only_the_usage_chunk_is_taken_out(end: str) -> None:
    sent, usage = run([chat(end)], strip=True)
    assert sent == chat(end).replace(event(USAGE_CHUNK, end), b"")
    assert usage.output_tokens == 7
    assert usage.body_bytes == len(sent)


def test_usage_in_a_chunk_with_choices_is_read_but_not_taken_out() -> None:
    chunk = event(chat_delta("hi", usage=USAGE))
    sent, usage = run([chunk, DONE], strip=True)
    assert sent == chunk + DONE
    assert usage.output_tokens == 7


@pytest.mark.parametrize("strip", [True, False])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_single_cut_gives_the_same_bytes_and_usage(end: str, strip: bool) -> None:
    whole = run([chat(end)], strip=strip)
    for place in range(len(chat(end)) + 1):
        assert run(cut(chat(end), [place]), strip=strip) == whole
    assert run([bytes([byte]) for byte in chat(end)], strip=strip) == whole


LINES = st.sampled_from(
    [
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"data: [DONE]",
        b"data: " + json.dumps(chat_delta("word")).encode(),
        b"data: " + json.dumps(USAGE_CHUNK).encode(),
        b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":1,"completion_tokens":2}}',
        b"event: x",
        b": comment",
        b"\xff\xfe",
    ]
)


@settings(max_examples=300)
@given(st.lists(LINES, max_size=12), st.lists(st.integers(0, 10_000), max_size=6), st.booleans())
def test_any_cut_of_any_stream_gives_the_same_bytes_and_usage(
    lines: list[bytes], places: list[int], strip: bool
) -> None:
    stream = b"".join(lines)
    sent, usage = run([stream], strip=strip)
    assert run(cut(stream, places), strip=strip) == (sent, usage)
    if not strip:
        assert sent == stream


@settings(max_examples=100)
@given(st.lists(st.integers(0, 10_000), max_size=6), st.booleans())
def test_cuts_do_not_matter_where_bounds_are_reached(places: list[int], strip: bool) -> None:
    deltas = [event(chat_delta("wörd " * 9)) for _ in range(8)]
    stream = b"".join([*deltas, event({"pad": "x" * 900}), event(USAGE_CHUNK), *deltas])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_module, "EVENT_MAX_BYTES", 300)
        patch.setattr(stream_module, "_RAW_MAX_BYTES", 400)
        patch.setattr(stream_module, "_TEXT_BLOCK_CHARS", 16)
        whole = run([stream], strip=strip)
        assert run(cut(stream, places), strip=strip) == whole
        counted = run([b"".join(deltas)], strip=strip)[1]
        assert run(cut(b"".join(deltas), places), strip=strip)[1] == counted
        assert counted.estimated


def test_a_complete_event_is_never_held_back() -> None:
    meter = StreamMeter(
        ApiProtocol.CHAT, EstimatingCounter(), request=REQUEST, strip_usage_chunk=True
    )
    delta = event(chat_delta("hi"))
    assert meter.feed(delta[:10]) == b""
    assert meter.feed(delta[10:] + delta[:5]) == delta
    assert meter.feed(delta[5:]) == delta
    assert meter.feed(b"") == b""


def test_without_stripping_every_byte_goes_on_at_once() -> None:
    meter = StreamMeter(ApiProtocol.CHAT, EstimatingCounter(), request=REQUEST)
    for at in range(len(chat())):
        assert meter.feed(chat()[at : at + 1]) == chat()[at : at + 1]


def test_what_is_held_back_is_bounded() -> None:
    meter = StreamMeter(
        ApiProtocol.CHAT, EstimatingCounter(), request=REQUEST, strip_usage_chunk=True
    )
    piece = b"data: " + b"x" * 1_000_000
    sent = b"".join(meter.feed(piece) for _ in range(6)) + meter.finish()
    assert piece * 4 == sent[: len(piece) * 4]
    assert len(meter._tail) < 10


def test_a_caller_that_leaves_pays_for_what_was_delivered() -> None:
    meter = StreamMeter(ApiProtocol.CHAT, EstimatingCounter(), request=REQUEST)
    assert meter.usage().output_tokens == 0
    meter.feed(event(chat_delta("12345678")))
    assert (meter.usage().input_tokens, meter.usage().output_tokens) == (3, 2)
    meter.feed(event(chat_delta("1234")))
    usage = meter.usage()
    assert (usage.output_tokens, usage.source) == (3, UsageSource.ESTIMATED)


def test_all_that_a_chat_model_writes_is_counted() -> None:
    delta = {
        "reasoning_content": "1234",
        "reasoning": "1234",
        "tool_calls": [{"function": {"name": "1234", "arguments": "1234"}}, {"function": None}, 1],
    }
    sent, usage = run([event({"choices": [{"delta": delta}, None]}), event([1]), b"data: {x\n\n"])
    assert usage.output_tokens == 3
    assert sent


def test_anthropic_streams_report_input_first_and_output_last() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}}
    start["message"]["usage"]["cache_read_input_tokens"] = 20  # type: ignore[index]
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "12345678"}}
    end = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 9}}
    left = run([event(start, name="message_start"), event(text)], ApiProtocol.MESSAGES)[1]
    assert (left.input_tokens, left.cached_tokens, left.output_tokens) == (25, 20, 2)
    assert left.estimated
    whole = run([event(start), event(text), event(end)], ApiProtocol.MESSAGES)[1]
    assert (whole.input_tokens, whole.output_tokens, whole.estimated) == (25, 9, False)


def test_responses_report_in_their_last_event() -> None:
    delta = {"type": "response.output_text.delta", "delta": "12345678"}
    usage = {
        "input_tokens": 30,
        "input_tokens_details": {"cached_tokens": 10},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 15},
    }
    end = {"type": "response.completed", "response": {"usage": usage}}
    assert run([event(delta)], ApiProtocol.RESPONSES)[1].output_tokens == 2
    found = run([event(delta), event(end)], ApiProtocol.RESPONSES)[1]
    assert found == Usage(
        input_tokens=30,
        cached_tokens=10,
        output_tokens=20,
        reasoning_tokens=15,
        body_bytes=found.body_bytes,
    )


@pytest.mark.parametrize(
    "lie",
    [{"prompt_tokens": 1, "completion_tokens": -5}, {"completion_tokens": "9"}, {}, {"a": {}}],
)
def test_a_report_that_cannot_be_is_ignored_and_the_text_counted(lie: dict[str, Any]) -> None:
    usage = run([event(chat_delta("12345678")), event({"choices": [], "usage": lie})])[1]
    assert (usage.output_tokens, usage.estimated) == (2, True)


def test_what_was_reported_credibly_is_not_unsaid() -> None:
    lie = {"choices": [], "usage": {"completion_tokens": -1}}
    usage = run([event(chat_delta("a", usage=USAGE)), event(lie)])[1]
    assert (usage.output_tokens, usage.estimated) == (7, False)


def test_a_zero_until_the_end_gives_no_text_away_to_who_leaves_before() -> None:
    zeros = {"prompt_tokens": 11, "completion_tokens": 0, "total_tokens": 11}
    usage = run([event(chat_delta("12345678", usage=zeros))])[1]
    assert (usage.input_tokens, usage.output_tokens) == (11, 2)


def test_a_zero_does_not_take_back_what_was_told() -> None:
    told = {"type": "message_start", "message": {"usage": {"input_tokens": 30}}}
    end = {"type": "message_delta", "usage": {"input_tokens": 0, "output_tokens": 5}}
    usage = run([event(told), event(end)], ApiProtocol.MESSAGES)[1]
    assert (usage.input_tokens, usage.output_tokens, usage.estimated) == (30, 5, False)


def test_a_usage_chunk_without_its_last_line_end_is_taken_out_too() -> None:
    cut_short = event(USAGE_CHUNK)[:-1]
    sent, usage = run([event(chat_delta("a")), cut_short], strip=True)
    assert sent == event(chat_delta("a"))
    assert usage.output_tokens == 7
