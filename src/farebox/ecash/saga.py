"""Swap, mint and melt, carried to a definite end whatever is lost on the way.

Each `advance_…` makes one step for a plan that is already stored, and the same step serves the
first attempt and every recovery. `asked_before=False` says that this plan was never sent, so it
is sent straight away: one call. With `asked_before=True` the mint is asked first.

Swap (NUT-03, 07, 09)

| state             | boundary: stored before  | failure                      | recovery          |
|-------------------|--------------------------|------------------------------|-------------------|
| planned           | plan, counters advanced  | crash before sending         | ask               |
| sent              | -                        | time-out, 5xx, garbage       | Unknown, ask      |
| refused at first  | -                        | the code settles it          | Rejected          |
| refused otherwise | -                        | may echo an earlier attempt  | ask               |
| asked: UNSPENT    | -                        | never carried out            | send again once;  |
|                   |                          |                              | refused: Rejected |
| asked: PENDING    | -                        | in another call's hands      | Unknown, wait     |
| asked: any SPENT  | -                        | restore gives every output   | Done              |
| asked: any SPENT  | -                        | restore gives nothing        | Rejected: not us  |
| asked: any SPENT  | -                        | restore gives some           | Unknown, alarm    |
| signed            | proofs, in one commit    | a signature is not right     | Unknown, ask      |
| restored          | proofs, in one commit    | a signature is not right     | Unknown, alarm    |

Mint (NUT-04, 20): the same, but the quote is asked for: UNPAID → NotPaid, PAID → send again,
PENDING → Unknown, ISSUED → restore (nothing there: somebody else minted it, Rejected).

Melt (NUT-05, 08): the quote is asked for, then the inputs.

| quote   | inputs  | meaning                         | step                                     |
|---------|---------|---------------------------------|------------------------------------------|
| PAID    | -       | paid                            | Paid; change as answered, else restored  |
| PENDING | -       | Lightning may take hours        | Unknown, wait                            |
| UNPAID  | UNSPENT | not paid, by no earlier attempt | send again once; if refused, Rejected    |
| UNPAID  | PENDING | being tried or unwound          | Unknown, wait                            |
| UNPAID  | SPENT   | the mint contradicts itself     | Unknown, alarm                           |

Sending again is safe: the inputs can be spent once, the outputs signed once and the quote paid
once, so an attempt that arrives late finds nothing left to do. It is also what makes a failure
definite: a request that is still on its way could turn silence into a payment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from farebox.ecash.codes import Call, NutError, Verdict, verdict
from farebox.ecash.mint import MeltQuote, MeltQuoteState, Mint, MintQuoteState, ProofState
from farebox.ecash.outputs import BLANK_AMOUNT, Flaw, Output, prepare, unblind_all
from farebox.ecash.plan import MeltPlan, MintPlan, SwapPlan
from farebox.errors import RailRejected, RailUnavailable
from farebox.wire.cashu import crypto
from farebox.wire.cashu.model import BlindedMessage, BlindSignature, Keyset, Proof
from farebox.wire.cashu.wallet_keys import WalletKeys

#: Most Ys or outputs in one question; mints refuse larger ones.
_ASKED_AT_ONCE = 100

#: Refusals that settle nothing even where nothing has happened: "not now", or at odds with the
#: states that the mint itself gave.
_UNSETTLED = (
    NutError.PROOFS_SPENT,
    NutError.PROOFS_PENDING,
    NutError.OUTPUTS_PENDING,
    NutError.QUOTE_PENDING,
)


@dataclass(frozen=True, slots=True)
class Done:
    """Carried out: these proofs are ours, in the order of the plan's amounts."""

    proofs: tuple[Proof, ...]


@dataclass(frozen=True, slots=True)
class Paid:
    """The melt was paid. `fee` is all it cost above the amount: Lightning, inputs, what the mint
    kept. Some mints tell no preimage."""

    preimage: str | None = field(repr=False)
    fee: int
    change: tuple[Proof, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """Not carried out, and this plan never will be.

    The inputs are as free as they were before, unless the code is 11001: then somebody else has
    spent them. Code 11003 says that the counters were used already: plan anew with fresh ones.
    `vague`: the mint's words would fit a call that another one holds up. If the answer to an
    earlier attempt was lost, that one may be on its way yet: wait before you believe it.
    """

    code: int | None
    reason: str
    vague: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class NotPaid:
    """The mint quote waits for its payment."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """No definite answer yet: ask again. With `alarm` an operator has to look: the mint's answers
    contradict each other. `code` is set where the inputs of an unpaid melt were spent: by whoever
    gave them to us, if they came from somebody."""

    reason: str
    alarm: bool = False
    code: int | None = None


@dataclass(frozen=True, slots=True)
class _Refused:
    """The mint answered an attempt with an error; `definite` if that settles a first attempt."""

    code: int | None
    reason: str
    definite: bool


async def advance_swap(
    plan: SwapPlan, mint: Mint, keys: WalletKeys, *, asked_before: bool
) -> Done | Rejected | Unknown:
    """Make one step towards the end of a stored swap. Raises nothing for a mint's faults."""
    try:
        keyset = await mint.keys(plan.keyset_id)
        outputs = prepare(keys, plan.keyset_id, plan.first_counter, plan.amounts)
        return await _advance(_Swap(plan, mint, keyset, outputs), asked_before=asked_before)
    except (RailUnavailable, RailRejected) as error:
        return _unanswered(error)


async def advance_mint(
    plan: MintPlan, mint: Mint, keys: WalletKeys, *, asked_before: bool
) -> Done | NotPaid | Rejected | Unknown:
    """Make one step towards the proofs of a mint quote. Raises nothing for a mint's faults.

    `Rejected` here never means that the payer has the money back: an operator has to look.
    """
    try:
        keyset = await mint.keys(plan.keyset_id)
        outputs = prepare(keys, plan.keyset_id, plan.first_counter, plan.amounts)
        flow = _Mint(plan, mint, keyset, outputs, _quote_signature(plan, keys, outputs))
        return await _advance(flow, asked_before=asked_before)
    except (RailUnavailable, RailRejected) as error:
        return _unanswered(error)


async def advance_melt(
    plan: MeltPlan, mint: Mint, keys: WalletKeys, *, asked_before: bool
) -> Paid | Rejected | Unknown:
    """Make one step towards the end of a stored melt. Raises nothing for a mint's faults."""
    try:
        keyset = await mint.keys(plan.keyset_id)
        outputs = prepare(keys, plan.keyset_id, plan.first_counter, _blanks(plan))
        return await _advance(_Melt(plan, mint, keyset, outputs), asked_before=asked_before)
    except (RailUnavailable, RailRejected) as error:
        return _unanswered(error)


async def find_melt(plan: MeltPlan, mint: Mint, keys: WalletKeys) -> Paid | Unknown:
    """What became of a melt, without ever sending it. Raises nothing for a mint's faults."""
    try:
        keyset = await mint.keys(plan.keyset_id)
        outputs = prepare(keys, plan.keyset_id, plan.first_counter, _blanks(plan))
        found = await _Melt(plan, mint, keyset, outputs).ask()
    except (RailUnavailable, RailRejected) as error:
        return _unanswered(error)
    return found or Unknown("the mint says that the quote was not paid")


def _blanks(plan: MeltPlan) -> list[int]:
    return [BLANK_AMOUNT] * plan.output_count


def _unanswered(error: RailUnavailable | RailRejected) -> Unknown:
    """An attempt without an answer, or a question that the mint would not answer."""
    return Unknown(str(error) or "the mint gave no answer")


_End_co = TypeVar("_End_co", covariant=True)


class _Flow(Protocol[_End_co]):
    """One kind of call, with how to send it and how to find out what became of it."""

    async def send(self) -> _End_co | _Refused:
        """One attempt. RailUnavailable passes through: its outcome is unknown."""
        ...

    async def ask(self) -> _End_co | None:
        """What became of earlier attempts; None where nothing has happened."""
        ...

    async def settle(self, refused: _Refused) -> _End_co:
        """The end, once an attempt was refused and nothing has happened."""
        ...


async def _advance(flow: _Flow[_End_co], *, asked_before: bool) -> _End_co | Rejected | Unknown:
    """Send a first attempt straight away; otherwise ask, and send once where nothing happened."""
    refused: _Refused | None = None
    if not asked_before:
        sent = await flow.send()
        if not isinstance(sent, _Refused):
            return sent
        if sent.definite:
            return Rejected(sent.code, sent.reason)
        refused = sent
    for _ in range(2):
        found = await flow.ask()
        if found is not None:
            return found
        if refused is not None and refused.code not in _UNSETTLED:
            return await flow.settle(refused)
        sent = await flow.send()
        if not isinstance(sent, _Refused):
            return sent
        refused = sent
    return Unknown(f"the mint refuses, but not for good: {refused.reason if refused else ''}")


@dataclass(frozen=True, slots=True)
class _Swap:
    plan: SwapPlan
    mint: Mint
    keyset: Keyset
    outputs: tuple[Output, ...]

    async def send(self) -> Done | Unknown | _Refused:
        try:
            signatures = await self.mint.swap(self.plan.inputs, _messages(self.outputs))
        except RailRejected as error:
            return _refusal(Call.SWAP, error)
        return _answered(unblind_all(self.outputs, signatures, self.keyset))

    async def ask(self) -> Done | Rejected | Unknown | None:
        states = await _input_states(self.plan.inputs, self.mint)
        if ProofState.PENDING in states:
            return Unknown("the mint holds inputs as pending")
        if ProofState.SPENT in states:
            # Vague, because a mint may mark the inputs before it has stored what it signs.
            reason = "the inputs were spent by somebody else"
            by_others = Rejected(NutError.PROOFS_SPENT, reason, vague=True)
            return await _restored(self.mint, self.keyset, self.outputs, by_others)
        return None

    async def settle(self, refused: _Refused) -> Rejected:
        return _rejected(refused)


@dataclass(frozen=True, slots=True)
class _Mint:
    plan: MintPlan
    mint: Mint
    keyset: Keyset
    outputs: tuple[Output, ...]
    signature: str | None

    async def send(self) -> Done | Unknown | _Refused:
        try:
            signatures = await self.mint.mint_tokens(
                self.plan.quote, _messages(self.outputs), self.signature
            )
        except RailRejected as error:
            return _refusal(Call.MINT, error)
        return _answered(unblind_all(self.outputs, signatures, self.keyset))

    async def ask(self) -> Done | NotPaid | Rejected | Unknown | None:
        match (await self.mint.mint_quote_state(self.plan.quote)).state:
            case MintQuoteState.UNPAID:
                return NotPaid()
            case MintQuoteState.PENDING:
                return Unknown("the mint is working on the quote")
            case MintQuoteState.ISSUED:
                by_others = Rejected(NutError.QUOTE_ISSUED, "somebody else minted the quote")
                return await _restored(self.mint, self.keyset, self.outputs, by_others)
            case MintQuoteState.PAID:
                return None

    async def settle(self, refused: _Refused) -> Done | Rejected | Unknown:
        # A mint that stopped between signing and marking the quote refuses outputs it has signed.
        return await _restored(self.mint, self.keyset, self.outputs, _rejected(refused))


@dataclass(frozen=True, slots=True)
class _Melt:
    plan: MeltPlan
    mint: Mint
    keyset: Keyset
    outputs: tuple[Output, ...]

    async def send(self) -> Paid | Unknown | _Refused:
        try:
            quote = await self.mint.melt(self.plan.quote, self.plan.inputs, _messages(self.outputs))
        except RailRejected as error:
            return _refusal(Call.MELT, error)
        if quote.state is MeltQuoteState.UNPAID:
            return _Refused(None, "the mint answered that the quote stays unpaid", definite=False)
        return await self._paid(quote)

    async def ask(self) -> Paid | Unknown | None:
        quote = await self.mint.melt_quote_state(self.plan.quote)
        if quote.state is not MeltQuoteState.UNPAID:
            return await self._paid(quote)
        states = await _input_states(self.plan.inputs, self.mint)
        if ProofState.PENDING in states:
            return Unknown("the quote is unpaid, but the mint holds its inputs as pending")
        if ProofState.SPENT in states:
            reason = "the quote is unpaid, but its inputs were spent"
            return Unknown(reason, alarm=True, code=NutError.PROOFS_SPENT)
        return None

    async def settle(self, refused: _Refused) -> Rejected:
        return _rejected(refused)

    async def _paid(self, quote: MeltQuote) -> Paid | Unknown:
        """The end of a melt that is paid, with its change; Unknown while it is pending."""
        if quote.state is not MeltQuoteState.PAID:
            return Unknown("the payment is under way")
        if quote.change is None:
            change = await _restored_change(self.mint, self.keyset, self.outputs)
        else:
            change = unblind_all(self.outputs, quote.change, self.keyset, blank=True)
        if isinstance(change, Flaw):
            return Unknown(f"the melt was paid, but {change.reason}", alarm=True)
        given = sum(proof.amount for proof in self.plan.inputs)
        fee = given - self.plan.amount - sum(proof.amount for proof in change)
        if fee < 0:
            return Unknown("the melt was paid, but its change exceeds what was left", alarm=True)
        return Paid(quote.preimage, fee, change)


def _quote_signature(plan: MintPlan, keys: WalletKeys, outputs: Sequence[Output]) -> str | None:
    if plan.key_label is None:
        return None
    return crypto.sign_mint_quote(keys.quote_key(plan.key_label), plan.quote, _messages(outputs))


def _messages(outputs: Sequence[Output]) -> list[BlindedMessage]:
    return [output.message for output in outputs]


def _rejected(refused: _Refused) -> Rejected:
    return Rejected(refused.code, refused.reason, vague=not refused.definite)


def _refusal(call: Call, error: RailRejected) -> _Refused:
    return _Refused(error.code, str(error), verdict(call, error.code) is Verdict.DEFINITE)


def _answered(proofs: tuple[Proof, ...] | Flaw) -> Done | Unknown:
    """An answer that is not right may be a garbled one: what the mint restores is what counts."""
    return Unknown(proofs.reason) if isinstance(proofs, Flaw) else Done(proofs)


async def _input_states(inputs: Sequence[Proof], mint: Mint) -> tuple[ProofState, ...]:
    ys = [crypto.hash_to_curve(proof.secret) for proof in inputs]
    states: list[ProofState] = []
    for at in range(0, len(ys), _ASKED_AT_ONCE):
        chunk = ys[at : at + _ASKED_AT_ONCE]
        answered = await mint.check_state(chunk)
        if len(answered) != len(chunk):
            raise RailUnavailable("the mint gave states of other proofs than those asked about")
        states.extend(answered)
    return tuple(states)


async def _signatures_given(mint: Mint, outputs: Sequence[Output]) -> dict[bytes, BlindSignature]:
    given: dict[bytes, BlindSignature] = {}
    for at in range(0, len(outputs), _ASKED_AT_ONCE):
        given.update(await mint.restore(_messages(outputs[at : at + _ASKED_AT_ONCE])))
    return given


async def _restored(
    mint: Mint, keyset: Keyset, outputs: Sequence[Output], none: Rejected
) -> Done | Rejected | Unknown:
    """The proofs of outputs once signed, `none` where the mint has signed none of them."""
    given = await _signatures_given(mint, outputs)
    signatures = [given[output.message.B_] for output in outputs if output.message.B_ in given]
    if not signatures:
        return none
    if len(signatures) < len(outputs):
        return Unknown("the mint has signed some of the outputs, not all", alarm=True)
    proofs = unblind_all(outputs, signatures, keyset)
    return Unknown(proofs.reason, alarm=True) if isinstance(proofs, Flaw) else Done(proofs)


async def _restored_change(
    mint: Mint, keyset: Keyset, outputs: Sequence[Output]
) -> tuple[Proof, ...] | Flaw:
    """The change of a melt: the mint signs only the blanks it needed."""
    given = await _signatures_given(mint, outputs)
    used = [output for output in outputs if output.message.B_ in given]
    signatures = [given[output.message.B_] for output in used]
    return unblind_all(used, signatures, keyset, blank=True)
