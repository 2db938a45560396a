"""What a node has not said itself is no failure of a payment: the call may be on its way yet.

The nodes are the few answers that a payment asks for; `test_node_port.py` has real ones.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from farebox.clock import SystemClock
from farebox.errors import RailUnavailable
from farebox.rails.lightning import Cln, LightningNode, Line, Lnbits, Lnd
from farebox.rails.lightning.node import Payment, PaymentState, PayOrder
from farebox.rails.lightning.transport import open_node_session
from farebox.rails.web import Breaker
from farebox.testing.asgi import Receive, Scope, Send, respond, serving

ORDER = PayOrder("lnbc1", "ab" * 32, 21_000, 1_000, 5)
NODES: dict[str, Callable[[Line], LightningNode]] = {"lnd": Lnd, "cln": Cln, "lnbits": Lnbits}
#: How each says that it has never heard of a payment.
NEVER_HEARD = {
    "lnd": (404, b'{"code": 5, "message": "payment isn\'t initiated"}'),
    "cln": (201, b'{"pays": []}'),
    "lnbits": (404, b'{"detail": "Payment does not exist."}'),
}
ITS_OWN_NO = {
    "lnd": (500, b'{"code": 2, "message": "invoice expired"}'),
    "cln": (500, b'{"code": 207, "message": "Invoice expired"}'),
    "lnbits": (520, b'{"detail": "Bolt11 invoice expired.", "status": "failed"}'),
}


async def paid(kind: str, status: int, body: bytes) -> Payment:
    """A payment that is answered so, by a node that does not know it afterwards."""

    async def node(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        asks = "track" in path or path.endswith("listpays") or scope["method"] == "GET"
        return await respond(send, *(NEVER_HEARD[kind] if asks else (status, body)))

    async with serving(node) as url, open_node_session() as session:
        line = Line(url, {}, session, Breaker(SystemClock()))
        return await NODES[kind](line).pay(ORDER)


@pytest.mark.parametrize("kind", NODES)
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (502, b'{"message": "An invalid response was received from the upstream server"}'),
        (504, b"<html>"),
        (429, b'{"message": "API rate limit exceeded"}'),
    ],
)
async def test_what_stands_before_a_node_does_not_say_that_a_payment_failed(
    kind: str, status: int, body: bytes
) -> None:
    with pytest.raises(RailUnavailable):
        await paid(kind, status, body)


@pytest.mark.parametrize("kind", NODES)
async def test_what_a_node_says_itself_and_does_not_know_has_failed(kind: str) -> None:
    assert (await paid(kind, *ITS_OWN_NO[kind])).state is PaymentState.FAILED
