"""ElectrumX over the tests' btcd.

It was written for Bitcoin Core: btcd wants the version of a call named and a number for how much to
tell of a block, and has no `getnetworkinfo`. The launcher says so to it, and has it
look more often.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from tests.peers.bitcoin import PASSWORD, USER, BitcoinChain
from tests.peers.install import environment
from tests.peers.process import PeerProcess, free_port

_READY_TIMEOUT_S = 60
_LAUNCHER = """
import asyncio, logging, sys
from electrumx import Controller, Env
from electrumx.server.block_processor import Prefetcher
from electrumx.server.daemon import Daemon
from electrumx.server.mempool import MemPool

send = Daemon._send

async def send_as_btcd_wants(self, payload, processor):
    for one in payload if isinstance(payload, list) else [payload]:
        one["jsonrpc"] = "1.0"
        if one["method"] == "getblock":
            one["params"] = [one["params"][0], int(one["params"][1])]
    return await send(self, payload, processor)

async def relayfee(self):
    return 0.00001

Daemon._send, Daemon.relayfee = send_as_btcd_wants, relayfee

# It looks for blocks, and at what waits for one, every five seconds.
begin = Prefetcher.__init__

def begin_soon(self, *told):
    begin(self, *told)
    self.polling_delay = 0.2

Prefetcher.__init__ = begin_soon
MemPool.__init__.__defaults__ = (0.2, *MemPool.__init__.__defaults__[1:])
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
asyncio.run(Controller(Env()).run())
"""


class ElectrumX:
    """A server over `chain`, with an index of its own in `directory`."""

    def __init__(self, chain: BitcoinChain, directory: Path) -> None:
        self._python = environment("electrumx") / "bin" / "python"
        self._chain = chain
        self._directory = directory
        self._port = free_port()
        self._process: PeerProcess | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"tcp://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it and wait until it has indexed the chain. Raises PeerUnavailable."""
        node = self._chain.node.url.removeprefix("http://")
        env = {
            "PATH": os.environ.get("PATH", ""),
            "COIN": "BitcoinSegwit",
            "NET": "regtest",
            "DB_ENGINE": "leveldb",
            "DB_DIRECTORY": str(self._directory),
            "DAEMON_URL": f"http://{USER}:{PASSWORD}@{node}",
            "SERVICES": f"tcp://127.0.0.1:{self._port}",
            "PEER_DISCOVERY": "off",
            "ALLOW_ROOT": "1",
            "COST_SOFT_LIMIT": "0",
            "COST_HARD_LIMIT": "0",
        }
        command = [str(self._python), "-c", _LAUNCHER]
        self._process = PeerProcess(command, env, self._directory / "said.log")

        def knock() -> None:
            socket.create_connection(("127.0.0.1", self._port), timeout=2).close()

        self._process.wait_for(knock, _READY_TIMEOUT_S)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.stop()
