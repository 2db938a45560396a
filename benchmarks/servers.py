"""The processes that a benchmark stands up: each listens on a free port of loopback, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_READY_TRIES = 200
_CORES = os.sched_getaffinity(0)


class Server:
    """A module of this package that listens on a port, on `core` or (None) on every core."""

    def __init__(self, name: str, core: int | None, *arguments: str) -> None:
        self.port = _free_port()
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        command += [one.replace("PORT", str(self.port)) for one in arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        cores = _CORES if core is None or len(_CORES) == 1 else {core}
        os.sched_setaffinity(self.process.pid, cores)

    def line(self, prefix: str) -> str:
        """The next line it prints that begins so."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(prefix):
                return line.strip()
        raise RuntimeError("a server ended before it was ready")

    async def ready(self) -> None:
        """Wait until it listens."""
        for _ in range(_READY_TRIES):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.05)
        raise RuntimeError(f"nothing listens on port {self.port}")

    def cpu_s(self) -> float:
        """What it has used of a processor so far, all threads together."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Stopping:
    """Servers to stop and folders to remove at the end."""

    def __init__(self) -> None:
        self._servers: list[Server] = []
        self._folders: list[Path] = []

    def started(self, server: Server) -> Server:
        """Stop this one at the end."""
        self._servers.append(server)
        return server

    def folder(self, data: Path) -> str:
        """A new folder within `data`, for files only."""
        made = tempfile.mkdtemp(prefix=".bench-", dir=data)
        self._folders.append(Path(made))
        return made

    def end(self) -> None:
        """Stop and remove."""
        for server in reversed(self._servers):
            server.stop()
        for folder in self._folders:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()


@contextlib.contextmanager
def stopping() -> Iterator[Stopping]:
    """Whatever is started within ends with it."""
    these = Stopping()
    try:
        yield these
    finally:
        these.end()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
