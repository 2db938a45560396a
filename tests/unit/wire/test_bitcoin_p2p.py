"""What a Bitcoin node says is read as it is meant, or refused; and not without end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.errors import InvalidInput, RailUnavailable
from farebox.rails.bitcoin.peers import Line, PeerAddress
from farebox.wire.bitcoin_p2p import (
    PAYLOAD_MAX_BYTES,
    framed,
    greeting,
    read_greeting,
    read_head,
    read_refusal,
)

#: The documentation's own `verack`, on the network that everybody means.
VERACK = bytes.fromhex("f9beb4d976657261636b000000000000000000005df6e0e2")
VERSION = (70_016).to_bytes(4, "little") + (1 | 1 << 6).to_bytes(8, "little") + bytes(68)
HELLO = VERSION + b"\x06/node/" + (812).to_bytes(4, "little") + b"\x01"


def test_a_message_is_framed_as_documented() -> None:
    assert framed("bitcoin", "verack") == VERACK
    head = read_head("bitcoin", VERACK)
    assert (head.command, head.length) == ("verack", 0)


def test_a_greeting_tells_who_a_node_is_and_what_it_serves() -> None:
    found = read_greeting(HELLO)
    assert (found.agent, found.height, found.has_filters) == ("/node/", 812, True)
    ours = read_greeting(greeting(7, 1_700_000_000))
    assert (ours.agent, ours.height, ours.has_filters) == ("", 0, False)


def test_a_refusal_tells_whether_the_transaction_is_merely_known() -> None:
    found = read_refusal(b"\x02tx\x12\x04have" + bytes(32))
    assert (found.what, found.reason, found.is_known) == ("tx", "have", True)
    assert not read_refusal(b"\x02tx\x42\x03fee" + bytes(32)).is_known


@pytest.mark.parametrize(
    "raw",
    [
        framed("signet", "verack"),
        VERACK[:16] + (PAYLOAD_MAX_BYTES + 1).to_bytes(4, "little") + VERACK[20:],
    ],
)
def test_another_network_and_what_is_too_long_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_head("bitcoin", raw)


@given(st.binary(max_size=120))
def test_no_bytes_do_anything_but_be_read_or_refused(raw: bytes) -> None:
    for read in (read_greeting, read_refusal):
        with suppress(InvalidInput):
            read(raw)


@contextmanager
def node_that_says(said: bytes) -> Iterator[PeerAddress]:
    """Says this to whoever connects, then hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            line, _ = listener.accept()
            with line, suppress(OSError):
                line.recv(1_000)
                line.sendall(said)

        answering = threading.Thread(target=answer)
        answering.start()
        yield PeerAddress("127.0.0.1", listener.getsockname()[1])
        answering.join()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n" * 2,
        framed("signet", "version", HELLO),
        framed("regtest", "version", HELLO[:-3]),
        framed("regtest", "version", HELLO)[:-1] + b"\x00",
        framed("regtest", "verack") * 1_000,
        framed("regtest", "version", HELLO) + framed("regtest", "ping", bytes(8)) * 1_000,
    ],
    ids=["nothing", "http", "other network", "cut short", "damaged", "no greeting", "chatter"],
)
def test_a_node_that_talks_nonsense_is_left(said: bytes) -> None:
    with node_that_says(said) as address, pytest.raises(RailUnavailable, match="cannot be asked"):
        Line(address, "regtest")
