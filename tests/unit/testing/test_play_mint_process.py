"""The play mint in a process of its own, steered over HTTP as crash tests do."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from farebox.wire.cashu.token import decode_token
from tests.peers.process import PeerProcess, free_port


def call(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
        return json.load(answer)


def start(tmp_path: Path, port: int) -> PeerProcess:
    state = ["--state", str(tmp_path / "mint.jsonl")]
    command = [sys.executable, "-m", "farebox.testing.mint", "--port", str(port), *state]
    process = PeerProcess([*command, "--fee-ppk", "100"], {}, tmp_path / "mint.log")
    process.wait_ready(f"http://127.0.0.1:{port}/v1/info", 30)
    return process


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def process(tmp_path: Path, port: int) -> Iterator[PeerProcess]:
    process = start(tmp_path, port)
    yield process
    process.stop()


def test_it_hands_out_money_and_remembers_it_when_killed(
    process: PeerProcess, tmp_path: Path, port: int
) -> None:
    url = f"http://127.0.0.1:{port}"
    token = decode_token(call(f"{url}/play/issue", {"amount": 100})["token"])
    keysets = call(f"{url}/v1/keysets")

    process.kill()
    again = start(tmp_path, port)

    try:
        assert (token.mint, token.unit, token.amount) == (url, "sat", 100)
        assert call(f"{url}/v1/keysets") == keysets
        assert keysets["keysets"][0]["input_fee_ppk"] == 100
        assert call(f"{url}/play/audit")["outstanding"] == {"sat": 100}
    finally:
        again.stop()


def test_it_fails_when_told_to_over_http(process: PeerProcess, port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    faults = [{"type": "DropBefore"}, {"type": "Refuse", "code": 11001}, {"type": "Garbage"}]
    call(f"{url}/play/faults", {"call": "checkstate", "faults": faults})
    ask: dict[str, list[str]] = {"Ys": []}

    with pytest.raises((HTTPException, OSError)):
        call(f"{url}/v1/checkstate", ask)
    with pytest.raises(urllib.error.HTTPError) as refused:
        call(f"{url}/v1/checkstate", ask)
    with refused.value as answer:
        assert json.load(answer)["code"] == 11001
    with pytest.raises(json.JSONDecodeError):
        call(f"{url}/v1/checkstate", ask)
    assert call(f"{url}/v1/checkstate", ask) == {"states": []}
    assert call(f"{url}/play/audit")["calls"]["checkstate"] == 4


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/play/faults", {"call": "nothing", "faults": []}, 422),
        ("/play/faults", {"call": "swap", "faults": [{"type": "Nonsense"}]}, 422),
        ("/play/issue", {"amount": -1}, 422),
        ("/v1/swap", {"inputs": [], "outputs": "none"}, 422),
        ("/v1/nowhere", {}, 404),
    ],
)
def test_it_refuses_what_it_cannot_read(
    process: PeerProcess, port: int, path: str, body: object, status: int
) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        call(f"http://127.0.0.1:{port}{path}", body)
    with refused.value as answer:
        assert answer.status == status
        assert json.load(answer)["detail"]
