"""The node port in front of each kind of node, and somebody else's node to deal with."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from farebox.clock import SystemClock
from farebox.rails.lightning import Cln, LightningNode, Line, Lnbits, Lnd, open_node_session
from farebox.rails.web import Breaker
from farebox.testing.asgi import serving
from farebox.wire.bolt11 import decode_invoice
from tests.contract.rail.fake_cln import FakeCln
from tests.peers.lnbits import LnbitsServer
from tests.peers.lnd import LightningNetwork
from tests.simulation.lightning import ModelLnd

HEADERS = {"lnd": "Grpc-Metadata-macaroon", "cln": "Rune", "lnbits": "X-Api-Key"}


@dataclass
class Side:
    """A node of ours behind the port; `payer_*` are what another's owner does.

    `dead_invoice` gives one that nobody can pay any more.
    """

    name: str
    node: LightningNode
    network: str
    url: str
    secret: str
    payer_pay: Callable[[str], str]
    payer_invoice: Callable[[int], str]
    dead_invoice: Callable[[], str]
    has_cursor: bool = True
    tls: ssl.SSLContext | None = None
    certificate: Path | None = None
    invoice_key: str = ""


@asynccontextmanager
async def line_to(
    url: str, header: str, secret: str, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Line]:
    """A way to a node."""
    async with open_node_session() as session:
        yield Line(url, {header: secret}, session, Breaker(SystemClock()), tls=tls, call_s=60)


def hash_of(invoice: str) -> str:
    return decode_invoice(invoice).payment_hash.hex()


@asynccontextmanager
async def lnd_side(network: LightningNetwork) -> AsyncIterator[Side]:
    secret = await asyncio.to_thread(network.house.bake)
    tls = ssl.create_default_context(cafile=str(network.house.certificate))

    def dead() -> str:
        text = network.payer.invoice(3_000)
        raw = base64.b64encode(bytes.fromhex(hash_of(text))).decode()
        network.payer.post("/v2/invoices/cancel", {"payment_hash": raw})
        return text

    url = network.house.url
    async with line_to(url, HEADERS["lnd"], secret, tls) as line:
        payer = network.payer
        yield Side(
            "lnd",
            Lnd(line),
            "sb",
            url,
            secret,
            payer.pay,
            payer.invoice,
            dead,
            tls=tls,
            certificate=network.house.certificate,
        )


@asynccontextmanager
async def lnbits_side(server: LnbitsServer) -> AsyncIterator[Side]:
    house, payer = server.house, server.payer
    foreign = FakeCln()  # an invoice that its fake funding source never heard of
    async with line_to(server.url, HEADERS["lnbits"], house.admin_key) as line:
        yield Side(
            "lnbits",
            Lnbits(line, invoice_key=house.invoice_key),
            "bc",
            server.url,
            house.admin_key,
            payer.pay,
            payer.invoice,
            lambda: foreign.invoice(3_000),
            has_cursor=False,
            invoice_key=house.invoice_key,
        )


@asynccontextmanager
async def cln_side() -> AsyncIterator[Side]:
    ours, theirs = FakeCln(), FakeCln()
    ours.others, theirs.others = [theirs], [ours]
    nobody = FakeCln()
    async with serving(ours) as ours.url, line_to(ours.url, HEADERS["cln"], ours.rune) as line:
        yield Side(
            "cln",
            Cln(line),
            "bcrt",
            ours.url,
            ours.rune,
            theirs.pay,
            theirs.invoice,
            lambda: nobody.invoice(3_000),
        )


@asynccontextmanager
async def model_side() -> AsyncIterator[Side]:
    """The node of the simulation, over a socket: what it does there a real one does too."""
    loop = asyncio.get_running_loop()
    model = ModelLnd(SystemClock(), macaroon="0123456789abcdef" * 8)

    def in_its_loop(call: Callable[..., Any], *args: Any) -> Any:
        async def called() -> Any:
            return call(*args)

        return asyncio.run_coroutine_threadsafe(called(), loop).result(60)

    def paid(text: str) -> str:
        return "SUCCEEDED" if in_its_loop(model.pay_in, text) else "FAILED"

    async with serving(model) as url, line_to(url, HEADERS["lnd"], model.macaroon) as line:
        yield Side(
            "lnd",
            Lnd(line),
            "bcrt",
            url,
            model.macaroon,
            paid,
            lambda amount_msat: str(in_its_loop(model.payee_invoice, amount_msat)),
            lambda: str(in_its_loop(model.dead_invoice, 3_000)),
        )


@pytest.fixture(
    params=[
        pytest.param("lightning", marks=pytest.mark.peer),
        pytest.param("lnbits", marks=pytest.mark.peer),
        "contract fake of cln",
        "model of the simulation",
    ]
)
async def side(request: pytest.FixtureRequest) -> AsyncIterator[Side]:
    """Each kind of node in turn."""
    match request.param:
        case "lightning":
            async with lnd_side(request.getfixturevalue("lightning")) as one:
                yield one
        case "lnbits":
            async with lnbits_side(request.getfixturevalue("lnbits")) as one:
                yield one
        case "model of the simulation":
            async with model_side() as one:
                yield one
        case _:
            async with cln_side() as one:
                yield one
