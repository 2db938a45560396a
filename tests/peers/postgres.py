"""PostgreSQL: a throw-away cluster of the machine's own server, on a free port of loopback."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from tests.peers.install import postgres_programs, run
from tests.peers.process import free_port

_START_TIMEOUT_S = 60
_PASSWORD = "a-password-that-is-never-shown"


class Postgres:
    """A cluster of one run of the tests; its data is gone when it is removed.

    Nothing is synced, unless `settings` of the server say otherwise: what these tests kill is
    processes, and the page cache survives them.
    """

    def __init__(self, **settings: str) -> None:
        """Make the cluster. Raises PeerUnavailable."""
        self._settings = settings
        self._programs = postgres_programs()
        self._port = free_port()
        # Not pytest's directory, which other users cannot enter: a server refuses to be root.
        self.directory = Path(tempfile.mkdtemp(prefix="farebox-postgres-"))
        self._data = self.directory / "data"
        password = self.directory / "password"
        password.write_text(_PASSWORD)
        if os.geteuid() == 0:
            for path in (self.directory, password):
                shutil.chown(path, "postgres", "postgres")
        self._run("initdb", "-U", "farebox", "-A", "scram-sha-256", f"--pwfile={password}", "-N")

    @property
    def dsn(self) -> str:
        """How it is reached; the same after a restart."""
        return self.dsn_at(self._port)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    def dsn_at(self, port: int, **more: str) -> str:
        """The same database through another port, with more connection parameters."""
        said = "".join(f"&{key}={value}" for key, value in more.items())
        base = f"postgresql://farebox:{_PASSWORD}@127.0.0.1:{port}/postgres"
        return f"{base}?connect_timeout=10{said}"

    def start(self) -> None:
        """Start and wait until it answers. Raises PeerUnavailable."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.directory),
            "fsync": "off",
            "max_connections": "60",
            "shared_buffers": "32MB",
        } | self._settings
        options = " ".join(f"-c {key}={value}" for key, value in settings.items())
        log = str(self.directory / "log")
        self._run("pg_ctl", "-w", "-l", log, "-o", f"-p {self._port} {options}", "start")

    def stop(self, mode: str = "fast") -> None:
        """End it: `fast` in good order, `immediate` as if its processes had been killed."""
        self._run("pg_ctl", "-w", "-m", mode, "stop")

    def restart(self, mode: str = "fast") -> None:
        """Stop it and start it on the same data and port."""
        self.stop(mode)
        self.start()

    def remove(self) -> None:
        """Stop it and forget its data."""
        try:
            self.stop("immediate")
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), "-D", str(self._data), *arguments]
        if os.geteuid() == 0:
            command = [
                "setpriv",
                "--reuid=postgres",
                "--regid=postgres",
                "--clear-groups",
                *command,
            ]
        run(command, _START_TIMEOUT_S)
