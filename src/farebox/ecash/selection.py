"""Which proofs of an inventory to hand out, swap or tidy up. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from farebox.wire.cashu.amounts import choose_exact, fee_of_ppk, input_fee, split
from farebox.wire.cashu.model import Keyset, Proof


@dataclass(frozen=True, slots=True)
class Exact:
    """These proofs sum to the amount: no call to the mint."""

    proofs: tuple[Proof, ...]


@dataclass(frozen=True, slots=True)
class SwapFirst:
    """Swap `inputs` into `amounts`, ascending; a subset of those is the amount. `fee` is the
    mint's."""

    inputs: tuple[Proof, ...]
    fee: int
    amounts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Short:
    """Not enough; `available` is the most that could be handed out after fees."""

    available: int


def select(
    inventory: Sequence[Proof], amount: int, keysets: Mapping[str, Keyset], target: Keyset
) -> Exact | SwapFirst | Short:
    """Choose proofs for `amount` (one unit, one mint), without a swap wherever that can be.

    `target` is the keyset that a swap would put its outputs in. Raises InvalidAmount where its
    amounts cannot express the result.
    """
    chosen = choose_exact([proof.amount for proof in inventory], amount)
    if chosen is not None:
        return Exact(tuple(inventory[index] for index in chosen))
    inputs = _cover(_worth_spending(inventory, keysets), amount, keysets)
    fee = input_fee(inputs, keysets)
    rest = _total(inputs) - fee - amount
    if rest < 0:
        return Short(max(rest + amount, 0))
    amounts = [*split(amount, target.keys.keys()), *split(rest, target.keys.keys())]
    return SwapFirst(tuple(inputs), fee, tuple(sorted(amounts)))


def consolidate(
    inventory: Sequence[Proof],
    keysets: Mapping[str, Keyset],
    target: Keyset,
    *,
    keep_each: int,
    inputs_max: int,
) -> SwapFirst | None:
    """A swap that makes fewer proofs of many, or None where none is worth its fee.

    Proofs of keysets that are no longer active go first: their keyset may expire. Of active ones,
    `keep_each` proofs of every amount stay, to pay change out of.
    """
    worthy = _worth_spending(inventory, keysets)
    retired = [proof for proof in worthy if not keysets[proof.keyset_id].active]
    inputs = [*retired, *_surplus(worthy, keysets, keep_each)][:inputs_max]
    fee = input_fee(inputs, keysets)
    net = _total(inputs) - fee
    if net <= 0:
        return None
    amounts = split(net, target.keys.keys())
    if not retired and len(amounts) >= len(inputs):
        return None
    return SwapFirst(tuple(inputs), fee, tuple(amounts))


def cover(
    inventory: Sequence[Proof], amount: int, keysets: Mapping[str, Keyset]
) -> tuple[Proof, ...] | Short:
    """Few proofs worth at least `amount` after the fee for spending them: the inputs of a melt,
    whose surplus comes back as change."""
    inputs = _cover(_worth_spending(inventory, keysets), amount, keysets)
    net = _total(inputs) - input_fee(inputs, keysets)
    return tuple(inputs) if net >= amount else Short(max(net, 0))


def _total(proofs: Sequence[Proof]) -> int:
    return sum(proof.amount for proof in proofs)


def _worth_spending(inventory: Sequence[Proof], keysets: Mapping[str, Keyset]) -> list[Proof]:
    """Proofs worth more than their share of a fee, smallest first. The others stay as balance."""
    return sorted(
        (
            proof
            for proof in inventory
            if proof.amount * 1_000 > keysets[proof.keyset_id].input_fee_ppk
        ),
        key=lambda proof: proof.amount,
    )


def _cover(
    ascending: Sequence[Proof], amount: int, keysets: Mapping[str, Keyset]
) -> Sequence[Proof]:
    """The smallest single proof that covers `amount` and its fee, or the largest ones until
    they do."""
    for proof in ascending:
        if proof.amount - input_fee([proof], keysets) >= amount:
            return [proof]
    total = total_ppk = 0
    inputs = []
    for proof in reversed(ascending):
        inputs.append(proof)
        total += proof.amount
        total_ppk += keysets[proof.keyset_id].input_fee_ppk
        if total - fee_of_ppk(total_ppk) >= amount:
            break
    return inputs


def _surplus(
    ascending: Sequence[Proof], keysets: Mapping[str, Keyset], keep_each: int
) -> list[Proof]:
    """Active proofs beyond the first `keep_each` of their amount, smallest first."""
    kept: Counter[int] = Counter()
    surplus = []
    for proof in ascending:
        if keysets[proof.keyset_id].active:
            kept[proof.amount] += 1
            if kept[proof.amount] > keep_each:
                surplus.append(proof)
    return surplus
