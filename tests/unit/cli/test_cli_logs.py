"""Log lines say what they are about, and no secret, whatever went wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from farebox.cli.logs import write_library_logs, write_logs
from farebox.ids import new_secret
from farebox.settings import LogFormat, LogLevel

TOKEN = "cashuBo2FteBtodHRwczovL21pbnQuZXhhbXBsZS5jb20"
HEX = "9b" * 32


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before, handlers = structlog.get_config(), logging.getLogger().handlers
    yield
    logging.getLogger().handlers = handlers
    structlog.configure(**before)
    structlog.contextvars.clear_contextvars()


def write(level: LogLevel, form: LogFormat) -> None:
    logging.getLogger().handlers = []  # the test runner's own
    write_logs(level, form)
    write_library_logs(form)


def fail(secret: str) -> None:
    """A defect, with a secret among its locals and in the words of a foreign exception."""
    local = f"{secret}, again"
    raise ValueError(f"cannot read {local[: len(secret)]}")


@pytest.mark.parametrize("form", LogFormat)
@pytest.mark.parametrize("secret", [TOKEN, HEX, new_secret("sk-")], ids=["token", "hex", "key"])
def test_a_foreign_exception_that_quotes_a_secret_is_told_without_it(
    form: LogFormat, secret: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(LogLevel.DEBUG, form)
    for log in (structlog.get_logger(), logging.getLogger("some.library")):
        try:
            fail(secret)
        except ValueError:
            log.exception("it.failed")
    said = capsys.readouterr().err
    assert said.count("ValueError") >= 2
    assert secret not in said
    assert said.count("it.failed") == 2


def test_lines_for_machines_are_json_also_those_of_libraries(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(LogLevel.INFO, LogFormat.JSON)
    structlog.contextvars.bind_contextvars(request="req_1")
    structlog.get_logger("farebox").debug("not.said")
    structlog.get_logger("farebox").info("was.said", mint="https://mint.example.com")
    logging.getLogger("some.library").warning("it %s", "creaks")
    ours, theirs = map(json.loads, capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["level"], ours["request"]) == ("was.said", "info", "req_1")
    assert (theirs["event"], theirs["logger"]) == ("it creaks", "some.library")
    assert ours["timestamp"].endswith("Z")
