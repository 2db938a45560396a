"""The same against the real Nutshell: back up, go on, lose the machine, put the copy back."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from farebox.books import backup, open_audit
from farebox.bootstrap import Farebox
from farebox.ecash.mint import MintQuoteState, ProofState
from farebox.ecash.plan import MintPlan
from farebox.ecash.saga import Done, advance_mint
from farebox.ledger.invariants import verify
from farebox.ledger.replay import Broken
from farebox.rails.cashu.config import custody_account
from farebox.rails.cashu.records import ProofUse
from farebox.settings import Settings, load_settings
from farebox.testing.asgi import serving
from farebox.testing.upstream import PlayUpstream
from farebox.wire.cashu import crypto
from farebox.wire.cashu.amounts import split
from farebox.wire.cashu.model import Token
from farebox.wire.cashu.token import decode_token, encode_token
from farebox.wire.cashu.wallet_keys import WalletKeys
from tests.integration.test_restored import Life
from tests.peers.nutshell import Nutshell

pytestmark = pytest.mark.peer

ROOT_KEY = os.urandom(32)  # the mint outlives the book


async def money(life: Life, amount: int) -> str:
    """Fresh money of the real mint, its invoice paid by itself."""
    (place,) = life.house.cashu.mints.trusted()
    target = await place.output_keyset("sat")
    assert target is not None
    quote = await place.mint.mint_quote(amount, "sat")
    while (await place.mint.mint_quote_state(quote.quote)).state is not MintQuoteState.PAID:
        pass  # its fake node pays by itself
    plan = MintPlan(
        mint=place.url,
        unit="sat",
        keyset_id=target.id,
        first_counter=0,
        quote=quote.quote,
        amounts=tuple(split(amount, target.keys.keys())),
    )
    keys = WalletKeys(quote.quote.encode().ljust(32))
    end = await advance_mint(plan, place.mint, keys, asked_before=False)
    assert isinstance(end, Done), end
    return encode_token(Token(place.url, "sat", end.proofs))


async def unspent_sat(life: Life, *tokens: str) -> int:
    """What the real mint says that tokens are still worth."""
    (place,) = life.house.cashu.mints.trusted()
    proofs = [proof for token in tokens for proof in decode_token(token).proofs]
    states = await place.mint.check_state([crypto.hash_to_curve(one.secret) for one in proofs])
    return sum(
        one.amount for one, state in zip(proofs, states, strict=True) if state is ProofState.UNSPENT
    )


@asynccontextmanager
async def life_in(settings: Settings) -> AsyncIterator[Life]:
    settings.data_dir.mkdir(exist_ok=True)
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(Farebox(settings, ROOT_KEY))
        url = await stack.enter_async_context(serving(house.app))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=60))
        yield Life(house, http)


async def test_nothing_is_lost_or_owed_twice_at_the_real_mint(
    nutshell: Nutshell, tmp_path: Path
) -> None:
    async with serving(PlayUpstream()) as upstream_url:

        def at(name: str) -> Settings:
            given: dict[str, object] = {
                "data_dir": str(tmp_path / name),
                "mint": [{"url": nutshell.url}],
                "upstream": [{"urls": [upstream_url]}],
                "price": [{"price": "10 sat"}],
                "ecash.mint_timeout_s": 60,
            }
            return load_settings(None, {}, given)

        custody = custody_account(nutshell.url, "sat")
        copy = tmp_path / "copy.db"
        async with life_in(at("first")) as life:
            key = await life.create(await money(life, 100))
            await asyncio.to_thread(backup, at("first"), ROOT_KEY, copy, lambda _: None)
            change = await life.pay(await money(life, 32))
            assert await life.topup(key, await money(life, 64)) == 200
            kept = await life.refund(key, 30)
            spent = await life.refund(key, 20)
            await life.create(spent)
            came = 100 + 32 + 64
        (tmp_path / "second").mkdir()
        shutil.copy(copy, tmp_path / "second/farebox.db")
        async with life_in(at("second")) as life:
            assert (await life.http.get("/echo")).status_code == 503
            told = await life.ask()
            assert told["open"], told
            assert await life.balance_sat(key) == 100
            # The change is still its payer's, and good here as anywhere.
            assert await unspent_sat(life, change) == 22
            assert await life.topup(key, change) == 200
            claimed = await life.ask(claim=True)
            assert claimed["open"]
            ours = await life.proofs_sat(ProofUse.AVAILABLE, ProofUse.RESERVED, ProofUse.FOUND)
            assert await life.held_sat(custody) == ours
            assert ours + await unspent_sat(life, change, kept, spent) == came
            assert ours == 122 + await life.suspense_sat()
            with open_audit(at("second")) as reader:
                assert not isinstance(verify(reader), Broken)
            # And it goes on, with counters that the mint has never seen.
            await life.pay(await money(life, 16))
