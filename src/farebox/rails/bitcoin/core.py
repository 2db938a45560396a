"""Bitcoin Core, or btcd, over JSON-RPC: whole blocks and the memory pool, looked through by us.

It needs no index and no wallet of the node. Blocks are read from the last one that was looked
through; where the chain has left it, back to where both agree. What was found is kept in a file:
without it the chain is looked through again from the height where the wallet began.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import bdkpython as bdk
import msgspec

from farebox.errors import InvalidInput, RailRejected, RailUnavailable
from farebox.rails.bitcoin.chain import Block, ChainInfo, is_known
from farebox.rails.bitcoin.keys import WalletKeys
from farebox.wire.bitcoin import BitcoinTx, read_block, read_tx

_SAT = 100_000_000
#: So many of the largest transactions that are relayed fit into one answer.
_BATCH = 50
_ANSWER_MAX_BYTES = 64 << 20
_TIMEOUT_S = 30
#: How far back the chain may leave us without our looking through it from the start.
_RING = 200
#: Addresses beyond the last that was given out which are looked for as well.
_AHEAD = 100
_POOL_MAX = 500_000
#: Bitcoin Core's errors (rpc/protocol.h): in the chain already; starting, or not connected.
_KNOWN = -27
_NOT_NOW = (-28, -10, -9)
_UNKNOWN_METHOD = -32601


class Found(msgspec.Struct, frozen=True):
    """A transaction of ours. `height` -1: only in the memory pool."""

    raw: bytes
    height: int = -1
    block: str = ""
    time_s: int = 0


class Scan(msgspec.Struct):
    """What was looked through: the last blocks, and the transactions that concern us."""

    descriptor: str
    since: int
    ring: list[tuple[int, str, int]] = []
    found: dict[str, Found] = {}
    #: The furthest change address that was seen.
    change: int = -1


class Core:
    """A node that speaks Bitcoin Core's RPC. `keys` are the wallet's."""

    def __init__(
        self,
        url: str,
        credentials: str,
        keys: WalletKeys,
        *,
        file: Path | None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        where = urlsplit(url)
        self._https = where.scheme == "https"
        self._host, self._port = where.hostname or "", where.port or 8332
        self._path = where.path or "/"
        self._token = base64.b64encode(credentials.encode()).decode()
        self._tls = tls
        self._keys = keys
        self._file = file
        self._scan = Scan("", 0)
        self._scripts: dict[bytes, tuple[bool, int]] = {}
        self._known = [0, 0]  # how many scripts of each keychain are in there
        self._ours: set[str] = set()  # outpoints of ours
        self._pool: dict[str, BitcoinTx | None] = {}
        self._has_estimates = True
        self._built: tuple[object, ...] = ()

    def __repr__(self) -> str:
        return f"Core({self._host}:{self._port})"

    def info(self) -> ChainInfo:
        """`getblockchaininfo`, and the first block's hash."""
        found = self._call("getblockchaininfo")
        genesis = str(self._call("getblockhash", 0))
        height, headers = int(found["blocks"]), int(found.get("headers", found["blocks"]))
        is_synced = not found.get("initialblockdownload", False) and height >= headers
        tip = Block(height, str(found["bestblockhash"]))
        return ChainInfo("a node by RPC", genesis, tip, is_synced)

    def tip(self) -> Block:
        """`getblockcount` and that block's hash."""
        height = int(self._call("getblockcount"))
        return Block(height, str(self._call("getblockhash", height)))

    def sync(self, wallet: bdk.Wallet, tip: Block, since: int) -> bdk.Wallet | None:
        """Look through blocks up to `tip`, then the memory pool; a wallet made of what is ours."""
        if not self._scan.descriptor:
            self._scan = self._load(since)
        revealed = wallet.derivation_index(bdk.KeychainKind.EXTERNAL)
        given = 0 if revealed is None else revealed + 1
        self._learn(wallet, given)
        if not self._ours:
            for one in self._scan.found.values():
                self._is_ours(wallet, read_tx(one.raw))
        if self._follow(wallet, tip):
            self._save()
        pool = self._look_at_pool(wallet)
        built = (tuple(self._scan.ring[-1:]), tuple(sorted(pool)), self._scan.change)
        if built == self._built:
            return None
        made = self._wallet(given, pool)
        self._built = built
        return made

    def broadcast(self, raw: bytes) -> None:
        """`sendrawtransaction`. Raises RailRejected."""
        try:
            self._call("sendrawtransaction", raw.hex())
        except RailRejected as error:
            if not is_known(str(error)):
                raise

    def fee_rate(self, blocks: int) -> int | None:
        """`estimatesmartfee`, or btcd's `estimatefee`."""
        try:
            if self._has_estimates:
                told = self._call("estimatesmartfee", blocks).get("feerate", 0)
            else:
                told = self._call("estimatefee", blocks)
        except RailRejected as error:
            if error.code == _UNKNOWN_METHOD and self._has_estimates:
                self._has_estimates = False
                return self.fee_rate(blocks)
            return None
        rate = int(Decimal(told) * _SAT)
        return rate if rate > 0 else None

    def close(self) -> None:
        """Nothing is kept open."""

    # ── blocks ───────────────────────────────────────────────────────────────────────────────────

    def _follow(self, wallet: bdk.Wallet, tip: Block) -> bool:
        """Bring the scan up to `tip`; whether it changed."""
        before = self._scan.ring[-1:]
        self._step_back()
        while True:
            ring = self._scan.ring
            if not ring:  # begin on the block before the first that may concern us
                height = min(max(0, self._scan.since - 1), tip.height)
                ring.append((height, str(self._call("getblockhash", height)), 0))
            height = ring[-1][0] + 1
            if height > tip.height:
                return ring[-1:] != before
            block_hash = str(self._call("getblockhash", height))
            block = self._read(block_hash)
            if block.parent != ring[-1][1]:
                self._step_back()
                continue
            for tx in block.txs:
                if self._is_ours(wallet, tx):
                    self._scan.found[tx.txid] = Found(tx.raw, height, block_hash, block.time_s)
            ring.append((height, block_hash, block.time_s))
            del ring[:-_RING]

    def _step_back(self) -> None:
        """Leave the blocks that the best chain has left. What they held waits in the pool."""
        ring = self._scan.ring
        while ring:
            height, block_hash, _ = ring[-1]
            try:
                is_best = str(self._call("getblockhash", height)) == block_hash
            except RailRejected:  # the best chain is shorter now
                is_best = False
            if is_best:
                return
            ring.pop()
            for txid, one in list(self._scan.found.items()):
                if one.height == height:
                    del self._scan.found[txid]
        self._scan = Scan(self._scan.descriptor, self._scan.since)  # all of it, again

    def _read(self, block_hash: str) -> Any:
        try:
            return read_block(bytes.fromhex(self._call("getblock", block_hash, 0)))
        except (ValueError, InvalidInput):
            raise RailUnavailable("the node's block cannot be read") from None

    # ── the memory pool ──────────────────────────────────────────────────────────────────────────

    def _look_at_pool(self, wallet: bdk.Wallet) -> dict[str, BitcoinTx]:
        """What concerns us of the transactions that are in no block."""
        names = list(self._call("getrawmempool"))[:_POOL_MAX]
        known = {txid: self._pool[txid] for txid in names if txid in self._pool}
        missing = [txid for txid in names if txid not in known]
        for i in range(0, len(missing), _BATCH):
            part = missing[i : i + _BATCH]
            for txid, raw in zip(part, self._many("getrawtransaction", part), strict=True):
                if raw is not None:
                    tx = read_tx(bytes.fromhex(raw))
                    known[txid] = tx if self._is_ours(wallet, tx) else None
        self._pool = known
        return {
            txid: tx
            for txid, tx in known.items()
            if tx is not None and txid not in self._scan.found
        }

    # ── what is ours ─────────────────────────────────────────────────────────────────────────────

    def _learn(self, wallet: bdk.Wallet, given: int) -> None:
        """Know the scripts of every address given out, and of some more."""
        for is_change, until in ((False, given + _AHEAD), (True, self._scan.change + 1 + _AHEAD)):
            keychain = bdk.KeychainKind.INTERNAL if is_change else bdk.KeychainKind.EXTERNAL
            for index in range(self._known[is_change], until):
                script = wallet.peek_address(keychain, index).address.script_pubkey().to_bytes()
                self._scripts[bytes(script)] = (is_change, index)
            self._known[is_change] = max(self._known[is_change], until)

    def _is_ours(self, wallet: bdk.Wallet, tx: BitcoinTx) -> bool:
        is_ours = any(spent in self._ours for spent in tx.spends)
        for index, output in enumerate(tx.outputs):
            place = self._scripts.get(output.script)
            if place is None:
                continue
            is_ours = True
            self._ours.add(f"{tx.txid}:{index}")
            if place[0] and place[1] > self._scan.change:
                self._scan.change = place[1]
                self._learn(wallet, self._known[False] - _AHEAD)
        return is_ours

    def _wallet(self, given: int, pool: dict[str, BitcoinTx]) -> bdk.Wallet:
        """A wallet of what was found."""
        external, change = self._keys.external, self._keys.change
        blocks = {0: bdk.ChainChange(height=0, hash=_hash(str(self._call("getblockhash", 0))))}
        anchors, txs = [], []
        for one in self._scan.found.values():
            place = bdk.BlockId(height=one.height, hash=_hash(one.block))
            blocks[one.height] = bdk.ChainChange(height=one.height, hash=place.hash)
            tx = bdk.Transaction(one.raw)
            at = bdk.ConfirmationBlockTime(block_id=place, confirmation_time=one.time_s)
            anchors.append(bdk.Anchor(confirmation_block_time=at, txid=tx.compute_txid()))
            txs.append(tx)
        height, block_hash, _ = self._scan.ring[-1]
        blocks[height] = bdk.ChainChange(height=height, hash=_hash(block_hash))
        seen = {}
        for number, tx in enumerate(pool.values()):
            txs.append(unconfirmed := bdk.Transaction(tx.raw))
            seen[unconfirmed.compute_txid()] = number + 1
        revealed = {}
        if given:
            revealed[external.descriptor_id()] = given - 1
        if self._scan.change >= 0:
            revealed[change.descriptor_id()] = self._scan.change
        whole = bdk.ChangeSet.from_aggregate(
            external,
            change,
            self._keys.network,
            bdk.LocalChainChangeSet(changes=[blocks[height] for height in sorted(blocks)]),
            bdk.TxGraphChangeSet(
                txs=txs, txouts={}, anchors=anchors, last_seen=seen, first_seen={}, last_evicted={}
            ),
            bdk.IndexerChangeSet(last_revealed=revealed),
        )
        return bdk.Wallet.load(external, change, bdk.Persister.custom(_Given(whole)))

    # ── the file ─────────────────────────────────────────────────────────────────────────────────

    def _load(self, since: int) -> Scan:
        checksum = self._keys.checksum
        fresh = Scan(checksum, since)
        if self._file is None:
            return fresh
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=Scan)
        except (OSError, msgspec.DecodeError):
            return fresh
        is_same = kept.descriptor == checksum and kept.since <= since
        return kept if is_same else fresh

    def _save(self) -> None:
        if self._file is not None:
            fresh = self._file.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(self._scan))
            fresh.replace(self._file)

    # ── calls ────────────────────────────────────────────────────────────────────────────────────

    def _call(self, method: str, *params: object) -> Any:
        body = {"jsonrpc": "1.0", "id": 0, "method": method, "params": list(params)}
        return _result(self._post(body), method)

    def _many(self, method: str, each: Iterable[str]) -> list[Any]:
        """One call per item, in one exchange; None for those that it does not know (any more)."""
        bodies = [
            {"jsonrpc": "1.0", "id": number, "method": method, "params": [one]}
            for number, one in enumerate(each)
        ]
        answers = self._post(bodies)
        if not isinstance(answers, list) or len(answers) != len(bodies):
            raise RailUnavailable("the node answers less than it was asked")
        by_id = {one.get("id"): one for one in answers if isinstance(one, dict)}
        return [by_id.get(number, {}).get("result") for number in range(len(bodies))]

    def _post(self, body: object) -> Any:
        kind = http.client.HTTPSConnection if self._https else http.client.HTTPConnection
        more: dict[str, Any] = {"context": self._tls} if self._https and self._tls else {}
        line = kind(self._host, self._port, timeout=_TIMEOUT_S, **more)
        headers = {"Authorization": f"Basic {self._token}", "Content-Type": "application/json"}
        try:
            line.request("POST", self._path, json.dumps(body), headers)
            answer = line.getresponse()
            raw = answer.read(_ANSWER_MAX_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise RailUnavailable(f"the node gave no answer: {type(error).__name__}") from None
        finally:
            line.close()
        if answer.status in (401, 403):
            raise RailUnavailable("the node does not let us in: check its user and password")
        try:
            return json.loads(raw, parse_float=Decimal)
        except ValueError:
            raise RailUnavailable(f"the node answered with status {answer.status}") from None


class _Given(bdk.Persistence):  # type: ignore[misc]  # bdkpython has no types
    """Hands over what there is; what the wallet learns later is in the chain or in the book."""

    def __init__(self, whole: bdk.ChangeSet) -> None:
        self._whole = whole

    def initialize(self) -> bdk.ChangeSet:
        return self._whole

    def persist(self, changeset: bdk.ChangeSet) -> None:
        pass


def _hash(shown: str) -> bdk.BlockHash:
    return bdk.BlockHash.from_string(shown)


def _result(answer: Any, method: str) -> Any:
    if not isinstance(answer, dict):
        raise RailUnavailable("the node's answer is not what the call answers with")
    error = answer.get("error")
    if error:
        code, message = int(error.get("code", 0)), str(error.get("message", ""))[:160]
        if method == "sendrawtransaction" and code == _KNOWN:
            return None
        if code in _NOT_NOW:
            raise RailUnavailable(f"the node is not ready: {message}")
        raise RailRejected(f"the node refused: {message}", code=code)
    return answer.get("result")
