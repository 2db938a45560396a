"""`farebox bench` against a running server: what it measures, spends and proves."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farebox.wire.cashu.token import decode_token
from tests.acceptance.conftest import Serve
from tests.acceptance.world import Mint, Ran, Server, call, run_here
from tests.waiting import WAIT_S

_NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def server(serve: Serve, mint: Mint, upstream: str) -> Server:
    return serve("--upstream", upstream, "--mint", mint.url, "--price", "10 sat", "--data", "data")


Bench = Callable[..., Ran]


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Bench:
    """Run it against a server, in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def bench(server: Server, *arguments: str) -> Ran:
        given = ("bench", server.url, "--path", "/echo", "--data", str(server.data), "--json")
        return run_here(capfd, *given, *arguments)

    return bench


def test_keys_streams_and_ecash_are_driven_and_the_books_agree(
    server: Server, mint: Mint, bench: Bench
) -> None:
    mix = ("--mix", "key=2,stream=1,ecash=1", "--rate", "40", "--seconds", "2")
    told = bench(server, *mix, "--play-mint", mint.url).json()
    # On a machine that stands still in the end, the last are never started.
    assert (told["failed"], told["answered"] + told["unstarted"]) == (0, 80)
    kinds = {kind: one["answered"] + one["unstarted"] for kind, one in told["kinds"].items()}
    assert kinds == {"key": 40, "stream": 20, "ecash": 20}
    answered = {kind: one["answered"] for kind, one in told["kinds"].items()}
    charged_msat = told["answered"] * 10_000
    by_key_msat = (answered["key"] + answered["stream"]) * 10_000
    for one in told["kinds"].values():
        latency = one["latency_us"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
        assert one["charged_msat"] == one["answered"] * 10_000
    assert told["kinds"]["stream"]["first_byte_us"]["max"] > 0
    assert told["charges"] == {
        "receipts_msat": charged_msat,
        "key_receipts_msat": by_key_msat,
        "key_msat": by_key_msat,
        "books_msat": charged_msat,
        "unknown": 0,
        "problem": "",
        "agree": True,
    }
    assert told["verified"]["ok"] is True


def test_real_tokens_are_spent_one_each_and_all_that_is_left_is_in_the_file_of_change(
    server: Server, mint: Mint, bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("".join(f"{mint.token(16)}\n\n" for _ in range(5)))
    given = ("--tokens", "tokens", "--token", mint.token(64), "--change", "change")
    mix = ("--mix", "key=1,ecash=1", "--rate", "10", "--seconds", "1")
    told = bench(server, *mix, *given).json()
    by_key, by_ecash = (told["kinds"][kind]["answered"] for kind in ("key", "ecash"))
    assert by_key + by_ecash + told["unstarted"] == 10
    assert told["charges"]["agree"] is True
    assert stat.S_IMODE((tmp_path / "change").stat().st_mode) == 0o600
    key, *change = (tmp_path / "change").read_text().split()
    left = [6] * by_ecash + [16] * (5 - by_ecash)
    assert sorted(decode_token(token).amount for token in change) == left
    shown = call(f"{server.url}/info", {"Authorization": f"Bearer {key}"}).json()
    assert shown["balance"] == 64_000 - by_key * 10_000


def test_errors_are_counted_by_what_they_say_and_their_tokens_are_not_lost(
    server: Server, mint: Mint, bench: Bench, tmp_path: Path
) -> None:
    token = mint.token(16)
    (tmp_path / "tokens").write_text(f"{token}\n{token}\n{mint.token(2)}\n")
    mix = ("--mix", "ecash=1", "--rate", "3", "--seconds", "1")
    told = bench(server, *mix, "--tokens", "tokens", "--change", "change").json()
    errors = told["kinds"]["ecash"]["errors"]
    assert errors.pop("402 insufficient_payment") == 1
    assert errors in ({"409 payment_used": 1}, {"409 request_in_progress": 1})
    assert told["charges"]["agree"] is True
    kept = (tmp_path / "change").read_text().split()
    assert sorted(decode_token(one).amount for one in kept) == [2, 6, 16]


@pytest.mark.parametrize(
    ("given", "way_out"),
    [
        (["--mix", "key=1"], "--play-mint"),
        (["--mix", "ecash=1"], "--tokens"),
        (["--mix", "ecash=1", "--tokens", "none"], "--change"),
        (["--mix", "ecash=1", "--tokens", "none", "--change", "c"], "cannot read none"),
        (["--key", "sk-nobody"], "POST /create"),
        (["--mix", "cards=1"], "key=8"),
        (["--key", "sk-x", "--path", "/healthz"], "is sold"),
        (["--play-mint", _NOWHERE], _NOWHERE),
        (["--data", "nowhere", "--key", "sk-x"], "--no-verify"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence_before_money_moves(
    given: list[str], way_out: str, standing: Server, bench: Bench
) -> None:
    refused = bench(standing, *given)
    assert (refused.code, refused.out) == (2, "")
    *_, sentence = refused.error.splitlines()
    assert sentence.startswith("error: ")
    assert way_out in sentence


@pytest.mark.parametrize("way", ["--key", "FAREBOX_BENCH_KEY"])
def test_a_key_that_may_run_dry_is_told_before_it_does(
    standing: Server, mint: Mint, bench: Bench, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The environment is not seen in the list of processes, as the command line is."""
    made = call(f"{standing.url}/create", body={"initial_balance_token": mint.token(16)}).json()
    key = str(made["api_key"])
    given = (way, key) if way == "--key" else ()
    monkeypatch.setenv("FAREBOX_BENCH_KEY", "" if given else key)
    refused = bench(standing, *given, "--rate", "2", "--seconds", "1")
    assert refused.code == 2
    assert "holds 16 sat, and this run may cost 20 sat" in refused.error


def test_an_address_is_named_or_nothing_is_asked(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_here(capfd, "bench", "--path", "/echo", "--key", "sk-x").code == 2
    given = ("localhost", "--path", "/", "--key", "sk-x", "--no-verify")
    assert "http://127.0.0.1:8080" in run_here(capfd, "bench", *given).error


def test_a_server_that_does_not_survive_is_measured_until_then_and_its_book_verified(
    server: Server, mint: Mint, bench: Bench
) -> None:
    made = call(f"{server.url}/create", body={"initial_balance_token": mint.token(1_024)}).json()
    long = ("--rate", "20", "--seconds", "3", "--key", made["api_key"])

    def kill() -> None:
        _until_spent(server, made["api_key"])
        server.process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    told = bench(server, *long)
    killer.join()
    assert told.code == 1, told.error
    facts = json.loads(told.out)
    assert facts["answered"] > 0
    assert "no connection: Connect call failed" in str(facts["kinds"]["key"]["errors"])
    assert facts["charges"]["agree"] is False
    assert "did not answer" in facts["charges"]["problem"]
    assert facts["verified"]["ok"] is True


def test_the_first_signal_stops_it_and_it_still_reports_and_verifies(
    server: Server, mint: Mint
) -> None:
    made = call(f"{server.url}/create", body={"initial_balance_token": mint.token(90_000)}).json()
    long = ("--rate", "20", "--seconds", "400", "--key", made["api_key"], "--data", "data")
    command = [sys.executable, "-m", "farebox", "bench", server.url, "--path", "/echo"]
    command += [*long, "--json"]
    with subprocess.Popen(
        command,
        cwd=server.data.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _until_spent(server, made["api_key"])
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    told: dict[str, Any] = json.loads(out)
    assert told["answered"] > 0
    assert told["seconds"] < 400
    assert told["charges"]["agree"] is True
    assert told["verified"]["ok"] is True
    assert "stopping" in error


def _until_spent(server: Server, key: str) -> None:
    ends_at = time.monotonic() + WAIT_S
    while time.monotonic() < ends_at:
        told = call(f"{server.url}/info", {"Authorization": f"Bearer {key}"}).json()
        if told["total_spent"]:
            return
        time.sleep(0.05)
    raise AssertionError("it spent nothing")
