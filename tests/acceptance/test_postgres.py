"""The whole house on PostgreSQL, chosen by FAREBOX_DATABASE alone."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.conftest import Serve
from tests.acceptance.world import Mint, call, farebox
from tests.peers.postgres import Postgres


@pytest.fixture
def database(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment that says it, with an empty schema."""
    schema = f"house_{secrets.token_hex(6)}"
    dsn = postgres.dsn_at(postgres.port, options=f"-csearch_path%3D{schema}")
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute(f"CREATE SCHEMA {schema}")
        monkeypatch.setenv("FAREBOX_DATABASE", dsn)
        yield {"FAREBOX_DATABASE": dsn}
        db.execute("SET client_min_messages = warning")
        db.execute(f"DROP SCHEMA {schema} CASCADE")


def test_two_servers_serve_one_book_and_it_verifies_while_they_do(
    serve: Serve, mint: Mint, upstream: str, tmp_path: Path, database: dict[str, str]
) -> None:
    chosen = ["--upstream", upstream, "--mint", mint.url, "--price", "10 sat"]
    listens = ["--listen", "127.0.0.1:0"]
    made = farebox("init", *chosen, "--data", "one", cwd=tmp_path, env=database)
    assert made.code == 0, made.error
    (tmp_path / "two").mkdir(mode=0o700)
    shutil.copy2(tmp_path / "one" / "root.key", tmp_path / "two" / "root.key")
    one, two = serve("--data", "one"), serve("--data", "two")
    account = call(f"{one.url}/create", body={"initial_balance_token": mint.token(64)}).json()
    pays = {"Authorization": f"Bearer {account['api_key']}"}
    for number, server in enumerate([two, one, two]):
        assert call(f"{server.url}/echo", pays).status == 200
        left = 64_000 - 10_000 * (number + 1)
        assert [call(f"{at.url}/info", pays).json()["balance"] for at in (one, two)] == [left, left]
    verified = farebox("verify", "--data", "one", cwd=tmp_path, env=database)
    assert verified.code == 0, verified.error
    assert "the books balance" in verified.out
    password = database["FAREBOX_DATABASE"].split(":")[2].partition("@")[0]
    for said in (one.said(), two.said(), verified.out, verified.error):
        assert password not in said
        assert "Traceback" not in said
    assert not (tmp_path / "one" / "farebox.db").exists()
    third = farebox("serve", *chosen, *listens, "--data", "one", cwd=tmp_path, env=database)
    assert third.code == 2, third.error
    assert "a data directory of its own" in third.error
    assert (tmp_path / "one" / "admin.sock").exists()
    assert one.stop() == two.stop() == 0


def test_a_second_machine_makes_no_key_of_its_own(
    tmp_path: Path, database: dict[str, str], mint: Mint, upstream: str
) -> None:
    flags = ["--upstream", upstream, "--mint", mint.url, "--price", "10 sat"]
    refused = farebox(
        "serve", *flags, "--listen", "127.0.0.1:0", "--data", "new", cwd=tmp_path, env=database
    )
    assert refused.code == 2
    assert "root_key" in refused.error
    assert not (tmp_path / "new" / "root.key").exists()


def test_a_database_that_cannot_be_reached_is_one_sentence_without_the_password(
    tmp_path: Path,
) -> None:
    env = {"FAREBOX_DATABASE": "postgresql://farebox:s3cr3t@127.0.0.1:9/books"}
    assert farebox("init", "--data", "data", cwd=tmp_path).code == 0
    refused = farebox("verify", "--data", "data", cwd=tmp_path, env=env)
    assert refused.code == 2
    assert "127.0.0.1:9" in refused.error
    assert "s3cr3t" not in refused.error
