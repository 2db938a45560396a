"""A play Rooch node: the play contract behind the JSON-RPC of a node, its objects in BCS.

A contract fake: no Rooch node can be had here. payment-kit's own contract class reads and calls it
as well, and so says that it speaks as a node does.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from farebox.channels.chain import ChannelStatus
from farebox.errors import RailRejected
from farebox.gateway.asgi import Receive, Scope, Send, read_body
from farebox.rails.rooch.states import field_key
from farebox.testing.asgi import respond
from farebox.testing.channels import PlayContract
from farebox.wire.subrav.bcs import string
from farebox.wire.subrav.keys import VerificationKey
from farebox.wire.subrav.model import SignedSubRAV, SubRAV
from farebox.wire.subrav.rooch import address_did, did_address, hub_id

_STATUSES = [ChannelStatus.ACTIVE, ChannelStatus.CLOSING, ChannelStatus.CLOSED]


@dataclass
class PlayNode:
    """`documents`: keys by DID URL. `loses_answers`: a transaction is executed, and nobody told."""

    contract: PlayContract
    documents: dict[str, VerificationKey] = field(default_factory=dict)
    sequence: dict[str, int] = field(default_factory=dict)
    transactions: list[bytes] = field(default_factory=list)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    loses_answers: bool = False
    chain_id: int = PlayContract.chain_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        call = json.loads(await read_body(receive, 1 << 20))
        self.asked.append((call["method"], call["params"]))
        told: dict[str, Any] = {"jsonrpc": "2.0", "id": call["id"]}
        try:
            told["result"] = await getattr(self, call["method"])(*call["params"])
        except ValueError as error:
            told["error"] = {"code": -32000, "message": str(error)}
        if self.loses_answers and call["method"] == "rooch_executeRawTransaction":
            await respond(send, 502, b"")
            return
        await respond(send, 200, json.dumps(told).encode())

    async def rooch_getChainID(self) -> str:  # noqa: N802
        return str(self.chain_id)

    async def rooch_getObjectStates(self, ids: str, _: Any) -> list[Any]:  # noqa: N802
        channel = self.contract.channels.get(ids)
        if channel is not None:
            return [
                state(
                    did_address(channel.payer_did)
                    + did_address(channel.payee_did)
                    + string(channel.asset_id.encode())
                    + b"\x01"
                    + table(ids)
                    + bytes((_STATUSES.index(channel.status),))
                    + channel.epoch.to_bytes(8, "little")
                    + b"\x00"
                )
            ]
        if any(hub == ids for hub, _ in self.contract.hubs):
            return [state(b"\x01" + table(ids) + b"\x01" + bytes(32))]
        return [None]

    async def rooch_getFieldStates(  # noqa: N802
        self, object_id: str, keys: list[str], _: Any
    ) -> list[Any]:
        for (channel_id, name), sub in self.contract.subs.items():
            if object_id == "0x" + table(channel_id).hex() and keys == [field_key(name)]:
                return [
                    state(
                        string(name.encode())
                        + string(sub.key.multibase.encode())
                        + string(sub.key.type.value.encode())
                        + sub.last_claimed_amount.to_bytes(32, "little")
                        + sub.last_confirmed_nonce.to_bytes(8, "little")
                    )
                ]
        for (hub, asset), balance in self.contract.hubs.items():
            if object_id == "0x" + table(hub).hex() and keys == [field_key(asset)]:
                coin = string(asset.encode())
                return [state(coin + coin + balance.to_bytes(32, "little") + b"\x00")]
        return [None]

    async def rooch_executeViewFunction(self, call: Any) -> Any:  # noqa: N802
        assert call["function_id"] == f"0x{2:064x}::account::sequence_number"
        number = self.sequence.get(call["args"][0].removeprefix("0x"), 0)
        return {"vm_status": "Executed", "return_values": [{"decoded_value": str(number)}]}

    async def rooch_executeRawTransaction(self, raw: str, _: Any) -> Any:  # noqa: N802
        transaction = bytes.fromhex(raw.removeprefix("0x"))
        self.transactions.append(transaction)
        at = Reader(transaction)
        sender, number, chain_id = at.take(32), at.number(8), at.number(8)
        assert at.number(8) > 0
        assert at.take(1) == b"\x01"
        assert at.take(32) == bytes(31) + b"\x03"
        module, function = at.text(), at.text()
        coins = [at.struct_tag() for _ in range(at.number(1))]
        arguments = [at.chunk() for _ in range(at.number(1))]
        data = transaction[: at.at]
        assert at.number(8) == 4
        assert at.number(1) == len(transaction) - at.at
        assert at.take(1) == b"\x00"
        fragment, signature = at.text(), at.chunk()
        assert at.take(2) == b"\x00"
        did = address_did(sender)
        key = self.documents[f"{did}#{fragment}"]
        if not key.verifies(signature, hashlib.sha3_256(data).digest()):
            raise ValueError("the transaction is badly signed")
        if number != self.sequence.get(sender.hex(), 0) or chain_id != self.chain_id:
            raise ValueError("SEQUENCE_NUMBER_TOO_OLD")
        self.sequence[sender.hex()] = number + 1
        assert module == "payment_channel"
        try:
            await self.run(did, function, coins, arguments)
        except RailRejected:
            return {"execution_info": {"status": {"type": "moveabort", "abort_code": "7"}}}
        return {"execution_info": {"status": {"type": "executed"}, "tx_hash": "0x1"}}

    async def run(self, did: str, function: str, coins: list[str], told: list[bytes]) -> None:
        contract = self.contract
        match function:
            case "deposit_to_hub_entry":
                await self.open(address_did(told[0]), did, coins[0], told[1])
            case "open_channel_with_sub_channel_entry":
                fragment = Reader(told[1]).text()
                await contract.open_channel_with_sub_channel(
                    payer_did=did,
                    payee_did=address_did(told[0]),
                    asset_id=coins[0],
                    collateral=0,
                    fragment=fragment,
                    key=self.documents[f"{did}#{fragment}"],
                )
            case "authorize_sub_channel_entry":
                fragment = Reader(told[1]).text()
                await contract.authorize_sub_channel(
                    object_id(told[0]), fragment, self.documents[f"{did}#{fragment}"]
                )
            case "claim_from_channel_entry":
                sub_rav = SubRAV(
                    chain_id=self.chain_id,
                    channel_id=object_id(told[0]),
                    channel_epoch=contract.channels[object_id(told[0])].epoch,
                    vm_id_fragment=Reader(told[1]).text(),
                    accumulated_amount=int.from_bytes(told[2], "little"),
                    nonce=int.from_bytes(told[3], "little"),
                )
                await contract.claim(SignedSubRAV(sub_rav, Reader(told[4]).chunk()))
            case "initiate_cancellation_entry":
                await contract.request_close(object_id(told[0]))
            case "finalize_cancellation_entry" | "close_channel_entry":
                await contract.close(object_id(told[0]))
            case _:
                raise AssertionError(function)

    async def open(self, owner: str, sender: str, coin: str, amount: bytes) -> None:
        assert owner == sender
        hub = hub_id(owner), coin
        self.contract.hubs[hub] = self.contract.hubs.get(hub, 0) + int.from_bytes(amount, "little")


def state(raw: bytes) -> dict[str, str]:
    return {"value": "0x" + raw.hex()}


def table(object_id: str) -> bytes:
    """A table of its own for each object."""
    return hashlib.sha3_256(object_id.encode()).digest()


def object_id(raw: bytes) -> str:
    assert raw[0] == 1
    return "0x" + raw[1:].hex()


class Reader:
    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def take(self, size: int) -> bytes:
        self.at += size
        return self.raw[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def chunk(self) -> bytes:
        size = self.number(1)
        if size >= 128:
            size = size & 127 | self.number(1) << 7
        return self.take(size)

    def text(self) -> str:
        return self.chunk().decode()

    def struct_tag(self) -> str:
        assert self.take(1) == b"\x07"
        tag = f"0x{self.take(32).hex()}::{self.text()}::{self.text()}"
        assert self.take(1) == b"\x00"
        return tag
