"""A contract fake of Core Lightning's REST plugin: no Core Lightning could be had to run against.

Written from its reference (https://docs.corelightning.org/reference/), for the calls that Farebox
makes and no more: what it says is what the reference says, which no real node has confirmed here.
Two of them make a network in which every payment costs one satoshi.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
from dataclasses import dataclass, field
from typing import Any

from farebox.clock import SystemClock
from farebox.testing.asgi import Receive, Scope, Send, read_body, respond
from farebox.testing.mint.lightning import encode_invoice
from farebox.wire.bolt11 import decode_invoice

FEE_MSAT = 1_000
_WAITED, _NO_ROUTE, _BAD_PARAMETERS = 904, 205, -32602

Document = dict[str, Any]


class Failure(Exception):
    """A JSON-RPC error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class FakeCln:
    """One node. `others` are the nodes that it can pay."""

    others: list[FakeCln] = field(default_factory=list)
    rune: str = field(default_factory=lambda: secrets.token_urlsafe(48))
    url: str = ""
    invoices: dict[str, Document] = field(default_factory=dict)
    preimages: dict[str, bytes] = field(default_factory=dict)
    pays: dict[str, Document] = field(default_factory=dict)
    pay_index: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    id: str = field(default_factory=lambda: "02" + secrets.token_hex(32))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if headers.get(b"rune", b"").decode() != self.rune:
            said = {"code": 1501, "message": "Not authorized: invalid rune"}
            return await respond(send, 401, json.dumps(said).encode())
        name = scope["path"].removeprefix("/v1/")
        asked = json.loads(await read_body(receive, 1 << 20))
        try:
            told = await getattr(self, f"_{name}")(asked)
        except Failure as failure:
            said = {"code": failure.code, "message": str(failure)}
            return await respond(send, 500, json.dumps(said).encode())
        return await respond(send, 201, json.dumps(told).encode())

    # ── what a person does with a wallet ─────────────────────────────────────────────────────────

    def invoice(self, amount_msat: int) -> str:
        """An invoice of this node."""
        preimage = os.urandom(32)
        payment_hash = hashlib.sha256(preimage).hexdigest()
        now_s = SystemClock().now_ns() // 10**9
        text = encode_invoice(amount_msat, bytes.fromhex(payment_hash), now_s)
        self.preimages[payment_hash] = preimage
        self.invoices[payment_hash] = {
            "bolt11": text,
            "payment_hash": payment_hash,
            "amount_msat": amount_msat,
            "status": "unpaid",
        }
        return text

    def pay(self, text: str) -> str:
        """Pay an invoice of another node; its end in Core Lightning's words."""
        return str(self._paid(text, FEE_MSAT)["status"])

    # ── the calls ────────────────────────────────────────────────────────────────────────────────

    async def _getinfo(self, _: Document) -> Document:
        return {"id": self.id, "version": "v25.09", "network": "regtest", "blockheight": 100}

    async def _listpeerchannels(self, _: Document) -> Document:
        channel = {"state": "CHANNELD_NORMAL", "spendable_msat": 10**9, "receivable_msat": 10**9}
        return {"channels": [channel]}

    async def _invoice(self, asked: Document) -> Document:
        for name in ("amount_msat", "label", "description"):
            if name not in asked:
                raise Failure(_BAD_PARAMETERS, f"missing required parameter: {name}")
        text = self.invoice(asked["amount_msat"])
        known = decode_invoice(text)
        return {
            "payment_hash": known.payment_hash.hex(),
            "bolt11": text,
            "expires_at": known.expires_at_s,
        }

    async def _listinvoices(self, asked: Document) -> Document:
        wanted = asked.get("payment_hash")
        found = [one for one in self.invoices.values() if wanted in (None, one["payment_hash"])]
        return {"invoices": found}

    async def _waitanyinvoice(self, asked: Document) -> Document:
        try:
            async with asyncio.timeout(asked["timeout"]):
                while True:
                    for one in self.invoices.values():
                        if one.get("pay_index", 0) > asked["lastpay_index"]:
                            return one
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            raise Failure(_WAITED, "Timed out while waiting for invoice to be paid") from None

    async def _decode(self, asked: Document) -> Document:
        decode_invoice(asked["string"])
        return {"type": "bolt11 invoice", "payee": self.id, "valid": True}

    async def _getroute(self, asked: Document) -> Document:
        return {"route": [{"amount_msat": asked["amount_msat"] + FEE_MSAT}]}

    async def _pay(self, asked: Document) -> Document:
        return self._paid(asked["bolt11"], asked["maxfee"])

    async def _listpays(self, asked: Document) -> Document:
        wanted = asked["payment_hash"]
        return {"pays": [one for one in self.pays.values() if one["payment_hash"] == wanted]}

    def _paid(self, text: str, fee_max_msat: int) -> Document:
        payment_hash = decode_invoice(text).payment_hash.hex()
        before = self.pays.get(payment_hash)
        if before is not None and before["status"] == "complete":
            return {**before, "payment_preimage": before["preimage"]}
        payee = next((one for one in self.others if payment_hash in one.invoices), None)
        amount_msat = decode_invoice(text).amount_msat or 0
        known: Document = {"payment_hash": payment_hash, "status": "failed"}
        self.pays[payment_hash] = known
        if payee is None or fee_max_msat < FEE_MSAT:
            raise Failure(_NO_ROUTE, "Could not find a usable set of paths.")
        payee.settle(payment_hash, amount_msat)
        known |= {
            "status": "complete",
            "amount_msat": amount_msat,
            "amount_sent_msat": amount_msat + FEE_MSAT,
            "preimage": payee.preimages[payment_hash].hex(),
        }
        return {**known, "payment_preimage": known["preimage"]}

    def settle(self, payment_hash: str, amount_msat: int) -> None:
        """An invoice of this node is paid."""
        self.pay_index += 1
        self.invoices[payment_hash] |= {
            "status": "paid",
            "amount_received_msat": amount_msat,
            "pay_index": self.pay_index,
            "paid_at": SystemClock().now_ns() // 10**9,
        }
        self.changed.set()
