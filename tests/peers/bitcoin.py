"""A Bitcoin chain that moves when told to: btcd in regtest, and a payer with a wallet of his own.

The payer reads blocks as the node explains them and builds with bdk; Farebox's client is not used.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bdkpython as bdk

from tests.peers.install import PeerUnavailable, lightning_programs
from tests.peers.process import PeerProcess, free_port

_READY_TIMEOUT_S = 60
_CALL_TIMEOUT_S = 60
_POLL_S = 0.05
#: Segregated witness is active on a regtest chain, and the first rewards are mature.
_FIRST_BLOCKS = 450
_EXTERNAL = bdk.KeychainKind.EXTERNAL
USER, PASSWORD = "regtest", "regtest-rpc-password"
_PAYER = "legal winner thank year wave sausage worth useful legal winner thank yellow"


class Refused(Exception):
    """The node answered with an error."""


class BitcoinNode:
    """One btcd, its chain kept in `directory` between starts."""

    def __init__(self, directory: Path, mining_address: str) -> None:
        self._program = lightning_programs() / "btcd"
        self._directory = directory
        self._mining_address = mining_address
        self._rpc, self._peer = free_port(), free_port()
        self._process: PeerProcess | None = None
        self._mining = threading.Lock()
        directory.mkdir()

    @property
    def url(self) -> str:
        """Its RPC."""
        return f"http://127.0.0.1:{self._rpc}"

    @property
    def peer_url(self) -> str:
        """Where other nodes find it, and who asks for filters."""
        return f"p2p://127.0.0.1:{self._peer}"

    def start(self) -> None:
        """Start it and wait until it answers. Raises PeerUnavailable."""
        empty = self._directory / "btcd.conf"
        empty.touch()
        command = [
            str(self._program),
            "--regtest",
            "--notls",
            f"--configfile={empty}",
            f"--datadir={self._directory}/data",
            f"--logdir={self._directory}/log",
            f"--rpclisten=127.0.0.1:{self._rpc}",
            f"--listen=127.0.0.1:{self._peer}",
            f"--rpcuser={USER}",
            f"--rpcpass={PASSWORD}",
            f"--miningaddr={self._mining_address}",
            "--minrelaytxfee=0.00001",
            "--norelaypriority",
            "--txindex",
        ]
        self._process = PeerProcess(command, os.environ, self._directory / "said.log")
        ends_at = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < ends_at:
            if not self._process.is_running:
                raise PeerUnavailable(f"it has ended: {self._process.said()}")
            try:
                self.call("getblockcount")
            except (OSError, Refused):
                time.sleep(_POLL_S)
            else:
                return
        raise PeerUnavailable("btcd never answered")

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.stop()

    def height(self) -> int:
        """How many blocks there are."""
        return int(self.call("getblockcount"))

    def mine(self, blocks: int = 1) -> None:
        """Make blocks now, with what waits."""
        with self._mining:  # btcd refuses whoever asks meanwhile
            self.call("generate", blocks)

    def mine_only(self, *raws: bytes) -> None:
        """Make a block of these transactions alone: miners leave out what pays too little."""
        parent = self.call("getblockheader", self.call("getbestblockhash"), True)
        raw = _block(parent["hash"], int(parent["height"]) + 1, int(parent["time"]) + 1, raws)
        told = self.call("submitblock", raw.hex())
        assert told is None, told

    def undo(self, blocks: int) -> None:
        """Let the last blocks be no part of the best chain any more."""
        self.call("invalidateblock", self.call("getblockhash", self.height() - blocks + 1))

    def pool(self) -> list[str]:
        """What waits."""
        return list(self.call("getrawmempool"))

    def paid_sat(self, address: str, since: int) -> list[int]:
        """What each output paid to an address is worth, of the blocks from a height on."""
        found = []
        for height in range(since, self.height() + 1):
            shown = self.call("getblock", self.call("getblockhash", height), 2)
            for one in shown.get("rawtx") or shown.get("tx", []):
                for output in bdk.Transaction(bytes.fromhex(one["hex"])).output():
                    script = bytes(output.script_pubkey.to_bytes())
                    if script == _script(address):
                        found.append(int(output.value.to_sat()))
        return found

    def call(self, method: str, *parameters: object) -> Any:
        """One call. Raises Refused."""
        body = {"jsonrpc": "1.0", "id": 1, "method": method, "params": list(parameters)}
        token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request = urllib.request.Request(self.url, json.dumps(body).encode())
        request.add_header("Authorization", f"Basic {token}")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=_CALL_TIMEOUT_S) as answer:
                document = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                document = json.load(error)
        if document["error"]:
            raise Refused(str(document["error"]))
        return document["result"]


class Payer:
    """Somebody who has mined what there is."""

    def __init__(self) -> None:
        root = bdk.DescriptorSecretKey(bdk.NetworkKind.TEST, bdk.Mnemonic.from_string(_PAYER), None)
        keychains = (bdk.KeychainKind.EXTERNAL, bdk.KeychainKind.INTERNAL)
        self._descriptors = [
            bdk.Descriptor.new_bip84(root, one, bdk.NetworkKind.TEST) for one in keychains
        ]
        self.node: BitcoinNode | None = None
        self._used: set[str] = set()
        self._read: list[_ReadBlock] = []  # the chain as he has read it

    def address(self, index: int = 0) -> str:
        """An address of his."""
        return str(self._descriptors[0].derive_address(index, bdk.Network.REGTEST))

    def pay(self, address: str, amount_sat: int, rate: int = 5) -> str:
        """Pay an address, at so many sat per virtual byte; the transaction's id."""
        raw = self.signed([(address, amount_sat)], rate)
        return self.send(raw)

    def signed(self, outputs: list[tuple[str, int]], rate: int = 5) -> str:
        """A signed transaction in hexadecimal; its inputs are used no more."""
        wallet = self._wallet()
        used = [one.outpoint for one in wallet.list_unspent() if _named(one) in self._used]
        builder = bdk.TxBuilder().unspendable(used)
        return self._finished(builder, wallet, outputs, rate)

    def instead(self, raw: str, outputs: list[tuple[str, int]], rate: int) -> str:
        """Another transaction with the same inputs, signed."""
        wallet = self._wallet()
        inputs = [one.previous_output for one in bdk.Transaction(bytes.fromhex(raw)).input()]
        builder = bdk.TxBuilder().add_utxos(inputs).manually_selected_only()
        return self._finished(builder, wallet, outputs, rate)

    def spending(self, raw: bytes, place: int, fee_sat: int) -> str:
        """A signed transaction that spends what `raw`, still in no block, pays to that address."""
        wallet, tx = self._wallet(), bdk.Transaction(raw)
        wallet.apply_unconfirmed_txs([bdk.UnconfirmedTx(tx=tx, last_seen=1)])
        mine = bytes(wallet.peek_address(_EXTERNAL, place).address.script_pubkey().to_bytes())
        scripts = [bytes(one.script_pubkey.to_bytes()) for one in tx.output()]
        spent = bdk.OutPoint(txid=tx.compute_txid(), vout=scripts.index(mine))
        builder = bdk.TxBuilder().add_utxo(spent).manually_selected_only()
        builder = builder.drain_to(wallet.peek_address(_EXTERNAL, 98).address.script_pubkey())
        psbt = builder.fee_absolute(bdk.Amount.from_sat(fee_sat)).finish(wallet)
        assert wallet.sign(psbt)
        return bytes(psbt.extract_tx().serialize()).hex()

    def send(self, raw: str) -> str:
        """Hand it to the node."""
        assert self.node is not None
        return str(self.node.call("sendrawtransaction", raw))

    def received_sat(self, index: int) -> int:
        """What the chain has paid to one of his addresses."""
        return sum(
            one.txout.value.to_sat()
            for one in self._wallet().list_output()
            if one.derivation_index == index and one.keychain is bdk.KeychainKind.EXTERNAL
        )

    def _finished(
        self, builder: bdk.TxBuilder, wallet: bdk.Wallet, outputs: list[tuple[str, int]], rate: int
    ) -> str:
        builder = builder.fee_rate(bdk.FeeRate.from_sat_per_vb(rate))
        for address, amount_sat in outputs:
            script = bdk.Address(address, bdk.Network.REGTEST).script_pubkey()
            builder = builder.add_recipient(script, bdk.Amount.from_sat(amount_sat))
        psbt = builder.finish(wallet)
        assert wallet.sign(psbt)
        tx = psbt.extract_tx()
        self._used |= {f"{i.previous_output.txid}:{i.previous_output.vout}" for i in tx.input()}
        return bytes(tx.serialize()).hex()

    def _wallet(self) -> bdk.Wallet:
        """His wallet, by the blocks there are now."""
        self._catch_up()
        blocks = [one.change for one in self._read]
        txs = [tx for one in self._read for tx in one.txs]
        anchors = [anchor for one in self._read for anchor in one.anchors]
        whole = bdk.ChangeSet.from_aggregate(
            *self._descriptors,
            bdk.Network.REGTEST,
            bdk.LocalChainChangeSet(changes=blocks),
            bdk.TxGraphChangeSet(
                txs=txs, txouts={}, anchors=anchors, last_seen={}, first_seen={}, last_evicted={}
            ),
            bdk.IndexerChangeSet(last_revealed={self._descriptors[0].descriptor_id(): 99}),
        )
        return bdk.Wallet.load(*self._descriptors, bdk.Persister.custom(_Kept(whole)))

    def _catch_up(self) -> None:
        """Read the blocks that were not read yet, back to where his chain was the node's."""
        assert self.node is not None
        fresh, agreed, wanted = [], 0, str(self.node.call("getbestblockhash"))
        while True:
            shown = self.node.call("getblock", wanted, 2)
            height = int(shown["height"])
            if height < len(self._read) and self._read[height].hash == wanted:
                agreed = height + 1
                break
            fresh.append(_read_block(shown))
            if not height:
                break
            wanted = shown["previousblockhash"]
        self._read[agreed:] = reversed(fresh)


@dataclass(frozen=True, slots=True)
class _ReadBlock:
    hash: str
    change: bdk.ChainChange
    txs: tuple[bdk.Transaction, ...]
    anchors: tuple[bdk.Anchor, ...]


def _read_block(shown: Mapping[str, Any]) -> _ReadBlock:
    height, named = int(shown["height"]), bdk.BlockHash.from_string(shown["hash"])
    at = bdk.ConfirmationBlockTime(
        block_id=bdk.BlockId(height=height, hash=named), confirmation_time=shown["time"]
    )
    parts = shown.get("rawtx") or shown.get("tx", [])
    txs = tuple(bdk.Transaction(bytes.fromhex(one["hex"])) for one in parts)
    anchors = (bdk.Anchor(confirmation_block_time=at, txid=one.compute_txid()) for one in txs)
    change = bdk.ChainChange(height=height, hash=named)
    return _ReadBlock(shown["hash"], change, txs, tuple(anchors))


class BitcoinChain:
    """The node and the payer."""

    def __init__(self, directory: Path) -> None:
        self.payer = Payer()
        self.node = BitcoinNode(directory / "btcd", self.payer.address())
        self.payer.node = self.node

    def start(self) -> None:
        """Start the node and mine the first blocks. Raises PeerUnavailable."""
        self.node.start()
        try:
            self.node.mine(_FIRST_BLOCKS)
        except (Refused, OSError) as error:
            self.stop()
            raise PeerUnavailable(f"{type(error).__name__}: {error}") from None

    def stop(self) -> None:
        """End it."""
        self.node.stop()


def _block(parent: str, height: int, time_s: int, raws: Sequence[bytes]) -> bytes:
    """A block by BIP-34 and BIP-141, with the work that regtest wants; its reward is nothing."""
    txs = [bdk.Transaction(raw) for raw in raws]
    txids = [bytes.fromhex(str(one.compute_txid()))[::-1] for one in txs]
    wtxids = [bytes.fromhex(str(one.compute_wtxid()))[::-1] for one in txs]
    commitment = _twice(_merkle([bytes(32), *wtxids]) + bytes(32))
    number = height.to_bytes((height.bit_length() + 8) // 8, "little")
    script = bytes([len(number)]) + number + b"\x05tests"
    paid = b"\x6a\x24\xaa\x21\xa9\xed" + commitment
    body = b"\x01" + bytes(32) + b"\xff" * 4 + bytes([len(script)]) + script + b"\xff" * 4
    body += b"\x01" + bytes(8) + bytes([len(paid)]) + paid
    version, end = (2).to_bytes(4, "little"), bytes(4)
    witness = b"\x01\x20" + bytes(32)
    coinbase = version + b"\x00\x01" + body + witness + end
    root = _merkle([_twice(version + body + end), *txids])
    head = (0x20000000).to_bytes(4, "little") + bytes.fromhex(parent)[::-1] + root
    head += time_s.to_bytes(4, "little") + (0x207FFFFF).to_bytes(4, "little")
    nonce = 0
    while _twice(head + nonce.to_bytes(4, "little"))[-1] > 0x7F:
        nonce += 1
    head += nonce.to_bytes(4, "little")
    return head + bytes([1 + len(raws)]) + coinbase + b"".join(raws)


def _merkle(hashes: list[bytes]) -> bytes:
    while len(hashes) > 1:
        hashes += hashes[-1:] * (len(hashes) % 2)
        hashes = [_twice(a + b) for a, b in zip(hashes[::2], hashes[1::2], strict=True)]
    return hashes[0]


def _twice(raw: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(raw).digest()).digest()


class _Kept(bdk.Persistence):  # type: ignore[misc]  # bdkpython has no types
    def __init__(self, whole: bdk.ChangeSet) -> None:
        self._whole = whole

    def initialize(self) -> bdk.ChangeSet:
        return self._whole

    def persist(self, changeset: bdk.ChangeSet) -> None:
        pass


def _script(address: str) -> bytes:
    return bytes(bdk.Address(address, bdk.Network.REGTEST).script_pubkey().to_bytes())


def _named(one: bdk.LocalOutput) -> str:
    return f"{one.outpoint.txid}:{one.outpoint.vout}"
