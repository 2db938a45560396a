"""Log lines: on standard error, for people or for machines, never with a local variable in them."""

from __future__ import annotations

import logging
import sys

import structlog

from farebox.settings import LogFormat, LogLevel

_LEVELS = {
    LogLevel.DEBUG: logging.DEBUG,
    LogLevel.INFO: logging.INFO,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
}


def write_logs(level: LogLevel, form: LogFormat) -> None:
    """Send every log line of ours to standard error.

    Tracebacks are plain: structlog's own for terminals print local variables, and among those are
    keys and tokens.
    """
    least = _LEVELS[level]
    if form is LogFormat.JSON:
        last: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        last = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def write_library_logs() -> None:
    """What goes wrong in libraries, not what goes on; for a process of our own."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    # It warns of every malformed request, which anybody can send.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
