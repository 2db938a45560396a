"""A Lightning network on a simnet chain: btcd, and two LND nodes with a funded channel.

The *payer* has mined what there is and opened the channel; the *house* is the node that Farebox is
given, with a macaroon that permits no more than it needs. Farebox's own client is not used here.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.peers.install import PeerUnavailable, lightning_programs
from tests.peers.process import PeerProcess, free_port

_READY_TIMEOUT_S = 120
_CALL_TIMEOUT_S = 90
_POLL_S = 0.1
_ACTIVE = "SERVER_ACTIVE"
_USER, _PASSWORD = "simnet", "simnet"
#: Segregated witness is active on a simnet chain, and the first rewards are mature.
_FIRST_BLOCKS = 400
CHANNEL_SAT, PUSHED_SAT = 10_000_000, 5_000_000
_PERMITTED = (
    ("info", "read"),
    ("invoices", "read"),
    ("invoices", "write"),
    ("offchain", "read"),
    ("offchain", "write"),
)
#: Both certificates are self-signed ones of this very test.
_TRUSTING = ssl.create_default_context()
_TRUSTING.check_hostname = False
_TRUSTING.verify_mode = ssl.CERT_NONE

Document = dict[str, Any]


class Refused(Exception):
    """A node answered with an error."""


class Btcd:
    """A chain that moves when told to."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self._program = programs / "btcd"
        self._directory = directory
        self._rpc, self._peer = free_port(), free_port()
        self._process: PeerProcess | None = None
        directory.mkdir()

    @property
    def flags(self) -> list[str]:
        """How a node finds this chain."""
        return [
            "--bitcoin.simnet",
            "--bitcoin.node=btcd",
            f"--btcd.rpchost=127.0.0.1:{self._rpc}",
            f"--btcd.rpcuser={_USER}",
            f"--btcd.rpcpass={_PASSWORD}",
            f"--btcd.rpccert={self._directory}/rpc.cert",
        ]

    def start(self, mining_address: str = "") -> None:
        """Start it and wait until it answers. Raises PeerUnavailable."""
        empty = self._directory / "btcd.conf"
        empty.touch()
        command = [
            str(self._program),
            "--simnet",
            f"--configfile={empty}",
            f"--datadir={self._directory}/data",
            f"--logdir={self._directory}/log",
            f"--rpccert={self._directory}/rpc.cert",
            f"--rpckey={self._directory}/rpc.key",
            f"--rpclisten=127.0.0.1:{self._rpc}",
            f"--listen=127.0.0.1:{self._peer}",
            f"--rpcuser={_USER}",
            f"--rpcpass={_PASSWORD}",
            *([f"--miningaddr={mining_address}"] if mining_address else []),
        ]
        self._process = PeerProcess(command, os.environ, self._directory / "said.log")
        _until(lambda: self.height() >= 0, self._process)

    def height(self) -> int:
        """How many blocks there are."""
        return int(self._call("getblockcount"))

    def mine(self, blocks: int) -> None:
        """Make blocks now."""
        self._call("generate", blocks)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.stop()

    def _call(self, method: str, *parameters: object) -> Any:
        body = {"jsonrpc": "1.0", "id": 1, "method": method, "params": list(parameters)}
        token = base64.b64encode(f"{_USER}:{_PASSWORD}".encode()).decode()
        request = urllib.request.Request(
            f"https://127.0.0.1:{self._rpc}", json.dumps(body).encode()
        )
        request.add_header("Authorization", f"Basic {token}")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=_CALL_TIMEOUT_S, context=_TRUSTING) as answer:
            document = json.load(answer)
        if document["error"]:
            raise Refused(str(document["error"]))
        return document["result"]


class LndNode:
    """One LND, its wallet and channels kept in `directory` between starts."""

    def __init__(self, programs: Path, directory: Path, chain: Btcd) -> None:
        self._program = programs / "lnd"
        self._directory = directory
        self._chain = chain
        self._rest, self._grpc, self._peer = free_port(), free_port(), free_port()
        self._process: PeerProcess | None = None
        directory.mkdir()

    @property
    def url(self) -> str:
        """Its REST API; the same after a restart."""
        return f"https://127.0.0.1:{self._rest}"

    @property
    def certificate(self) -> Path:
        """Its own TLS certificate."""
        return self._directory / "tls.cert"

    @property
    def peer_address(self) -> str:
        """Where other nodes find it."""
        return f"127.0.0.1:{self._peer}"

    @property
    def key(self) -> str:
        """Its public key."""
        return str(self.get("/v1/getinfo")["identity_pubkey"])

    def start(self, until: str = _ACTIVE) -> None:
        """Start it and wait; without blocks it never gets active. Raises PeerUnavailable."""
        command = [
            str(self._program),
            f"--lnddir={self._directory}",
            *self._chain.flags,
            "--noseedbackup",
            "--nobootstrap",
            "--trickledelay=50",
            "--bitcoin.defaultchanconfs=1",
            "--debuglevel=warn",
            f"--listen={self.peer_address}",
            f"--rpclisten=127.0.0.1:{self._grpc}",
            f"--restlisten=127.0.0.1:{self._rest}",
        ]
        self._process = PeerProcess(command, os.environ, self._directory / "said.log")
        _until(lambda: bool(self.get("/v1/getinfo").get("version")), self._process)
        _until(lambda: self.get("/v1/state").get("state") in (until, _ACTIVE), self._process)

    def stop(self) -> None:
        """End it in good order."""
        if self._process is not None:
            self._process.stop()

    def said(self) -> str:
        """What it has written."""
        return (self._directory / "said.log").read_text(errors="replace")

    def get(self, path: str) -> Document:
        """A call that reads."""
        return next(self._lines("GET", path, None))

    def post(self, path: str, body: object) -> Document:
        """A call that changes something. Raises Refused."""
        return next(self._lines("POST", path, body))

    def bake(self) -> str:
        """A macaroon in hexadecimal that permits what Farebox needs, and no more."""
        wanted = [{"entity": entity, "action": action} for entity, action in _PERMITTED]
        return str(self.post("/v1/macaroon", {"permissions": wanted})["macaroon"])

    # ── what a person does with a wallet ─────────────────────────────────────────────────────────

    def invoice(self, amount_msat: int, memo: str = "", expiry_s: int = 3_600) -> str:
        """An invoice of this node."""
        body = {"value_msat": str(amount_msat), "memo": memo, "expiry": str(expiry_s)}
        return str(self.post("/v1/invoices", body)["payment_request"])

    def pay(self, invoice: str, amount_msat: int = 0) -> str:
        """Pay an invoice; how that ended, in LND's words."""
        body: Document = {
            "payment_request": invoice,
            "fee_limit_msat": "100000",
            "timeout_seconds": 60,
            "no_inflight_updates": True,
        }
        if amount_msat:
            body["amt_msat"] = str(amount_msat)
        return str(self.post("/v2/router/send", body)["result"]["status"])

    def pay_more(self, invoice: str, amount_msat: int) -> str:
        """Pay another amount than an invoice asks for, along a route of our own."""
        asked = self.get(f"/v1/payreq/{invoice}")
        amount = f"{amount_msat // 1_000}"
        found = self.get(f"/v1/graph/routes/{asked['destination']}/{amount}")
        route = found["routes"][0]
        record = {"payment_addr": asked["payment_addr"], "total_amt_msat": str(amount_msat)}
        route["hops"][-1]["mpp_record"] = record
        hash_b64 = base64.b64encode(bytes.fromhex(asked["payment_hash"])).decode()
        body = {"payment_hash": hash_b64, "route": route}
        return str(self.post("/v2/router/route/send", body)["status"])

    def received_msat(self, invoice: str) -> int:
        """What an invoice of this node was paid."""
        asked = self.get(f"/v1/payreq/{invoice}")
        return int(self.get(f"/v1/invoice/{asked['payment_hash']}")["amt_paid_msat"])

    def channel_msat(self) -> int:
        """What it holds in channels, fees of their transactions aside."""
        return int(self.get("/v1/balance/channels")["local_balance"]["msat"])

    def _lines(self, method: str, path: str, body: object) -> Iterator[Document]:
        raw = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, raw, method=method)
        admin = self._directory / "data" / "chain" / "bitcoin" / "simnet" / "admin.macaroon"
        if admin.exists():
            request.add_header("Grpc-Metadata-macaroon", admin.read_bytes().hex())
        try:
            with urllib.request.urlopen(
                request, timeout=_CALL_TIMEOUT_S, context=_TRUSTING
            ) as answer:
                for line in answer:
                    yield json.loads(line)
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(error.read().decode()) from None


class LightningNetwork:
    """The chain, the payer and the house's node. `start` takes about half a minute."""

    def __init__(self, directory: Path) -> None:
        programs = lightning_programs()
        self.chain = Btcd(programs, directory / "btcd")
        self.payer = LndNode(programs, directory / "payer", self.chain)
        self.house = LndNode(programs, directory / "house", self.chain)

    def start(self) -> None:
        """Mine, start the nodes, open and fund the channel. Raises PeerUnavailable."""
        try:
            self._start()
        except (Refused, OSError, KeyError, StopIteration) as error:
            self.stop()
            raise PeerUnavailable(f"{type(error).__name__}: {error}") from None

    def _start(self) -> None:
        self.chain.start()
        self.payer.start(until="RPC_ACTIVE")
        address = str(self.payer.get("/v1/newaddress")["address"])
        self.payer.stop()
        self.chain.stop()
        self.chain.start(address)
        self.chain.mine(_FIRST_BLOCKS)
        self.payer.start()
        self.house.start()
        _until(lambda: self._is_synced(self.payer) and self._is_synced(self.house))
        funds = CHANNEL_SAT * 2
        _until(lambda: int(self.payer.get("/v1/balance/blockchain")["confirmed_balance"]) > funds)
        to = {"pubkey": self.house.key, "host": self.house.peer_address}
        self.payer.post("/v1/peers", {"addr": to})
        self.payer.post(
            "/v1/channels",
            {
                "node_pubkey": base64.b64encode(bytes.fromhex(self.house.key)).decode(),
                "local_funding_amount": str(CHANNEL_SAT),
                "push_sat": str(PUSHED_SAT),
                "sat_per_vbyte": "2",
            },
        )
        self.chain.mine(6)
        _until(self._is_open)

    def _is_synced(self, node: LndNode) -> bool:
        info = node.get("/v1/getinfo")
        return bool(info["synced_to_chain"]) and info["block_height"] >= self.chain.height()

    def _is_open(self) -> bool:
        """Whether either can pay the other. A channel is called active a moment before that."""
        ways = ((self.payer, self.house), (self.house, self.payer))
        for node, to in ways:
            channels = node.get("/v1/channels")["channels"]
            if not channels or not all(one["active"] for one in channels):
                return False
            if not node.get(f"/v1/graph/routes/{to.key}/1")["routes"]:
                return False
        return True

    def reconnected(self) -> None:
        """Wait until the channel can be used again after a restart."""
        _until(self._is_open)

    def stop(self) -> None:
        """End all of it."""
        for one in (self.payer, self.house, self.chain):
            one.stop()


def _until(holds: Callable[[], bool], process: PeerProcess | None = None) -> None:
    """Wait for something that may fail as long as it is not there. Raises PeerUnavailable."""
    ends_at = time.monotonic() + _READY_TIMEOUT_S
    last: object = "it did not come about"
    while time.monotonic() < ends_at:
        if process is not None and not process.is_running:
            raise PeerUnavailable(f"it has ended: {process.said()}")
        try:
            if holds():
                return
        except (Refused, OSError, KeyError, StopIteration, ValueError) as error:
            last = error
        time.sleep(_POLL_S)
    raise PeerUnavailable(f"waited in vain for {_READY_TIMEOUT_S} s: {last}")
