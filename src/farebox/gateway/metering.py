"""Metering one answer while it passes: by its protocol, its bytes and its time.

A meter keeps little: of a stream what `StreamMeter` keeps, of a long whole answer its end, where
the protocols put the usage.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

import msgspec

from farebox.clock import NS_PER_S
from farebox.paywall.model import Headers
from farebox.pricing.book import Quote
from farebox.pricing.request import ApiProtocol, RequestFacts
from farebox.pricing.stream import StreamMeter, is_only_error
from farebox.pricing.tokens import BYTES_PER_TOKEN, TokenCounter
from farebox.pricing.usage import (
    Usage,
    UsageSource,
    complete,
    count_prompt,
    measure_answer,
    read_report,
    read_units,
)

#: A whole answer up to this long is complete before its first header is sent.
ANSWER_MAX_BYTES: Final = 1024 * 1024
#: Of a longer one, this much of its end is kept.
_END_KEPT_BYTES: Final = 64 * 1024
#: No error of an upstream is longer.
_ERROR_MAX_BYTES: Final = 16 * 1024


class AnswerMeter:
    """Meters one answer. Feed it what arrives, send on what it returns."""

    def __init__(
        self,
        quote: Quote,
        facts: RequestFacts,
        request: bytes,
        counter: TokenCounter,
        now_s: Callable[[], float],
    ) -> None:
        self._quote = quote
        self._facts = facts
        self._request = request
        self._counter = counter
        self._now_s = now_s
        self._started_s = now_s()
        self._headers: Headers = ()
        self._is_stream = False
        self._stream: StreamMeter | None = None
        self._body_bytes = 0
        self._begun = bytearray()
        self._end = bytearray()
        # What is not sold by its tokens need not be read for them.
        self._reads = quote.terms.by_token and facts.protocol is not ApiProtocol.OTHER
        self._reads_unit = quote.unit is not None and quote.unit.field is not None

    @property
    def must_read(self) -> bool:
        """Whether the price depends on what the answer says."""
        return self._reads or self._reads_unit

    @property
    def body_bytes(self) -> int:
        """How much was sent on."""
        return self._body_bytes

    def begin(self, headers: Headers, *, is_stream: bool, strip_usage_chunk: bool) -> None:
        """The head of the answer is there."""
        self._headers = headers
        self._is_stream = is_stream
        if is_stream and (self._reads or strip_usage_chunk):
            self._stream = StreamMeter(
                self._facts.protocol,
                self._counter,
                request=self._request,
                strip_usage_chunk=strip_usage_chunk,
            )

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; returns those to send on."""
        if self._stream is not None:
            chunk = self._stream.feed(chunk)
        self._keep(chunk)
        return chunk

    def finish(self) -> bytes:
        """The upstream has ended: what is still to be sent on."""
        rest = self._stream.finish() if self._stream is not None else b""
        self._keep(rest)
        return rest

    @property
    def is_only_error(self) -> bool:
        """Whether all that came, of whatever status, is an error of the upstream's."""
        protocol, begun = self._facts.protocol, bytes(self._begun)
        if self._body_bytes > len(begun):
            return False
        return is_only_error(protocol, begun, is_stream=self._is_stream)

    def usage(self) -> Usage:
        """What was used so far."""
        if self._quote.terms.is_fixed:
            return Usage()
        if self._stream is not None:
            usage = self._stream.usage()
        elif not self._reads:
            usage = Usage()
        elif self._body_bytes <= ANSWER_MAX_BYTES:
            answer = bytes(self._end)
            usage = measure_answer(self._facts.protocol, self._request, answer, self._counter)
        else:
            usage = self._usage_at_end()
        return msgspec.structs.replace(
            usage,
            duration_ns=int((self._now_s() - self._started_s) * NS_PER_S),
            body_bytes=self._body_bytes,
            micro_units=self._micro_units(),
        )

    def _keep(self, chunk: bytes) -> None:
        self._body_bytes += len(chunk)
        if self._body_bytes <= _ERROR_MAX_BYTES and self._facts.protocol is not ApiProtocol.OTHER:
            self._begun += chunk
        if not self.must_read or (self._stream is not None and not self._reads_unit):
            return
        self._end += chunk
        # Cut in large pieces, so that a long answer is not copied once for each chunk.
        if len(self._end) > ANSWER_MAX_BYTES:
            del self._end[: len(self._end) - _END_KEPT_BYTES]

    def _usage_at_end(self) -> Usage:
        """A long answer's usage stands at its end; else its size tells, as an estimate."""
        protocol = self._facts.protocol
        report = read_report(protocol, _last_usage(bytes(self._end)))
        if report.input_tokens is not None and report.output_tokens is not None:
            return complete(report, self._request, iter(()), self._counter, protocol)
        output_tokens = 0
        if protocol is not ApiProtocol.EMBEDDINGS:
            output_tokens = -(-self._body_bytes // BYTES_PER_TOKEN)
        return Usage(
            input_tokens=report.input_tokens or count_prompt(self._request, self._counter),
            output_tokens=report.output_tokens or output_tokens,
            source=UsageSource.ESTIMATED,
        )

    def _micro_units(self) -> int:
        """The units that were reported; none where none credibly were."""
        source = self._quote.unit
        if source is None:
            return 0
        answer = bytes(self._end)
        if self._facts.stream and source.field is not None:
            answer = _last_data(answer)
        named = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._headers}
        units = read_units(source, named, answer)
        return 0 if units is None else units


def _last_usage(end: bytes) -> object:
    """The last `usage` object in the end of a JSON document."""
    text = end.decode("utf-8", errors="replace")
    at = text.rfind('"usage"')
    start = text.find("{", at) if at >= 0 else -1
    if start < 0:
        return None
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        return None


def _last_data(events: bytes) -> bytes:
    """The last JSON object among the data lines of a stream's end."""
    for line in reversed(events.splitlines()):
        if line.startswith(b"data:") and b"{" in line:
            return line[5:].strip()
    return b""
