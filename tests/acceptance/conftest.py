"""Play things as processes, and servers that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.world import Mint, Server, start_server
from tests.peers.process import OwnProcess, free_port

_READY_S = 60


def _process(module: str, path: str, folder: Path) -> Iterator[str]:
    port = free_port()
    process = OwnProcess(module, "--port", str(port), log=folder / f"{module}.log")
    url = f"http://127.0.0.1:{port}"
    try:
        process.wait_ready(url + path, _READY_S)
        yield url
    finally:
        process.stop()


@pytest.fixture(scope="session")
def mint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mint]:
    for url in _process("farebox.testing.mint", "/v1/info", tmp_path_factory.mktemp("mint")):
        yield Mint(url)


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from _process("farebox.testing.upstream", "/echo", tmp_path_factory.mktemp("upstream"))


Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers with `--json`; they are ended with the test."""
    servers: list[Server] = []

    def start(*arguments: str) -> Server:
        server = start_server([*arguments, "--listen", "127.0.0.1:0"], tmp_path)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def standing(
    tmp_path_factory: pytest.TempPathFactory, mint: Mint, upstream: str
) -> Iterator[Server]:
    """A server that tests share and leave as it is: it sells requests for 10 sat."""
    folder = tmp_path_factory.mktemp("standing")
    flags = ["--upstream", upstream, "--mint", mint.url, "--price", "10 sat", "--data", "data"]
    server = start_server([*flags, "--listen", "127.0.0.1:0"], folder)
    yield server
    server.stop()
