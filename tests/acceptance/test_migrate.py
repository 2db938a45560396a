"""Migrations: a later version is brought in while the one before serves, on either store.

The later version is this program with one more migration for each store, run as a real process.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw
import psycopg
import pytest

from tests.acceptance.conftest import Serve
from tests.acceptance.later import FOLDER, LATER
from tests.acceptance.world import Mint, Ran, Server, call, farebox, kill_half_way, start_server

#: A dozen processes one after the other, each of which takes its second to start.
pytestmark = pytest.mark.timeout(600)

EXPANDS = """
ALTER TABLE units ADD COLUMN note TEXT;
ALTER TABLE accounts ADD COLUMN note TEXT;
ALTER TABLE record_process ADD COLUMN f_note TEXT;
CREATE TABLE notes (id INTEGER PRIMARY KEY, said TEXT NOT NULL);
CREATE INDEX units_at ON units (book, at);
"""
#: So long that it can be killed half-way.
SLOW = {
    "sqlite": "INSERT INTO notes SELECT value, 'x' FROM (WITH RECURSIVE n(value) AS (SELECT 1 "
    "UNION ALL SELECT value + 1 FROM n WHERE value < 30000000) SELECT value FROM n);",
    "postgres": "SELECT pg_sleep(60);",
}
FLAGS = ("--price", "10 sat", "--data", "data", "--listen", "127.0.0.1:0")


class Later:
    """The next version of the program."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "later"
        self._folder.mkdir()
        for store in ("sqlite", "postgres"):
            self.ship(store, EXPANDS)

    def ship(self, store: str, sql: str) -> None:
        """What the migration says that it has more."""
        (self._folder / f"{store}.sql").write_text(sql)

    @property
    def env(self) -> dict[str, str]:
        return {FOLDER: str(self._folder)}


@pytest.fixture
def later(tmp_path: Path) -> Later:
    return Later(tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Which store; the environment and the key are made ready for it."""
    if request.param == "postgres":
        postgres = request.getfixturevalue("postgres")
        schema = f"migrate_{secrets.token_hex(6)}"
        dsn = postgres.dsn_at(postgres.port, options=f"-csearch_path%3D{schema}")
        with psycopg.connect(dsn, autocommit=True) as db:
            db.execute(f"CREATE SCHEMA {schema}")
        monkeypatch.setenv("FAREBOX_DATABASE", dsn)
        assert farebox("init", "--data", "data", cwd=tmp_path).code == 0
        yield "postgres"
        with psycopg.connect(dsn, autocommit=True) as db:
            db.execute("SET client_min_messages = warning")
            db.execute(f"DROP SCHEMA {schema} CASCADE")
    else:
        yield "sqlite"


def run(*arguments: str, cwd: Path, later: Later | None = None) -> Ran:
    env = {"FAREBOX_DATABASE": os.environ["FAREBOX_DATABASE"]} if on_postgres() else {}
    if later is None:
        return farebox(*arguments, cwd=cwd, env=env)
    return farebox(*arguments, cwd=cwd, env=env | later.env, module=LATER)


def on_postgres() -> bool:
    return "FAREBOX_DATABASE" in os.environ


def tables(folder: Path) -> set[str]:
    """The tables that the book has."""
    if on_postgres():
        with psycopg.connect(os.environ["FAREBOX_DATABASE"]) as pg:
            sql = "SELECT relname FROM pg_class WHERE pg_table_is_visible(oid)"
            return {str(name) for (name,) in pg.execute(sql)}
    db = apsw.Connection(str(folder / "data/farebox.db"), flags=apsw.SQLITE_OPEN_READONLY)
    found = {str(name) for (name,) in db.execute("SELECT name FROM sqlite_master")}
    db.close()
    return found


@pytest.fixture
def served(serve: Serve, store: str, mint: Mint, upstream: str) -> Server:
    """The version before, serving."""
    return serve("--upstream", upstream, "--mint", mint.url, *FLAGS[:4])


def test_the_version_before_serves_on_while_a_later_one_migrates(
    served: Server, store: str, later: Later, mint: Mint, upstream: str, tmp_path: Path
) -> None:
    account = call(f"{served.url}/create", body={"initial_balance_token": mint.token(512)}).json()
    pays = {"Authorization": f"Bearer {account['api_key']}"}
    looked = run("migrate", "--look", "--data", "data", "--json", cwd=tmp_path, later=later).json()
    assert looked == {"pending": ["0002 notes"], "schema": 2}
    refused = run(
        "serve", *FLAGS, "--mint", mint.url, "--upstream", upstream, cwd=tmp_path, later=later
    )
    assert refused.code == 2
    if on_postgres():  # a book in a file is told to be in use first
        assert "run `farebox migrate`" in refused.error
    with ThreadPoolExecutor(3) as pool:
        migrations = [
            pool.submit(run, "migrate", "--data", "data", "--json", cwd=tmp_path, later=later)
            for _ in range(2)
        ]
        paid = 0
        while paid < 5 or not all(one.done() for one in migrations):
            assert call(f"{served.url}/echo", pays).status == 200
            paid += 1
            if paid >= 45:
                break
            time.sleep(0.05)
        done = sorted(json.dumps(one.result().json()["applied"]) for one in migrations)
    assert done == ['["0002 notes"]', "[]"]  # one has won, the other found nothing to do
    assert {"notes", "units_at"} <= tables(tmp_path)
    token = call(f"{served.url}/echo", {"X-Cashu": mint.token(16)})
    assert token.status == 200
    assert call(f"{served.url}/echo", pays).status == 200
    left = 512_000 - 10_000 * (paid + 1)
    assert call(f"{served.url}/info", pays).json()["balance"] == left
    assert served.stop() == 0
    newer = run("serve", *FLAGS, "--mint", mint.url, "--upstream", upstream, cwd=tmp_path)
    assert newer.code == 2
    assert "run a newer farebox" in newer.error
    assert "Traceback" not in newer.error
    verified = run("verify", "--data", "data", cwd=tmp_path, later=later)
    assert verified.code == 0, verified.out + verified.error


def test_a_killed_migration_leaves_the_old_or_the_new(
    served: Server, store: str, later: Later, mint: Mint, tmp_path: Path
) -> None:
    later.ship(store, EXPANDS + SLOW[store])
    assert served.stop() == 0
    # In the middle of it, or before: either way nothing of it may be left.
    command = ("migrate", "--data", "data")
    said = kill_half_way(*command, cwd=tmp_path, env=later.env, after_s=0.5, module=LATER)
    assert "looking at" in said
    if on_postgres():  # the server notices the end of its client when it has slept
        with psycopg.connect(os.environ["FAREBOX_DATABASE"], autocommit=True) as db:
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()"
            )
    assert "notes" not in tables(tmp_path)
    again = start_server(["--mint", mint.url, "--upstream", mint.url, *FLAGS], tmp_path)
    assert again.stop() == 0
    later.ship(store, EXPANDS)
    done = run("migrate", "--data", "data", "--json", cwd=tmp_path, later=later).json()
    assert done["applied"] == ["0002 notes"]


def test_a_migration_that_fails_changes_nothing(
    served: Server, store: str, later: Later, tmp_path: Path
) -> None:
    later.ship(store, "CREATE TABLE half (id INTEGER); SELECT nonsense FROM nowhere;")
    failed = run("migrate", "--data", "data", cwd=tmp_path, later=later)
    assert failed.code == 2
    assert "could not be migrated" in failed.error
    assert "half" not in tables(tmp_path)
    assert served.stop() == 0


def test_there_must_be_a_book(tmp_path: Path) -> None:
    refused = farebox("migrate", "--data", "data", cwd=tmp_path)
    assert refused.code == 2
    assert "there is no book" in refused.error
