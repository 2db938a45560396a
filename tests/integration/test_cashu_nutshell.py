"""The same flows against the real Nutshell, with and without input fees."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from farebox.ecash.mint import MintQuoteState, ProofState
from farebox.ecash.plan import MintPlan
from farebox.ecash.saga import Done, advance_mint
from farebox.errors import RailRejected
from farebox.ledger.model import Applied, Kind, Open, Unit
from farebox.money import BTC
from farebox.payments import Refusal
from farebox.payments.service import Received, Refunded
from farebox.rails.cashu import CashuConfig, MintLimits, MintTerms
from farebox.rails.cashu.config import unswapped_account
from farebox.signer import Signer
from farebox.wire.cashu import crypto
from farebox.wire.cashu.amounts import input_fee, split
from farebox.wire.cashu.locks import p2pk_secret
from farebox.wire.cashu.model import BlindedMessage, Dleq, Proof, Token
from farebox.wire.cashu.token import decode_token, encode_token
from farebox.wire.cashu.wallet_keys import WalletKeys
from tests.integration.cashu_house import House
from tests.integration.test_cashu_change import change_of, give_change
from tests.integration.test_cashu_melt import invoice
from tests.peers.nutshell import Nutshell

pytestmark = pytest.mark.peer


@pytest.fixture(params=["nutshell", "nutshell_with_fees"])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    peer: Nutshell = request.getfixturevalue(str(request.param))
    config = CashuConfig(
        mints=(MintTerms(url=peer.url, require_dleq=True, offline_max_msat=1_000_000),),
        limits=MintLimits(connect_s=60, call_s=60, melt_s=60),
    )
    # The mint outlives the book: with one seed for all, counters would be used twice.
    house = House(tmp_path / "book.db", config, Signer(os.urandom(32)))
    await house.open()
    yield house
    await house.close()


async def token_of(house: House, amount: int) -> str:
    """Fresh money of the real mint, its invoice paid by itself."""
    place = house.method.mints.trusted()[0]
    target = await place.output_keyset("sat")
    assert target is not None
    quote = await place.mint.mint_quote(amount, "sat")
    while (await place.mint.mint_quote_state(quote.quote)).state is not MintQuoteState.PAID:
        house.clock.advance(1)
    amounts = tuple(split(amount, target.keys.keys()))
    plan = MintPlan(
        mint=place.url,
        unit="sat",
        keyset_id=target.id,
        first_counter=0,
        quote=quote.quote,
        amounts=amounts,
    )
    keys = WalletKeys(quote.quote.encode().ljust(32))
    end = await advance_mint(plan, place.mint, keys, asked_before=False)
    assert isinstance(end, Done), end
    return encode_token(Token(place.url, "sat", end.proofs))


async def locked_token_of(house: House, amount: int, key: bytes) -> Token:
    """Fresh money of the real mint with secrets that lock it to a key, as a payer makes it."""
    free = decode_token(await token_of(house, amount))
    place = house.method.mints.trusted()[0]
    target = await place.output_keyset("sat")
    assert target is not None
    net = amount - input_fee(free.proofs, {target.id: target})
    outputs = [
        (part, p2pk_secret(secrets.token_hex(16), key), secrets.token_bytes(32))
        for part in split(net, target.keys)
    ]
    messages = [
        BlindedMessage(part, target.id, crypto.blind(secret, r)) for part, secret, r in outputs
    ]
    signed = await place.mint.swap(free.proofs, messages)
    proofs = []
    for (part, secret, r), one in zip(outputs, signed, strict=True):
        assert one.dleq is not None
        unblinded = crypto.unblind(one.C_, r, target.keys[part])
        dleq = Dleq(one.dleq.e, one.dleq.s, r)
        proofs.append(Proof(part, target.id, secret, unblinded, dleq))
    return Token(place.url, "sat", tuple(proofs))


async def test_tokens_locked_to_us_are_taken_offline_and_swapped_in_one_batch(
    house: House,
) -> None:
    opened = Unit("revenue", (Open("revenue", BTC.code, Kind.REVENUE),))
    assert isinstance(await house.store.commit(opened), Applied)
    tokens = [await locked_token_of(house, 100, house.method.locked.public_key) for _ in range(3)]
    for token in tokens:
        received = await house.receive(encode_token(token))
        assert isinstance(received, Received)
        assert await spendable(house, encode_token(token)), "the mint was not asked"
        part = replace(token, proofs=token.proofs[-1:])
        again = await house.receive(encode_token(part), "customer:thief")
        assert isinstance(again, Refusal)
        assert again.code == "token_spent"
    assert await house.sweep.run() == sum(len(token.proofs) for token in tokens)
    assert not await spendable(house, encode_token(tokens[0]))
    refunded = await house.refund(await house.balance_sat(), "ref_1")
    assert isinstance(refunded, Refunded)
    assert await spendable(house, refunded.reply["token"])
    unswapped = await house.store.account(unswapped_account(tokens[0].mint, "sat"))
    assert unswapped is not None
    assert unswapped.held == 0


async def test_the_real_mint_lets_nobody_else_spend_a_token_locked_to_us(house: House) -> None:
    token = await locked_token_of(house, 10, house.method.locked.public_key)
    place = house.method.mints.trusted()[0]
    assert await place.enforces_locks()
    unsigned = [replace(proof, witness=None) for proof in token.proofs]
    outputs = [
        BlindedMessage(
            one.amount, one.keyset_id, crypto.blind(f"thief {n} {one.secret}", b"r" * 32)
        )
        for n, one in enumerate(unsigned)
    ]
    with pytest.raises(RailRejected):
        await place.mint.swap(unsigned, outputs)
    assert await spendable(house, encode_token(token))


async def spendable(house: House, token: str) -> bool:
    place = house.method.mints.trusted()[0]
    ys = [crypto.hash_to_curve(proof.secret) for proof in decode_token(token).proofs]
    return set(await place.mint.check_state(ys)) == {ProofState.UNSPENT}


async def test_a_token_is_received_and_any_change_is_good_money(house: House) -> None:
    text = await token_of(house, 100)
    received = await house.receive(text, reserve_sat=30, owner="req_1")
    assert isinstance(received, Received)
    balance = await house.balance_sat()
    assert 99 <= balance <= 100

    planned = await give_change(house, "req_1", balance - 13)

    assert balance - 13 - 1 <= await change_of(house, planned) <= balance - 13
    change = await house.method.render_change(planned.reference)
    assert change is not None
    assert await spendable(house, change)
    again = await house.receive(text)
    assert isinstance(again, Received)
    assert isinstance(await house.receive(change, "customer:bob"), Received)


async def test_refunds_as_tokens_are_good_money(house: House) -> None:
    await house.receive(await token_of(house, 128))

    for amount, name in ((5, "ref_1"), (64, "ref_2")):
        refunded = await house.refund(amount, name)
        assert isinstance(refunded, Refunded)
        assert refunded.amount == amount * 1_000
        assert await spendable(house, refunded.reply["token"])
        received = await house.receive(refunded.reply["token"], "customer:bob")
        assert isinstance(received, Received)
    assert not await house.operations.unfinished()


async def test_an_invoice_is_paid(house: House) -> None:
    await house.receive(await token_of(house, 200))
    before = await house.balance_sat()

    refunded = await house.refund(100, "ref_1", destination=invoice(60))

    assert isinstance(refunded, Refunded)
    assert 60_000 <= refunded.amount <= 100_000
    assert await house.balance_sat() == before - refunded.amount // 1_000
    rest = await house.refund(await house.balance_sat(), "ref_2")
    assert isinstance(rest, Refunded)
    assert await spendable(house, rest.reply["token"])


async def test_a_token_spent_elsewhere_is_refused(house: House, tmp_path: Path) -> None:
    text = await token_of(house, 10)
    (tmp_path / "other").mkdir()
    other = House(tmp_path / "other" / "book.db", house.config, Signer(os.urandom(32)))
    await other.open()
    await other.receive(text)
    await other.close()

    refused = await house.receive(text)

    assert isinstance(refused, Refusal)
    assert refused.code == "token_spent"
