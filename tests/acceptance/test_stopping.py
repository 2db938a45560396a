"""How `farebox serve` stops: what runs is finished, or cut, told why and settled."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.acceptance.conftest import Serve
from tests.acceptance.world import Mint, Server, call, farebox

PER_TOKEN = 1_000
CHAT = {
    "model": "play-1",
    "max_tokens": 200,
    "stream": True,
    "messages": [{"role": "user", "content": "Hi"}],
}


@pytest.fixture
def start(serve: Serve, mint: Mint, upstream: str, tmp_path: Path) -> Serve:
    """A server that sells tokens, with the settings that a test gives it."""

    def started(*settings: str) -> Server:
        lines = [*settings, '[metrics]\nlisten = "127.0.0.1:0"']
        lines += ['[[price]]\npath = "/v1/*"\nper_output_token = "1 sat"']
        (tmp_path / "farebox.toml").write_text("\n".join(lines) + "\n")
        return serve("--upstream", upstream, "--mint", mint.url, "--data", "data")

    return started


def key(server: Server, mint: Mint) -> dict[str, str]:
    made = call(f"{server.url}/create", body={"initial_balance_token": mint.token(1024)}).json()
    return {"Authorization": f"Bearer {made['api_key']}"}


@contextmanager
def streaming(
    server: Server, pays: dict[str, str], slow: str
) -> Iterator[http.client.HTTPResponse]:
    """A stream whose first words have arrived."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    with closing(connection):
        headers = {**pays, "x-play": f"slow={slow}", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(CHAT), headers)
        answer = connection.getresponse()
        assert answer.status == 200
        for _ in range(3):  # the first chunk has no words in it
            assert answer.readline().startswith(b"data: ")
            assert answer.readline() == b"\n"
        yield answer


def drain(server: Server) -> None:
    """Send the first signal, and wait until it has arrived."""
    server.process.send_signal(signal.SIGTERM)
    for _ in range(200):
        if call(f"{server.url}/readyz").status == 503:
            return
    raise AssertionError("the signal never arrived")


def books(tmp_path: Path) -> dict[str, int]:
    told = farebox("balance", "--data", "data", "--json", cwd=tmp_path).json()
    assert told["covered"]
    assert told["held_msat"] == 0
    return told


def test_a_stream_longer_than_the_grace_is_told_why_it_is_cut_and_charged_for_its_part(
    start: Serve, mint: Mint, tmp_path: Path
) -> None:
    server = start("[gateway]\nstop_grace_s = 1")
    with streaming(server, key(server, mint), "0.2") as answer:
        server.process.send_signal(signal.SIGTERM)
        rest = answer.read()
    assert b'"code":"stopping"' in rest
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.said()
    revenue = books(tmp_path)["revenue_msat"]
    assert 0 < revenue < 200 * PER_TOKEN


def test_what_ends_within_the_grace_is_finished(start: Serve, mint: Mint, tmp_path: Path) -> None:
    server = start("[gateway]\nstop_grace_s = 30")
    with streaming(server, key(server, mint), "0.005") as answer:
        server.process.send_signal(signal.SIGTERM)
        rest = answer.read()
    assert rest.rstrip().endswith(b"data: [DONE]")
    assert server.process.wait(60) == 0
    assert books(tmp_path)["revenue_msat"] > 0


def test_a_second_signal_waits_for_nothing(start: Serve, mint: Mint, tmp_path: Path) -> None:
    server = start("[gateway]\nstop_grace_s = 600\ndrain_s = 600")
    with streaming(server, key(server, mint), "0.2") as answer:
        drain(server)
        server.process.send_signal(signal.SIGTERM)
        assert b'"code":"stopping"' in answer.read()
    assert server.process.wait(60) == 0
    assert 0 < books(tmp_path)["revenue_msat"] < 200 * PER_TOKEN


def test_while_it_drains_it_says_so_and_serves(start: Serve, mint: Mint) -> None:
    server = start("[gateway]\ndrain_s = 600")
    pays = key(server, mint)
    assert call(f"{server.url}/readyz").status == 200
    drain(server)
    assert call(f"{server.url}/readyz").json()["status"] == "unready"
    assert call(f"{server.url}/healthz").status == 200
    asked = {**CHAT, "stream": False, "max_tokens": 3}
    assert call(f"{server.url}/v1/chat/completions", pays, asked).status == 200
    assert call(server.facts["metrics"]).status == 200
    assert server.stop() == 0


def test_metrics_have_an_address_of_their_own(start: Serve, mint: Mint) -> None:
    server = start()
    told = call(server.facts["metrics"])
    assert told.status == 200
    assert b"farebox_requests_running 0.0" in told.body
    assert b"process_open_fds" in told.body
    door = server.facts["metrics"].removesuffix("/metrics")
    assert call(f"{door}/readyz").json() == call(f"{server.url}/readyz").json()
    assert call(f"{door}/healthz").status == 200
    assert call(f"{door}/v1/wallet/info").status == 404
    assert b"farebox_" not in call(f"{server.url}/metrics").body
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((urlsplit(door).hostname or "", urlsplit(door).port or 0), 5)


def test_nobody_reads_metrics_unless_told_to(standing: Server) -> None:
    assert "metrics" not in standing.facts
