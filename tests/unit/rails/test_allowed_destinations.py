"""With a list of who is paid nobody else is: by name on Lightning, by script on the chain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from farebox.bootstrap.bitcoin import open_bitcoin
from farebox.bootstrap.lightning import config_of, node_of
from farebox.clock import ManualClock
from farebox.errors import InvalidSettings, RailUnavailable
from farebox.ledger.processes import PROCESS, Processes
from farebox.ledger.service import Ledger
from farebox.payments import RefundPlan, RefundQuote, RefundRequest, Refusal
from farebox.payments.model import OPERATION
from farebox.payments.operations import Operations
from farebox.rails.lightning import LightningMethod, open_node_session
from farebox.rails.lightning.paying import Paying
from farebox.rails.web.lnurl import Fixed, Lnurl, PayEndpoint
from farebox.settings import Settings, load_settings
from farebox.stores.sqlite import SqliteStore

WORDS = "abandon " * 11 + "about"
OURS = "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"
OTHERS = "bc1qrp33g0q5c5txsp9arysrx4k6zdkfs4nce4xj0gdcccefvpysxf3qccfmv3"


class Nobody(Lnurl):
    """Who is looked for is not there."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def resolve(self, destination: str) -> Fixed | PayEndpoint:
        self.asked.append(destination)
        raise RailUnavailable("nobody is there")


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    store = SqliteStore(tmp_path / "book.db", [OPERATION, PROCESS], clock=ManualClock())
    yield Ledger(store, ManualClock())
    await store.close()


def settings(**rails: object) -> Settings:
    return load_settings(None, {}, rails)


def code(told: RefundPlan | RefundQuote | Refusal) -> str:
    assert isinstance(told, Refusal)
    return told.code


async def test_on_lightning_they_are_known_by_name(ledger: Ledger) -> None:
    terms = {"url": "http://127.0.0.1:1", "key": "k", "allowed": ["You@Example.com"]}
    found = settings(**{f"lightning.{name}": told for name, told in terms.items()}).lightning
    lnurl = Nobody()
    async with open_node_session() as session:
        node, breaker = node_of(found, session, ledger.clock)
        method = LightningMethod(config_of(found), node, breaker, ledger, session)
        assert not method.pays_invoices  # so nobody gets a withdraw link that nothing would pay
        paying = Paying(config_of(found), node, lnurl, ledger)
        for destination in ("me@example.com", "lnbc1qqq", "you@example.com.evil.org"):
            request = RefundRequest("op_1", 5_000, destination)
            assert code(await paying.plan(request)) == "destination_not_allowed"
            assert code(await paying.quote(request)) == "destination_not_allowed"
        assert not lnurl.asked
        request = RefundRequest("op_1", 5_000, " lightning:you@example.COM")
        assert code(await paying.plan(request)) == "destination_unavailable"


async def test_on_the_chain_they_are_known_by_script(ledger: Ledger) -> None:
    pytest.importorskip("bdkpython")
    terms = {"url": "http://127.0.0.1:1", "login": "a:b", "key": WORDS, "allowed": [OURS.upper()]}
    found = settings(**{f"bitcoin.{name}": told for name, told in terms.items()})
    operations = Operations(ledger, Processes(ledger, alone=True))
    closing: list[Callable[[], Awaitable[None]]] = []
    method = open_bitcoin(found, ledger, operations, closing.append)
    assert method is not None
    for destination, expected in (
        (OTHERS, "destination_not_allowed"),
        (f"bitcoin:{OURS}?amount=0.1", "rail_unavailable"),  # it goes on, to a node that is not
    ):
        request = RefundRequest("op_1", 10_000_000, destination)
        assert code(await method.plan_refund(request)) == expected
        assert code(await method.quote_refund(request)) == expected
    for close in closing:
        await close()


async def test_a_list_with_what_is_no_address_is_refused_at_the_start(ledger: Ledger) -> None:
    pytest.importorskip("bdkpython")
    terms = {"url": "http://127.0.0.1:1", "login": "a:b", "key": WORDS, "allowed": [OURS[:-1]]}
    found = settings(**{f"bitcoin.{name}": told for name, told in terms.items()})
    operations = Operations(ledger, Processes(ledger, alone=True))
    with pytest.raises(InvalidSettings, match=r"bitcoin\.allowed"):
        open_bitcoin(found, ledger, operations, lambda _: None)
