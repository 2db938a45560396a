"""Every way a swap, a mint or a melt can be interrupted, against a mint that can be told to fail.

The fake keeps the mint's side of the books: what is spent, what is signed, what is paid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from farebox.ecash.codes import Call, NutError, Verdict, verdict
from farebox.ecash.mint import (
    MeltQuote,
    MeltQuoteState,
    Mint,
    MintInfo,
    MintQuote,
    MintQuoteState,
    ProofState,
)
from farebox.ecash.outputs import prepare, unblind_all
from farebox.ecash.plan import MeltPlan, MintPlan, SwapPlan
from farebox.ecash.saga import (
    Done,
    NotPaid,
    Paid,
    Rejected,
    Unknown,
    advance_melt,
    advance_mint,
    advance_swap,
)
from farebox.errors import RailRejected, RailUnavailable, StoreCorrupt
from farebox.wire.cashu import crypto
from farebox.wire.cashu.keysets import keyset_id_v2
from farebox.wire.cashu.model import BlindedMessage, BlindSignature, Keyset, Proof
from farebox.wire.cashu.wallet_keys import WalletKeys

PRIVATE = {1 << bit: hashlib.sha256(bytes([bit])).digest() for bit in range(12)}
KEYS = {amount: crypto.public_key(key) for amount, key in PRIVATE.items()}
KEYSET = Keyset(keyset_id_v2(KEYS, "sat", 0, None), "sat", True, 0, None, KEYS)
WALLET = WalletKeys(b"our seed" * 4)
PAYER = WalletKeys(b"the payer's seed" * 2)
QUOTE = "a-quote"


@dataclass
class FakeMint:
    """Carries calls out honestly; `faults` are raised one per call, before or after."""

    before: list[Exception] = field(default_factory=list)
    after: list[Exception] = field(default_factory=list)
    spent: set[bytes] = field(default_factory=set)
    pending: set[bytes] = field(default_factory=set)
    signed: dict[bytes, BlindSignature] = field(default_factory=dict)
    mint_state: MintQuoteState = MintQuoteState.PAID
    melt_state: MeltQuoteState = MeltQuoteState.UNPAID
    lightning_fee: int = 1
    change: tuple[BlindSignature, ...] | None = None
    tell_change: bool = True
    calls: list[str] = field(default_factory=list)
    signature: str | None = None

    def _enter(self, name: str) -> None:
        self.calls.append(name)
        if self.before:
            raise self.before.pop(0)

    def _leave(self) -> None:
        if self.after:
            raise self.after.pop(0)

    def _sign(self, outputs: Sequence[BlindedMessage]) -> tuple[BlindSignature, ...]:
        if any(output.B_ in self.signed for output in outputs):
            raise RailRejected("outputs already signed", code=11003)
        for output in outputs:
            self.signed[output.B_] = crypto.promise(output, output.amount, PRIVATE[output.amount])
        return tuple(self.signed[output.B_] for output in outputs)

    def _spend(self, inputs: Sequence[Proof]) -> None:
        for proof in inputs:
            assert crypto.is_signed(proof.secret, proof.C, PRIVATE[proof.amount])
        if self.spent & set(ys(inputs)):
            raise RailRejected("already spent", code=11001)
        self.spent |= set(ys(inputs))

    async def info(self) -> MintInfo:
        return MintInfo("fake", "0", frozenset({7, 9, 12}))

    async def keysets(self) -> tuple[Keyset, ...]:
        return (replace(KEYSET, keys={}),)

    async def keys(self, keyset_id: str) -> Keyset:
        assert keyset_id == KEYSET.id
        return KEYSET

    async def swap(
        self, inputs: Sequence[Proof], outputs: Sequence[BlindedMessage]
    ) -> tuple[BlindSignature, ...]:
        self._enter("swap")
        if self.spent & set(ys(inputs)):
            raise RailRejected("already spent", code=11001)
        signatures = self._sign(outputs)
        self._spend(inputs)
        self._leave()
        return signatures

    async def check_state(self, asked: Sequence[bytes]) -> tuple[ProofState, ...]:
        self._enter("check_state")
        assert len(asked) <= 100
        return tuple(
            ProofState.PENDING
            if y in self.pending
            else ProofState.SPENT
            if y in self.spent
            else ProofState.UNSPENT
            for y in asked
        )

    async def restore(self, outputs: Sequence[BlindedMessage]) -> Mapping[bytes, BlindSignature]:
        self._enter("restore")
        assert len(outputs) <= 100
        return {one.B_: self.signed[one.B_] for one in outputs if one.B_ in self.signed}

    async def mint_quote(
        self, amount: int, unit: str, public_key: bytes | None = None
    ) -> MintQuote:
        raise AssertionError

    async def mint_quote_state(self, quote: str) -> MintQuote:
        self._enter("mint_quote_state")
        return MintQuote(quote, "lnbc1", 7, "sat", self.mint_state, None)

    async def mint_tokens(
        self, quote: str, outputs: Sequence[BlindedMessage], signature: str | None
    ) -> tuple[BlindSignature, ...]:
        self._enter("mint_tokens")
        self.signature = signature
        if self.mint_state is MintQuoteState.UNPAID:
            raise RailRejected("not paid", code=20001)
        if self.mint_state is MintQuoteState.ISSUED:
            raise RailRejected("issued", code=20002)
        signatures = self._sign(outputs)
        self.mint_state = MintQuoteState.ISSUED
        self._leave()
        return signatures

    async def melt_quote(self, request: str, unit: str) -> MeltQuote:
        raise AssertionError

    async def melt_quote_state(self, quote: str) -> MeltQuote:
        self._enter("melt_quote_state")
        return self._melt_answer()

    async def melt(
        self, quote: str, inputs: Sequence[Proof], outputs: Sequence[BlindedMessage]
    ) -> MeltQuote:
        self._enter("melt")
        if self.melt_state is not MeltQuoteState.UNPAID:
            raise RailRejected("melt quote is not unpaid", code=11000)
        self._spend(inputs)
        rest = sum(proof.amount for proof in inputs) - 20 - self.lightning_fee
        amounts = [1 << bit for bit in range(rest.bit_length()) if rest >> bit & 1]
        self.change = tuple(
            crypto.promise(output, amount, PRIVATE[amount])
            for output, amount in zip(outputs, amounts, strict=False)
        )
        for output, one in zip(outputs, self.change, strict=False):
            self.signed[output.B_] = one
        self.melt_state = MeltQuoteState.PAID
        self._leave()
        return self._melt_answer()

    def _melt_answer(self) -> MeltQuote:
        change = self.change if self.tell_change else None
        return MeltQuote(QUOTE, 20, 5, "sat", self.melt_state, None, "preimage", change)


def ys(proofs: Sequence[Proof]) -> list[bytes]:
    return [crypto.hash_to_curve(proof.secret) for proof in proofs]


def money(*amounts: int) -> tuple[Proof, ...]:
    """Good proofs in somebody's hands."""
    outputs = prepare(PAYER, KEYSET.id, 0, amounts)
    signatures = [
        crypto.promise(one.message, one.message.amount, PRIVATE[one.message.amount])
        for one in outputs
    ]
    proofs = unblind_all(outputs, signatures, KEYSET)
    assert isinstance(proofs, tuple)
    return proofs


def swap_plan(*inputs: int) -> SwapPlan:
    return SwapPlan(
        mint="https://mint.example",
        unit="sat",
        keyset_id=KEYSET.id,
        first_counter=40,
        inputs=money(*(inputs or (4, 2, 1))),
        amounts=(1, 2, 4),
    )


def mint_plan(label: str | None = "deposit-1") -> MintPlan:
    return MintPlan(
        mint="https://mint.example",
        unit="sat",
        keyset_id=KEYSET.id,
        first_counter=7,
        quote=QUOTE,
        amounts=(1, 2, 4),
        key_label=label,
    )


def melt_plan() -> MeltPlan:
    return MeltPlan(
        mint="https://mint.example",
        unit="sat",
        keyset_id=KEYSET.id,
        first_counter=100,
        quote=QUOTE,
        amount=20,
        input_fee=0,
        inputs=money(16, 8, 1),
    )


def lost() -> RailUnavailable:
    return RailUnavailable("the answer was lost")


def refused(code: int | None) -> RailRejected:
    return RailRejected("no", code=code)


def amounts(proofs: Sequence[Proof]) -> list[int]:
    for proof in proofs:
        assert crypto.is_signed(proof.secret, proof.C, PRIVATE[proof.amount])
        assert crypto.is_proof_dleq_valid(proof, KEYS[proof.amount])
    return [proof.amount for proof in proofs]


# Swap


async def test_a_first_swap_is_one_call_and_gives_good_proofs() -> None:
    mint = FakeMint()
    done = await advance_swap(swap_plan(), mint, WALLET, asked_before=False)
    assert isinstance(done, Done)
    assert amounts(done.proofs) == [1, 2, 4]
    assert mint.calls == ["swap"]


async def test_a_swap_whose_answer_was_lost_is_recovered_in_full() -> None:
    mint = FakeMint(after=[lost()])
    plan = swap_plan()
    assert isinstance(await advance_swap(plan, mint, WALLET, asked_before=False), Unknown)
    done = await advance_swap(plan, mint, WALLET, asked_before=True)
    assert isinstance(done, Done)
    assert amounts(done.proofs) == [1, 2, 4]
    assert mint.calls == ["swap", "check_state", "restore"]


async def test_a_swap_that_never_arrived_is_sent_again() -> None:
    mint = FakeMint(before=[lost()])
    plan = swap_plan()
    assert isinstance(await advance_swap(plan, mint, WALLET, asked_before=False), Unknown)
    assert isinstance(await advance_swap(plan, mint, WALLET, asked_before=True), Done)
    assert mint.calls == ["swap", "check_state", "swap"]


async def test_a_crash_before_the_first_call_is_recovered_by_sending() -> None:
    done = await advance_swap(swap_plan(), FakeMint(), WALLET, asked_before=True)
    assert isinstance(done, Done)


async def test_a_token_spent_by_somebody_else_is_rejected() -> None:
    plan = swap_plan()
    mint = FakeMint(spent=set(ys(plan.inputs)))
    outcome = await advance_swap(plan, mint, WALLET, asked_before=False)
    assert isinstance(outcome, Rejected)
    assert outcome.code == 11001
    assert mint.calls == ["swap", "check_state", "restore"]


async def test_a_token_spent_in_part_is_rejected() -> None:
    plan = swap_plan()
    mint = FakeMint(spent=set(ys(plan.inputs)[:1]))
    outcome = await advance_swap(plan, mint, WALLET, asked_before=True)
    assert isinstance(outcome, Rejected)


async def test_a_refused_echo_of_our_own_success_is_done() -> None:
    plan = swap_plan()
    mint = FakeMint()
    await advance_swap(plan, mint, WALLET, asked_before=False)
    # a caller that forgot it had sent before still loses nothing
    again = await advance_swap(plan, mint, WALLET, asked_before=False)
    assert isinstance(again, Done)


async def test_a_late_first_attempt_that_wins_the_race_is_found() -> None:
    plan = swap_plan()
    mint = FakeMint()

    class Late(FakeMint):
        async def check_state(self, asked: Sequence[bytes]) -> tuple[ProofState, ...]:
            states = await mint.check_state(asked)
            if "late" not in mint.calls:
                mint.calls.append("late")
                await mint.swap(
                    plan.inputs,
                    [one.message for one in prepare(WALLET, KEYSET.id, 40, plan.amounts)],
                )
            return states

        async def swap(
            self, inputs: Sequence[Proof], outputs: Sequence[BlindedMessage]
        ) -> tuple[BlindSignature, ...]:
            return await mint.swap(inputs, outputs)

        async def restore(
            self, outputs: Sequence[BlindedMessage]
        ) -> Mapping[bytes, BlindSignature]:
            return await mint.restore(outputs)

    assert isinstance(await advance_swap(plan, Late(), WALLET, asked_before=True), Done)


async def test_pending_inputs_are_waited_for() -> None:
    plan = swap_plan()
    mint = FakeMint(before=[refused(11002)], pending=set(ys(plan.inputs)[:1]))
    outcome = await advance_swap(plan, mint, WALLET, asked_before=False)
    assert isinstance(outcome, Unknown)
    assert not outcome.alarm
    assert mint.calls == ["swap", "check_state"]


@pytest.mark.parametrize("code", [10001, 11005, 12001, 12002, 12003])
async def test_a_first_refusal_that_settles_is_final_without_asking(code: int) -> None:
    mint = FakeMint(before=[refused(code)])
    outcome = await advance_swap(swap_plan(), mint, WALLET, asked_before=False)
    assert outcome == Rejected(code, "no")
    assert mint.calls == ["swap"]


@pytest.mark.parametrize("code", [None, 0, 11000, 99999])
async def test_a_refusal_that_says_nothing_is_settled_by_asking(code: int | None) -> None:
    mint = FakeMint(before=[refused(code)])
    outcome = await advance_swap(swap_plan(), mint, WALLET, asked_before=False)
    assert outcome == Rejected(code, "no")
    assert mint.calls == ["swap", "check_state"]


async def test_a_refusal_after_the_swap_was_carried_out_is_no_rejection() -> None:
    """Seen: a mint whose database fails answers 400 with code 0, whatever it had done."""
    mint = FakeMint(after=[refused(0)])
    outcome = await advance_swap(swap_plan(), mint, WALLET, asked_before=False)
    assert isinstance(outcome, Done)


async def test_a_settling_refusal_in_recovery_is_checked_before_it_is_believed() -> None:
    """The first attempt may have been carried out just before the keyset was rotated."""
    mint = FakeMint(after=[refused(12002)])
    assert isinstance(await advance_swap(swap_plan(), mint, WALLET, asked_before=True), Done)

    class Rotated(FakeMint):
        async def swap(
            self, inputs: Sequence[Proof], outputs: Sequence[BlindedMessage]
        ) -> tuple[BlindSignature, ...]:
            raise refused(12002)

    outcome = await advance_swap(swap_plan(), Rotated(), WALLET, asked_before=True)
    assert outcome == Rejected(12002, "no")


async def test_outputs_signed_before_with_free_inputs_are_a_definite_no() -> None:
    """A restored backup reuses counters: the inputs are safe, the plan must be made anew."""
    mint = FakeMint()
    other = swap_plan(4, 2, 1)
    await advance_swap(other, mint, WALLET, asked_before=False)
    mint.spent.clear()
    outcome = await advance_swap(other, mint, WALLET, asked_before=False)
    assert isinstance(outcome, Rejected)
    assert outcome.code == 11003


@pytest.mark.parametrize("code", [11001, 11002, 11004])
async def test_refusals_at_odds_with_the_states_settle_nothing(code: int) -> None:
    mint = FakeMint()

    class Contrary(FakeMint):
        async def swap(
            self, inputs: Sequence[Proof], outputs: Sequence[BlindedMessage]
        ) -> tuple[BlindSignature, ...]:
            mint.calls.append("swap")
            raise refused(code)

    outcome = await advance_swap(swap_plan(), Contrary(), WALLET, asked_before=False)
    assert isinstance(outcome, Unknown)
    assert len(mint.calls) == 3


async def test_signatures_for_some_outputs_only_raise_an_alarm() -> None:
    plan = swap_plan()
    mint = FakeMint(after=[lost()])
    await advance_swap(plan, mint, WALLET, asked_before=False)
    mint.signed.popitem()
    outcome = await advance_swap(plan, mint, WALLET, asked_before=True)
    assert isinstance(outcome, Unknown)
    assert outcome.alarm


class Cheat(FakeMint):
    """Answers a swap with signatures that are not what was asked for."""

    flaw: str = ""

    async def swap(
        self, inputs: Sequence[Proof], outputs: Sequence[BlindedMessage]
    ) -> tuple[BlindSignature, ...]:
        return self._bent(await FakeMint.swap(self, inputs, outputs), outputs)

    def _bent(
        self, good: tuple[BlindSignature, ...], outputs: Sequence[BlindedMessage]
    ) -> tuple[BlindSignature, ...]:
        match self.flaw:
            case "missing":
                return good[:-1]
            case "key":
                return (crypto.promise(outputs[0], 1, PRIVATE[2]), *good[1:])
            case "amount":
                return (replace(good[0], amount=2), *good[1:])
            case "keyset":
                return (replace(good[0], keyset_id="00" * 8), *good[1:])
            case "unknown amount":
                return (replace(good[0], amount=3), *good[1:])
        return (replace(good[0], C_=b"\x02" + b"\xff" * 32, dleq=None), *good[1:])


@pytest.mark.parametrize("flaw", ["missing", "key", "amount", "keyset", "no point"])
async def test_a_garbled_answer_is_asked_about_and_a_false_one_raises_an_alarm(flaw: str) -> None:
    mint = Cheat()
    mint.flaw = flaw
    outcome = await advance_swap(swap_plan(), mint, WALLET, asked_before=False)
    assert isinstance(outcome, Unknown)
    assert not outcome.alarm
    assert isinstance(await advance_swap(swap_plan(), mint, WALLET, asked_before=True), Done)
    for output, signature in mint.signed.items():
        mint.signed[output] = replace(signature, keyset_id="00" * 8)
    outcome = await advance_swap(swap_plan(), mint, WALLET, asked_before=True)
    assert isinstance(outcome, Unknown)
    assert outcome.alarm


async def test_a_mint_that_cannot_be_asked_leaves_it_unknown() -> None:
    for fault in (lost(), refused(0)):
        mint = FakeMint(before=[fault])
        outcome = await advance_swap(swap_plan(), mint, WALLET, asked_before=True)
        assert isinstance(outcome, Unknown)
        assert mint.calls == ["check_state"]


async def test_many_inputs_and_outputs_are_asked_about_in_bounded_questions() -> None:
    plan = SwapPlan(
        mint="m",
        unit="sat",
        keyset_id=KEYSET.id,
        first_counter=0,
        inputs=money(*[1] * 201),
        amounts=(1,) * 201,
    )
    mint = FakeMint(after=[lost()])
    await advance_swap(plan, mint, WALLET, asked_before=False)
    assert isinstance(await advance_swap(plan, mint, WALLET, asked_before=True), Done)
    assert mint.calls.count("check_state") == mint.calls.count("restore") == 3


# Mint


async def test_a_paid_quote_is_minted_in_one_call_signed_with_its_own_key() -> None:
    mint = FakeMint()
    done = await advance_mint(mint_plan(), mint, WALLET, asked_before=False)
    assert isinstance(done, Done)
    assert amounts(done.proofs) == [1, 2, 4]
    assert mint.calls == ["mint_tokens"]
    messages = [one.message for one in prepare(WALLET, KEYSET.id, 7, (1, 2, 4))]
    key = crypto.public_key(WALLET.quote_key("deposit-1"))
    assert crypto.is_mint_quote_signed(key, QUOTE, messages, mint.signature or "")


async def test_an_unlocked_quote_is_minted_without_a_signature() -> None:
    mint = FakeMint()
    await advance_mint(mint_plan(None), mint, WALLET, asked_before=False)
    assert mint.signature is None


async def test_an_unpaid_quote_waits() -> None:
    mint = FakeMint(mint_state=MintQuoteState.UNPAID)
    for asked in (False, True):
        assert await advance_mint(mint_plan(), mint, WALLET, asked_before=asked) == NotPaid()


async def test_a_mint_whose_answer_was_lost_is_recovered_in_full() -> None:
    mint = FakeMint(after=[lost()])
    assert isinstance(await advance_mint(mint_plan(), mint, WALLET, asked_before=False), Unknown)
    done = await advance_mint(mint_plan(), mint, WALLET, asked_before=True)
    assert isinstance(done, Done)
    assert mint.calls == ["mint_tokens", "mint_quote_state", "restore"]


async def test_a_mint_that_never_arrived_is_sent_again() -> None:
    mint = FakeMint(before=[lost()])
    await advance_mint(mint_plan(), mint, WALLET, asked_before=False)
    assert isinstance(await advance_mint(mint_plan(), mint, WALLET, asked_before=True), Done)


async def test_a_quote_minted_by_somebody_else_is_rejected() -> None:
    mint = FakeMint(mint_state=MintQuoteState.ISSUED)
    outcome = await advance_mint(mint_plan(), mint, WALLET, asked_before=False)
    assert isinstance(outcome, Rejected)
    assert outcome.code == 20002


async def test_a_quote_the_mint_is_working_on_waits() -> None:
    mint = FakeMint(mint_state=MintQuoteState.PENDING)
    assert isinstance(await advance_mint(mint_plan(), mint, WALLET, asked_before=True), Unknown)


async def test_a_mint_that_stopped_between_signing_and_marking_gives_its_signatures() -> None:
    mint = FakeMint(after=[lost()])
    await advance_mint(mint_plan(), mint, WALLET, asked_before=False)
    mint.mint_state = MintQuoteState.PAID
    assert isinstance(await advance_mint(mint_plan(), mint, WALLET, asked_before=True), Done)


async def test_a_refused_mint_of_a_paid_quote_is_rejected() -> None:
    mint = FakeMint(before=[refused(20008)])
    outcome = await advance_mint(mint_plan(), mint, WALLET, asked_before=False)
    assert outcome == Rejected(20008, "no")


# Melt


async def test_a_melt_is_one_call_and_brings_its_change() -> None:
    mint = FakeMint()
    paid = await advance_melt(melt_plan(), mint, WALLET, asked_before=False)
    assert isinstance(paid, Paid)
    assert (paid.preimage, paid.fee) == ("preimage", 1)
    assert amounts(paid.change) == [4]
    assert mint.calls == ["melt"]


async def test_a_melt_with_nothing_left_has_no_change() -> None:
    mint = FakeMint(lightning_fee=5)
    paid = await advance_melt(melt_plan(), mint, WALLET, asked_before=False)
    assert paid == Paid("preimage", 5, ())


async def test_a_melt_that_timed_out_is_never_a_failure() -> None:
    mint = FakeMint(after=[lost()])
    assert isinstance(await advance_melt(melt_plan(), mint, WALLET, asked_before=False), Unknown)
    paid = await advance_melt(melt_plan(), mint, WALLET, asked_before=True)
    assert isinstance(paid, Paid)
    assert amounts(paid.change) == [4]
    assert mint.calls == ["melt", "melt_quote_state"]


async def test_change_that_the_mint_does_not_tell_is_restored() -> None:
    mint = FakeMint(tell_change=False)
    paid = await advance_melt(melt_plan(), mint, WALLET, asked_before=False)
    assert isinstance(paid, Paid)
    assert amounts(paid.change) == [4]
    assert mint.calls == ["melt", "restore"]


async def test_a_pending_payment_is_waited_for() -> None:
    mint = FakeMint(melt_state=MeltQuoteState.PENDING)
    for asked in (False, True):
        outcome = await advance_melt(melt_plan(), mint, WALLET, asked_before=asked)
        assert isinstance(outcome, Unknown)
        assert not outcome.alarm


async def test_a_failed_payment_with_free_inputs_is_a_definite_failure() -> None:
    mint = FakeMint(before=[refused(20004)])
    outcome = await advance_melt(melt_plan(), mint, WALLET, asked_before=False)
    assert outcome == Rejected(20004, "no")
    assert mint.calls == ["melt", "melt_quote_state", "check_state"]


async def test_a_melt_that_never_arrived_is_sent_again_before_it_may_fail() -> None:
    mint = FakeMint(before=[lost()])
    await advance_melt(melt_plan(), mint, WALLET, asked_before=False)
    assert isinstance(await advance_melt(melt_plan(), mint, WALLET, asked_before=True), Paid)
    assert mint.calls == ["melt", "melt_quote_state", "check_state", "melt"]


async def test_a_failed_payment_whose_inputs_are_still_held_waits() -> None:
    plan = melt_plan()
    mint = FakeMint(before=[refused(20004)], pending=set(ys(plan.inputs)))
    outcome = await advance_melt(plan, mint, WALLET, asked_before=False)
    assert isinstance(outcome, Unknown)


async def test_an_unpaid_quote_with_spent_inputs_raises_an_alarm() -> None:
    plan = melt_plan()
    mint = FakeMint(spent=set(ys(plan.inputs)))
    outcome = await advance_melt(plan, mint, WALLET, asked_before=True)
    assert isinstance(outcome, Unknown)
    assert outcome.alarm


async def test_an_answer_of_unpaid_is_asked_about() -> None:
    class Stays(FakeMint):
        async def melt(
            self, quote: str, inputs: Sequence[Proof], outputs: Sequence[BlindedMessage]
        ) -> MeltQuote:
            self.calls.append("melt")
            return self._melt_answer()

    outcome = await advance_melt(melt_plan(), Stays(), WALLET, asked_before=False)
    assert isinstance(outcome, Rejected)


async def test_change_that_is_not_right_raises_an_alarm() -> None:
    class WrongChange(FakeMint):
        def _melt_answer(self) -> MeltQuote:
            answer = FakeMint._melt_answer(self)
            wrong = tuple(replace(one, amount=8) for one in answer.change or ())
            return replace(answer, change=wrong)

    outcome = await advance_melt(melt_plan(), WrongChange(), WALLET, asked_before=False)
    assert isinstance(outcome, Unknown)
    assert outcome.alarm


async def test_change_above_what_was_left_raises_an_alarm() -> None:
    mint = FakeMint(lightning_fee=-30)
    outcome = await advance_melt(melt_plan(), mint, WALLET, asked_before=False)
    assert isinstance(outcome, Unknown)
    assert outcome.alarm


# Plans and codes


@pytest.mark.parametrize("plan", [swap_plan(), mint_plan(), melt_plan()])
def test_a_plan_survives_its_bytes(plan: SwapPlan | MintPlan | MeltPlan) -> None:
    assert type(plan).from_bytes(plan.to_bytes()) == plan
    assert plan.output_count == 3


def test_bytes_of_another_plan_are_refused() -> None:
    with pytest.raises(StoreCorrupt):
        MintPlan.from_bytes(swap_plan().to_bytes())
    with pytest.raises(StoreCorrupt):
        SwapPlan.from_bytes(b"{")


def test_a_plan_shows_no_secret_in_its_repr() -> None:
    shown = repr([swap_plan(), mint_plan(), melt_plan()])
    assert QUOTE not in shown
    assert all(proof.secret not in shown for proof in swap_plan().inputs)


def test_no_output_secret_is_in_a_plan() -> None:
    secrets = [one.derived.secret for one in prepare(WALLET, KEYSET.id, 40, (1, 2, 4))]
    assert all(secret.encode() not in swap_plan().to_bytes() for secret in secrets)


@pytest.mark.parametrize("call", list(Call))
@pytest.mark.parametrize("code", [11000, 11001, 11002, 11003, 11004, 20002, 20004, 20005, 20006])
def test_what_may_echo_our_own_success_is_always_asked_about(call: Call, code: int) -> None:
    assert verdict(call, code) is Verdict.ASK


def test_every_code_has_a_verdict_for_every_call() -> None:
    for error in NutError:
        for call in Call:
            assert isinstance(verdict(call, error), Verdict)
    assert verdict(Call.SWAP, None) is Verdict.ASK
    assert verdict(Call.SWAP, 20008) is Verdict.ASK
    assert verdict(Call.MINT, 20008) is Verdict.DEFINITE


def test_the_fake_is_a_mint() -> None:
    mint: Mint = FakeMint()
    assert "quote" in repr(MintQuote("q-secret", "r", 1, "sat", MintQuoteState.PAID, None))
    assert "q-secret" not in repr(MintQuote("q-secret", "r", 1, "sat", MintQuoteState.PAID, None))
    assert isinstance(mint, FakeMint)
