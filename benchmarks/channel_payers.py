"""Payers of a gateway by channel: each signs for its last answer with its next request."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.load import Load, _Caller, _Round, chat_request
from farebox.clock import NS_PER_S, SystemClock
from farebox.ids import new_id
from farebox.wire.subrav.didauth import sign_did_auth
from farebox.wire.subrav.keys import SigningKey, sign_sub_rav
from farebox.wire.subrav.model import SubRAV
from farebox.wire.subrav.payload import HEADER_NAME, RequestPayload, parse_response_header

_NAME = HEADER_NAME.lower().encode() + b": "
_PATH = "/v1/chat/completions"


@dataclass
class Payer:
    """One sub-channel. `says_who`: with an authorization on each request, as payment-kit sends."""

    port: int
    did: str
    fragment: str
    key: SigningKey
    says_who: bool
    owed: SubRAV | None = None

    def request(self) -> bytes:
        """The next request, with the voucher for the last one."""
        signed = None if self.owed is None else sign_sub_rav(self.owed, self.key)
        payload = RequestPayload(client_tx_ref=new_id("tx"), signed_sub_rav=signed)
        headers = f"{HEADER_NAME}: {payload.header()}\r\n"
        if self.says_who or signed is None:
            headers += f"Authorization: {self._authorization()}\r\n"
        return chat_request(self.port, stream=False, headers=headers.encode())

    def hears(self, answer: bytes) -> None:
        """What is to be signed next."""
        at = answer.index(_NAME) + len(_NAME)
        told = parse_response_header(answer[at : answer.index(b"\r\n", at)].decode())
        assert told.error is None, told.error
        assert told.sub_rav is not None
        self.owed = told.sub_rav

    def _authorization(self) -> str:
        return sign_did_auth(
            self.did,
            self.fragment,
            self.key,
            operation="http_request",
            params={"uri": f"http://127.0.0.1:{self.port}{_PATH}", "method": "POST"},
            nonce=new_id("n"),
            timestamp_s=SystemClock().now_ns() // NS_PER_S,
        ).header()


@dataclass
class KeyHolder:
    """One account key, for as many accounts as there are sub-channels."""

    port: int
    secret: str

    def request(self) -> bytes:
        """The same request again."""
        headers = b"authorization: Bearer %s\r\n" % self.secret.encode()
        return chat_request(self.port, stream=False, headers=headers)

    def hears(self, answer: bytes) -> None:
        """There is nothing to be learnt from it."""


class _Paying(_Caller):
    """A connection of one payer."""

    def __init__(self, round_: _Round, payer: Payer | KeyHolder) -> None:
        super().__init__(round_)
        self._payer = payer

    def _ask(self) -> None:
        if self._round.take():
            request = self._payer.request()
            self._asked_at = time.perf_counter()
            self._transport.write(request)
        else:
            self._transport.close()

    def heard(self, answer: bytes) -> None:
        """Read what is to be signed, before the next request is made."""
        self._payer.hears(answer)


async def drive_payers(
    port: int, payers: Sequence[Payer] | Sequence[KeyHolder], count: int
) -> Load:
    """Ask `count` times, each payer on a connection of its own."""
    round_ = _Round(b"", count)
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    for payer in payers:
        await loop.create_connection(partial(_Paying, round_, payer), "127.0.0.1", port)
    await round_.finished
    seconds = time.perf_counter() - began
    return Load(count, seconds, 0)


def open_channel(port: int, secret: str, fragment: str, key: SigningKey, amount_msat: int) -> str:
    """Open a key's channel from its account; the payer's DID."""
    body = {
        "amount_msat": amount_msat,
        "fragment": fragment,
        "key_type": key.type.value,
        "public_key": key.public.multibase,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/channels",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        did: str = json.loads(answer.read())["payer_did"]
    return did
