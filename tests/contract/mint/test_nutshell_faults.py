"""The real mint, interrupted: payments that hang or fail, and a mint that is killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from farebox.ecash.mint import MeltQuote, MeltQuoteState, ProofState
from farebox.errors import RailRejected, RailUnavailable
from farebox.testing.mint import PlayLightning
from farebox.wire.cashu.model import Proof
from tests.contract.mint.conftest import Purse, connected, messages, ys
from tests.peers.fixtures import missing
from tests.peers.install import PeerUnavailable
from tests.peers.nutshell import Nutshell
from tests.waiting import eventually

pytestmark = pytest.mark.peer

PENDING = {"FAKEWALLET_PAY_INVOICE_STATE": "PENDING", "FAKEWALLET_PAYMENT_STATE": "PENDING"}
FAILED = {"FAKEWALLET_PAY_INVOICE_STATE": "FAILED", "FAKEWALLET_PAYMENT_STATE": "FAILED"}
SETTLED = {"FAKEWALLET_PAYMENT_STATE": "SETTLED"}


@pytest.fixture
def own_nutshell(tmp_path: Path) -> Iterator[Nutshell]:
    try:
        peer = Nutshell(tmp_path)
        peer.start()
    except PeerUnavailable as reason:
        missing("Nutshell", reason)
        return
    yield peer
    peer.stop()


async def melt(peer: Nutshell, inputs: tuple[Proof, ...]) -> MeltQuote:
    async with connected(peer.url) as mint:
        invoice = PlayLightning().invoice(64_000, os.urandom(32))
        quote = await mint.melt_quote(invoice, "sat")
        return await mint.melt(quote.quote, inputs, [])


async def fill(peer: Nutshell, amount: int) -> tuple[Proof, ...]:
    async with connected(peer.url) as mint:
        return await Purse(mint, "sat").fill(amount)


async def states(peer: Nutshell, proofs: tuple[Proof, ...]) -> set[ProofState]:
    async with connected(peer.url) as mint:
        return set(await mint.check_state(ys(proofs)))


async def settled_state(peer: Nutshell, quote: str) -> MeltQuoteState:
    """Asked while Nutshell itself is settling its pending melts after a start, it may trip over
    its own feet once: 400, code 0, a unique constraint. Such an answer settles nothing."""
    async with connected(peer.url) as mint:

        async def ask() -> MeltQuoteState | None:
            try:
                return (await mint.melt_quote_state(quote)).state
            except RailRejected as error:
                if error.code != 0:
                    raise
                return None

        found = await eventually(ask)
        assert found is not None
        return found


async def test_a_payment_that_hangs_is_pending_until_it_is_settled(own_nutshell: Nutshell) -> None:
    inputs = await fill(own_nutshell, 128)
    own_nutshell.restart(PENDING)

    quote = await melt(own_nutshell, inputs)
    assert quote.state is MeltQuoteState.PENDING
    assert await states(own_nutshell, inputs) == {ProofState.PENDING}

    own_nutshell.restart(SETTLED)
    assert await settled_state(own_nutshell, quote.quote) is MeltQuoteState.PAID
    assert await states(own_nutshell, inputs) == {ProofState.SPENT}


async def test_a_payment_that_fails_is_refused_and_frees_its_inputs(own_nutshell: Nutshell) -> None:
    inputs = await fill(own_nutshell, 128)
    own_nutshell.restart(FAILED)

    with pytest.raises(RailRejected):
        await melt(own_nutshell, inputs)

    assert await states(own_nutshell, inputs) == {ProofState.UNSPENT}


async def test_what_was_signed_survives_the_mints_death(own_nutshell: Nutshell) -> None:
    async with connected(own_nutshell.url) as mint:
        purse = Purse(mint, "sat")
        inputs = await purse.fill(64)
        outputs = await purse.outputs_for(64)
        await mint.swap(inputs, messages(outputs))
        own_nutshell.kill()
        with pytest.raises(RailUnavailable):
            await mint.check_state(ys(inputs))
        own_nutshell.restart()

        restored = await mint.restore(messages(outputs))
        assert len(restored) == len(outputs)
        assert await states(own_nutshell, inputs) == {ProofState.SPENT}
