"""Backups, restores and the move to PostgreSQL as an operator does them: with real processes."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.conftest import Serve
from tests.acceptance.world import Mint, Server, call, farebox, kill_half_way
from tests.peers.postgres import Postgres

#: A dozen processes one after the other, each of which takes its second to start.
pytestmark = pytest.mark.timeout(600)

Databases = Callable[[], dict[str, str]]


@pytest.fixture
def databases(postgres: Postgres) -> Iterator[Databases]:
    """Makes empty databases; gives the environment that names one."""
    made: list[str] = []

    def make() -> dict[str, str]:
        schema = f"moving_{secrets.token_hex(6)}"
        with psycopg.connect(postgres.dsn, autocommit=True) as db:
            db.execute(f"CREATE SCHEMA {schema}")
        made.append(schema)
        options = f"-csearch_path%3D{schema}"
        return {"FAREBOX_DATABASE": postgres.dsn_at(postgres.port, options=options)}

    yield make
    with psycopg.connect(postgres.dsn, autocommit=True) as db:
        db.execute("SET client_min_messages = warning")
        for schema in made:
            db.execute(f"DROP SCHEMA {schema} CASCADE")


def key_of(server: Server, token: str) -> dict[str, str]:
    account = call(f"{server.url}/create", body={"initial_balance_token": token}).json()
    return {"Authorization": f"Bearer {account['api_key']}"}


def balance_of(server: Server, key: dict[str, str]) -> int:
    return int(call(f"{server.url}/info", key).json()["balance"])


def put_back(folder: Path, copy: Path, name: str) -> None:
    """A new machine: the key from its safe, the copy where a book belongs."""
    (folder / name).mkdir(mode=0o700)
    shutil.copy2(folder / "data/root.key", folder / name / "root.key")
    shutil.copy2(copy, folder / name / "farebox.db")


def test_a_backup_made_under_load_is_put_back_closed_and_reconciled(
    serve: Serve, mint: Mint, upstream: str, tmp_path: Path
) -> None:
    flags = ["--upstream", upstream, "--mint", mint.url, "--price", "10 sat"]
    server = serve(*flags, "--data", "data")
    key = key_of(server, mint.token(512))
    copy = tmp_path / "copy.db"
    with ThreadPoolExecutor(4) as pool:
        load = [pool.submit(call, f"{server.url}/echo", key) for _ in range(20)]
        made = farebox("backup", str(copy), "--data", "data", "--json", cwd=tmp_path).json()
        assert {one.result().status for one in load} == {200}
    assert made["file"] == str(copy)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert call(f"{server.url}/echo", {"X-Cashu": mint.token(16)}).status == 200
    late = mint.token(64)
    assert call(f"{server.url}/topup", key, {"cashu_token": late}).status == 200
    assert server.stop(signal.SIGKILL) != 0
    put_back(tmp_path, copy, "new")
    assert farebox("verify", "--data", "new", cwd=tmp_path).code == 0

    again = serve(*flags, "--data", "new")
    refused = call(f"{again.url}/echo", key)
    assert (refused.status, refused.json()["code"]) == (503, "book_closed")
    assert call(f"{again.url}/readyz").status == 503
    assert "farebox reconcile" in farebox("withdraw", "--data", "new", cwd=tmp_path).error
    told = farebox("reconcile", "--data", "new", "--json", cwd=tmp_path).json()
    assert told["open"]
    assert told["found_msat"] >= 64_000
    assert call(f"{again.url}/readyz").status == 200
    before = balance_of(again, key)
    assert call(f"{again.url}/topup", key, {"cashu_token": late}).status != 200
    assert balance_of(again, key) == before
    assert call(f"{again.url}/echo", key).status == 200
    assert again.stop() == 0
    assert farebox("verify", "--data", "new", cwd=tmp_path).code == 0
    nothing = farebox("reconcile", "--data", "new", cwd=tmp_path)
    assert "the book is open" in nothing.error
    held = farebox("balance", "--data", "new", "--json", cwd=tmp_path).json()
    owed = held["customers_msat"] + held["revenue_msat"] + told["suspense_msat"]
    assert held["custody_msat"] == owed


def test_a_live_book_moves_to_postgresql_and_the_old_one_says_where_it_went(
    serve: Serve, mint: Mint, upstream: str, tmp_path: Path, databases: Databases
) -> None:
    flags = ["--upstream", upstream, "--mint", mint.url, "--price", "10 sat"]
    server = serve(*flags, "--data", "data")
    key = key_of(server, mint.token(128))
    assert call(f"{server.url}/echo", key).status == 200
    # Rehearse while it serves.
    rehearsal, moved = databases(), databases()
    assert farebox("export", "try.jsonl", "--data", "data", cwd=tmp_path).code == 0
    tried = farebox("import", "try.jsonl", "--data", "data", "--json", cwd=tmp_path, env=rehearsal)
    assert tried.json()["open"] is False
    assert call(f"{server.url}/echo", key).status == 200
    move = ["export", "book.jsonl", "--move", "--to", "PostgreSQL at db1", "--data", "data"]
    in_use = farebox(*move, cwd=tmp_path)
    assert in_use.code == 2
    assert "in use by process" in in_use.error
    assert not (tmp_path / "book.jsonl").exists()
    # The move itself.
    balance = balance_of(server, key)
    assert server.stop() == 0
    out = farebox(*move, "--json", cwd=tmp_path).json()
    done = farebox("import", "book.jsonl", "--data", "data", "--json", cwd=tmp_path, env=moved)
    assert done.json()["open"] is True
    assert done.json()["digest"] == out["digest"]
    os.environ.update(moved)
    try:
        new = serve(*flags, "--data", "data")
    finally:
        del os.environ["FAREBOX_DATABASE"]
    assert balance_of(new, key) == balance
    assert call(f"{new.url}/echo", key).status == 200
    assert call(f"{new.url}/echo", {"X-Cashu": mint.token(16)}).status == 200
    assert farebox("verify", "--data", "data", cwd=tmp_path, env=moved).code == 0
    old = farebox("serve", *flags, "--data", "data", "--listen", "127.0.0.1:0", cwd=tmp_path)
    assert old.code == 2
    assert "to PostgreSQL at db1" in old.error
    assert new.stop() == 0
    assert "was moved" in farebox("balance", "--data", "data", cwd=tmp_path).error
    assert farebox("verify", "--data", "data", cwd=tmp_path).code == 0
    copy = farebox("backup", "pg.jsonl", "--data", "data", "--json", cwd=tmp_path, env=moved)
    assert copy.json()["units"] > out["units"]
    third = databases()
    back = farebox("import", "pg.jsonl", "--data", "data", "--json", cwd=tmp_path, env=third)
    assert back.json()["open"] is False


# ── killed half-way ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_a_killed_import_into_sqlite_or_postgres_is_run_again(
    serve: Serve, mint: Mint, upstream: str, tmp_path: Path, databases: Databases, store: str
) -> None:
    flags = ["--upstream", upstream, "--mint", mint.url, "--price", "1 sat"]
    server = serve(*flags, "--data", "data")
    key = key_of(server, mint.token(512))
    with ThreadPoolExecutor(8) as pool:
        paid = list(pool.map(lambda _: call(f"{server.url}/echo", key).status, range(150)))
    assert set(paid) == {200}
    assert server.stop() == 0
    out = ["export", "book.jsonl", "--move", "--to", "a new home", "--data", "data"]
    assert farebox(*out, cwd=tmp_path).code == 0
    env = databases() if store == "postgres" else {}
    (tmp_path / "new").mkdir(mode=0o700)
    shutil.copy2(tmp_path / "data/root.key", tmp_path / "new/root.key")
    command = ["import", "book.jsonl", "--data", "new"]
    for wait_s in (0, 0.05, 0.2, 0.4):
        kill_half_way(*command, cwd=tmp_path, env=env, after_s=wait_s)
    done = farebox(*command, "--json", cwd=tmp_path, env=env)
    if done.code:  # one was killed after its work was done
        assert "already" in done.error
    else:
        assert done.json()["open"] is True
    assert farebox("verify", "--data", "new", cwd=tmp_path, env=env).code == 0
    told = farebox("balance", "--data", "new", "--json", cwd=tmp_path, env=env).json()
    assert (told["customers_msat"], told["revenue_msat"]) == (362_000, 150_000)
    assert [one.name for one in (tmp_path / "new").iterdir() if "draft" in one.name] == []


def test_a_killed_reconcile_is_run_again(
    serve: Serve, mint: Mint, upstream: str, tmp_path: Path
) -> None:
    flags = ["--upstream", upstream, "--mint", mint.url, "--price", "10 sat"]
    before = mint.audit()["outstanding"].get("sat", 0)
    server = serve(*flags, "--data", "data")
    key = key_of(server, mint.token(300))
    copy = tmp_path / "copy.db"
    assert farebox("backup", str(copy), "--data", "data", cwd=tmp_path).code == 0
    for _ in range(5):
        assert call(f"{server.url}/topup", key, {"cashu_token": mint.token(60)}).status == 200
    server.stop(signal.SIGKILL)
    put_back(tmp_path, copy, "new")
    command = ["reconcile", "--data", "new"]
    for wait_s in (0.3, 0.6, 0.9, 1.2, 1.5):
        kill_half_way(*command, cwd=tmp_path, env={}, after_s=wait_s)
    done = farebox(*command, cwd=tmp_path)
    assert done.code == 0 or "the book is open" in done.error
    assert farebox("verify", "--data", "new", cwd=tmp_path).code == 0
    told = farebox("balance", "--data", "new", "--json", cwd=tmp_path).json()
    assert told["customers_msat"] == 300_000
    assert told["custody_msat"] == 600_000
    assert mint.audit()["outstanding"]["sat"] - before == 600
