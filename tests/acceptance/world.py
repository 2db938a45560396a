"""What the acceptance tests share: the command line, servers and HTTP as people use them."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest

from farebox.cli import main
from tests import forked
from tests.forked import Forked


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    code: int
    out: str
    error: str

    def json(self) -> dict[str, Any]:
        """Its one JSON object."""
        assert self.code == 0, self.error
        assert self.out.count("\n") == 1
        found: dict[str, Any] = json.loads(self.out)
        return found


@dataclass(frozen=True)
class Answered:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    names: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """Its JSON object."""
        found: dict[str, Any] = json.loads(self.body)
        return found


def call(
    url: str, headers: Mapping[str, str] | None = None, body: object = None, method: str = ""
) -> Answered:
    """One HTTP request, as curl makes it."""
    raw = None if body is None else json.dumps(body).encode()
    given = {**(headers or {}), **({"content-type": "application/json"} if raw else {})}
    request = urllib.request.Request(url, raw, given, method=method or None)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            names = tuple(name.lower() for name in answer.headers)
            return Answered(answer.status, _lowered(answer.headers), answer.read(), names)
    except urllib.error.HTTPError as error:
        with error:
            return Answered(error.code, _lowered(error.headers), error.read())


def _lowered(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def farebox(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, module: str = "farebox"
) -> Ran:
    """Run a command to its end."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("FAREBOX_")}
    with TemporaryFile("w+") as out, TemporaryFile("w+") as error:
        done = forked.start(
            module,
            *arguments,
            cwd=cwd,
            env=clean | dict(env or {}),
            stdout=out.fileno(),
            stderr=error.fileno(),
        )
        code = done.wait(120)
        out.seek(0)
        error.seek(0)
        return Ran(code, out.read(), error.read())


def kill_half_way(
    *arguments: str, cwd: Path, env: Mapping[str, str], after_s: float, module: str = "farebox"
) -> str:
    """Start a command and kill it, so long after it has said that it begins: what it said."""
    reads, writes = os.pipe()
    with open(reads) as error:
        process = forked.start(module, *arguments, cwd=cwd, env=os.environ | env, stderr=writes)
        os.close(writes)
        said = error.readline()
        time.sleep(after_s)
        process.kill()
        process.wait(30)
    return said


def run_here(screen: pytest.CaptureFixture[str], *arguments: str) -> Ran:
    """Run a command in this process, which spares the second that a new one takes to start."""
    screen.readouterr()
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert isinstance(left.value.code, int)
    return Ran(left.value.code, *screen.readouterr())


class Mint:
    """A play mint in a process of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def token(self, amount: int) -> str:
        """Play money out of nothing."""
        return str(call(f"{self.url}/play/issue", body={"amount": amount}).json()["token"])

    def invoice(self, amount: int) -> str:
        """A Lightning invoice that asks for so many sat."""
        body = {"amount": amount, "unit": "sat"}
        return str(call(f"{self.url}/v1/mint/quote/bolt11", body=body).json()["request"])

    def fail(self, what: str, fault: str) -> None:
        """Have its next call of a kind go wrong."""
        body = {"call": what, "faults": [{"type": fault}]}
        assert call(f"{self.url}/play/faults", body=body).status == 200

    def audit(self) -> dict[str, Any]:
        """What it has issued and taken back."""
        return call(f"{self.url}/play/audit").json()


class Server:
    """`farebox serve` in a process of its own."""

    def __init__(self, process: Forked, facts: dict[str, Any], log: Path) -> None:
        self.process = process
        self.facts = facts
        self.url = str(facts["url"])
        self.data = Path(facts["data_dir"])
        self._log = log

    def said(self) -> str:
        """What it has written to standard error."""
        return self._log.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait; gives its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


def start_server(arguments: Sequence[str], folder: Path) -> Server:
    """A server that listens; raises with what it said when it does not."""
    log = folder / "serve.log"
    reads, writes = os.pipe()
    with open(reads) as out, log.open("w") as error:
        try:
            told = {"stdout": writes, "stderr": error.fileno()}
            command = ("serve", "--json", *arguments)
            process = forked.start("farebox", *command, cwd=folder, env=os.environ, **told)
        finally:
            os.close(writes)
        line = out.readline()
    if not line:
        process.wait(60)
        raise AssertionError(f"it did not start: {log.read_text()}")
    return Server(process, json.loads(line), log)
