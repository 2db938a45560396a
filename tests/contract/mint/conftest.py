"""The same mint port over HTTP, in front of a play mint and of the real Nutshell."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from farebox.clock import ManualClock
from farebox.ecash.mint import MintQuoteState
from farebox.ecash.outputs import Output, prepare, unblind_all
from farebox.rails.cashu import HttpMint, MintLimits, open_session
from farebox.testing.asgi import serving
from farebox.testing.mint import PlayMint
from farebox.wire.cashu import crypto
from farebox.wire.cashu.amounts import fee_of_ppk, split
from farebox.wire.cashu.model import BlindedMessage, BlindSignature, Proof
from farebox.wire.cashu.wallet_keys import WalletKeys
from tests.peers.nutshell import Nutshell
from tests.waiting import eventually

FEE_PPK = 100
#: Long enough for a busy machine.
LIMITS = MintLimits(connect_s=60, call_s=60, melt_s=60)


@dataclass
class Purse:
    """A wallet small enough to read: outputs from a seed, proofs in the test's hands."""

    mint: HttpMint
    unit: str
    keys: WalletKeys = field(default_factory=lambda: WalletKeys(os.urandom(32)))
    counter: int = 0

    async def keyset_id(self) -> str:
        keysets = await self.mint.keysets()
        return next(one.id for one in keysets if one.active and one.unit == self.unit)

    async def outputs(self, amounts: Sequence[int]) -> tuple[Output, ...]:
        made = prepare(self.keys, await self.keyset_id(), self.counter, amounts)
        self.counter += len(amounts)
        return made

    async def outputs_for(self, amount: int) -> tuple[Output, ...]:
        keyset = await self.mint.keys(await self.keyset_id())
        return await self.outputs(split(amount, keyset.keys))

    async def open(
        self, outputs: Sequence[Output], signed: Sequence[BlindSignature], *, blank: bool = False
    ) -> tuple[Proof, ...]:
        keyset = await self.mint.keys(outputs[0].message.keyset_id)
        proofs = unblind_all(outputs, signed, keyset, blank=blank)
        assert isinstance(proofs, tuple), proofs
        return proofs

    async def fill(self, amount: int) -> tuple[Proof, ...]:
        quote = await self.mint.mint_quote(amount, self.unit)
        await self.until_paid(quote.quote)
        outputs = await self.outputs_for(amount)
        signed = await self.mint.mint_tokens(quote.quote, messages(outputs), None)
        return await self.open(outputs, signed)

    async def until_paid(self, quote: str) -> None:
        await eventually(
            lambda: self.mint.mint_quote_state(quote),
            lambda found: found.state is MintQuoteState.PAID,
        )

    async def fee(self, proofs: Sequence[Proof]) -> int:
        known = {one.id: one for one in await self.mint.keysets()}
        return fee_of_ppk(sum(known[proof.keyset_id].input_fee_ppk for proof in proofs))


def messages(outputs: Sequence[Output]) -> list[BlindedMessage]:
    return [output.message for output in outputs]


def ys(proofs: Sequence[Proof]) -> list[bytes]:
    return [crypto.hash_to_curve(proof.secret) for proof in proofs]


def total(proofs: Sequence[Proof]) -> int:
    return sum(proof.amount for proof in proofs)


@asynccontextmanager
async def connected(url: str, clock: ManualClock | None = None) -> AsyncIterator[HttpMint]:
    async with open_session() as session:
        yield HttpMint(url, session, clock or ManualClock(), limits=LIMITS)


NUTSHELLS = ("nutshell", "nutshell_with_fees")


@pytest.fixture(
    params=[
        "play",
        "play with fees",
        *(pytest.param(name, marks=pytest.mark.peer) for name in NUTSHELLS),
    ]
)
async def mint(request: pytest.FixtureRequest) -> AsyncIterator[HttpMint]:
    """Each mint in turn."""
    name = str(request.param)
    if name in NUTSHELLS:
        peer: Nutshell = request.getfixturevalue(name)
        async with connected(peer.url) as port:
            yield port
        return
    play = PlayMint(fee_ppk=FEE_PPK if "fees" in name else 0)
    async with serving(play) as url, connected(url) as port:
        yield port


@pytest.fixture
async def purse(mint: HttpMint) -> Purse:
    return Purse(mint, "sat")
