"""PgBouncer: a real pooler in front of a throw-away PostgreSQL."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.peers.fixtures import missing
from tests.peers.install import PeerUnavailable, pgbouncer_program, server_user, unprivileged
from tests.peers.postgres import OWNER, PASSWORD, Postgres
from tests.peers.process import PeerProcess, free_port

_READY_S = 60


class PgBouncer:
    """A pooler of one server, in one mode; as unkind to what is kept in a session as it can be.

    Each transaction is given to the backend that has been idle the longest, so to another one than
    the one before.
    """

    def __init__(self, server: Postgres, mode: str, *, pool_size: int) -> None:
        """`mode` is session, transaction or statement. Raises PeerUnavailable."""
        self._program = pgbouncer_program()
        self.port = free_port()
        self._folder = server.directory / f"pgbouncer-{self.port}"
        self._folder.mkdir()
        self._users = self._folder / "users"
        self._users.write_text(f'"{OWNER}" "{PASSWORD}"\n')
        self._settings = self._folder / "pgbouncer.ini"
        self._settings.write_text(
            f"""
            [databases]
            * = host=127.0.0.1 port={server.port}
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {self.port}
            unix_socket_dir =
            auth_type = scram-sha-256
            auth_file = {self._users}
            pool_mode = {mode}
            default_pool_size = {pool_size}
            max_client_conn = 100
            server_round_robin = 1
            """.replace("            ", "")
        )
        if os.geteuid() == 0:
            for path in (self._folder, self._users, self._settings):
                shutil.chown(path, *server_user())

    def start(self) -> None:
        """Start and wait until it listens. Raises PeerUnavailable."""
        libraries = self._program.parents[1] / "lib"
        env = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
        command = unprivileged([str(self._program), str(self._settings)])
        self._process = PeerProcess(command, env, self._folder / "log")
        self._process.wait_for(
            lambda: socket.create_connection(("127.0.0.1", self.port), 1).close(), _READY_S
        )

    def kill(self) -> None:
        """SIGKILL: every connection through it is gone."""
        self._process.kill()


@contextmanager
def running(server: Postgres, mode: str, pool_size: int) -> Iterator[PgBouncer]:
    """A pooler for a while; skips the test, or fails it, where there is none to be had."""
    try:
        pooler = PgBouncer(server, mode, pool_size=pool_size)
        pooler.start()
    except PeerUnavailable as reason:
        missing("PgBouncer", reason)
        raise
    try:
        yield pooler
    finally:
        pooler.kill()
