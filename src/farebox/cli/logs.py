"""Log lines: on standard error, for people or for machines, never with a local variable in them.

A line that is written while a request is carried says `request`, one about an effect outside
`operation`, one of a background job `job`. None of ours has a secret in it; a foreign exception
may quote what it choked on, so what looks like a secret is taken out of every line at the end.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
from typing import Any, TextIO, cast

import structlog

from farebox.settings import LogFormat, LogLevel

_LEVELS = {
    LogLevel.DEBUG: logging.DEBUG,
    LogLevel.INFO: logging.INFO,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
}
#: Tokens, account keys, bearer credentials, and hexadecimal digits as long as a proof's secret, a
#: root key, a preimage. Our own ids are shorter.
_SECRETS = re.compile(r"cashu[AB][\w-]{8,}=*|\bsk-[\w-]{8,}|(?<=Bearer )\S+|\b[0-9a-fA-F]{64,}")
_COMMON: tuple[structlog.typing.Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def write_logs(level: LogLevel, form: LogFormat) -> None:
    """Send every log line of ours to standard error."""
    structlog.configure(
        processors=[*_COMMON, *_rendering(form)],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: structlog.PrintLogger(cast("TextIO", _Spared(sys.stderr))),
        cache_logger_on_first_use=False,
    )


def write_library_logs(form: LogFormat) -> None:
    """What goes wrong in libraries, not what goes on; for a process of our own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_COMMON, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(form),
            ],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # It warns of every malformed request, which anybody can send.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)


class _Spared(io.TextIOBase):
    """Standard error that may be full: a line that cannot be written must fail no request."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, line: str) -> int:
        with contextlib.suppress(OSError):
            return self._stream.write(line)
        return len(line)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def _rendering(form: LogFormat) -> list[structlog.typing.Processor]:
    """Tracebacks are plain: structlog's own for terminals print local variables, and among those
    are keys and tokens."""
    if form is LogFormat.JSON:
        return [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
            _without_secrets,
        ]
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        ),
        _without_secrets,
    ]


def _without_secrets(_: Any, __: str, line: Any) -> str:
    """The last processor: what it is given is a line already."""
    return _SECRETS.sub("…", line)
