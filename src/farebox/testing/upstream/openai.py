"""OpenAI's shapes: chat completions, completions, responses, embeddings and models."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from farebox.errors import InvalidInput
from farebox.testing.upstream.ask import Ask

CREATED = 1_750_000_000
_EMBEDDING_SIZE = 8
_INPUTS_MAX = 2_048
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """A part of a stream; `is_word` if it carries one of the answer's words."""

    raw: bytes
    is_word: bool = False


def data_event(document: Document, *, is_word: bool = False) -> Event:
    """A server-sent event without a name."""
    return Event(b"data: " + msgspec.json.encode(document) + b"\n\n", is_word)


def named_event(name: str, document: Document, *, is_word: bool = False) -> Event:
    """A server-sent event with a name."""
    data = msgspec.json.encode(document)
    return Event(b"event: " + name.encode() + b"\ndata: " + data + b"\n\n", is_word)


def error_document(status: int, message: str) -> Document:
    """What OpenAI answers when it does not."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def error_event(message: str) -> Event:
    """An error in the middle of a stream."""
    return data_event(error_document(500, message))


def models() -> Document:
    """One model with prices as resellers list them (USD per token), one as OpenAI lists it."""
    plain = {"object": "model", "created": CREATED, "owned_by": "farebox"}
    pricing = {
        "prompt": "0.000002",
        "completion": "0.000008",
        "request": "0",
        "image": "0",
        "input_cache_read": "0.0000005",
    }
    priced = {
        "id": "play-1",
        **plain,
        "name": "Play 1",
        "context_length": 131_072,
        "pricing": pricing,
        "top_provider": {"context_length": 131_072, "max_completion_tokens": 16_384},
    }
    return {"object": "list", "data": [priced, {"id": "play-plain", **plain}]}


def _usage(ask: Ask) -> Document:
    return {
        "prompt_tokens": ask.prompt_tokens,
        "completion_tokens": ask.output_tokens,
        "total_tokens": ask.prompt_tokens + ask.output_tokens,
        "prompt_tokens_details": {"cached_tokens": ask.play.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": ask.play.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _finish(ask: Ask) -> str:
    return "length" if ask.capped else "stop"


def _completion(ask: Ask, name: str, kind: str, choices: list[Document]) -> Document:
    return {
        "id": f"{name}-play",
        "object": kind,
        "created": CREATED,
        "model": ask.model,
        "choices": choices,
        "system_fingerprint": "fp_play",
    }


def chat(ask: Ask) -> Document:
    """`POST /v1/chat/completions`."""
    message: Document = {
        "role": "assistant",
        "content": ask.text,
        "refusal": None,
        "annotations": [],
    }
    choices = [
        {"index": at, "message": message, "logprobs": None, "finish_reason": _finish(ask)}
        for at in range(ask.choices)
    ]
    document = _completion(ask, "chatcmpl", "chat.completion", choices)
    return document if ask.play.nousage else document | {"usage": _usage(ask)}


def chat_events(ask: Ask) -> Iterator[Event]:
    """The same, streamed."""
    yield _chat_event(ask, {"role": "assistant", "content": "", "refusal": None})
    for piece in ask.pieces:
        yield _chat_event(ask, {"content": piece}, is_word=True)
    yield _chat_event(ask, {}, finish=_finish(ask))
    if ask.wants_usage and not ask.play.nousage:
        empty = _completion(ask, "chatcmpl", "chat.completion.chunk", [])
        yield data_event(empty | {"usage": _usage(ask)})
    yield Event(b"data: [DONE]\n\n")


def _chat_event(
    ask: Ask, delta: Document, *, finish: str | None = None, is_word: bool = False
) -> Event:
    choices = [
        {"index": at, "delta": delta, "logprobs": None, "finish_reason": finish}
        for at in range(ask.choices)
    ]
    document = _completion(ask, "chatcmpl", "chat.completion.chunk", choices)
    return data_event(document | ({"usage": None} if ask.wants_usage else {}), is_word=is_word)


def completion(ask: Ask) -> Document:
    """`POST /v1/completions`."""
    document = _completion(ask, "cmpl", "text_completion", _texts(ask, ask.text, _finish(ask)))
    return document if ask.play.nousage else document | {"usage": _usage(ask)}


def completion_events(ask: Ask) -> Iterator[Event]:
    """The same, streamed."""
    for piece in ask.pieces:
        choices = _texts(ask, piece, None)
        yield data_event(_completion(ask, "cmpl", "text_completion", choices), is_word=True)
    yield data_event(_completion(ask, "cmpl", "text_completion", _texts(ask, "", _finish(ask))))
    if ask.wants_usage and not ask.play.nousage:
        yield data_event(_completion(ask, "cmpl", "text_completion", []) | {"usage": _usage(ask)})
    yield Event(b"data: [DONE]\n\n")


def _texts(ask: Ask, text: str, finish: str | None) -> list[Document]:
    return [
        {"index": at, "text": text, "logprobs": None, "finish_reason": finish}
        for at in range(ask.choices)
    ]


def response(ask: Ask) -> Document:
    """`POST /v1/responses`."""
    return _response(ask, "completed", [_output_item("completed", [_output_text(ask.text)])])


def response_events(ask: Ask) -> Iterator[Event]:
    """The same, streamed; the usage comes with the last event, asked for or not."""
    place: Document = {"item_id": "msg_play", "output_index": 0}
    part: Document = {**place, "content_index": 0}
    begun = _response(ask, "in_progress", [])
    events: list[tuple[str, Document]] = [
        ("created", {"response": begun}),
        ("in_progress", {"response": begun}),
        ("output_item.added", {"output_index": 0, "item": _output_item("in_progress", [])}),
        ("content_part.added", {**part, "part": _output_text("")}),
    ]
    deltas = [
        ("output_text.delta", {**part, "delta": piece, "logprobs": []}) for piece in ask.pieces
    ]
    whole = _output_text(ask.text)
    ended: list[tuple[str, Document]] = [
        ("output_text.done", {**part, "text": ask.text, "logprobs": []}),
        ("content_part.done", {**part, "part": whole}),
        ("output_item.done", {"output_index": 0, "item": _output_item("completed", [whole])}),
        ("completed", {"response": response(ask)}),
    ]
    for number, (name, document) in enumerate([*events, *deltas, *ended]):
        kind = f"response.{name}"
        numbered = {"type": kind, "sequence_number": number, **document}
        yield named_event(kind, numbered, is_word=name == "output_text.delta")


def _output_text(text: str) -> Document:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _output_item(status: str, content: list[Document]) -> Document:
    return {
        "type": "message",
        "id": "msg_play",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def _response(ask: Ask, status: str, output: list[Document]) -> Document:
    usage = {
        "input_tokens": ask.prompt_tokens,
        "input_tokens_details": {"cached_tokens": ask.play.cached},
        "output_tokens": ask.output_tokens,
        "output_tokens_details": {"reasoning_tokens": ask.play.reasoning},
        "total_tokens": ask.prompt_tokens + ask.output_tokens,
    }
    is_told = status == "completed" and not ask.play.nousage
    return {
        "id": "resp_play",
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": len(ask.words) if ask.capped else None,
        "model": ask.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 1,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1,
        "truncation": "disabled",
        "usage": usage if is_told else None,
        "user": None,
        "metadata": {},
    }


def embeddings(ask: Ask) -> Document:
    """`POST /v1/embeddings`, as numbers or as base64, which the official client asks for."""
    given = ask.body.get("input")
    # A list of numbers is one input, in tokens.
    is_list = isinstance(given, list) and not any(isinstance(one, int) for one in given)
    inputs = given if isinstance(given, list) and is_list else [given]
    if not 0 < len(inputs) <= _INPUTS_MAX:
        raise InvalidInput(f"input must have 1 to {_INPUTS_MAX} entries")
    numbers = [1 / (at + 1) for at in range(_EMBEDDING_SIZE)]
    packed = base64.b64encode(struct.pack(f"<{_EMBEDDING_SIZE}f", *numbers)).decode()
    embedding = packed if ask.body.get("encoding_format") == "base64" else numbers
    document: Document = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": at, "embedding": embedding}
            for at in range(len(inputs))
        ],
        "model": ask.model,
    }
    usage = {"prompt_tokens": ask.prompt_tokens, "total_tokens": ask.prompt_tokens}
    return document if ask.play.nousage else document | {"usage": usage}
