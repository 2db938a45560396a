"""Anthropic's shapes: messages, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from farebox.testing.upstream.ask import Ask
from farebox.testing.upstream.openai import Document, Event, named_event


def error_document(status: int, message: str) -> Document:
    """What Anthropic answers when it does not."""
    kind = "invalid_request_error" if status < 500 else "api_error"
    return {"type": "error", "error": {"type": kind, "message": message}}


def error_event(message: str) -> Event:
    """An error in the middle of a stream."""
    return named_event("error", error_document(500, message))


def message(ask: Ask) -> Document:
    """`POST /v1/messages`."""
    content = [{"type": "text", "text": ask.text}]
    return _message(ask, content, _stop_reason(ask), ask.output_tokens)


def message_events(ask: Ask) -> Iterator[Event]:
    """The same, streamed: the input's usage with the first event, the output's near the end."""
    yield _event("message_start", message=_message(ask, [], None, 1))
    yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    yield _event("ping")
    for piece in ask.pieces:
        delta = {"type": "text_delta", "text": piece}
        yield _event("content_block_delta", is_word=True, index=0, delta=delta)
    yield _event("content_block_stop", index=0)
    stop = {"stop_reason": _stop_reason(ask), "stop_sequence": None}
    usage: Document = {} if ask.play.nousage else {"usage": {"output_tokens": ask.output_tokens}}
    yield _event("message_delta", delta=stop, **usage)
    yield _event("message_stop")


def _event(kind: str, *, is_word: bool = False, **members: Any) -> Event:
    return named_event(kind, {"type": kind, **members}, is_word=is_word)


def _stop_reason(ask: Ask) -> str:
    return "max_tokens" if ask.capped else "end_turn"


def _message(
    ask: Ask, content: list[Document], stop_reason: str | None, output_tokens: int
) -> Document:
    document: Document = {
        "id": "msg_play",
        "type": "message",
        "role": "assistant",
        "model": ask.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
    }
    usage = {
        # Here, unlike at OpenAI, cached tokens are not part of the input tokens.
        "input_tokens": ask.prompt_tokens - ask.play.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": ask.play.cached,
        "output_tokens": output_tokens,
    }
    return document if ask.play.nousage else document | {"usage": usage}
