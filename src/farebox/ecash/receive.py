"""What to make of a token: refuse it, or swap it so that any change is at hand. Pure."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from farebox.ecash.plan import SwapPlan
from farebox.errors import InvalidAmount
from farebox.wire.cashu import crypto
from farebox.wire.cashu.amounts import binary_parts, input_fee, split
from farebox.wire.cashu.locks import parse_lock, unlock
from farebox.wire.cashu.model import Keyset, Proof, Token


class RefusalReason(enum.Enum):
    """Why a token is not taken. Nothing was sent to the mint and the payer still has it."""

    UNIT_WRONG = "unit_wrong"
    KEYSET_UNKNOWN = "keyset_unknown"
    KEYSET_EXPIRED = "keyset_expired"
    AMOUNT_UNKNOWN = "amount_unknown"
    NO_OUTPUT_KEYSET = "no_output_keyset"
    DLEQ_MISSING = "dleq_missing"
    DLEQ_WRONG = "dleq_wrong"
    LOCKED = "locked"
    TOO_LITTLE = "too_little"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A token that is not taken, with a sentence for the payer."""

    reason: RefusalReason
    message: str


@dataclass(frozen=True, slots=True, repr=False)
class Terms:
    """What is asked of a token. Amounts in `unit`.

    `maximum` must be left after the mint's fee; 0 takes whatever there is. A `fixed_price` is cut
    out as it is, a metered maximum so that any part of it can be given back. `unlock_key` is the
    private key that tokens may be locked to.
    """

    unit: str
    maximum: int = 0
    fixed_price: bool = False
    require_dleq: bool = False
    unlock_key: bytes | None = None

    def __repr__(self) -> str:
        return f"Terms(unit={self.unit!r}, maximum={self.maximum})"


@dataclass(frozen=True, slots=True)
class Receive:
    """How to swap a token: `net` is what it is worth after `fee`, made of `amounts`, ascending.

    A subset of `amounts` sums to every change from net − maximum (all used) to net (all back).
    """

    mint: str
    unit: str
    inputs: tuple[Proof, ...]
    fee: int
    net: int
    keyset_id: str
    amounts: tuple[int, ...]

    def swap_plan(self, first_counter: int) -> SwapPlan:
        """The plan to store before the swap, with `len(amounts)` counters from `first_counter`."""
        return SwapPlan(
            mint=self.mint,
            unit=self.unit,
            keyset_id=self.keyset_id,
            first_counter=first_counter,
            inputs=self.inputs,
            amounts=self.amounts,
        )


def plan_receive(
    token: Token, keysets: Mapping[str, Keyset], terms: Terms, now_s: int
) -> Receive | Refusal:
    """Weigh a token, its keyset ids resolved, against `terms`. `keysets` are the mint's, with
    their keys; `now_s` is Unix seconds."""
    if token.unit != terms.unit:
        return Refusal(RefusalReason.UNIT_WRONG, f"the token is in {token.unit}, not {terms.unit}")
    inputs = []
    for proof in token.proofs:
        weighed = _weigh(proof, keysets.get(proof.keyset_id), terms, now_s)
        if isinstance(weighed, Refusal):
            return weighed
        inputs.append(weighed)
    target = output_keyset(keysets.values(), terms.unit, now_s)
    if target is None:
        return Refusal(RefusalReason.NO_OUTPUT_KEYSET, f"the mint issues no {terms.unit} now")
    fee = input_fee(inputs, keysets)
    net = token.amount - fee
    if net < max(terms.maximum, 1):
        return Refusal(
            RefusalReason.TOO_LITTLE,
            f"{max(terms.maximum, 1)} {terms.unit} are needed; the token leaves {max(net, 0)}"
            f" after the mint's fee of {fee}",
        )
    try:
        amounts = _amounts(net, terms, target.keys.keys())
    except InvalidAmount:
        message = "the mint's keyset has no amounts to make the token's value of"
        return Refusal(RefusalReason.NO_OUTPUT_KEYSET, message)
    return Receive(token.mint, terms.unit, tuple(inputs), fee, net, target.id, amounts)


def output_keyset(keysets: Iterable[Keyset], unit: str, now_s: int) -> Keyset | None:
    """The active keyset to put new money in: cheapest to spend, then longest to live."""
    usable = [
        keyset
        for keyset in keysets
        if keyset.active and keyset.unit == unit and keyset.keys and not _expired(keyset, now_s)
    ]
    never = max((keyset.final_expiry or 0 for keyset in usable), default=0) + 1
    return min(
        usable,
        key=lambda keyset: (keyset.input_fee_ppk, -(keyset.final_expiry or never), keyset.id),
        default=None,
    )


def _expired(keyset: Keyset, now_s: int) -> bool:
    return keyset.final_expiry is not None and keyset.final_expiry <= now_s


def _weigh(proof: Proof, keyset: Keyset | None, terms: Terms, now_s: int) -> Proof | Refusal:
    """The proof as an input to send, or why it is not taken."""
    if keyset is None:
        return Refusal(RefusalReason.KEYSET_UNKNOWN, "the mint has no such keyset")
    if keyset.unit != terms.unit:
        return Refusal(RefusalReason.UNIT_WRONG, f"a proof is in {keyset.unit}, not {terms.unit}")
    if _expired(keyset, now_s):
        return Refusal(RefusalReason.KEYSET_EXPIRED, "a proof is of a keyset that has expired")
    if proof.amount not in keyset.keys:
        return Refusal(RefusalReason.AMOUNT_UNKNOWN, "a proof's amount is not one of its keyset's")
    flaw = _dleq_flaw(proof, keyset, required=terms.require_dleq)
    return flaw or _unlocked(proof, terms.unlock_key)


def _dleq_flaw(proof: Proof, keyset: Keyset, *, required: bool) -> Refusal | None:
    """A DLEQ that is there must hold (NUT-12), whether one is required or not."""
    if proof.dleq is None or proof.dleq.r is None:
        if required:
            return Refusal(RefusalReason.DLEQ_MISSING, "a proof has no DLEQ proof")
        return None
    if not crypto.is_proof_dleq_valid(proof, keyset.keys[proof.amount]):
        return Refusal(RefusalReason.DLEQ_WRONG, "a proof's DLEQ proof does not hold")
    return None


def _unlocked(proof: Proof, unlock_key: bytes | None) -> Proof | Refusal:
    """The proof with the witness it needs and no other: the sender's is of no use to us."""
    lock = parse_lock(proof.secret)
    if lock is None:
        return replace(proof, witness=None)
    if unlock_key is None or not lock.opens_with(crypto.public_key(unlock_key)):
        return Refusal(RefusalReason.LOCKED, "a proof is locked to somebody else")
    return unlock(proof, unlock_key)


def _amounts(net: int, terms: Terms, available: Collection[int]) -> tuple[int, ...]:
    reserved = [terms.maximum] if terms.fixed_price else binary_parts(terms.maximum)
    parts = [net - terms.maximum, *reserved]
    return tuple(sorted(small for part in parts for small in split(part, available)))
