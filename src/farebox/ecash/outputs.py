"""Outputs and what comes of them: blinded from the seed, checked and unblinded on return."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from farebox.errors import InvalidCredential
from farebox.wire.cashu import crypto
from farebox.wire.cashu.model import BlindedMessage, BlindSignature, Dleq, Keyset, Proof
from farebox.wire.cashu.wallet_keys import OutputSecret, WalletKeys

#: What a blank output asks for; the mint ignores it (NUT-08).
BLANK_AMOUNT = 1


@dataclass(frozen=True, slots=True)
class Output:
    """What is sent to the mint, and the secret that opens the answer."""

    message: BlindedMessage
    derived: OutputSecret


@dataclass(frozen=True, slots=True)
class Flaw:
    """A signature of the mint that is not what was asked for. It may have kept the money."""

    reason: str


def prepare(
    keys: WalletKeys, keyset_id: str, first_counter: int, amounts: Iterable[int]
) -> tuple[Output, ...]:
    """The outputs for `amounts`, counters ascending in the same order; the same ones every time."""
    outputs = []
    for counter, amount in enumerate(amounts, first_counter):
        derived = keys.output_secret(keyset_id, counter)
        blinded = crypto.blind(derived.secret, derived.r)
        outputs.append(Output(BlindedMessage(amount, keyset_id, blinded), derived))
    return tuple(outputs)


def unblind_all(
    outputs: Sequence[Output],
    signatures: Sequence[BlindSignature],
    keyset: Keyset,
    *,
    blank: bool = False,
) -> tuple[Proof, ...] | Flaw:
    """The proofs behind a mint's answer, one per output and in order, or what is wrong with it.

    With `blank` the mint chose the amounts and may have left out outputs at the end.
    """
    if len(signatures) > len(outputs) or (len(signatures) < len(outputs) and not blank):
        return Flaw(f"the mint gave {len(signatures)} signatures for {len(outputs)} outputs")
    proofs = []
    for output, signature in zip(outputs, signatures, strict=False):
        proof = _unblind(output, signature, keyset, blank=blank)
        if isinstance(proof, Flaw):
            return proof
        proofs.append(proof)
    return tuple(proofs)


def _unblind(
    output: Output, signature: BlindSignature, keyset: Keyset, *, blank: bool
) -> Proof | Flaw:
    if signature.keyset_id != keyset.id:
        return Flaw("the mint signed with another keyset")
    if signature.amount != output.message.amount and not blank:
        return Flaw("the mint signed another amount")
    mint_key = keyset.keys.get(signature.amount)
    if mint_key is None:
        return Flaw("the mint signed an amount that its keyset does not have")
    dleq = signature.dleq
    if dleq and not crypto.is_dleq_valid(output.message.B_, signature.C_, dleq, mint_key):
        return Flaw("the mint's signature fails its own DLEQ proof")
    derived = output.derived
    try:
        unblinded = crypto.unblind(signature.C_, derived.r, mint_key)
    except InvalidCredential:
        return Flaw("the mint's signature is not a point on the curve")
    shown = Dleq(dleq.e, dleq.s, derived.r) if dleq else None
    return Proof(signature.amount, keyset.id, derived.secret, unblinded, shown)
