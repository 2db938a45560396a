"""anvil, Foundry's development chain, and contracts compiled for it by the Solidity compiler.

It mines a block per transaction unless told otherwise, keeps unlocked accounts with ether, and can
be paused, reorganised and rolled back. Farebox's own client is not used here.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eth_abi.abi import decode, encode
from eth_utils.crypto import keccak

from tests.peers.install import HERE, PeerUnavailable, node_packages
from tests.peers.process import PeerProcess, free_port

CONTRACTS = HERE / "contracts"
CHAIN_ID = 31_337
#: Of anvil's own accounts; everybody knows it.
MNEMONIC = "test test test test test test test test test test test junk"
_READY_TIMEOUT_S = 60
_CALL_TIMEOUT_S = 60
_COMPILE_TIMEOUT_S = 120
_POLL_S = 0.05

Abi = list[dict[str, Any]]
Document = dict[str, Any]


class RpcError(Exception):
    """The node answered with an error; `code` is JSON-RPC's, `data` what a contract said (0x…)."""

    def __init__(self, error: Document) -> None:
        self.code = int(error["code"])
        self.data = str(error.get("data", ""))
        super().__init__(str(error.get("message", "")))


def compile_contract(source: Path) -> tuple[Abi, str]:
    """The ABI and creation bytecode (0x…) of the contract that is named as its file.

    What was compiled once is kept in `.peers/`. Raises PeerUnavailable.
    """
    home = node_packages("evm")
    script = HERE / "evm" / "compile.cjs"
    beside = sorted(source.parent.glob("*.sol"))  # what it may import
    digest = hashlib.sha256(b"".join(one.read_bytes() for one in (script, *beside))).hexdigest()
    kept = home / f"{source.stem}-{digest[:32]}.json"
    if not kept.exists():
        ended = subprocess.run(
            ["node", str(script), str(source)],
            env={"PATH": os.environ.get("PATH", ""), "EVM_HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=_COMPILE_TIMEOUT_S,
        )
        if ended.returncode != 0:
            raise PeerUnavailable(f"{source.name} does not compile: {ended.stderr[-2_000:]}")
        written = kept.with_suffix(f".{os.getpid()}")
        written.write_text(ended.stdout)
        written.replace(kept)
    abi, bytecode = json.loads(kept.read_text())[source.stem]
    return abi, f"0x{bytecode}"


class Contract:
    """A contract on a chain, as whoever has its ABI sees it."""

    def __init__(self, chain: Anvil, address: str, abi: Abi) -> None:
        self._chain = chain
        self.address = address
        self.abi = abi

    def data(self, name: str, *arguments: object) -> str:
        """The input of a call (0x…)."""
        entry = self._entry(name)
        types = _types(entry["inputs"])
        selector = keccak(text=f"{name}({','.join(types)})")[:4]
        return f"0x{(selector + encode(types, arguments)).hex()}"

    def send(self, name: str, *arguments: object, sender: str = "", value: int = 0) -> str:
        """Call it in a transaction; its hash."""
        return self._chain.send(
            self.address, value, sender=sender, data=self.data(name, *arguments)
        )

    def call(self, name: str, *arguments: object) -> Any:
        """What a call would answer; a tuple where it answers with several."""
        asked = {"to": self.address, "data": self.data(name, *arguments)}
        raw = bytes.fromhex(self._chain.rpc("eth_call", asked, "latest")[2:])
        told = decode(_types(self._entry(name)["outputs"]), raw)
        return told[0] if len(told) == 1 else told

    def _entry(self, name: str) -> Document:
        return next(one for one in self.abi if one.get("name") == name)


class Anvil:
    """A chain of its own on a free port of loopback; its log in `directory`."""

    def __init__(self, directory: Path, *flags: str, chain_id: int = CHAIN_ID) -> None:
        package = node_packages("evm") / "node_modules" / "@foundry-rs"
        found = sorted(package.glob("anvil-*/bin/anvil"))
        if not found:
            raise PeerUnavailable("anvil has no program for this machine")
        self._program = found[0]
        self._directory = directory
        self._flags = flags
        self._chain_id = chain_id
        self._port = free_port()
        self._process: PeerProcess | None = None

    @property
    def url(self) -> str:
        """Its JSON-RPC; the same after a restart."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it and wait until it answers. Raises PeerUnavailable."""
        command = [
            str(self._program),
            *("--host", "127.0.0.1", "--port", str(self._port)),
            *("--chain-id", str(self._chain_id), "--slots-in-an-epoch", "1"),
            *("--mnemonic", MNEMONIC, "--silent"),
            *self._flags,
        ]
        env = {"PATH": os.environ.get("PATH", ""), "HOME": str(self._directory)}
        self._process = PeerProcess(command, env, self._directory / "anvil.log")
        self._process.wait_for(lambda: self.rpc("eth_chainId"), _READY_TIMEOUT_S)

    def stop(self) -> None:
        """End it. Its chain is gone with it."""
        if self._process is not None:
            self._process.stop()

    def taken(self, tx_hash: str) -> None:
        """Wait until a transaction is in a block, where one is mined for each: not at once."""
        deadline = time.monotonic() + _CALL_TIMEOUT_S
        while self.rpc("anvil_getAutomine") and not self.rpc("eth_getTransactionReceipt", tx_hash):
            if time.monotonic() > deadline:
                raise AssertionError(f"{tx_hash} is in no block")
            time.sleep(_POLL_S)

    def rpc(self, method: str, *parameters: object) -> Any:
        """One call. Raises RpcError."""
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(parameters)}
        request = urllib.request.Request(self.url, json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=_CALL_TIMEOUT_S) as answer:
            document = json.load(answer)
        if "error" in document:
            raise RpcError(document["error"])
        return document["result"]

    @property
    def accounts(self) -> list[str]:
        """The unlocked accounts; each has ether."""
        return list(self.rpc("eth_accounts"))

    def send(self, to: str, value: int, *, sender: str = "", data: str = "0x") -> str:
        """Send wei, or call a contract, from an unlocked account; the transaction's hash."""
        asked = {"from": sender or self.accounts[0], "to": to, "value": hex(value), "data": data}
        sent = str(self.rpc("eth_sendTransaction", asked))
        self.taken(sent)
        return sent

    def receipt(self, transaction: str) -> Document | None:
        """What became of a transaction, once it is in a block."""
        receipt: Document | None = self.rpc("eth_getTransactionReceipt", transaction)
        return receipt

    def mined(self, transaction: str) -> Document:
        """What became of a transaction; waits for its block. Raises PeerUnavailable."""
        ends_at = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < ends_at:
            if receipt := self.receipt(transaction):
                return receipt
            time.sleep(_POLL_S / 5)
        raise PeerUnavailable("no block has the transaction")

    def balance(self, address: str) -> int:
        """Wei at an address."""
        return int(self.rpc("eth_getBalance", address, "latest"), 16)

    def height(self) -> int:
        """The number of the newest block."""
        return int(self.rpc("eth_blockNumber"), 16)

    def deploy(self, source: Path, *arguments: object, sender: str = "") -> Contract:
        """Compile a contract and put it on the chain."""
        abi, bytecode = compile_contract(source)
        constructor = next((one for one in abi if one["type"] == "constructor"), None)
        types = _types(constructor["inputs"]) if constructor else []
        asked = {
            "from": sender or self.accounts[0],
            "data": bytecode + encode(types, arguments).hex(),
        }
        receipt = self.mined(self.rpc("eth_sendTransaction", asked))
        assert receipt["status"] == "0x1"
        return Contract(self, receipt["contractAddress"], abi)

    def mine(self, blocks: int = 1) -> None:
        """Make blocks now."""
        self.rpc("anvil_mine", hex(blocks))

    def reorganise(self, depth: int, transactions: Sequence[tuple[str, int]] = ()) -> None:
        """Replace the last `depth` blocks by others, with only these raw transactions in them.

        Each is its raw text and the number of its block among the new ones. What waits is mined
        before, where it is mined at once: anvil mixes up a block that it makes meanwhile.
        """
        ends_at = time.monotonic() + _READY_TIMEOUT_S
        while self.rpc("anvil_getAutomine") and self.rpc("txpool_status")["pending"] != "0x0":
            if time.monotonic() > ends_at:
                raise AssertionError("something waits, and is in no block")
            time.sleep(_POLL_S / 5)
        self.rpc("anvil_reorg", depth, list(transactions))

    @contextmanager
    def lacking(self, *contracts: str) -> Iterator[None]:
        """A chain that has nothing at some addresses, for a while."""
        codes = {one: self.rpc("eth_getCode", one, "latest") for one in contracts}
        for one in contracts:
            self.rpc("anvil_setCode", one, "0x")
        try:
            yield
        finally:
            for one, code in codes.items():
                self.rpc("anvil_setCode", one, code)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, transactions wait; no block is made but by `mine`."""
        self.rpc("evm_setAutomine", False)
        try:
            yield
        finally:
            self.rpc("evm_setAutomine", True)
            self.mine()


def _types(parameters: Sequence[Document]) -> list[str]:
    return [_type(one) for one in parameters]


def _type(parameter: Document) -> str:
    kind = str(parameter["type"])
    if not kind.startswith("tuple"):
        return kind
    inner = ",".join(_types(parameter["components"]))
    return f"({inner}){kind.removeprefix('tuple')}"
