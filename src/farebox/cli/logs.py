"""Log lines: on standard error, for people or for machines, never with a local variable in them.

A line that is written while a request is carried says `request`, one about an effect outside
`operation`, one of a background job `job`.
"""

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
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
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


def _rendering(form: LogFormat) -> list[structlog.typing.Processor]:
    """Tracebacks are plain: structlog's own for terminals print local variables, and among those
    are keys and tokens."""
    if form is LogFormat.JSON:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    ]
