"""PostgreSQL: a throw-away cluster of the machine's own server, on a free port of loopback."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests import reaper
from tests.peers.install import PeerUnavailable, postgres_programs, run, server_user, unprivileged
from tests.peers.process import free_port

_START_TIMEOUT_S = 120
OWNER = "farebox"
PASSWORD = "a-password-that-is-never-shown"


class Postgres:
    """A cluster of one run of the tests; its data is gone when it is removed.

    Nothing is synced, unless `settings` of the server say otherwise: what these tests kill is
    processes, and the page cache survives them.
    """

    def __init__(self, *, of: Postgres | None = None, **settings: str) -> None:
        """Make the cluster, or a standby that streams from another, with these settings.

        Raises PeerUnavailable.
        """
        self._settings = settings
        self._programs = postgres_programs()
        self._port = free_port()
        # Not pytest's directory, which other users cannot enter: a server refuses to be root.
        self.directory = Path(tempfile.mkdtemp(prefix="farebox-postgres-"))
        self._data = self.directory / "data"
        self._kept = self.directory / "kept"
        password = self.directory / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (self.directory, password):
                shutil.chown(path, *server_user())
        if of is None:
            self._run("initdb", "-U", OWNER, "-A", "scram-sha-256", f"--pwfile={password}", "-N")
        else:
            # -R: it goes on streaming from there, by the same address.
            base = ("-R", "-d", of.dsn, "-X", "stream", "-c", "fast", "-N")
            self._run("pg_basebackup", *base)

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
        base = f"postgresql://{OWNER}:{PASSWORD}@127.0.0.1:{port}/postgres"
        return f"{base}?connect_timeout=10{said}"

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The name of a database of a test's own: for a pooler, which takes no search_path."""
        name = f"own_{secrets.token_hex(6)}"
        with psycopg.connect(self.dsn, autocommit=True) as db:
            db.execute(f"CREATE DATABASE {name}")
            try:
                yield name
            finally:
                db.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def dsn_with(self, other: Postgres) -> str:
        """The same database at this server or another, whichever is found to serve."""
        hosts = f"127.0.0.1:{self._port},127.0.0.1:{other.port}"
        return self.dsn.replace(f"127.0.0.1:{self._port}", hosts)

    def start(self) -> None:
        """Start and wait until it answers. Raises PeerUnavailable."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.directory),
            "dynamic_shared_memory_type": "mmap",  # goes with the data, however it ends
            "fsync": "off",
            "max_connections": "60",
            "shared_buffers": "32MB",
        } | self._settings
        options = " ".join(f"-c {key}={value}" for key, value in settings.items())
        log = str(self.directory / "log")
        self._run("pg_ctl", "-w", "-l", log, "-o", f"-p {self._port} {options}", "start")
        self._watched = self._postmaster()
        reaper.watch(self._watched)

    def _postmaster(self) -> int:
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def keep(self) -> None:
        """Keep the data as it is while the server is stopped, to begin with it again."""
        run(["cp", "-a", str(self._data), str(self._kept)])

    def begin_again(self) -> None:
        """Start from what was kept, however it had ended."""
        self.end()
        shutil.rmtree(self._data)
        run(["cp", "-a", str(self._kept), str(self._data)])
        self.start()

    def kill(self) -> None:
        """SIGKILL to every process of it: the machine is gone, as far as anybody can tell."""
        postmaster = self._postmaster()
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for pid in (postmaster, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reaper.forget(self._watched)

    def promote(self) -> None:
        """Make a standby the primary, and wait until it is."""
        self._run("pg_ctl", "-w", "promote")

    def stop(self, mode: str = "fast") -> None:
        """End it: `fast` in good order, `immediate` as if its processes had been killed."""
        self._run("pg_ctl", "-w", "-m", mode, "stop")
        reaper.forget(self._watched)

    def restart(self, mode: str = "fast") -> None:
        """Stop it and start it on the same data and port."""
        self.stop(mode)
        self.start()

    def remove(self) -> None:
        """Stop it and forget its data."""
        self.end()
        shutil.rmtree(self.directory, ignore_errors=True)

    def end(self) -> None:
        """Stop it at once, however it stands."""
        with contextlib.suppress(PeerUnavailable):  # it was killed, or stopped
            self.stop("immediate")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), "-D", str(self._data), *arguments]
        run(unprivileged(command), _START_TIMEOUT_S)
