"""Change: a subset of the proofs that a request's own swap cut. No mint is asked for anything."""

from __future__ import annotations

from collections.abc import Sequence

from farebox.payments import PlannedChange
from farebox.rails.cashu.config import MSAT_PER_UNIT, CashuConfig, custody_account
from farebox.rails.cashu.inventory import Held, Inventory, total
from farebox.rails.cashu.records import ProofUse
from farebox.wire.cashu.amounts import fee_of_ppk
from farebox.wire.cashu.model import Token
from farebox.wire.cashu.token import encode_token

_OURS = (ProofUse.RESERVED, ProofUse.AVAILABLE)


class Change:
    """Plans change, and writes it down as a token as often as it is asked for."""

    def __init__(self, inventory: Inventory, config: CashuConfig) -> None:
        self._inventory = inventory
        self._config = config

    async def plan(self, owner: str, amount_msat: int) -> PlannedChange | None:
        """At most `amount_msat` out of what was received for `owner`; the rest becomes free.

        None where nothing of that is left, as after it was planned and stored once.
        """
        held = [one for one in await self._inventory.owned(owner) if one.stored.use in _OURS]
        if not held:
            return None
        stored = held[0].stored
        unit_msat = MSAT_PER_UNIT[stored.unit]
        chosen = self._choose(held, amount_msat // unit_msat)
        given = {one.key for one in chosen}
        return PlannedChange(
            total(chosen) * unit_msat,
            custody_account(stored.mint, stored.unit),
            owner.encode(),
            tuple(
                one.becomes(ProofUse.GIVEN, owner)
                if one.key in given
                else one.becomes(ProofUse.AVAILABLE)
                for one in held
            ),
        )

    def _choose(self, held: Sequence[Held], amount: int) -> list[Held]:
        """The proofs to give back; none where the change is too small to be worth a swap."""
        # A proof that costs as much to spend as it is worth stays as credit instead.
        chosen = _at_most(held, amount)
        worthy = [one for one in chosen if one.stored.amount * 1_000 > one.stored.fee_ppk]
        value = total(worthy)
        fee = fee_of_ppk(sum(one.stored.fee_ppk for one in worthy))
        small = self._config.small_change_msat
        unit_msat = MSAT_PER_UNIT[held[0].stored.unit]
        return worthy if value > fee and value * unit_msat >= small else []

    async def render(self, reference: bytes) -> str | None:
        """What `plan` gave under this reference as a token; None once it was spent."""
        held = await self._inventory.owned(reference.decode())
        return self.token(held)

    def token(self, held: Sequence[Held]) -> str | None:
        """The proofs given out among `held` as one token, always the same text; None for none."""
        given = [one for one in held if one.stored.use is ProofUse.GIVEN]
        if not given:
            return None
        stored = given[0].stored
        return encode_token(Token(stored.mint, stored.unit, self._inventory.proofs(given)))


def _at_most(held: Sequence[Held], amount: int) -> list[Held]:
    """Proofs that sum to `amount`, or to as much of it as the largest that fit can."""
    rest = amount
    chosen = []
    for one in sorted(held, key=lambda one: (-one.stored.amount, one.key)):
        if one.stored.amount <= rest:
            rest -= one.stored.amount
            chosen.append(one)
    return chosen
