"""A peer that is not to be had is never passed over in silence."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psycopg
import pytest

from tests.peers import postgres
from tests.peers.fixtures import (
    missing,
    pytest_collection_modifyitems,
    pytest_fixture_setup,
)
from tests.peers.install import PeerUnavailable, main, packaged_postgres, run
from tests.peers.process import PeerProcess, free_port

REASON = PeerUnavailable("no network")


def test_its_tests_skip_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAREBOX_REQUIRE_PEERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no network"):
        missing("Nutshell", REASON)


def test_its_tests_fail_where_peers_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAREBOX_REQUIRE_PEERS", "1")
    with pytest.raises(pytest.fail.Exception, match="no network"):
        missing("Nutshell", REASON)


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(PeerUnavailable, match="ended with 3: broken"):
        run([sys.executable, "-c", "import sys; print('broken'); sys.exit(3)"])
    with pytest.raises(PeerUnavailable, match="could not be run"):
        run(["there-is-no-such-command"])


def test_a_process_that_ends_at_once_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such setting')"]
    process = PeerProcess(command, {}, tmp_path / "log")
    with pytest.raises(PeerUnavailable, match="no such setting"):
        process.wait_ready(f"http://127.0.0.1:{free_port()}", 30)


@pytest.mark.parametrize("fixture", ["postgres", "nutshell_with_fees"])
def test_a_test_that_does_not_name_its_peer_is_refused(fixture: str) -> None:
    """It would start the peer once more, in another worker."""
    item = SimpleNamespace(nodeid="tests/test_money.py::test_it_comes", fixturenames=[fixture])
    items = cast("list[pytest.Item]", [item])
    with pytest.raises(pytest.UsageError, match="must have the name of its peer"):
        pytest_collection_modifyitems(items)
    item.nodeid += f"[{fixture}]"
    pytest_collection_modifyitems(items)


def test_a_test_that_asks_for_its_peer_when_it_runs_names_it_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fixture = cast("pytest.FixtureDef[object]", SimpleNamespace(argname="lightning"))
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "tests/test_money.py::test_it_comes[lnd] (setup)")
    with pytest.raises(pytest.UsageError, match="must have the name of its peer"):
        pytest_fixture_setup(fixture)
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "tests/test_money.py::test_it_comes[lightning]")
    pytest_fixture_setup(fixture)


def test_an_unknown_peer_is_not_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-peer"]) == 2
    assert "nutshell" in capsys.readouterr().err


@pytest.mark.peer
@pytest.mark.slow
def test_a_machine_without_a_database_server_gets_one_from_a_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    try:
        programs = packaged_postgres()
    except PeerUnavailable as reason:
        missing("the packaged PostgreSQL", reason)
        raise
    monkeypatch.setattr(postgres, "postgres_programs", lambda: programs)
    server = postgres.Postgres()
    try:
        server.start()
        with psycopg.connect(server.dsn) as db:
            assert db.info.server_version >= 15_00_00
    finally:
        server.remove()
