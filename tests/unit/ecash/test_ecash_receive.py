"""Receiving: what is refused, and that any change can be paid out of what the swap makes."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.ecash.outputs import prepare, unblind_all
from farebox.ecash.receive import (
    Receive,
    Refusal,
    RefusalReason,
    Terms,
    output_keyset,
    plan_receive,
)
from farebox.wire.cashu import crypto
from farebox.wire.cashu.amounts import choose_exact
from farebox.wire.cashu.locks import p2pk_secret
from farebox.wire.cashu.model import Dleq, Keyset, Proof, Token
from farebox.wire.cashu.wallet_keys import WalletKeys

PRIVATE = {1 << bit: hashlib.sha256(bytes([bit])).digest() for bit in range(16)}
KEYS = {amount: crypto.public_key(key) for amount, key in PRIVATE.items()}
NOW_S = 1_800_000_000
ACTIVE = Keyset("00" * 8, "sat", True, 100, None, KEYS)
RETIRED = Keyset("00" * 7 + "01", "sat", False, 0, NOW_S + 1, KEYS)
KEYSETS = {keyset.id: keyset for keyset in (ACTIVE, RETIRED)}
OUR_KEY = hashlib.sha256(b"ours").digest()
PAYER = WalletKeys(b"the payer's seed" * 2)


def money(*amounts: int, keyset: Keyset = ACTIVE) -> tuple[Proof, ...]:
    outputs = prepare(PAYER, keyset.id, 0, amounts)
    signatures = [
        crypto.promise(one.message, one.message.amount, PRIVATE[one.message.amount])
        for one in outputs
    ]
    proofs = unblind_all(outputs, signatures, keyset)
    assert isinstance(proofs, tuple)
    return proofs


def token(*proofs: Proof, unit: str = "sat") -> Token:
    return Token("https://mint.example", unit, proofs)


def unchecked(*amounts: int, keyset: Keyset = ACTIVE) -> Token:
    """A token whose proofs carry no DLEQ, so that it is cheap to make many."""
    point = KEYS[1]
    proofs = [
        Proof(amount, keyset.id, f"secret {index}", point) for index, amount in enumerate(amounts)
    ]
    return token(*proofs)


def reason(found: Receive | Refusal) -> RefusalReason:
    assert isinstance(found, Refusal)
    assert found.message
    return found.reason


def test_a_token_is_planned_net_of_the_mints_fee() -> None:
    found = plan_receive(token(*money(8, 4, 2)), KEYSETS, Terms("sat", require_dleq=True), NOW_S)
    assert isinstance(found, Receive)
    assert (found.fee, found.net, found.amounts) == (1, 13, (1, 4, 8))
    plan = found.swap_plan(17)
    assert (plan.first_counter, plan.amounts, plan.keyset_id) == (17, (1, 4, 8), ACTIVE.id)
    assert plan.inputs == token(*money(8, 4, 2)).proofs


def test_a_fixed_price_is_cut_out_as_it_is() -> None:
    terms = Terms("sat", maximum=10, fixed_price=True)
    found = plan_receive(unchecked(16), KEYSETS, terms, NOW_S)
    assert isinstance(found, Receive)
    assert found.amounts == (1, 2, 4, 8)  # 5 to give back and 10 to keep


@settings(max_examples=60)
@given(st.integers(min_value=0, max_value=300), st.integers(min_value=0, max_value=300))
def test_any_change_from_nothing_used_to_all_used_is_at_hand(maximum: int, excess: int) -> None:
    total = maximum + excess + 1
    amounts = [1 << bit for bit in range(total.bit_length()) if total >> bit & 1]
    found = plan_receive(unchecked(*amounts), KEYSETS, Terms("sat", maximum), NOW_S)
    if total == 1:
        assert reason(found) is RefusalReason.TOO_LITTLE
        return
    assert isinstance(found, Receive)
    assert sum(found.amounts) == found.net == total - found.fee
    assert list(found.amounts) == sorted(found.amounts)
    for used in range(maximum + 1):
        assert choose_exact(found.amounts, found.net - used) is not None


def test_inputs_of_an_inactive_keyset_go_into_an_active_one() -> None:
    found = plan_receive(unchecked(4, keyset=RETIRED), KEYSETS, Terms("sat"), NOW_S)
    assert isinstance(found, Receive)
    assert (found.keyset_id, found.fee) == (ACTIVE.id, 0)


def test_outputs_go_where_they_are_cheapest_and_live_longest() -> None:
    cheap = replace(ACTIVE, id="a", input_fee_ppk=0, final_expiry=NOW_S + 10)
    longer = replace(cheap, id="b", final_expiry=NOW_S + 20)
    for_ever = replace(cheap, id="c", final_expiry=None)
    expired = replace(cheap, id="d", final_expiry=NOW_S)
    other = replace(cheap, id="e", unit="usd")
    retired = replace(for_ever, id="0", active=False)
    choices = [ACTIVE, cheap, longer, expired, other, retired]
    assert output_keyset(choices, "sat", NOW_S) == longer
    assert output_keyset([*choices, for_ever], "sat", NOW_S) == for_ever
    assert output_keyset([retired, expired], "sat", NOW_S) is None


def test_tokens_of_the_wrong_unit_are_refused() -> None:
    usd = {ACTIVE.id: replace(ACTIVE, unit="usd")}
    wrong = token(*money(1), unit="usd")
    assert reason(plan_receive(wrong, KEYSETS, Terms("sat"), NOW_S)) is RefusalReason.UNIT_WRONG
    lying = token(*money(1))
    assert reason(plan_receive(lying, usd, Terms("sat"), NOW_S)) is RefusalReason.UNIT_WRONG


def test_unknown_keysets_and_amounts_are_refused() -> None:
    unknown = unchecked(1, keyset=replace(ACTIVE, id="00" * 7 + "ff"))
    found = plan_receive(unknown, KEYSETS, Terms("sat"), NOW_S)
    assert reason(found) is RefusalReason.KEYSET_UNKNOWN
    found = plan_receive(unchecked(3), KEYSETS, Terms("sat"), NOW_S)
    assert reason(found) is RefusalReason.AMOUNT_UNKNOWN


def test_an_expired_keyset_is_refused() -> None:
    found = plan_receive(unchecked(4, keyset=RETIRED), KEYSETS, Terms("sat"), NOW_S + 1)
    assert reason(found) is RefusalReason.KEYSET_EXPIRED


def test_a_mint_without_a_usable_keyset_is_refused() -> None:
    retired = {RETIRED.id: RETIRED}
    found = plan_receive(unchecked(4, keyset=RETIRED), retired, Terms("sat"), NOW_S)
    assert reason(found) is RefusalReason.NO_OUTPUT_KEYSET
    coarse = {RETIRED.id: RETIRED, "x": replace(ACTIVE, id="x", keys={8: KEYS[8]})}
    found = plan_receive(unchecked(4, keyset=RETIRED), coarse, Terms("sat"), NOW_S)
    assert reason(found) is RefusalReason.NO_OUTPUT_KEYSET


def test_a_missing_dleq_is_refused_where_one_is_required() -> None:
    found = plan_receive(unchecked(4), KEYSETS, Terms("sat", require_dleq=True), NOW_S)
    assert reason(found) is RefusalReason.DLEQ_MISSING
    bare = replace(money(4)[0], dleq=Dleq(b"1" * 32, b"2" * 32))
    found = plan_receive(token(bare), KEYSETS, Terms("sat", require_dleq=True), NOW_S)
    assert reason(found) is RefusalReason.DLEQ_MISSING


def test_a_wrong_dleq_is_refused_even_where_none_is_required() -> None:
    good = money(4)[0]
    for forged in (replace(good, C=KEYS[1]), replace(good, amount=8)):
        found = plan_receive(token(forged), KEYSETS, Terms("sat"), NOW_S)
        assert reason(found) is RefusalReason.DLEQ_WRONG


def test_a_token_locked_to_us_is_signed_and_one_locked_to_others_is_refused() -> None:
    secret = p2pk_secret("nonce", crypto.public_key(OUR_KEY))
    locked = token(replace(unchecked(4).proofs[0], secret=secret))
    found = plan_receive(locked, KEYSETS, Terms("sat", unlock_key=OUR_KEY), NOW_S)
    assert isinstance(found, Receive)
    assert "signatures" in (found.inputs[0].witness or "")
    for key in (None, PRIVATE[1]):
        refused = plan_receive(locked, KEYSETS, Terms("sat", unlock_key=key), NOW_S)
        assert reason(refused) is RefusalReason.LOCKED


def test_a_senders_witness_is_not_passed_on() -> None:
    with_witness = token(replace(unchecked(4).proofs[0], witness="x" * 1000))
    found = plan_receive(with_witness, KEYSETS, Terms("sat"), NOW_S)
    assert isinstance(found, Receive)
    assert found.inputs[0].witness is None


@pytest.mark.parametrize(("amounts", "maximum"), [((1,), 0), ((8,), 8), ((8, 1), 9)])
def test_a_token_that_does_not_reach_after_fees_is_refused(
    amounts: tuple[int, ...], maximum: int
) -> None:
    found = plan_receive(unchecked(*amounts), KEYSETS, Terms("sat", maximum), NOW_S)
    assert reason(found) is RefusalReason.TOO_LITTLE


def test_terms_hide_the_unlock_key() -> None:
    assert OUR_KEY.hex() not in repr(Terms("sat", unlock_key=OUR_KEY))
    assert str(OUR_KEY) not in repr(Terms("sat", unlock_key=OUR_KEY))
