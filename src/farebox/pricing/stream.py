"""Metering a stream while it passes through.

The meter reads server-sent events as they fly by and changes nothing, except that it can take out
the one chunk of usage that we asked for and the caller did not. Most streams end with their
usage, so the text in between is kept raw and within bounds, and only looked at when somebody asks
and no usage was reported. The bytes must be plain: ask upstreams for `identity` encoding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from farebox.pricing.request import ApiProtocol
from farebox.pricing.tokens import TokenCounter
from farebox.pricing.usage import (
    NO_REPORT,
    Report,
    Usage,
    UsageSource,
    answer_texts,
    count_prompt,
    decoded,
    is_error,
    message_texts,
    read_report,
    read_usage,
    settled,
)

#: A longer event is passed on unread. OpenAI's last response event repeats the whole answer.
EVENT_MAX_BYTES: Final = 4 * 1024 * 1024
#: Raw events kept for counting; beyond it they are reduced to their text, and that is counted.
_RAW_MAX_BYTES: Final = 64 * 1024
_TEXT_BLOCK_CHARS: Final = 8_192

#: Two line ends. A CR at the end of what has arrived counts; its LF may still follow.
_EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_LONGEST_END: Final = 4
_USAGE_OBJECT: Final = re.compile(rb'"usage"\s*:\s*\{')
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

#: The members of every protocol's usage; nothing else is kept.
_USAGE_KEYS: Final = (
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "prompt_tokens_details",
    "completion_tokens_details",
    "input_tokens",
    "output_tokens",
    "input_tokens_details",
    "output_tokens_details",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
)


class StreamMeter:
    """Meters one streamed answer.

    Feed it every chunk and send on what it returns; call `finish` when the upstream has ended.
    `usage` may be asked at any moment. However the stream is cut into chunks, the bytes that
    come out and the usage are the same.
    """

    def __init__(
        self,
        protocol: ApiProtocol,
        counter: TokenCounter,
        *,
        request: bytes = b"",
        strip_usage_chunk: bool = False,
    ) -> None:
        """`request` is the body that was asked with; its tokens are counted if need be."""
        self._protocol = protocol
        self._counter = counter
        self._request = request
        self._strips = strip_usage_chunk
        self._body_bytes = 0
        self._tail = bytearray()  # the beginning of an event whose end has not arrived
        self._tail_sent = 0  # how much of it was sent on; always all where nothing is stripped
        self._oversized = False  # the event is longer than EVENT_MAX_BYTES: its tail is cut
        self._stripped_cr = False  # an event was taken out whose last CR may have an LF to come
        self._raw: list[bytes] = []  # complete events whose text was not looked at
        self._raw_bytes = 0
        self._text = ""
        self._counted_tokens = 0
        self._counted_input: int | None = None
        self._reported: dict[str, Any] = {}
        self._report = NO_REPORT

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the upstream; return those to send on now.

        Where nothing is stripped these are the same bytes. Else an event is held back until it
        is complete, and no longer.
        """
        plain = self._plain_length(chunk)
        sent = chunk[:plain]
        if plain:
            self._keep(sent)
        if plain < len(chunk):
            sent += self._split(chunk[plain:])
        self._body_bytes += len(sent)
        return sent

    def finish(self) -> bytes:
        """The upstream has ended: return what is still held back."""
        rest = b""
        if self._tail and not self._oversized:
            held = bytes(self._tail)
            kept = self._take(held)
            if self._strips:
                rest = held if kept else held[: _blank_length(held, 0)]
        self._tail.clear()
        self._body_bytes += len(rest)
        return rest

    def usage(self) -> Usage:
        """What the upstream has delivered so far, by its own report or by our count."""
        report = self._report
        complete = report.input_tokens is not None and report.output_tokens is not None
        if complete or self._protocol is ApiProtocol.OTHER:
            usage = settled(report, 0, 0, UsageSource.REPORTED)
        else:
            usage = self._count(report)
        return msgspec.structs.replace(usage, body_bytes=self._body_bytes)

    def _count(self, report: Report) -> Usage:
        counter, counted_input, counted_output = self._counter, 0, 0
        if report.input_tokens is None:
            if self._counted_input is None:
                self._counted_input = count_prompt(self._request, counter)
            counted_input = self._counted_input
        if report.output_tokens is None:
            self._reduce()
            counted_output = self._counted_tokens + counter.count(self._text)
        source = UsageSource.ESTIMATED if counter.is_estimate else UsageSource.COUNTED
        return settled(report, counted_input, counted_output, source)

    def _plain_length(self, chunk: bytes) -> int:
        """How much at the beginning of a chunk are whole events that report no usage: nearly all
        of most streams, and not worth to be looked at one by one."""
        if self._tail or self._stripped_cr or len(chunk) > EVENT_MAX_BYTES:
            return 0
        usage = chunk.find(b'"usage"')
        end = chunk.rfind(b"\n\n", 0, len(chunk) if usage < 0 else usage)
        return 0 if end < 0 else end + 2

    def _split(self, chunk: bytes) -> bytes:
        """Cut the bytes into events, take each, and return what is to be sent on."""
        out = bytearray()
        tail = self._tail
        searched = max(0, len(tail) - _LONGEST_END + 1)
        tail += chunk.removeprefix(b"\n") if self._stripped_cr else chunk
        self._stripped_cr = self._stripped_cr and not chunk
        start = 0
        for match in _EVENT_END.finditer(tail, searched):
            end = match.end()
            readable = not self._oversized and end - start <= EVENT_MAX_BYTES
            kept = self._take(bytes(tail[start:end])) if readable else True
            # Blank lines before an event are nobody's; they go on even where it does not.
            sent_end = end if kept else start + _blank_length(tail, start)
            out += tail[max(start, self._tail_sent) : sent_end]
            self._oversized, self._tail_sent, start = False, 0, end
            self._stripped_cr = not kept and end == len(tail) and tail.endswith(b"\r")
        del tail[:start]
        if self._oversized or len(tail) > EVENT_MAX_BYTES:
            out += tail[self._tail_sent :]
            del tail[: 1 - _LONGEST_END]
            self._oversized, self._tail_sent = True, len(tail)
        return bytes(out) if self._strips else chunk

    def _take(self, event: bytes) -> bool:
        """Read one complete event; False if it is not to be sent on."""
        if b'"usage"' in event and _USAGE_OBJECT.search(event):
            document = _document(event)
            self._note_usage(document)
            if self._strips and _is_usage_only(document):
                return False
        self._keep(event)
        return True

    def _note_usage(self, document: dict[str, Any]) -> None:
        usage = _find_usage(self._protocol, document)
        # Later figures replace earlier ones: all protocols report running totals. A zero is what
        # some send until they know.
        newer = {key: usage[key] for key in _USAGE_KEYS if usage.get(key)}
        reported = {**self._reported, **newer}
        report = read_report(self._protocol, reported)
        if report.output_tokens is None and self._report.output_tokens is not None:
            return  # what was said credibly is not unsaid; the text since is no longer kept
        self._reported, self._report = reported, report
        if report.output_tokens is not None:
            self._raw.clear()
            self._raw_bytes = 0

    def _keep(self, events: bytes) -> None:
        if self._report.output_tokens is not None or self._protocol is ApiProtocol.OTHER:
            return
        self._raw.append(events)
        self._raw_bytes += len(events)
        if self._raw_bytes > _RAW_MAX_BYTES:
            self._reduce()

    def _reduce(self) -> None:
        """Turn raw events into text, and text into a count, a block at a time.

        Blocks are cut by the length of the text alone, so the count does not depend on when.
        """
        raw = b"".join(self._raw)
        self._raw.clear()
        self._raw_bytes = 0
        start = 0
        texts = [self._text]
        for match in _EVENT_END.finditer(raw):
            texts.extend(_event_texts(self._protocol, _document(raw[start : match.end()])))
            start = match.end()
        # Only `finish` keeps an event without an end, and it comes last.
        texts.extend(_event_texts(self._protocol, _document(raw[start:])))
        text = "".join(texts)
        done = len(text) - len(text) % _TEXT_BLOCK_CHARS
        for at in range(0, done, _TEXT_BLOCK_CHARS):
            self._counted_tokens += self._counter.count(text[at : at + _TEXT_BLOCK_CHARS])
        self._text = text[done:]


def is_only_error(protocol: ApiProtocol, answer: bytes, *, is_stream: bool) -> bool:
    """Whether an answer of a good status is an error and nothing else: no text, no usage."""
    if b'"error"' not in answer:
        return False
    if not is_stream:
        whole = decoded(answer)
        texts = answer_texts(protocol, whole)
        return is_error(whole) and not any(texts) and not read_usage(protocol, answer)
    events = [_document(event) for event in _EVENT_END.split(answer)]
    for event in events:
        if _find_usage(protocol, event) or any(_event_texts(protocol, event)):
            return False
    return any(map(is_error, events))


def _document(event: bytes) -> dict[str, Any]:
    """The JSON object in an event's data lines; empty where there is none."""
    data = b"\n".join(
        line[5:]
        for line in event.removeprefix(_BYTE_ORDER_MARK).splitlines()
        if line.startswith(b"data:")
    )
    if b"{" not in data:
        return {}
    document = decoded(data)
    return document if isinstance(document, dict) else {}


def _blank_length(events: bytes | bytearray, start: int) -> int:
    end = start
    while end < len(events) and events[end] in b"\r\n":
        end += 1
    return end - start


def _find_usage(protocol: ApiProtocol, document: dict[str, Any]) -> dict[str, Any]:
    holder: object = document
    if protocol is ApiProtocol.RESPONSES:
        holder = document.get("response")
    elif protocol is ApiProtocol.MESSAGES and document.get("type") == "message_start":
        holder = document.get("message")
    usage = holder.get("usage") if isinstance(holder, dict) else None
    if not isinstance(usage, dict):
        return {}
    if holder is not document and protocol is ApiProtocol.MESSAGES:
        # At the start it says how much output there is so far; that must not pass for the total.
        return {key: value for key, value in usage.items() if key != "output_tokens"}
    return usage


def _is_usage_only(document: dict[str, Any]) -> bool:
    return isinstance(document.get("usage"), dict) and not document.get("choices")


def _event_texts(protocol: ApiProtocol, document: dict[str, Any]) -> Iterator[str]:
    """The texts that one event adds to the answer."""
    if protocol in (ApiProtocol.CHAT, ApiProtocol.COMPLETIONS):
        choices = document.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                if isinstance(choice.get("text"), str):
                    yield choice["text"]
                yield from message_texts(choice.get("delta"))
    elif protocol is ApiProtocol.RESPONSES:
        if isinstance(document.get("delta"), str):
            yield document["delta"]
    elif protocol is ApiProtocol.MESSAGES:
        for name in ("delta", "content_block"):
            part = document.get(name)
            if isinstance(part, dict):
                keys = ("text", "thinking", "partial_json", "name")
                yield from (part[key] for key in keys if isinstance(part.get(key), str))
