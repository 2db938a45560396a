"""A peer's process: started on a free port of loopback, waited for, stopped or killed."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests import forked, reaper
from tests.forked import Forked
from tests.peers.install import PeerUnavailable

_FIRST_PORT, _PORTS = 10_000, 22_000
_STOP_TIMEOUT_S = 30
_POLL_S = 0.05
_SAID_MAX_CHARS = 2_000


def free_port() -> int:
    """A port on loopback that was free a moment ago, and that no outgoing connection is given.

    Those are given ports from 32768 on: also while a server that had one is being restarted.
    """
    while True:
        port = _FIRST_PORT + secrets.randbelow(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class PeerProcess:
    """One process in a process group of its own, its output in a file; it ends with ours."""

    _process: subprocess.Popen[bytes] | Forked

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                list(command),
                env=dict(env),
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        reaper.watch(self._process.pid)

    def wait_ready(self, url: str, timeout_s: float) -> None:
        """Until `url` answers 200. Raises PeerUnavailable with the last output."""
        self.wait_for(lambda: urllib.request.urlopen(url, timeout=10).close(), timeout_s)

    def wait_for(self, ask: Callable[[], object], timeout_s: float) -> None:
        """Until asking raises no OSError. Raises PeerUnavailable with the last output."""
        ends_at = time.monotonic() + timeout_s
        while time.monotonic() < ends_at:
            if self._process.poll() is not None:
                raise PeerUnavailable(f"it ended with {self._process.returncode}: {self.said()}")
            try:
                ask()
            except OSError:  # urllib's own errors are such
                time.sleep(_POLL_S)
            else:
                return
        self.kill()
        raise PeerUnavailable(f"not ready after {timeout_s} s: {self.said()}")

    def wait_listening(self, port: int, timeout_s: float) -> None:
        """Until its port takes connections. Raises PeerUnavailable with the last output."""
        ends_at = time.monotonic() + timeout_s
        while time.monotonic() < ends_at and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=2).close()
            except OSError:
                time.sleep(_POLL_S)
            else:
                return
        self.kill()
        raise PeerUnavailable(f"it does not listen: {self.said()}")

    @property
    def is_running(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process.poll() is None

    def said(self) -> str:
        """The end of its output."""
        return self._log.read_text(errors="replace")[-_SAID_MAX_CHARS:]

    def stop(self) -> None:
        """Ask it to end, and end it if it does not. Does nothing once it has ended."""
        self._signal(signal.SIGTERM)
        try:
            self._ended()
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL: it gets no chance to finish anything."""
        self._signal(signal.SIGKILL)
        self._ended()

    def _ended(self) -> None:
        self._process.wait(_STOP_TIMEOUT_S)
        reaper.forget(self._process.pid)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)


class OwnProcess(PeerProcess):
    """A program of ours, `python -m module`, that starts at once."""

    def __init__(self, module: str, *arguments: str, log: Path) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = forked.start(
                module,
                *arguments,
                cwd=log.parent,
                env=os.environ,
                stdout=output.fileno(),
                stderr=output.fileno(),
            )
