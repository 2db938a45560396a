"""Peers as fixtures, started when first asked for and shared by the whole run.

Where tests run in several workers (`-n 3`), those of one peer all run in the same one, which alone
starts it. Who hands tests out to workers sees their ids only: hence each has its peer's name in it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.peers.anvil import Anvil
from tests.peers.bitcoin import BitcoinChain
from tests.peers.electrumx import ElectrumX
from tests.peers.install import PeerUnavailable
from tests.peers.lnbits import LnbitsServer
from tests.peers.lnd import LightningNetwork
from tests.peers.nutshell import Nutshell
from tests.peers.payment_kit import PaymentKit
from tests.peers.postgres import Postgres
from tests.peers.standby import Pair
from tests.peers.stripe import Localstripe, StripeMock

P = TypeVar(
    "P",
    Anvil,
    BitcoinChain,
    ElectrumX,
    Nutshell,
    LightningNetwork,
    LnbitsServer,
    Localstripe,
    StripeMock,
)

#: Each peer, and the fixtures below that start it.
PEERS = {
    "anvil": {"anvil", "anvil_ahead"},
    "bitcoin": {"bitcoin", "electrumx"},
    "lightning": {"lightning"},
    "lnbits": {"lnbits"},
    "localstripe": {"localstripe"},
    "nutshell": {"nutshell", "nutshell_with_fees"},
    "postgres": {"postgres", "pair"},
    "stripe_mock": {"stripe_mock"},
}


class _OnePeerOneWorker(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Hands out tests one by one, and all tests of a peer at once: of the one named last."""

    def _split_scope(self, nodeid: str) -> str:
        last = max(PEERS, key=nodeid.rfind)
        return last if last in nodeid else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Whatever `--dist` says."""
    return _OnePeerOneWorker(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse tests that take a peer and don't name it. Raises pytest.UsageError."""
    nameless = [
        f"{item.nodeid} must have the name of its peer, {peer}"
        for item in items
        for peer, fixtures in PEERS.items()
        if fixtures.intersection(getattr(item, "fixturenames", ())) and peer not in item.nodeid
    ]
    if nameless:
        raise pytest.UsageError("\n".join(nameless))


def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    """Refuse those as well that ask for a peer only when they run. Raises pytest.UsageError."""
    asks = os.environ.get("PYTEST_CURRENT_TEST", "")
    for peer, fixtures in PEERS.items():
        if fixturedef.argname in fixtures and peer not in asks:
            raise pytest.UsageError(f"{asks} must have the name of its peer, {peer}")


def missing(peer: str, reason: PeerUnavailable) -> None:
    """Skip the test, or fail it where peers are required."""
    message = f"{peer} is not to be had: {reason}"
    if os.environ.get("FAREBOX_REQUIRE_PEERS") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port of loopback that refuses every connection: it is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture(scope="session")
def nutshell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nutshell]:
    """A Nutshell mint that takes no input fees."""
    yield from _nutshell(tmp_path_factory, fee_ppk=0)


@pytest.fixture(scope="session")
def nutshell_with_fees(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nutshell]:
    """A Nutshell mint that takes a tenth of a sat per input."""
    yield from _nutshell(tmp_path_factory, fee_ppk=100)


@pytest.fixture(scope="session")
def payment_kit() -> Iterator[PaymentKit]:
    """payment-kit from npm."""
    try:
        yield PaymentKit()
    except PeerUnavailable as reason:
        missing("payment-kit", reason)


def _nutshell(factory: pytest.TempPathFactory, fee_ppk: int) -> Iterator[Nutshell]:
    yield from _started("Nutshell", lambda: Nutshell(factory.mktemp("nutshell"), fee_ppk=fee_ppk))


def _started(name: str, make: Callable[[], P]) -> Iterator[P]:
    """A peer from its start to its stop."""
    try:
        peer = make()
        peer.start()
    except PeerUnavailable as reason:
        missing(name, reason)
        return
    yield peer
    peer.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server with an empty database."""
    try:
        server = Postgres()
        server.start()
    except PeerUnavailable as reason:
        missing("PostgreSQL", reason)
        return
    yield server
    server.remove()


@pytest.fixture(scope="session")
def _made_pair() -> Iterator[Pair]:
    """Both, stopped, as they were when the standby was made."""
    made: list[Postgres] = []
    try:
        made.append(Postgres())
        made[0].start()
        # After a loss the standby asks again at once, and not after five seconds.
        made.append(Postgres(of=made[0], wal_retrieve_retry_interval="200ms"))
        made[0].stop()
        for server in made:
            server.keep()
    except PeerUnavailable as reason:
        missing("PostgreSQL", reason)
    else:
        yield Pair(*made)
    finally:
        for server in made:
            server.remove()


@pytest.fixture
def pair(_made_pair: Pair) -> Iterator[Pair]:
    """A PostgreSQL server and a streaming standby, both with an empty database."""
    for server in (_made_pair.primary, _made_pair.standby):
        server.begin_again()
    yield _made_pair
    for server in (_made_pair.primary, _made_pair.standby):
        server.end()


@pytest.fixture(scope="session")
def lightning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightningNetwork]:
    """A chain, a payer's LND and one for the house, with a channel between them."""
    yield from _started("LND", lambda: LightningNetwork(tmp_path_factory.mktemp("lightning")))


@pytest.fixture(scope="session")
def bitcoin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BitcoinChain]:
    """A regtest chain, and a payer who has mined it."""
    yield from _started("btcd", lambda: BitcoinChain(tmp_path_factory.mktemp("bitcoin")))


@pytest.fixture(scope="session")
def electrumx(
    bitcoin: BitcoinChain, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ElectrumX]:
    """ElectrumX over that chain."""
    folder = tmp_path_factory.mktemp("electrumx")
    yield from _started("ElectrumX", lambda: ElectrumX(bitcoin, folder))


@pytest.fixture(scope="session")
def lnbits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LnbitsServer]:
    """LNbits with its fake funding source, the house's wallet and a payer's."""
    yield from _started("LNbits", lambda: LnbitsServer(tmp_path_factory.mktemp("lnbits")))


@pytest.fixture(scope="session")
def localstripe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Localstripe]:
    """localstripe: a stateful stand-in for Stripe, by others."""
    yield from _started("localstripe", lambda: Localstripe(tmp_path_factory.mktemp("localstripe")))


@pytest.fixture(scope="session")
def stripe_mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeMock]:
    """stripe-mock: Stripe's own check of requests against its OpenAPI; it keeps nothing."""
    yield from _started("stripe-mock", lambda: StripeMock(tmp_path_factory.mktemp("stripe_mock")))


@pytest.fixture(scope="session")
def anvil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anvil]:
    """A development chain that makes a block per transaction. Whoever pauses it unpauses it."""
    yield from _started("anvil", lambda: Anvil(tmp_path_factory.mktemp("anvil")))


@pytest.fixture(scope="session")
def anvil_ahead(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anvil]:
    """Another one, whose clock tests put forward, for it never goes back."""
    yield from _started("anvil", lambda: Anvil(tmp_path_factory.mktemp("anvil-ahead")))
