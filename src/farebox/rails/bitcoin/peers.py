"""Other nodes, by the Bitcoin network's own protocol: who they are, and a transaction for them.

The library's light client (`follower.py`) offers transactions by their witness id only (BIP-339),
which not every node that serves filters understands; here one is simply handed over.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TypeVar

from farebox.clock import NS_PER_S, SystemClock
from farebox.errors import InvalidInput, RailError, RailRejected, RailUnavailable
from farebox.rails.bitcoin.chain import is_known
from farebox.wire.bitcoin_p2p import (
    HEAD_BYTES,
    Greeting,
    check_payload,
    framed,
    greeting,
    read_greeting,
    read_head,
    read_refusal,
)

T = TypeVar("T")
_TIMEOUT_S = 5
_MESSAGES_MAX = 200


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a node listens; a name or an IP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Line:
    """A connection to one node, greeted. Raises RailUnavailable, as all that is asked over it."""

    def __init__(self, address: PeerAddress, network: str) -> None:
        self.address = address
        self._network = network
        self._ends_at = time.monotonic() + _TIMEOUT_S
        try:
            self._socket = socket.create_connection((address.host, address.port), _TIMEOUT_S)
        except OSError as error:
            raise self._lost(type(error).__name__) from None
        try:
            self.greeting = self._greeted()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def hand_over(self, raw: bytes) -> None:
        """Give it a transaction. Raises RailRejected where it says that it does not take it.

        Bitcoin Core says nothing of the kind: there, no refusal is no promise.
        """
        number = secrets.token_bytes(8)
        self._say("tx", raw)
        self._say("ping", number)  # answered after the transaction was looked at
        for _ in range(_MESSAGES_MAX):
            command, payload = self._hear()
            if command == "pong" and payload == number:
                return
            if command == "reject":
                refusal = self._read(read_refusal, payload)
                if refusal.what == "tx" and not (refusal.is_known or is_known(refusal.reason)):
                    raise RailRejected(f"the node refused: {refusal.reason}")
        raise self._lost("it talks of other things")

    def _greeted(self) -> Greeting:
        self._say("version", greeting(secrets.randbits(64), SystemClock().now_ns() // NS_PER_S))
        found = None
        for _ in range(_MESSAGES_MAX):
            command, payload = self._hear()
            if command == "version" and found is None:
                found = self._read(read_greeting, payload)
                self._say("verack")
            elif command == "verack" and found is not None:
                return found
        raise self._lost("it does not greet")

    def _say(self, command: str, payload: bytes = b"") -> None:
        try:
            self._socket.sendall(framed(self._network, command, payload))
        except OSError as error:
            raise self._lost(type(error).__name__) from None

    def _hear(self) -> tuple[str, bytes]:
        """The next message."""
        head = self._read(partial(read_head, self._network), self._take(HEAD_BYTES))
        payload = self._take(head.length)
        self._read(partial(check_payload, head), payload)
        return head.command, payload

    def _read(self, reader: Callable[[bytes], T], raw: bytes) -> T:
        try:
            return reader(raw)
        except InvalidInput as error:
            raise self._lost(str(error)) from None

    def _take(self, length: int) -> bytes:
        found = b""
        while len(found) < length:
            left_s = self._ends_at - time.monotonic()
            try:
                self._socket.settimeout(max(0.001, left_s))
                part = self._socket.recv(length - len(found))
            except OSError as error:
                raise self._lost(type(error).__name__) from None
            if not part:
                raise self._lost("it hung up; nodes of another network do")
            found += part
        return found

    def _lost(self, reason: str) -> RailUnavailable:
        return RailUnavailable(f"the node at {self.address} cannot be asked: {reason}")


def greet(addresses: Sequence[PeerAddress], network: str) -> tuple[list[Greeting], list[str]]:
    """Who serves filters, and what is wrong with the others."""

    def ask(line: Line) -> Greeting:
        if not line.greeting.has_filters:
            raise RailUnavailable(f"the node at {line.address} serves no compact filters")
        return line.greeting

    told = _each(addresses, network, ask)
    found = [one for one in told if isinstance(one, Greeting)]
    return found, [str(one) for one in told if isinstance(one, RailError)]


def send(addresses: Sequence[PeerAddress], network: str, raw: bytes) -> None:
    """Hand a transaction to every node. Raises RailUnavailable where none can be reached and
    RailRejected where all that can say no.
    """
    told = _each(addresses, network, lambda line: line.hand_over(raw))
    if None not in told:
        refused = [one for one in told if isinstance(one, RailRejected)]
        lost = [one for one in told if isinstance(one, RailUnavailable)]
        raise (refused or lost)[0]


def _each(
    addresses: Sequence[PeerAddress], network: str, ask: Callable[[Line], T]
) -> list[T | RailError]:
    """What each answers, or why it does not; all are asked at once."""

    def one(address: PeerAddress) -> T | RailError:
        try:
            with Line(address, network) as line:
                return ask(line)
        except RailError as error:
            return error

    with ThreadPoolExecutor(len(addresses)) as pool:
        return list(pool.map(one, addresses))
