"""A contract fake of Esplora's HTTP API: no server of it could be had to run against.

Written from its reference (https://github.com/Blockstream/esplora/blob/master/API.md), for the
calls that the wallet library makes and no more. The chain behind it is a real node's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from dataclasses import dataclass
from typing import Any

import bdkpython as bdk

from farebox.testing.asgi import Receive, Scope, Send, read_body, respond
from tests.peers.bitcoin import BitcoinNode, Refused

_PAGE = 25
Document = dict[str, Any]


@dataclass(frozen=True)
class _Parsed:
    """A transaction as it is shown, and the hashes of the scripts that it pays or spends."""

    raw: bytes
    shown: Document
    scripts: list[str]


class FakeEsplora:
    """One server over a node. It reads what is new whenever the chain has moved."""

    def __init__(self, node: BitcoinNode) -> None:
        self._node = node
        self._reading = threading.Lock()
        self._seen: object = None
        self._known: dict[str, Document] = {}
        self._parsed: dict[str, list[_Parsed]] = {}  # by block
        self._blocks: list[Document] = []
        self._txs: dict[str, Document] = {}
        self._raw: dict[str, bytes] = {}
        self._paid: dict[str, list[str]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive, 1 << 20)
        status, told = await asyncio.to_thread(self._answer, scope["method"], scope["path"], body)
        await respond(send, status, told)

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if method == "POST" and path == "/tx":
            try:
                return 200, str(self._node.call("sendrawtransaction", body.decode())).encode()
            except Refused as error:
                return 400, f"sendrawtransaction RPC error: {error}".encode()
        with self._reading:  # the library asks several things at once
            self._read()
        match path.strip("/").split("/"):
            case ["fee-estimates"]:
                found: object = {}
            case ["blocks", "tip", "height"]:
                found = len(self._blocks) - 1
            case ["blocks", "tip", "hash"]:
                found = self._blocks[-1]["id"]
            case ["block-height", height] if int(height) < len(self._blocks):
                found = self._blocks[int(height)]["id"]
            case ["blocks", *start]:
                end = int(start[0]) + 1 if start else len(self._blocks)
                found = self._blocks[max(0, end - 10) : end][::-1]
            case ["scripthash", script, "txs"]:
                found = [self._txs[txid] for txid in self._history(script)[:_PAGE]]
            case ["scripthash", script, "txs", "chain", last]:
                history = self._history(script)
                after = history.index(last) + 1
                found = [self._txs[txid] for txid in history[after : after + _PAGE]]
            case ["tx", txid] if txid in self._txs:
                found = self._txs[txid]
            case ["tx", txid, "status"] if txid in self._txs:
                found = self._txs[txid]["status"]
            case ["tx", txid, "raw"] if txid in self._raw:
                return 200, self._raw[txid]
            case _:
                return 404, b"not found"
        return 200, found.encode() if isinstance(found, str) else json.dumps(found).encode()

    def _history(self, script: str) -> list[str]:
        """Newest first, what is in no block before all others."""
        return self._paid.get(script, [])[::-1]

    def _read(self) -> None:
        node = self._node
        best, pool = node.call("getbestblockhash"), sorted(node.pool())
        if (best, pool) == self._seen:
            return
        chain = [best]
        while parent := self._block(chain[-1]).get("previousblockhash"):
            chain.append(parent)
        self._blocks, self._txs, self._raw, self._paid = [], {}, {}, {}
        for height, name in enumerate(reversed(chain)):
            block = self._block(name)
            at = {"block_height": height, "block_hash": name, "block_time": block["time"]}
            if name not in self._parsed:
                self._parsed[name] = []
                for one in block.get("rawtx") or block.get("tx", []):
                    parsed = self._parse(bytes.fromhex(one["hex"]), {"confirmed": True, **at})
                    self._parsed[name].append(parsed)
            for parsed in self._parsed[name]:
                self._add(parsed)
            self._blocks.append(_summary(height, block))
        for txid in pool:
            raw = bytes.fromhex(node.call("getrawtransaction", txid))
            self._add(self._parse(raw, {"confirmed": False}))
        self._seen = (best, pool)

    def _block(self, name: str) -> Document:
        if name not in self._known:
            self._known[name] = self._node.call("getblock", name, 2)
            if self._known[name]["height"] == 0:
                self._known[name].pop("previousblockhash", None)
        return self._known[name]

    def _add(self, one: _Parsed) -> None:
        txid = one.shown["txid"]
        self._raw[txid], self._txs[txid] = one.raw, one.shown
        for script in one.scripts:
            self._paid.setdefault(script, []).append(txid)

    def _parse(self, raw: bytes, status: Document) -> _Parsed:
        tx = bdk.Transaction(raw)
        txid = str(tx.compute_txid())
        outputs = [(bytes(one.script_pubkey.to_bytes()), one.value.to_sat()) for one in tx.output()]
        inputs, scripts = [], {script for script, _ in outputs}
        for one in tx.input():
            name, place = str(one.previous_output.txid), one.previous_output.vout
            before = self._txs.get(name)
            spent = before["vout"][place] if before and not tx.is_coinbase() else None
            if spent:
                scripts.add(bytes.fromhex(spent["scriptpubkey"]))
            inputs.append(
                {
                    "txid": name,
                    "vout": place,
                    "prevout": spent,
                    "scriptsig": bytes(one.script_sig.to_bytes()).hex(),
                    "witness": [bytes(part).hex() for part in one.witness],
                    "sequence": one.sequence,
                    "is_coinbase": tx.is_coinbase(),
                }
            )
        shown = {
            "txid": txid,
            "version": tx.version(),
            "locktime": tx.lock_time(),
            "vin": inputs,
            "vout": [{"scriptpubkey": script.hex(), "value": sat} for script, sat in outputs],
            "size": len(raw),
            "weight": tx.weight(),
            "fee": 0,
            "status": status,
        }
        return _Parsed(raw, shown, [hashlib.sha256(script).hexdigest() for script in scripts])


def _summary(height: int, block: Document) -> Document:
    return {
        "id": block["hash"],
        "height": height,
        "version": block["version"],
        "timestamp": block["time"],
        "tx_count": 1,
        "size": 1,
        "weight": 4,
        "merkle_root": block["merkleroot"],
        "previousblockhash": block.get("previousblockhash"),
        "mediantime": block["time"],
        "nonce": block["nonce"],
        "bits": int(block["bits"], 16),
        "difficulty": 0,
    }
