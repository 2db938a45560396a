"""A book that was put back, held against what its mints remember.

The mints know what the book does not: which proofs were spent since, and what was signed for
counters that the book calls free. In this order, since each step relies on the one before:

| step                                | because                                                  |
|-------------------------------------|----------------------------------------------------------|
| 1. open operations are asked to     | their outputs are their own, not found money             |
|    their ends, by their plans       |                                                          |
| 2. each counter without a proof is  | the seed makes again what was received and cut after the |
|    restored (NUT-09); counters go   | copy; a counter that is used twice is money lost         |
|    past the last one signed         |                                                          |
| 3. proofs and locked tokens are     | what is spent is gone: paid out, or swept into what 2    |
|    asked for their state (NUT-07)   | found. A sweep would take it for a broken lock           |
| 4. what the book knows as ours is   | it may have been handed out after the copy; the book     |
|    swapped for fresh secrets        | owes it still, so one of the two must end                |

| found                            | postings                                | proof becomes |
|----------------------------------|-----------------------------------------|----------------------|
| signed, unspent, not in the book | Transfer custody ← suspense             | found |
| in the book as ours, spent       | Transfer suspense → custody             | spent |
| locked and waiting, spent        | Transfer suspense → unswapped           | gone |
| found before, spent meanwhile    | Transfer suspense → custody             | spent |

What was *found* may be change in a payer's hands: it is left to whoever comes first until it is
claimed, and is part of no refund until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import structlog

from farebox.ecash.mint import ProofState
from farebox.ecash.outputs import BLANK_AMOUNT, Flaw, prepare, unblind_all
from farebox.errors import RailRejected, RailUnavailable, StoreError
from farebox.ids import new_id
from farebox.ledger.model import Applied, Guard, Kind, Open, Put, SetCeiling, Step, Transfer, Unit
from farebox.ledger.service import Ledger
from farebox.ledger.standing import BOOK, KEY
from farebox.money import BTC
from farebox.payments.model import OperationState
from farebox.payments.operations import Operations
from farebox.rails.cashu.config import MSAT_PER_UNIT, custody_account, unswapped_account
from farebox.rails.cashu.inventory import Held, added, total
from farebox.rails.cashu.method import CashuMethod
from farebox.rails.cashu.mints import MintPlace
from farebox.rails.cashu.records import COUNTER, PROOF, LockedUse, ProofUse
from farebox.rails.cashu.upkeep import Upkeep
from farebox.wire.cashu.model import Keyset, Proof

_log = structlog.get_logger("farebox.cashu")

#: Where what the copy did not know of is booked, until a person knows whose it is.
SUSPENSE = "suspense:restored"
#: Counters and proofs in one question.
_ASKED_AT_ONCE = 100
#: Counters beyond the last one signed that are looked at: blocks are taken by 512.
_GAP = 2_048
#: What a look at the start asks for: the first plan of a later life began there.
_LOOKED_AT = 32
_LOOK_S = 5
_PAGE = 1_000
_RENEWED_AT_ONCE = 100


class Reconciled(msgspec.Struct, frozen=True):
    """What came of it, in msat. It is whole when every mint has answered for everything."""

    found_msat: int = 0
    missing_msat: int = 0
    swept_msat: int = 0
    renewed_msat: int = 0
    not_renewed_msat: int = 0
    away: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether the book may be opened."""
        return not self.away and not self.unfinished


@dataclass
class _Sums:
    """What was found so far, in msat."""

    found: int = 0
    missing: int = 0
    swept: int = 0
    renewed: int = 0
    not_renewed: int = 0
    away: dict[str, None] = field(default_factory=dict)

    def told(self, unfinished: Sequence[str]) -> Reconciled:
        return Reconciled(
            self.found,
            self.missing,
            self.swept,
            self.renewed,
            self.not_renewed,
            tuple(self.away),
            tuple(unfinished),
        )


@dataclass(frozen=True, slots=True)
class _Signed:
    """A proof that the mint has signed for one of our counters."""

    counter: int
    proof: Proof


class Reconciling:
    """Asks the mints about everything that a restored book may be wrong about."""

    def __init__(
        self, method: CashuMethod, ledger: Ledger, operations: Operations, upkeep: Upkeep
    ) -> None:
        self._mints = method.mints
        self._inventory = method.inventory
        self._locked = method.locked
        self._ledger = ledger
        self._operations = operations
        self._upkeep = upkeep
        #: While a closed book is asked about: that nobody has opened it meanwhile.
        self._guards: tuple[Guard, ...] = ()

    async def find_older(self) -> str:
        """Why the book must be an old copy, by what its mints have signed; empty where it is not,
        or no mint tells."""
        places = self._mints.listed()
        found = await asyncio.gather(*(self._find_older(place) for place in places))
        return next(filter(None, found), "")

    async def _find_older(self, place: MintPlace) -> str:
        try:
            async with asyncio.timeout(_LOOK_S):
                for keyset_id in await self._used_keysets(place):
                    if await self._has_signed_free(place, keyset_id):
                        return (
                            f"{place.url} has signed for counters that this book calls free: "
                            "this is an old copy"
                        )
        except (RailUnavailable, RailRejected, TimeoutError) as error:
            _log.warning("cashu.age_unknown", mint=place.url, reason=str(error) or "no answer")
        return ""

    async def _has_signed_free(self, place: MintPlace, keyset_id: str) -> bool:
        first = await self._next(keyset_id)
        keyset = await place.mint.keys(keyset_id)
        while await self._signed(place, keyset, range(first, first + _LOOKED_AT)):
            known, first = first, await self._next(keyset_id)
            if first == known:
                return True
            # Another process has taken them since they were read: look behind them.
        return False

    async def _used_keysets(self, place: MintPlace) -> list[str]:
        ids = [one.id for one in await place.mint.keysets() if one.unit in place.terms.units]
        return [one for one in ids if await self._next(one)]

    async def run(self) -> Reconciled:
        """All steps, at every listed mint, of a closed book: what an open one has under way would
        be taken for found money. May be broken off and run again at any point.
        """
        sums = _Sums()
        row = await self._ledger.store.get(BOOK, KEY)
        self._guards = () if row is None else (Guard(BOOK, KEY, row.version),)
        try:
            unfinished = await self._end_operations()
            if not unfinished:
                for place, unit in self._everywhere():
                    with _answering(place, sums):
                        await self._ask(place, unit, sums)
        finally:
            self._guards = ()
        return sums.told(unfinished or await self._end_operations())  # what step 4 left open

    async def claim(self) -> Reconciled:
        """Swap what was found, also of an open book: whoever else holds it has lost it then."""
        sums = _Sums()
        for place, unit in self._everywhere():
            with _answering(place, sums):
                sums.missing += await self._check_proofs(place, unit, (ProofUse.FOUND,))
                await self._renew(place, unit, ProofUse.FOUND, sums)
        return sums.told(())

    async def has_found(self) -> bool:
        """Whether there are proofs that payers may hold as well, and that nobody has claimed."""
        for place, unit in self._everywhere():
            if await self._inventory.used(place.url, unit, ProofUse.FOUND, "", 1):
                return True
        return False

    async def check_found(self) -> None:
        """Write off what was found after a restore and has been spent by whoever holds it."""
        for place, unit in self._everywhere():
            with _answering(place, _Sums()):
                await self._check_proofs(place, unit, (ProofUse.FOUND,))

    def _everywhere(self) -> list[tuple[MintPlace, str]]:
        places = self._mints.listed()
        return [(at, unit) for at in places for unit in at.terms.units if unit in MSAT_PER_UNIT]

    async def _end_operations(self) -> list[str]:
        for operation in await self._operations.unfinished():
            if operation.state is not OperationState.MANUAL:
                await self._operations.advance(operation.id)
        left = await self._operations.unfinished()
        return [one.id for one in left if one.state is not OperationState.MANUAL]

    async def _ask(self, place: MintPlace, unit: str, sums: _Sums) -> None:
        keysets = await place.keysets(unit)
        known = await self._known(place, unit)
        for keyset_id in [one.id for one in keysets.values() if one.unit == unit]:
            flags = known.get(keyset_id, bytearray())
            sums.found += await self._restore(place, unit, keyset_id, flags)
        uses = (ProofUse.AVAILABLE, ProofUse.RESERVED, ProofUse.FOUND, ProofUse.GIVEN)
        sums.missing += await self._check_proofs(place, unit, uses)
        sums.swept += await self._check_locked(place, unit)
        await self._renew(place, unit, ProofUse.AVAILABLE, sums)

    # ── counters ─────────────────────────────────────────────────────────────────────────────────

    async def _next(self, keyset_id: str) -> int:
        row = await self._ledger.store.get(COUNTER, keyset_id)
        return 0 if row is None else row.value.next

    async def _restore(self, place: MintPlace, unit: str, keyset_id: str, known: bytearray) -> int:
        """Find what was signed for counters without a proof; move the counter past all of it."""
        keyset = await place.mint.keys(keyset_id)
        first_free = await self._next(keyset_id)
        gaps = (n for n in range(first_free) if n >= len(known) or not known[n])
        found_msat = 0
        async for batch in _batches(gaps):
            signed = await self._signed(place, keyset, batch)
            found_msat += await self._add(place, unit, keyset, signed)
        return found_msat + await self._restore_beyond(place, unit, keyset, first_free)

    async def _restore_beyond(
        self, place: MintPlace, unit: str, keyset: Keyset, first_free: int
    ) -> int:
        """Beyond the counters that the book knows of: until none was signed for long enough."""
        found_msat, at, end, used = 0, first_free, first_free + _GAP, first_free > 0
        while at < end:
            signed = await self._signed(place, keyset, range(at, at + _ASKED_AT_ONCE))
            if signed:
                used = True
                end = signed[-1].counter + 1 + _GAP
                await self._move_counter(keyset.id, signed[-1].counter + 1)
                found_msat += await self._add(place, unit, keyset, signed)
            at += _ASKED_AT_ONCE
        if used:  # what is on its way to the mint yet was planned within what was looked at
            await self._move_counter(keyset.id, at)
        return found_msat

    async def _known(self, place: MintPlace, unit: str) -> dict[str, bytearray]:
        """By keyset, which counters have a proof in the book: a byte each."""
        known: dict[str, bytearray] = {}
        for use in ProofUse:
            async for page in self._pages(place, unit, use):
                for stored in (one.stored for one in page):
                    flags = known.setdefault(stored.keyset_id, bytearray())
                    flags.extend(bytes(max(0, stored.counter + 1 - len(flags))))
                    flags[stored.counter] = 1
        return known

    async def _signed(
        self, place: MintPlace, keyset: Keyset, counters: Sequence[int]
    ) -> list[_Signed]:
        """What the mint has signed for some counters, ascending."""
        outputs = {}
        for counter in counters:
            (output,) = prepare(self._inventory.keys, keyset.id, counter, [BLANK_AMOUNT])
            outputs[output.message.B_] = (counter, output)
        given = await place.mint.restore([output.message for _, output in outputs.values()])
        signed = []
        for key, (counter, output) in outputs.items():
            if key not in given:
                continue
            proofs = unblind_all([output], [given[key]], keyset, blank=True)
            if isinstance(proofs, Flaw):
                raise RailUnavailable(f"{place.url}: {proofs.reason}")
            signed.append(_Signed(counter, proofs[0]))
        return signed

    async def _add(
        self, place: MintPlace, unit: str, keyset: Keyset, signed: Sequence[_Signed]
    ) -> int:
        """Book what is unspent of it; what is spent has come and gone."""
        puts = {
            one.counter: added(
                place.url, unit, one.counter, one.proof, keyset.input_fee_ppk, use=ProofUse.FOUND
            )
            for one in signed
        }
        states = await self._states(place, [put.key for put in puts.values()])
        unspent = [
            one
            for one in signed
            if states[puts[one.counter].key] is ProofState.UNSPENT
            # Another address of the same mint may have it already.
            and await self._ledger.store.get(PROOF, puts[one.counter].key) is None
        ]
        amount = sum(one.proof.amount for one in unspent)
        custody = custody_account(place.url, unit)
        account = await self._ledger.store.account(custody)
        ceiling = account.ceiling if account else None
        steps: tuple[Step, ...] = (
            Open(custody, BTC.code, Kind.CUSTODY),
            Open(SUSPENSE, BTC.code, Kind.SUSPENSE),
            SetCeiling(custody, None),  # it is there already, whatever we are ready to hold
            Transfer(custody, SUSPENSE, amount * MSAT_PER_UNIT[unit], "restored"),
            SetCeiling(custody, ceiling),
        )
        if unspent:
            await self._commit(steps, [puts[one.counter] for one in unspent])
        return amount * MSAT_PER_UNIT[unit]

    async def _move_counter(self, keyset_id: str, least: int) -> None:
        first_free = await self._next(keyset_id)
        if least > first_free:
            await self._inventory.skip_counters(keyset_id, least - first_free)

    # ── proofs ───────────────────────────────────────────────────────────────────────────────────

    async def _check_proofs(self, place: MintPlace, unit: str, uses: Iterable[ProofUse]) -> int:
        """Note which proofs are spent; returns what is missing of what was counted as ours."""
        missing_msat = 0
        for use in uses:
            async for page in self._pages(place, unit, use):
                states = await self._states(place, [one.key for one in page])
                spent = [one for one in page if states[one.key] is ProofState.SPENT]
                if not spent:
                    continue
                puts = [one.becomes(ProofUse.SPENT, one.stored.owner) for one in spent]
                steps: tuple[Step, ...] = ()
                if use is not ProofUse.GIVEN:  # those were no longer ours
                    amount_msat = total(spent) * MSAT_PER_UNIT[unit]
                    missing_msat += amount_msat
                    steps = _missing(custody_account(place.url, unit), amount_msat)
                await self._commit(steps, puts)
        return missing_msat

    async def _check_locked(self, place: MintPlace, unit: str) -> int:
        """Locked tokens that were swept after the copy are no broken locks."""
        swept_msat = 0
        after = ""
        while page := await self._locked.waiting(place.url, unit, _PAGE, after=after):
            after = page[-1].key
            states = await self._states(place, [one.key for one in page])
            spent = [one for one in page if states[one.key] is ProofState.SPENT]
            if spent:
                amount_msat = sum(one.row.worth_msat for one in spent)
                swept_msat += amount_msat
                steps = _missing(unswapped_account(place.url, unit), amount_msat)
                await self._commit(steps, [one.becomes(LockedUse.GONE) for one in spent])
        return swept_msat

    async def _renew(self, place: MintPlace, unit: str, use: ProofUse, sums: _Sums) -> None:
        """Swap proofs of a use for fresh ones.

        Revenue pays the mint's fee; where it does not suffice the proofs stay as they are.
        """
        pages = [page async for page in self._pages(place, unit, use)]  # without what a swap adds
        for page in pages:
            for at in range(0, len(page), _RENEWED_AT_ONCE):
                batch = page[at : at + _RENEWED_AT_ONCE]
                amount_msat = total(batch) * MSAT_PER_UNIT[unit]
                if await self._upkeep.renew(place, unit, batch):
                    sums.renewed += amount_msat
                else:
                    sums.not_renewed += amount_msat

    async def _pages(
        self, place: MintPlace, unit: str, use: ProofUse
    ) -> AsyncIterator[Sequence[Held]]:
        after = ""
        while page := await self._inventory.used(place.url, unit, use, after, _PAGE):
            after = page[-1].key
            yield page

    async def _states(self, place: MintPlace, keys: Sequence[str]) -> Mapping[str, ProofState]:
        states: dict[str, ProofState] = {}
        for at in range(0, len(keys), _ASKED_AT_ONCE):
            chunk = keys[at : at + _ASKED_AT_ONCE]
            told = await place.mint.check_state([bytes.fromhex(key) for key in chunk])
            states.update(zip(chunk, told, strict=True))
        return states

    async def _commit(self, steps: Sequence[Step], puts: Collection[Put]) -> None:
        outcome = await self._ledger.store.commit(
            Unit(new_id("rec"), tuple(steps), tuple(puts), self._guards)
        )
        if not isinstance(outcome, Applied):
            raise StoreError(f"the books do not take what a mint said ({outcome}); run it again")


@contextmanager
def _answering(place: MintPlace, sums: _Sums) -> Iterator[None]:
    """A mint that does not answer is named, and keeps the others from nothing."""
    try:
        yield
    except (RailUnavailable, RailRejected) as error:
        _log.warning("cashu.not_reconciled", mint=place.url, reason=str(error))
        sums.away[place.url] = None


def _missing(place_account: str, amount_msat: int) -> tuple[Step, ...]:
    return (
        Open(SUSPENSE, BTC.code, Kind.SUSPENSE),
        Transfer(SUSPENSE, place_account, amount_msat, "missing"),
    )


async def _batches(counters: Iterable[int]) -> AsyncIterator[list[int]]:
    """By hundreds, letting others run in between: each counter costs a derivation."""
    batch: list[int] = []
    for counter in counters:
        batch.append(counter)
        if len(batch) == _ASKED_AT_ONCE:
            yield batch
            batch = []
            await asyncio.sleep(0)
    if batch:
        yield batch
