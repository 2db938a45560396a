"""`farebox serve`, started as the README says, with a caller that speaks plain HTTP."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import stat
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from farebox.wire.cashu.request import decode_request
from farebox.wire.cashu.token import decode_token
from tests.acceptance.conftest import Serve
from tests.acceptance.world import Mint, Ran, Server, call, farebox, run_here

CHAT = {"model": "play-1", "max_tokens": 20, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def server(serve: Serve, mint: Mint, upstream: str, tmp_path: Path) -> Server:
    return serve(
        *("--upstream", upstream, "--mint", mint.url, "--price", "10 sat"),
        *("--data", str(tmp_path / "data")),
    )


def receipt(header: str) -> dict[str, Any]:
    payload = header.partition(".")[0]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return found


# ── the first start ──────────────────────────────────────────────────────────────────────────────


def test_serving_needs_no_file_and_makes_a_private_directory_and_key(
    standing: Server, mint: Mint, upstream: str
) -> None:
    assert standing.facts["upstreams"] == [upstream]
    assert standing.facts["mints"] == [mint.url]
    assert standing.facts["prices"] == ["10 sat"]
    data = standing.data
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    for name in ("root.key", "admin.sock"):
        assert stat.S_IMODE((data / name).stat().st_mode) == 0o600
    assert call(f"{standing.url}/healthz").status == 200
    key = (data / "root.key").read_text().strip()
    assert key not in standing.said()


def test_a_restart_goes_on_with_the_same_book(
    serve: Serve, server: Server, mint: Mint, upstream: str, tmp_path: Path
) -> None:
    made = call(f"{server.url}/create", body={"initial_balance_token": mint.token(64)}).json()
    assert server.stop() == 0
    again = serve("--upstream", upstream, "--mint", mint.url, "--price", "10 sat", "--data", "data")
    pays = {"Authorization": f"Bearer {made['api_key']}"}
    assert call(f"{again.url}/info", pays).json()["balance"] == 64_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(server: Server, number: signal.Signals, tmp_path: Path) -> None:
    assert server.stop(number) == 0
    assert "stopped" in server.said()
    assert "Traceback" not in server.said()
    assert not (tmp_path / "data" / "admin.sock").exists()


@pytest.mark.parametrize("missing", ["upstream", "mint", "price"])
def test_what_is_missing_is_named_with_the_way_to_give_it(missing: str, tmp_path: Path) -> None:
    given = {"upstream": "http://127.0.0.1:9", "mint": "http://127.0.0.1:9", "price": "1 sat"}
    flags = [
        part for name, value in given.items() if name != missing for part in (f"--{name}", value)
    ]
    refused = farebox("serve", *flags, "--data", "data", cwd=tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert refused.error.startswith(f"error: setting {missing}: ")
    assert f"--{missing}" in refused.error
    assert refused.error.count("\n") == 1
    assert not (tmp_path / "data").exists()


def _second(data: Path) -> Ran:
    flags = ["--upstream", "http://127.0.0.1:9", "--mint", "http://127.0.0.1:9", "--price", "1 sat"]
    flags += ["--listen", "127.0.0.1:0", "--data", str(data)]
    return farebox("serve", *flags, cwd=data.parent)


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        flags = ["--upstream", "http://u", "--mint", "http://m", "--price", "1 sat"]
        refused = farebox("serve", *flags, "--listen", listen, "--data", "data", cwd=tmp_path)
    assert refused.code == 2
    assert listen in refused.error
    assert "stop what listens there" in refused.error


def test_it_starts_while_its_mint_and_upstream_are_down(serve: Serve) -> None:
    nowhere = "http://127.0.0.1:9"
    flags = ["--upstream", nowhere, "--mint", nowhere, "--price", "10 sat", "--data", "data"]
    started = serve(*flags)
    unpaid = call(f"{started.url}/echo")
    assert (unpaid.status, unpaid.json()["amount"]) == (402, 10)
    assert started.stop() == 0


def test_the_file_gives_what_flags_do_not(
    serve: Serve, mint: Mint, upstream: str, tmp_path: Path
) -> None:
    chosen = ["--upstream", upstream, "--mint", mint.url, "--price", "10 sat", "--data", "data"]
    assert farebox("init", *chosen, cwd=tmp_path).code == 0
    file = tmp_path / "farebox.toml"
    file.write_text(file.read_text().replace("#cors_origins = []", 'cors_origins = ["*"]'))
    started = serve("--price", "3 sat")
    assert started.facts["prices"] == ["3 sat"]
    page = {"Origin": "https://app.example.com"}
    assert call(f"{started.url}/echo", page).headers["access-control-allow-origin"] == "*"
    assert call(f"{started.url}/echo").json()["amount"] == 3
    assert Path(started.facts["data_dir"]) == tmp_path / "data"


def test_a_book_has_one_server(standing: Server) -> None:
    refused = _second(standing.data)
    assert refused.code == 2
    assert str(standing.process.pid) in refused.error
    assert "PostgreSQL" in refused.error, "the way to have two"
    assert call(f"{standing.url}/healthz").status == 200
    assert (standing.data / "admin.sock").exists()


def test_a_book_whose_key_is_gone_gets_no_new_one(server: Server, tmp_path: Path) -> None:
    server.stop()
    (tmp_path / "data" / "root.key").rename(tmp_path / "away")
    refused = _second(tmp_path / "data")
    assert refused.code == 2
    assert "root_key" in refused.error
    assert not (tmp_path / "data" / "root.key").exists()


# ── a caller ─────────────────────────────────────────────────────────────────────────────────────


def test_a_stranger_is_told_the_terms_pays_and_gets_change(standing: Server, mint: Mint) -> None:
    unpaid = call(f"{standing.url}/echo")
    assert unpaid.status == 402
    assert unpaid.headers["cache-control"] == "no-store"
    assert decode_request(unpaid.headers["x-cashu"]).amount == 10
    paid = call(f"{standing.url}/echo", {"X-Cashu": mint.token(64)})
    assert paid.status == 200
    assert paid.names.count("date") == 1
    assert decode_token(paid.headers["x-cashu"]).amount == 54
    assert receipt(paid.headers["x-farebox-receipt"])["charged_msat"] == 10_000


def test_a_stream_is_paid_and_links_to_its_change(standing: Server, mint: Mint) -> None:
    token = mint.token(64)
    url = f"{standing.url}/v1/chat/completions"
    streamed = call(url, {"X-Cashu": token}, {**CHAT, "stream": True})
    assert streamed.status == 200
    assert streamed.body.rstrip().endswith(b"data: [DONE]")
    link = urljoin(url, streamed.headers["link"].partition(">")[0].removeprefix("<"))
    told = call(link, {"X-Cashu": token}).json()
    assert decode_token(told["token"]).amount == 54
    assert call(link, {"X-Cashu": token}).json() == told


# ── commands beside a running server ─────────────────────────────────────────────────────────────


def test_commands_go_through_the_running_server(
    server: Server, mint: Mint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> dict[str, Any]:
        told = run_here(capfd, *arguments, "--data", str(tmp_path / "data"), "--json")
        return told.json()

    assert call(f"{server.url}/echo", {"X-Cashu": mint.token(64)}).status == 200
    assert run("balance")["revenue_msat"] == 10_000
    key = run("keys", "create", "--label", "friend")
    pays = {"Authorization": f"Bearer {key['api_key']}"}
    topped = call(f"{server.url}/topup", pays, {"cashu_token": mint.token(32)}).json()
    assert topped["msats"] == 32_000
    assert call(f"{server.url}/echo", pays).status == 200
    assert run("keys", "show", key["id"])["balance_msat"] == 22_000
    assert [one["id"] for one in run("keys", "list")["keys"]] == [key["id"]]
    assert run("withdraw", "15 sat")["amount_msat"] == 15_000
    assert [one["amount_msat"] for one in run("withdraw", "--list")["withdrawals"]] == [15_000]
    assert run("balance")["withdrawable_msat"] == 5_000
    assert run("verify")["ok"] is True
    assert run("recover")["unfinished"] == []
    run("keys", "revoke", key["id"])
    assert call(f"{server.url}/echo", pays).status == 401


def test_a_refusal_of_the_server_is_one_sentence_here(
    standing: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    refused = run_here(capfd, "keys", "show", "key_nobody", "--data", str(standing.data))
    assert (refused.code, refused.out) == (2, "")
    assert refused.error == "error: there is no key 'key_nobody': `farebox keys list` shows all\n"


def test_the_door_survives_noise(standing: Server) -> None:
    for noise in (b"", b"\n", b"{}\n", b'{"type":"nonsense"}\n', b"x" * 70_000):
        with socket.socket(socket.AF_UNIX) as knock:
            directory = os.open(standing.data, os.O_RDONLY)
            knock.connect(f"/proc/self/fd/{directory}/admin.sock")
            os.close(directory)
            knock.settimeout(5)
            try:
                knock.sendall(noise)
                knock.shutdown(socket.SHUT_WR)
                knock.recv(65_536)
            except OSError:
                pass
    told = farebox("balance", "--data", "data", "--json", cwd=standing.data.parent).json()
    assert told["covered"] is True
    assert "Traceback" not in standing.said()


def test_doctor_finds_a_served_house_well(standing: Server, mint: Mint, upstream: str) -> None:
    told = farebox("doctor", "--data", "data", "--json", cwd=standing.data.parent).json()
    assert told["ok"] is True
    checks = {one["check"]: one for one in told["checks"]}
    assert "running server" in checks["book"]["found"]
    assert checks[f"mint {mint.url}"]["verdict"] == "ok"
    assert checks[f"upstream {upstream}"]["verdict"] == "ok"
    assert all(one["advice"] for one in told["checks"] if one["verdict"] != "ok")


def test_doctor_says_what_to_do_about_each_fault(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    flags = ["--upstream", nowhere, "--mint", nowhere, "--price", "1 USD", "--data", "data"]
    farebox("init", *flags, cwd=tmp_path)
    os.chmod(tmp_path / "data" / "root.key", 0o644)
    unwell = farebox("doctor", "--json", cwd=tmp_path)
    assert unwell.code == 1
    told = json.loads(unwell.out)
    failed = {one["check"]: one["advice"] for one in told["checks"] if one["verdict"] == "failure"}
    assert set(failed) == {
        *("settings: rates", "root key", f"mint {nowhere}", f"upstream {nowhere}")
    }
    assert all(failed.values())
