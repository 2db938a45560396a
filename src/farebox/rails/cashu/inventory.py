"""Our proofs in the ledger's store: what is there, what becomes of it, which counters are free."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from farebox.errors import StoreBusy
from farebox.ids import new_id
from farebox.ledger.model import ABSENT, Applied, Put, Unit
from farebox.ledger.records import Row
from farebox.ledger.service import Ledger, State
from farebox.ledger.store import PAGE_MAX
from farebox.rails.cashu.records import COUNTER, PROOF, Counter, ProofUse, StoredProof
from farebox.wire.cashu import crypto
from farebox.wire.cashu.model import Dleq, Proof
from farebox.wire.cashu.wallet_keys import WalletKeys

#: Counters taken at once: a process that stops loses the rest, which costs nothing.
_BLOCK = 512
#: How many pages of proofs a choice looks at when one was not enough.
_PAGES_MAX = 16
#: More blank outputs than any amount needs.
_BLANKS_MAX = 64


@dataclass(frozen=True, slots=True)
class Held:
    """A stored proof as it was read."""

    key: str
    stored: StoredProof
    version: int

    def becomes(self, use: ProofUse, owner: str = "") -> Put:
        """The row after its next step; refused by the ledger if another step came first."""
        wiped = {"C": b"", "e": b"", "s": b""} if use is ProofUse.SPENT else {}
        value = msgspec.structs.replace(self.stored, use=use, owner=owner, **wiped)
        return Put(PROOF, self.key, value, self.version)


class Inventory:
    """The proofs of every mint. Spendable secrets are made when needed, from the seed."""

    def __init__(self, ledger: Ledger, seed: bytes) -> None:
        self.keys = WalletKeys(seed)
        self._ledger = ledger
        self._blocks: dict[str, tuple[int, int]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def take_counters(self, keyset_id: str, count: int) -> int:
        """The first of `count` counters that were never given out before and never will be again.

        Raises StoreError when they cannot be put down as taken.
        """
        async with self._locks.setdefault(keyset_id, asyncio.Lock()):
            first, end = self._blocks.get(keyset_id, (0, 0))
            if end - first < count:
                size = max(count, _BLOCK)
                first = await self._take_block(keyset_id, size)
                end = first + size
            self._blocks[keyset_id] = (first + count, end)
            return first

    async def skip_counters(self, keyset_id: str, count: int) -> None:
        """Never give out the next `count` counters: the mint has signed for some of them.

        So it is after the book was restored from a copy, or begun anew with the same root key.
        """
        async with self._locks.setdefault(keyset_id, asyncio.Lock()):
            await self._take_block(keyset_id, count)
            self._blocks.pop(keyset_id, None)

    async def _take_block(self, keyset_id: str, size: int) -> int:
        def decide(state: State, now_ns: int) -> Unit:
            before = state.value(COUNTER, keyset_id)
            first = 0 if before is None else before.next
            version = state.version(COUNTER, keyset_id)
            return Unit(
                new_id("ctr"),
                puts=(Put(COUNTER, keyset_id, Counter(first + size), version),),
                reply=str(first).encode(),
            )

        outcome = await self._ledger.transact([(COUNTER, keyset_id)], decide)
        if not isinstance(outcome, Applied):
            raise StoreBusy("no counters could be taken; try again")
        return int(outcome.reply)

    async def owned(self, owner: str) -> list[Held]:
        """Every proof that is reserved for or was given by a request or operation."""
        return _held(await self._ledger.store.find(PROOF, {"owner": owner}))

    async def available(self, mint: str, unit: str, *, all_pages: bool = False) -> list[Held]:
        """Proofs that may be taken: a page of them from anywhere, or (nearly) all.

        Where the page starts is random, so that concurrent refunds seldom want the same ones.
        """
        pages = _PAGES_MAX if all_pages else 1
        # Keys are compressed points: 02… or 03…, the rest as good as random.
        start = f"0{2 + secrets.randbelow(2)}{secrets.token_hex(4)}"
        found: list[Held] = []
        for after, end in ((start, ""), ("", start)):
            at = after
            while len(found) < pages * PAGE_MAX:
                rows = await self.used(mint, unit, ProofUse.AVAILABLE, at, PAGE_MAX)
                found.extend(row for row in rows if not end or row.key <= end)
                if len(rows) < PAGE_MAX or (end and rows[-1].key > end):
                    break
                at = rows[-1].key
        return found

    async def used(self, mint: str, unit: str, use: ProofUse, after: str, limit: int) -> list[Held]:
        """Proofs of one use, keys above `after`, in key order."""
        where = {"mint": mint, "unit": unit, "use": use}
        return _held(await self._ledger.store.find(PROOF, where, after=after, limit=limit))

    def counters_of(self, keyset_id: str, first_counter: int, proofs: Sequence[Proof]) -> list[int]:
        """The counter of each proof; a mint may have signed some outputs and left out others."""
        wanted = {proof.secret for proof in proofs}
        found: dict[str, int] = {}
        for counter in range(first_counter, first_counter + _BLANKS_MAX):
            if len(found) == len(wanted):
                break
            secret = self.keys.output_secret(keyset_id, counter).secret
            if secret in wanted:
                found[secret] = counter
        return [found[proof.secret] for proof in proofs]

    def proof(self, stored: StoredProof) -> Proof:
        """The proof itself: money. With DLEQ where the mint gave one."""
        derived = self.keys.output_secret(stored.keyset_id, stored.counter)
        dleq = Dleq(stored.e, stored.s, derived.r) if stored.e else None
        return Proof(stored.amount, stored.keyset_id, derived.secret, stored.C, dleq)

    def proofs(self, held: Iterable[Held]) -> tuple[Proof, ...]:
        """The proofs themselves, smallest first and always in the same order."""
        ordered = sorted(held, key=lambda one: (one.stored.amount, one.key))
        return tuple(self.proof(one.stored) for one in ordered)


def added(
    mint: str,
    unit: str,
    counter: int,
    proof: Proof,
    fee_ppk: int,
    *,
    use: ProofUse = ProofUse.AVAILABLE,
    owner: str = "",
) -> Put:
    """The row of a proof that the mint has just signed, its secret made from `counter`."""
    row = StoredProof(
        mint=mint,
        unit=unit,
        keyset_id=proof.keyset_id,
        amount=proof.amount,
        fee_ppk=fee_ppk,
        counter=counter,
        C=proof.C,
        e=proof.dleq.e if proof.dleq else b"",
        s=proof.dleq.s if proof.dleq else b"",
        use=use,
        owner=owner,
    )
    return Put(PROOF, crypto.hash_to_curve(proof.secret).hex(), row, ABSENT)


def outline(held: Held) -> Proof:
    """As much of a proof as a choice needs, its key in the secret's place: cannot be spent."""
    return Proof(held.stored.amount, held.stored.keyset_id, held.key, b"")


def total(held: Iterable[Held]) -> int:
    """What proofs are worth together, in their unit."""
    return sum(one.stored.amount for one in held)


def _held(rows: Sequence[tuple[str, Row[StoredProof]]]) -> list[Held]:
    return [Held(key, row.value, row.version) for key, row in rows]
