"""PostgreSQL twice: a primary, and a standby that streams from it."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from tests.peers.postgres import Postgres

_TRIES_MAX = 1_200
_PAUSE_S = 0.05


@dataclass
class Pair:
    """A primary, and a standby that streams from it."""

    primary: Postgres
    standby: Postgres

    @property
    def dsn(self) -> str:
        """Both, whichever takes writes."""
        return self.primary.dsn_with(self.standby)

    def fail_over(self) -> None:
        """The primary's machine is gone; the standby takes over."""
        self.primary.kill()
        self.standby.promote()

    def wait_for_standby(self) -> None:
        """Have no commit be told before the standby has it, from now on."""
        self._at_primary("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self._at_primary("SELECT pg_reload_conf()")
        self._until("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")

    def until_a_commit_waits(self) -> None:
        """Until a commit waits for the standby to have it."""
        self._until("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")

    def catch_up(self) -> None:
        """Until the standby has everything."""
        self._until(
            "SELECT count(*) FROM pg_stat_replication "
            "WHERE replay_lsn >= pg_current_wal_flush_lsn()"
        )

    def _until(self, question: str) -> None:
        with psycopg.connect(self.primary.dsn, autocommit=True) as db:
            for _ in range(_TRIES_MAX):
                if db.execute(question.encode()).fetchone() == (1,):
                    return
                db.execute("SELECT pg_sleep(%s)", (_PAUSE_S,))
        raise AssertionError(f"never: {question}")

    def _at_primary(self, statement: str) -> None:
        with psycopg.connect(self.primary.dsn, autocommit=True) as db:
            db.execute(statement.encode())
