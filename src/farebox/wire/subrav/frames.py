"""Payment inside a stream: one frame just before the end, where headers have long left.

    SSE      \\n\\ndata: {"nuwa_payment_header":"u…"}\\n\\n
    NDJSON   \\n{"__nuwa_payment_header__":"u…"}\\n

A reader takes either key in either format, as payment-kit does, and hands the stream on without it.
"""

from __future__ import annotations

import enum
import re

import msgspec

from farebox.errors import InvalidCredential
from farebox.wire.subrav.payload import HEADER_MAX_CHARS

_SSE_KEY, _NDJSON_KEY = "nuwa_payment_header", "__nuwa_payment_header__"
#: What may wait for its end: one event or line. A longer one is passed on unread.
_PART_MAX_BYTES = 1 << 20
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_LINE_END = re.compile(rb"\r?\n")
_DATA = re.compile(rb"^data:[ \t]*(.+?)\r?$", re.MULTILINE)


class StreamFormat(enum.Enum):
    """The streams that carry payment."""

    SSE = "text/event-stream"
    NDJSON = "application/x-ndjson"


_FORMATS = {form.value: form for form in StreamFormat}


def stream_format(content_type: str) -> StreamFormat | None:
    """The format that a content type tells of; None: such a body carries no payment."""
    kind = content_type.partition(";")[0].strip().lower()
    return _FORMATS.get(kind)


def payment_frame(form: StreamFormat, header: str) -> bytes:
    """The frame for the value of a response header."""
    match form:
        case StreamFormat.SSE:
            return f'\n\ndata: {{"{_SSE_KEY}":"{header}"}}\n\n'.encode()
        case StreamFormat.NDJSON:
            return f'\n{{"{_NDJSON_KEY}":"{header}"}}\n'.encode()


class FrameReader:
    """Takes a stream's chunks and gives them on without the payment frame.

    `header` is the value it carried, once that came. Whole events or lines are given on, so that
    a frame cut in two by the network is still found.
    """

    def __init__(self, form: StreamFormat) -> None:
        self._form = form
        self._waiting = b""
        self.header: str | None = None

    def feed(self, chunk: bytes) -> bytes:
        """What may be given on after one more chunk. Raises InvalidCredential for two frames."""
        self._waiting += chunk
        ends = _EVENT_END if self._form is StreamFormat.SSE else _LINE_END
        out, at = [], 0
        for end in ends.finditer(self._waiting):
            out.append(self._passed(self._waiting[at : end.end()]))
            at = end.end()
        self._waiting = self._waiting[at:]
        if len(self._waiting) > _PART_MAX_BYTES:
            out.append(self._waiting)
            self._waiting = b""
        return b"".join(out)

    def end(self) -> bytes:
        """What is left when the stream is over."""
        rest, self._waiting = self._waiting, b""
        return self._passed(rest)

    def _passed(self, part: bytes) -> bytes:
        header = self._header_in(part)
        if header is None:
            return part
        if self.header is not None:
            raise InvalidCredential("a stream holds two payments")
        self.header = header
        return b""

    def _header_in(self, part: bytes) -> str | None:
        texts = _DATA.findall(part) if self._form is StreamFormat.SSE else [part.strip()]
        for text in texts:
            if b"nuwa_payment_header" not in text or len(text) > HEADER_MAX_CHARS + 64:
                continue
            try:
                frame = msgspec.json.decode(text)
            except (msgspec.DecodeError, RecursionError, UnicodeError):
                continue
            if isinstance(frame, dict):
                header = frame.get(_SSE_KEY) or frame.get(_NDJSON_KEY)
                if isinstance(header, str):
                    return header
        return None
