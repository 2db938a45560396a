"""The play mint refuses what a real mint refuses, and its books add up."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from farebox.clock import NS_PER_S, ManualClock
from farebox.ecash.codes import NutError
from farebox.ecash.mint import MeltQuoteState, MintQuoteState, ProofState
from farebox.ecash.outputs import prepare
from farebox.errors import InvalidCredential, RailRejected, StoreCorrupt
from farebox.testing.mint.bank import Bank, open_bank
from farebox.testing.mint.keys import KeysetRow
from farebox.testing.mint.lightning import EXPIRY_S, PlayLightning
from farebox.wire.bolt11 import decode_invoice
from farebox.wire.cashu import crypto
from farebox.wire.cashu.amounts import split
from farebox.wire.cashu.keysets import VERSION_1, VERSION_2, has_honest_id
from farebox.wire.cashu.model import BlindedMessage, Proof
from farebox.wire.cashu.wallet_keys import WalletKeys

URL = "http://mint.test"


class Scene:
    def __init__(
        self,
        *units: str,
        fee_ppk: int = 0,
        version: str = VERSION_2,
        expires_in_s: int | None = None,
        state: Path | None = None,
        lightning: PlayLightning | None = None,
        pays_itself: bool = True,
    ) -> None:
        self.clock = ManualClock()
        expiry = None if expires_in_s is None else self.now_s() + expires_in_s
        self.bank: Bank = open_bank(
            state=state,
            keysets=[KeysetRow(unit, fee_ppk, expiry, version) for unit in units or ("sat",)],
            lightning=lightning or PlayLightning(self.clock),
            clock=self.clock,
            invoices_pay_themselves=pays_itself,
        )
        self.keys = WalletKeys(os.urandom(32))
        self.counter = 0

    def now_s(self) -> int:
        return self.clock.now_ns() // NS_PER_S

    def proofs(self, amount: int, unit: str = "sat") -> tuple[Proof, ...]:
        return self.bank.issue(amount, unit, URL).proofs

    def outputs(self, amount: int, unit: str = "sat") -> list[BlindedMessage]:
        keyset = self.bank.keyring.active(unit)
        assert keyset is not None
        made = prepare(self.keys, keyset.public.id, self.counter, split(amount, keyset.public.keys))
        self.counter += len(made)
        return [output.message for output in made]

    def states(self, proofs: tuple[Proof, ...]) -> set[ProofState]:
        return set(self.bank.check_state([crypto.hash_to_curve(one.secret) for one in proofs]))

    def outstanding(self) -> dict[str, int]:
        return self.bank.audit().outstanding


def refused_swap(scene: Scene, inputs: tuple[Proof, ...], outputs: list[BlindedMessage]) -> int:
    before = scene.bank.audit()
    with pytest.raises(RailRejected) as refused:
        scene.bank.swap(inputs, outputs)
    assert scene.bank.audit() == before
    return refused.value.code or 0


def test_a_swap_costs_its_fee_and_no_more() -> None:
    scene = Scene(fee_ppk=100)
    inputs = scene.proofs(100)
    assert len(inputs) == 3
    scene.bank.swap(inputs, scene.outputs(99))
    assert scene.outstanding() == {"sat": 99}
    assert scene.states(inputs) == {ProofState.SPENT}


def test_it_refuses_with_the_codes_of_the_nuts() -> None:
    scene = Scene("sat", "msat")
    eight, spent = scene.proofs(8), scene.proofs(8)
    scene.bank.swap(spent, signed := scene.outputs(8))
    stranger = replace(eight[0], keyset_id="00ffffffffffffff")
    forged = replace(eight[0], secret="another")
    odd = [replace(scene.outputs(1)[0], amount=3)]
    cases = {
        NutError.UNBALANCED: (eight, scene.outputs(9)),
        NutError.PROOFS_SPENT: (spent, scene.outputs(8)),
        NutError.OUTPUTS_SIGNED: (eight, signed),
        NutError.INPUTS_DUPLICATE: (eight * 2, scene.outputs(16)),
        NutError.OUTPUTS_DUPLICATE: (scene.proofs(16), scene.outputs(8) * 2),
        NutError.KEYSET_UNKNOWN: ((stranger,), scene.outputs(8)),
        NutError.PROOFS_INVALID: ((forged,), scene.outputs(8)),
        NutError.UNITS_DIFFER: (eight, scene.outputs(8, "msat")),
        NutError.UNITS_SEVERAL: (eight + scene.proofs(8, "msat"), scene.outputs(16)),
        NutError.AMOUNT_OUTSIDE_LIMITS: (scene.proofs(2) + scene.proofs(1), odd),
        NutError.INPUTS_TOO_MANY: (eight * 1_001, scene.outputs(8)),
        NutError.OUTPUTS_TOO_MANY: (eight, scene.outputs(8) * 1_001),
    }
    for code, (inputs, outputs) in cases.items():
        assert refused_swap(scene, tuple(inputs), outputs) == code
    assert refused_swap(scene, (), scene.outputs(1)) == NutError.UNBALANCED
    assert refused_swap(scene, eight, []) == NutError.UNBALANCED


def test_an_old_keyset_is_taken_and_no_longer_given() -> None:
    scene = Scene()
    inputs, old = scene.proofs(8), scene.outputs(8)
    scene.bank.add_keyset(KeysetRow("sat", 0, None, VERSION_1))
    assert refused_swap(scene, inputs, old) == NutError.KEYSET_INACTIVE
    scene.bank.swap(inputs, scene.outputs(8))
    assert scene.outstanding() == {"sat": 8}


def test_an_expired_keyset_is_worth_nothing() -> None:
    scene = Scene(expires_in_s=60)
    inputs, outputs = scene.proofs(8), scene.outputs(8)
    scene.clock.advance(60)
    assert refused_swap(scene, inputs, outputs) == NutError.KEYSET_EXPIRED


@pytest.mark.parametrize("version", [VERSION_1, VERSION_2])
def test_keysets_of_both_versions_have_honest_ids(version: str) -> None:
    scene = Scene("sat", "msat", fee_ppk=100, version=version)
    keysets = [keyset.public for keyset in scene.bank.keyring]
    assert len(keysets) == 2
    assert all(has_honest_id(keyset) and keyset.id.startswith(version) for keyset in keysets)


def test_play_money_carries_dleq_proofs() -> None:
    scene = Scene()
    for proof in scene.proofs(7):
        keyset = scene.bank.keyring.get(proof.keyset_id)
        assert keyset is not None
        assert crypto.is_proof_dleq_valid(proof, keyset.public.keys[proof.amount])


@pytest.mark.parametrize(("unit", "amount_msat"), [("sat", 21_000), ("msat", 21)])
def test_an_invoice_asks_for_the_right_amount(unit: str, amount_msat: int) -> None:
    scene = Scene(unit)
    quote = scene.bank.mint_quote(21, unit, None)
    invoice = decode_invoice(quote.request)
    assert (invoice.amount_msat, invoice.network) == (amount_msat, "bcrt")
    assert invoice.expires_at_s == quote.expiry_s == scene.now_s() + EXPIRY_S


def test_a_quote_is_minted_once_in_full_and_by_its_key() -> None:
    scene, key = Scene(), os.urandom(32)
    quote = scene.bank.mint_quote(8, "sat", crypto.public_key(key)).quote
    outputs, other = scene.outputs(8), scene.outputs(4)
    signature = crypto.sign_mint_quote(key, quote, outputs)
    cases = [
        (outputs, None, NutError.QUOTE_SIGNATURE_INVALID),
        (other, signature, NutError.QUOTE_SIGNATURE_INVALID),
        (other, crypto.sign_mint_quote(key, quote, other), NutError.UNBALANCED),
    ]
    for given, signed, code in cases:
        with pytest.raises(RailRejected) as refused:
            scene.bank.mint(quote, given, signed)
        assert refused.value.code == code
    scene.bank.mint(quote, outputs, signature)
    with pytest.raises(RailRejected) as refused:
        scene.bank.mint(quote, scene.outputs(8), signature)
    assert refused.value.code == NutError.QUOTE_ISSUED
    assert scene.outstanding() == {"sat": 8}


def test_money_moves_between_mints_over_one_lightning() -> None:
    lightning = PlayLightning(ManualClock())
    here = Scene(lightning=lightning, pays_itself=False)
    there = Scene(lightning=lightning, pays_itself=False)
    inputs = here.proofs(128)
    wanted = there.bank.mint_quote(64, "sat", None)
    assert there.bank.mint_quote_state(wanted.quote).state is MintQuoteState.UNPAID
    with pytest.raises(RailRejected) as refused:
        there.bank.mint(wanted.quote, there.outputs(64), None)
    assert refused.value.code == NutError.QUOTE_UNPAID

    melt = here.bank.melt_quote(wanted.request, "sat")
    paid = here.bank.melt(melt.quote, inputs, [*here.outputs(1), *here.outputs(63)])

    assert paid.state is MeltQuoteState.PAID
    assert paid.preimage is not None
    assert there.bank.mint_quote_state(wanted.quote).state is MintQuoteState.PAID
    there.bank.mint(wanted.quote, there.outputs(64), None)
    assert (here.outstanding(), there.outstanding()) == ({"sat": 63}, {"sat": 64})
    again = here.bank.melt_quote(wanted.request, "sat")
    with pytest.raises(RailRejected) as refused:
        here.bank.melt(again.quote, here.proofs(128), [])
    assert refused.value.code == NutError.INVOICE_PAID


def test_its_own_invoice_costs_a_mint_nothing() -> None:
    scene = Scene(pays_itself=False)
    melt = scene.bank.melt_quote(scene.bank.mint_quote(64, "sat", None).request, "sat")
    paid = scene.bank.melt(melt.quote, scene.proofs(128), scene.outputs(127))
    assert sum(signature.amount for signature in paid.change) == 64


def test_a_melt_quote_expires_and_cannot_be_cheated() -> None:
    scene = Scene()
    quote = scene.bank.melt_quote(PlayLightning().invoice(64_000, os.urandom(32)), "sat")
    with pytest.raises(RailRejected) as refused:
        scene.bank.melt(quote.quote, scene.proofs(65), [])
    assert refused.value.code == NutError.UNBALANCED
    scene.clock.advance(EXPIRY_S)
    with pytest.raises(RailRejected) as refused:
        scene.bank.melt(quote.quote, scene.proofs(128), [])
    assert refused.value.code == NutError.QUOTE_EXPIRED


def test_it_goes_on_where_its_file_ends(tmp_path: Path) -> None:
    file = tmp_path / "mint.jsonl"
    scene = Scene("sat", "msat", state=file, pays_itself=False)
    spent, kept, held = scene.proofs(64), scene.proofs(5, "msat"), scene.proofs(128)
    outputs = scene.outputs(64)
    signed = scene.bank.swap(spent, outputs)
    waiting = scene.bank.mint_quote(9, "sat", None)
    melt = scene.bank.melt_quote(waiting.request, "sat")
    scene.bank.melt(melt.quote, held, [], stays_pending=True)
    scene.bank.add_keyset(KeysetRow("sat", 100, None, VERSION_1))
    file.write_bytes(file.read_bytes() + b'{"spent": [')  # it died while writing

    after = Scene(state=file, pays_itself=False)

    assert after.bank.audit() == scene.bank.audit()
    assert [keyset.public for keyset in after.bank.keyring] == [
        keyset.public for keyset in scene.bank.keyring
    ]
    assert after.states(spent) == {ProofState.SPENT}
    assert after.states(kept) == {ProofState.UNSPENT}
    assert after.states(held) == {ProofState.PENDING}
    assert [one for _, one in after.bank.restore(outputs)] == list(signed)
    after.bank.settle(melt.quote, paid=True)
    assert after.bank.mint_quote_state(waiting.quote).state is MintQuoteState.PAID
    assert after.states(held) == {ProofState.SPENT}


def test_a_file_that_is_no_state_is_not_taken_for_one(tmp_path: Path) -> None:
    file = tmp_path / "mint.jsonl"
    file.write_text("no state\n")
    with pytest.raises(StoreCorrupt):
        Scene(state=file)


def test_what_is_no_invoice_and_no_unit_is_refused() -> None:
    scene = Scene()
    with pytest.raises(InvalidCredential):
        scene.bank.melt_quote("lnbc1nonsense", "sat")
    for unit in ("usd", "msat"):
        with pytest.raises(RailRejected) as refused:
            scene.bank.mint_quote(1, unit, None)
        assert refused.value.code == NutError.UNIT_UNSUPPORTED
    for amount in (0, -1, 2**63):
        with pytest.raises(RailRejected) as refused:
            scene.bank.mint_quote(amount, "sat", None)
        assert refused.value.code == NutError.AMOUNT_OUTSIDE_LIMITS
