"""Which of our proofs leave, and from which mint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from farebox.clock import NS_PER_S, Clock
from farebox.ecash import selection
from farebox.ledger.store import PAGE_MAX, Store
from farebox.rails.cashu.config import MSAT_PER_UNIT, custody_account
from farebox.rails.cashu.inventory import Held, Inventory, outline, total
from farebox.rails.cashu.mints import MintPlace, Mints
from farebox.wire.cashu.amounts import choose_exact, input_fee
from farebox.wire.cashu.model import Keyset

#: Most proofs in one token or one call: mints and wallets take up to a thousand.
PROOFS_MAX = 500
#: A wish that is an order: from this mint, or not at all.
ONLY_MINT = "only_mint"
#: How long proofs that were chosen are left to whoever chose them, unless there are no others.
_CLAIM_S = 2
_CLAIMS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Place:
    """A mint and unit that we hold money at, and how much the books say it is."""

    mint: MintPlace
    unit: str
    held_msat: int

    @property
    def unit_msat(self) -> int:
        """What one unit is worth."""
        return MSAT_PER_UNIT[self.unit]

    @property
    def custody(self) -> str:
        """Its ledger account."""
        return custody_account(self.mint.url, self.unit)


async def places(mints: Mints, store: Store, wish: Mapping[str, str]) -> list[Place]:
    """Where a refund may come from: the mint that was wished for, then the one we hold most at.

    `wish` is what `get_refund_metadata` gave when the money came in, or an operator's order.
    """
    found = []
    only = wish.get(ONLY_MINT)
    for mint in mints.listed():
        if only and mint.url != only:
            continue
        for unit in mint.terms.units:
            account = await store.account(custody_account(mint.url, unit))
            if unit in MSAT_PER_UNIT and account is not None and account.held > 0:
                found.append(Place(mint, unit, account.held))
    url, unit = wish.get("refund_mint_url", ""), wish.get("refund_currency", "")
    return sorted(
        found,
        key=lambda place: (place.mint.url != url, place.unit != unit, -place.held_msat),
    )


#: Fees that proofs chosen to the unit may cost; a set that costs more is not looked for.
_FEES_TRIED = 8


class Claims:
    """Proofs that a plan of this process wants, until its commit says so.

    Without it, refunds at the same moment would all choose the same largest proofs, and all but
    one would have to plan again. The commit alone decides; this only avoids the crowd.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_ns: dict[str, int] = {}

    def add(self, keys: Collection[str]) -> None:
        """Leave these proofs to the caller for a moment."""
        now = self._clock.now_ns()
        if len(self._until_ns) + len(keys) > _CLAIMS_MAX:
            self._until_ns = {key: end for key, end in self._until_ns.items() if end > now}
        if len(self._until_ns) + len(keys) <= _CLAIMS_MAX:
            self._until_ns.update(dict.fromkeys(keys, now + _CLAIM_S * NS_PER_S))

    def free(self, held: Sequence[Held]) -> list[Held]:
        """The proofs that nobody else here wants."""
        now = self._clock.now_ns()
        return [one for one in held if self._until_ns.get(one.key, 0) <= now]


class Purse:
    """What is there to choose from at one place: fewest looks first."""

    def __init__(self, inventory: Inventory, claims: Claims) -> None:
        self._inventory = inventory
        self._claims = claims

    async def looks(self, place: Place) -> AsyncIterator[list[Held]]:
        """Sets of proofs to try one after the other: unclaimed ones, a page, everything."""
        page = await self._inventory.available(place.mint.url, place.unit)
        free = self._claims.free(page)
        yield free
        if len(free) < len(page):
            yield page
        if len(page) >= PAGE_MAX:
            yield await self._inventory.available(place.mint.url, place.unit, all_pages=True)

    def claim(self, held: Sequence[Held]) -> None:
        """Leave these to the caller for a moment."""
        self._claims.add([one.key for one in held])


def exact(held: Sequence[Held], amount: int) -> list[Held] | None:
    """Proofs that sum to `amount`: no swap is needed."""
    chosen = choose_exact([one.stored.amount for one in held], amount)
    if chosen is None or len(chosen) > PROOFS_MAX:
        return None
    return [held[index] for index in chosen]


def alive(held: Sequence[Held], keysets: Mapping[str, Keyset], now_s: int) -> list[Held]:
    """Proofs whose keyset is not known to have expired."""
    dead = {one.id for one in keysets.values() if 0 < (one.final_expiry or 0) <= now_s}
    return [one for one in held if one.stored.keyset_id not in dead]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Proofs to spend in one call, and what the mint takes for that."""

    held: tuple[Held, ...]
    fee: int

    @property
    def amount(self) -> int:
        """What they are worth before the fee."""
        return total(self.held)


def cover(
    held: Sequence[Held], amount: int, keysets: Mapping[str, Keyset], *, fee_included: bool
) -> Inputs | None:
    """Few proofs worth at least `amount`, the fee for spending them included in it or on top."""
    by_key = {
        one.key: one
        for one in held
        if one.stored.keyset_id in keysets
        and one.stored.amount * 1_000 > keysets[one.stored.keyset_id].input_fee_ppk
    }
    weights = (
        {key: replace(keyset, input_fee_ppk=0) for key, keyset in keysets.items()}
        if fee_included
        else keysets
    )
    covered = selection.cover([outline(one) for one in by_key.values()], amount, weights)
    if isinstance(covered, selection.Short) or len(covered) > PROOFS_MAX:
        return None
    return Inputs(tuple(by_key[proof.secret] for proof in covered), input_fee(covered, keysets))


def cover_exactly(
    held: Sequence[Held], amount: int, keysets: Mapping[str, Keyset]
) -> Inputs | None:
    """Proofs worth `amount` once the fee for spending them is taken off, with nothing over."""
    known = [one for one in held if one.stored.keyset_id in keysets]
    for fee in range(_FEES_TRIED):
        chosen = exact(known, amount + fee)
        if chosen is None:
            continue
        if input_fee([outline(one) for one in chosen], keysets) == fee:
            return Inputs(tuple(chosen), fee)
    return None


def worth(held: Sequence[Held], keysets: Mapping[str, Keyset]) -> int:
    """What all of them would leave, the fee for spending them taken off."""
    known = [outline(one) for one in held if one.stored.keyset_id in keysets]
    return max(sum(proof.amount for proof in known) - input_fee(known, keysets), 0)
