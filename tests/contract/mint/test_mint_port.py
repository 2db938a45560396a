"""What the wallet may rely on, proved on a play mint and on the real Nutshell, with and without
input fees."""

from __future__ import annotations

import os

import pytest

from farebox.ecash.codes import NutError
from farebox.ecash.mint import MeltQuoteState, Mint, MintQuoteState, ProofState
from farebox.ecash.outputs import BLANK_AMOUNT
from farebox.errors import RailRejected
from farebox.rails.cashu import HttpMint
from farebox.testing.mint import PlayLightning
from farebox.wire.bolt11 import decode_invoice
from farebox.wire.cashu import crypto
from farebox.wire.cashu.amounts import blank_output_count
from farebox.wire.cashu.keysets import has_honest_id
from tests.contract.mint.conftest import Purse, messages, total, ys

#: Nutshell answers 11000, which says nothing in particular, where more is asked for than given.
UNBALANCED = {NutError.UNBALANCED, 11000}
SPENT_OR_SIGNED = {NutError.PROOFS_SPENT, NutError.OUTPUTS_SIGNED}


async def test_it_is_the_port_and_says_what_it_supports(mint: HttpMint) -> None:
    port: Mint = mint

    info = await port.info()

    assert info.name
    assert info.nuts >= {4, 5, 7, 8, 9, 12, 20}


async def test_keys_make_up_the_ids_of_their_keysets(mint: HttpMint) -> None:
    keysets = await mint.keysets()

    assert any(keyset.active and keyset.unit == "sat" for keyset in keysets)
    for keyset in keysets:
        whole = await mint.keys(keyset.id)
        assert has_honest_id(whole)
        assert len(whole.keys) > 30


async def test_an_unknown_keyset_is_refused(mint: HttpMint) -> None:
    with pytest.raises(RailRejected) as refused:
        await mint.keys("00ffffffffffffff")
    assert refused.value.code == NutError.KEYSET_UNKNOWN


async def test_a_paid_quote_becomes_proofs_once(mint: HttpMint, purse: Purse) -> None:
    quote = await mint.mint_quote(21, "sat")
    invoice = decode_invoice(quote.request)
    await purse.until_paid(quote.quote)
    outputs = await purse.outputs_for(21)

    proofs = await purse.open(outputs, await mint.mint_tokens(quote.quote, messages(outputs), None))

    assert (quote.amount, quote.unit, invoice.amount_msat) == (21, "sat", 21_000)
    assert total(proofs) == 21
    assert (await mint.mint_quote_state(quote.quote)).state is MintQuoteState.ISSUED
    with pytest.raises(RailRejected) as refused:
        await mint.mint_tokens(quote.quote, messages(await purse.outputs_for(21)), None)
    assert refused.value.code == NutError.QUOTE_ISSUED


async def test_a_locked_quote_opens_only_to_its_key(mint: HttpMint, purse: Purse) -> None:
    key = os.urandom(32)
    quote = await mint.mint_quote(8, "sat", crypto.public_key(key))
    await purse.until_paid(quote.quote)
    outputs = await purse.outputs_for(8)
    wrong = crypto.sign_mint_quote(os.urandom(32), quote.quote, messages(outputs))
    right = crypto.sign_mint_quote(key, quote.quote, messages(outputs))

    assert quote.public_key == crypto.public_key(key)
    for signature in (None, wrong):
        with pytest.raises(RailRejected) as refused:
            await mint.mint_tokens(quote.quote, messages(outputs), signature)
        assert refused.value.code in {
            NutError.QUOTE_SIGNATURE_INVALID,
            NutError.QUOTE_KEY_REQUIRED,
        }
    assert (
        total(
            await purse.open(outputs, await mint.mint_tokens(quote.quote, messages(outputs), right))
        )
        == 8
    )


async def test_a_swap_takes_the_fee_and_gives_the_rest(mint: HttpMint, purse: Purse) -> None:
    inputs = await purse.fill(100)
    outputs = await purse.outputs_for(100 - await purse.fee(inputs))

    proofs = await purse.open(outputs, await mint.swap(inputs, messages(outputs)))

    assert total(proofs) == 100 - await purse.fee(inputs)
    assert set(await mint.check_state(ys(inputs))) == {ProofState.SPENT}
    assert set(await mint.check_state(ys(proofs))) == {ProofState.UNSPENT}


async def test_what_was_signed_is_proved_by_dleq(mint: HttpMint, purse: Purse) -> None:
    for proof in await purse.fill(7):
        keyset = await mint.keys(proof.keyset_id)
        assert crypto.is_proof_dleq_valid(proof, keyset.keys[proof.amount])


async def test_a_swap_that_does_not_balance_is_refused(mint: HttpMint, purse: Purse) -> None:
    inputs = await purse.fill(16)
    outputs = await purse.outputs_for(17)

    with pytest.raises(RailRejected) as refused:
        await mint.swap(inputs, messages(outputs))

    assert refused.value.code in UNBALANCED
    assert set(await mint.check_state(ys(inputs))) == {ProofState.UNSPENT}


async def test_a_spent_proof_is_refused(mint: HttpMint, purse: Purse) -> None:
    inputs = await purse.fill(16)
    amount = 16 - await purse.fee(inputs)
    await mint.swap(inputs, messages(await purse.outputs_for(amount)))

    with pytest.raises(RailRejected) as refused:
        await mint.swap(inputs, messages(await purse.outputs_for(amount)))

    assert refused.value.code == NutError.PROOFS_SPENT


async def test_a_forged_proof_is_refused(mint: HttpMint, purse: Purse) -> None:
    (genuine,) = await purse.fill(16)
    forged = [type(genuine)(16, genuine.keyset_id, os.urandom(32).hex(), genuine.C)]
    amount = 16 - await purse.fee(forged)

    with pytest.raises(RailRejected) as refused:
        await mint.swap(forged, messages(await purse.outputs_for(amount)))

    assert refused.value.code == NutError.PROOFS_INVALID


async def test_a_proof_given_twice_is_refused(mint: HttpMint, purse: Purse) -> None:
    inputs = (await purse.fill(16)) * 2
    amount = 32 - await purse.fee(inputs)

    with pytest.raises(RailRejected) as refused:
        await mint.swap(inputs, messages(await purse.outputs_for(amount)))

    assert refused.value.code == NutError.INPUTS_DUPLICATE


async def test_a_lost_swap_is_restored_from_its_outputs(mint: HttpMint, purse: Purse) -> None:
    inputs = await purse.fill(50)
    outputs = await purse.outputs_for(50 - await purse.fee(inputs))
    never_sent = await purse.outputs([1, 2])
    await mint.swap(inputs, messages(outputs))  # and the answer is forgotten

    with pytest.raises(RailRejected) as refused:
        await mint.swap(inputs, messages(outputs))
    restored = await mint.restore(messages([*outputs, *never_sent]))

    assert refused.value.code in SPENT_OR_SIGNED
    assert set(restored) == {output.message.B_ for output in outputs}
    signed = [restored[output.message.B_] for output in outputs]
    proofs = await purse.open(outputs, signed)
    assert set(await mint.check_state(ys(proofs))) == {ProofState.UNSPENT}


async def test_a_melt_pays_and_gives_change(mint: HttpMint, purse: Purse) -> None:
    inputs = await purse.fill(128)
    quote = await mint.melt_quote(PlayLightning().invoice(64_000, os.urandom(32)), "sat")
    overpaid_max = 128 - quote.amount - await purse.fee(inputs)
    blanks = await purse.outputs([BLANK_AMOUNT] * blank_output_count(overpaid_max))

    paid = await mint.melt(quote.quote, inputs, messages(blanks))

    assert (quote.amount, quote.unit, quote.state) == (64, "sat", MeltQuoteState.UNPAID)
    assert paid.state is MeltQuoteState.PAID
    assert paid.change
    change = await purse.open(blanks, paid.change, blank=True)
    assert 128 - quote.amount - quote.fee_reserve - await purse.fee(inputs) <= total(change)
    assert total(change) <= overpaid_max
    assert set(await mint.check_state(ys(change))) == {ProofState.UNSPENT}
    after = await mint.melt_quote_state(quote.quote)
    assert after.state is MeltQuoteState.PAID
    restored = await mint.restore(messages(blanks))
    assert total([*await purse.open(blanks, list(restored.values()), blank=True)]) == total(change)


async def test_a_melt_of_too_little_is_refused_and_spends_nothing(
    mint: HttpMint, purse: Purse
) -> None:
    inputs = await purse.fill(64)
    quote = await mint.melt_quote(PlayLightning().invoice(64_000, os.urandom(32)), "sat")

    with pytest.raises(RailRejected):
        await mint.melt(quote.quote, inputs, [])

    assert (await mint.melt_quote_state(quote.quote)).state is MeltQuoteState.UNPAID
    assert set(await mint.check_state(ys(inputs))) == {ProofState.UNSPENT}


async def test_a_quote_nobody_gave_is_refused(mint: HttpMint) -> None:
    for ask in (mint.mint_quote_state, mint.melt_quote_state):
        with pytest.raises(RailRejected):
            await ask("there/is/no/such/quote")
        with pytest.raises(RailRejected):
            await ask("no-such-quote")
