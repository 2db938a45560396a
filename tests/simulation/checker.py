"""What must be true after every commit, and once everything has come to rest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from farebox.ledger.audit import decode_body
from farebox.ledger.batch import Staged
from farebox.ledger.checkpoint import Checkpoint
from farebox.ledger.invariants import verify
from farebox.ledger.model import Kind
from farebox.ledger.processes import PROCESS, ProcessState
from farebox.ledger.replay import Broken
from farebox.payments.deposits import DEPOSIT
from farebox.payments.model import OPERATION, OperationState
from farebox.paywall.model import REQUEST, RequestState
from farebox.rails.cashu.config import MSAT_PER_UNIT, custody_account, unswapped_account
from farebox.rails.cashu.records import (
    LOCKED,
    PROOF,
    LockedProof,
    LockedUse,
    ProofUse,
    StoredProof,
)
from farebox.rails.cashu.sweep import LOSS
from farebox.wire.cashu import crypto
from tests.simulation.callers import Caller
from tests.simulation.card_checker import CardChecker
from tests.simulation.chain_checker import ChainChecker
from tests.simulation.disk import Disk, DiskReader
from tests.simulation.evm_checker import EvmChecker
from tests.simulation.mint import HOME, Mint, Others
from tests.simulation.node_checker import NodeChecker

#: What the mint's fee for a swap may eat up.
_TOO_LITTLE_MSAT = 2_000
#: Within this time one that stood still finds out that it was taken for dead: its next beat.
_NOTICES_S = 3
_UNSWAPPED = (LockedUse.WAITING, LockedUse.SWAPPING)
_OURS = (ProofUse.AVAILABLE, ProofUse.RESERVED)


class PromiseBroken(AssertionError):
    """One of the two promises does not hold."""


class Checker:
    """Looks at the books, the mints and the callers' purses together."""

    def __init__(
        self,
        disk: Disk,
        others: Others,
        broken: Callable[[PromiseBroken], None],
        time_s: Callable[[], float],
    ) -> None:
        """`broken` is told of the first commit after which something is wrong."""
        self._time_s = time_s
        #: When each request was admitted, and when each process was first said to have ended.
        self._admitted_s: dict[str, float] = {}
        self._ended_s: dict[str, float] = {}
        self._locked: dict[str, LockedProof] = {}
        self._unswapped: Counter[tuple[str, str]] = Counter()
        #: The most that may wait for its swap in one unit.
        self.offline_msat = 0
        self.rail: NodeChecker | ChainChecker | EvmChecker | CardChecker | None = None
        self._disk = disk
        self._broken = broken
        self._others = others
        self._checkpoint: Checkpoint | None = None
        self._proofs: dict[str, StoredProof] = {}
        self._worth: Counter[tuple[str, str]] = Counter()
        self._seen_spent: Counter[str] = Counter()
        self._has_lost = False
        self.checked = 0
        disk.on_change = self._after_commit
        disk.on_loss = self._after_loss

    # ── after every commit ───────────────────────────────────────────────────────────────────────

    def _after_commit(self, staged: Staged) -> None:
        self.checked += 1
        for row in staged.records.get(REQUEST, ()):
            self._admitted_s.setdefault(row[1], self._time_s())
        for row in staged.records.get(PROCESS, ()):
            if self._disk.rows[PROCESS.kind][row[1]].value.state is ProcessState.ENDED:
                self._ended_s.setdefault(row[1], self._time_s())
        for fault in self.rail.after_commit(staged) if self.rail else ():
            self._broken(PromiseBroken(fault))
        self._count_locked([row[1] for row in staged.records.get(LOCKED, ())])
        self._check([row[1] for row in staged.records.get(PROOF, ())])

    def _after_loss(self) -> None:
        self._has_lost = True
        self._checkpoint = None
        self._proofs.clear()
        self._worth.clear()
        self._locked.clear()
        self._unswapped.clear()
        self._count_locked(list(self._disk.rows[LOCKED.kind]))
        self._check(list(self._disk.rows[PROOF.kind]))

    def _check(self, proofs: Sequence[str]) -> None:
        try:
            if self.checked % self._stride() == 0:
                self._verify()
            self._count(proofs)
            for mint in self._others.mints.values():
                self._check_spent(mint, proofs)
            self._check_custody(self._others.mints[HOME])
        except PromiseBroken as error:
            self._broken(error)

    def _count(self, keys: Sequence[str]) -> None:
        """Keep what our proofs are worth together, by the rows that changed."""
        for key in keys:
            before, now = self._proofs.get(key), self._disk.rows[PROOF.kind][key].value
            self._proofs[key] = now
            for one, sign in ((before, -1), (now, 1)):
                if one is not None and one.use in _OURS:
                    self._worth[one.mint, one.unit] += sign * one.amount

    def _count_locked(self, keys: Sequence[str]) -> None:
        """The same for proofs that were credited and wait for their swap."""
        for key in keys:
            before, now = self._locked.get(key), self._disk.rows[LOCKED.kind][key].value
            self._locked[key] = now
            for one, sign in ((before, -1), (now, 1)):
                if one is not None and one.use in _UNSWAPPED:
                    self._unswapped[one.mint, one.unit] += sign * one.worth_msat

    def _check_spent(self, mint: Mint, changed: Sequence[str]) -> None:
        """No proof that anybody's refund may take was taken back by its mint."""
        spent = mint.books.spent
        since = [y.hex() for y in islice(spent, self._seen_spent[mint.host], None)]
        self._seen_spent[mint.host] = len(spent)
        for key in (*since, *changed):
            one = self._proofs.get(key)
            if one is not None and one.use is ProofUse.AVAILABLE and bytes.fromhex(key) in spent:
                raise PromiseBroken(f"proof {key} counts as ours and is spent")

    def _check_custody(self, mint: Mint) -> None:
        """What the books hold at a mint is what our proofs of it are worth."""
        for unit, unit_msat in MSAT_PER_UNIT.items():
            account = self._disk.accounts.get(custody_account(mint.mint.url, unit))
            held = 0 if account is None else account.held
            worth = self._worth[mint.mint.url, unit] * unit_msat
            if held != worth:
                raise PromiseBroken(f"custody says {held} msat in {unit}, proofs say {worth}")
            account = self._disk.accounts.get(unswapped_account(mint.mint.url, unit))
            held = 0 if account is None else account.held
            waits = self._unswapped[mint.mint.url, unit]
            if held != waits:
                raise PromiseBroken(f"{held} msat wait in the books, their proofs say {waits}")
            if held > self.offline_msat:
                raise PromiseBroken(f"{held} msat are credited unswapped, of {self.offline_msat}")

    def _stride(self) -> int:
        """Every how many commits the whole book is compared; every unit is verified in the end.

        What `verify` compares grows with the accounts, so that long seeds would do nothing else.
        """
        return 1 + len(self._disk.accounts) // 16

    def _verify(self) -> None:
        may_lack_cover = self.rail is not None and self.rail.may_lack_cover
        found = verify(DiskReader(self._disk), self._checkpoint, may_lack_cover=may_lack_cover)
        if isinstance(found, Broken):
            raise PromiseBroken(f"{found.invariant}: {found}")
        self._checkpoint = found[1]

    def _rows(self, kind: str) -> list[tuple[str, Any]]:
        return [(key, row.value) for key, row in self._disk.rows[kind].items()]

    # ── at rest ──────────────────────────────────────────────────────────────────────────────────

    def at_rest(
        self, callers: Sequence[Caller], stricken: Mapping[str, float], *, is_calm: bool
    ) -> None:
        """Nothing is open, every unit has one owner, all that was told is so.

        `stricken` says which processes were stopped or stood still, and when last; `is_calm`, that
        the disk never failed.
        """
        self._checkpoint = None
        self._verify()
        faults = [
            *self._unfinished(),
            *self._conservation(callers),
            *self._left_over(),
            *self._deposits(callers),
            *self._requests(),
            *self._losses(),
            *self._promises(callers),
            *(self._crashed(stricken) if is_calm else ()),
            *(self.rail.at_rest(callers) if self.rail else ()),
        ]
        if faults:
            raise PromiseBroken("; ".join(faults))

    def unfinished(self) -> list[str]:
        """What is still open."""
        return self._unfinished()

    def _unfinished(self) -> list[str]:
        found = self.rail.unfinished() if self.rail else []
        over = (OperationState.SUCCEEDED, OperationState.REJECTED, OperationState.CANCELLED)
        found += [
            f"operation {key} is {one.state}: {one.error}"
            for key, one in self._rows(OPERATION.kind)
            if one.state not in over
        ]
        found += [
            f"request {key} is {one.state}"
            for key, one in self._rows(REQUEST.kind)
            if one.state is not RequestState.SETTLED
        ]
        found += [
            f"account {one.id} has something pending"
            for one in self._disk.accounts.values()
            if one.debits_pending or one.credits_pending
        ]
        locked = self._rows(LOCKED.kind)
        waiting = [one.amount for _, one in locked if one.use is LockedUse.WAITING]
        # Worth no more than the fee for swapping them, they wait for others to be swapped with.
        is_small_change = sum(waiting) <= self._others.mints[HOME].fee_of(len(waiting))
        found += [
            f"locked proof {key} is {one.use}"
            for key, one in locked
            if one.use in (LockedUse.SWAPPING, LockedUse.CLAIMED)
            or (one.use is LockedUse.WAITING and not is_small_change)
        ]
        return found

    def _conservation(self, callers: Sequence[Caller]) -> list[str]:
        faults = []
        proofs = {bytes.fromhex(key): one for key, one in self._rows(PROOF.kind)}
        for mint in self._others.mints.values():
            here = {y: one for y, one in proofs.items() if one.mint == mint.mint.url}
            spent = mint.books.spent
            purses = {
                crypto.hash_to_curve(proof.secret): proof.amount
                for caller in callers
                for token in caller.tokens.values()
                if token.mint == mint.mint.url
                for proof in token.proofs
            }
            theirs = {y: amount for y, amount in purses.items() if y not in spent}
            ours = {y: one.amount for y, one in here.items() if one.use in _OURS}
            given = {y for y, one in here.items() if one.use is ProofUse.GIVEN and y not in spent}
            outstanding = mint.mint.audit().outstanding.get("sat", 0)
            if ours.keys() & spent.keys():
                faults.append(f"{mint.host}: a proof of ours is spent")
            if ours.keys() & theirs.keys():
                faults.append(f"{mint.host}: a proof is ours and a caller's")
            if any(one.use is ProofUse.RESERVED for one in here.values()):
                faults.append(f"{mint.host}: proofs are left reserved")
            if given - theirs.keys():
                missing = sum(here[y].amount for y in given - theirs.keys())
                faults.append(f"{mint.host}: {missing} sat were given to nobody")
            known = sum(theirs.values()) + sum(ours.values())
            if outstanding != known:
                faults.append(
                    f"{mint.host}: {outstanding} sat outstanding, callers have "
                    f"{sum(theirs.values())}, the house {sum(ours.values())}"
                )
        return faults

    def _left_over(self) -> list[str]:
        """A caller who asked for everything has everything, but for what buys no token."""
        too_little_msat = self.rail.too_little_msat if self.rail else _TOO_LITTLE_MSAT
        return [
            f"{one.available} msat are left on {one.id}"
            for one in self._disk.accounts.values()
            if one.kind is Kind.CUSTOMER and one.available > too_little_msat
        ]

    def _deposits(self, callers: Sequence[Caller]) -> list[str]:
        """What was credited is what a token was worth, less the mint's fee for spending it."""
        faults = []
        home = self._others.mints[HOME]
        worth: Counter[str] = Counter()
        for caller in callers:
            for text in caller.tokens:
                token = caller.tokens[text]
                if token.mint == home.mint.url:
                    reference = _identity(token)
                    worth[reference] = (token.amount - home.mint_fee(token)) * MSAT_PER_UNIT["sat"]
        for key, deposit in self._rows(DEPOSIT.kind):
            expected = worth.get(deposit.reference)
            if expected is not None and deposit.amount_msat != expected:
                faults.append(
                    f"deposit {key} credits {deposit.amount_msat} msat for a token worth {expected}"
                )
        return faults

    def _requests(self) -> list[str]:
        seen = self._others.upstream.seen
        # Whoever lost the power before a hold was synced has forgotten that it forwarded.
        often = {} if self._has_lost else {key: n for key, n in seen.items() if n > 1}
        faults = [f"request {key} was forwarded {n} times" for key, n in often.items()]
        charged = sum(one.charged_msat for _, one in self._rows(REQUEST.kind))
        if self._disk.accounts["revenue"].credits_posted != charged + self._saved_msat():
            faults.append(f"revenue is not the {charged} msat that requests were charged")
        for key, one in self._rows(REQUEST.kind):
            if not 0 <= one.charged_msat <= one.quote.maximum_msat:
                faults.append(f"request {key} was charged {one.charged_msat}")
            if one.charged_msat and key not in seen:
                faults.append(f"request {key} was charged {one.charged_msat} and never forwarded")
            if one.ended == "refused" and one.charged_msat:
                faults.append(f"request {key} was refused and charged {one.charged_msat}")
            if one.ended == "crashed" and one.charged_msat != one.checkpoint_msat:
                faults.append(f"request {key} crashed and was charged beyond its checkpoint")
        return faults

    def _saved_msat(self) -> int:
        """What batches of locked proofs cost less than their payers bore."""
        holds = self._disk.holds
        return sum(
            int(move.amount)
            for unit in self._disk.units
            for move in decode_body(unit.unit.body).movements
            if move.kind == "post"
            and holds[move.hold].code == "mint_fee"
            and holds[move.hold].credit == "revenue"
        )

    def _losses(self) -> list[str]:
        """What was lost is what the mint let others spend, and is booked; nothing contradicts."""
        spent = self._others.mints[HOME].books.spent
        lost = {k: one for k, one in self._rows(LOCKED.kind) if one.use is LockedUse.LOST}
        account = self._disk.accounts.get(LOSS)
        booked = 0 if account is None else account.held
        faults = [
            f"event {event.name} of {event.subject}"
            for _, event in self._disk.events
            if event.name in ("operation.contradicted", "operation.manual")
        ]
        if booked != sum(one.worth_msat for one in lost.values()):
            faults.append(f"{booked} msat are booked as lost, proofs say otherwise")
        if any(bytes.fromhex(key) not in spent for key in lost):
            faults.append("a proof was given up that is not spent")
        return faults

    def _crashed(self, stricken: Mapping[str, float]) -> list[str]:
        """Nobody's request is settled for him unless he was stopped after he had admitted it, or
        had begun to admit it under a name that was taken for dead meanwhile."""
        return [
            f"request {key} was settled as crashed, and nothing had happened to {one.owner}"
            for key, one in self._rows(REQUEST.kind)
            if one.ended == "crashed"
            and self._admitted_s[key] > stricken.get(one.owner, -1) + _NOTICES_S
            and not (
                one.owner in stricken
                and self._admitted_s[key] > self._ended_s.get(one.owner, math.inf)
            )
        ]

    def _promises(self, callers: Sequence[Caller]) -> list[str]:
        """Whatever a caller was told is in the books, for ever."""
        faults = []
        requests = dict(self._rows(REQUEST.kind))
        operations = dict(self._rows(OPERATION.kind))
        for caller in callers:
            for request_id, facts in caller.told.receipts.items():
                row = requests.get(request_id)
                for name in ("charged_msat", "returned_msat", "credited_msat", "ended"):
                    if row is None or getattr(row, name) != facts[name]:
                        faults.append(f"receipt {facts} is not what the books say: {row}")
                        break
            for operation_id, amount_msat in caller.told.operations.items():
                operation = operations.get(operation_id)
                if operation is None or operation.amount != amount_msat:
                    faults.append(f"operation {operation_id} of {amount_msat} is not in the books")
        return faults


def _identity(token: Any) -> str:
    from farebox.rails.cashu.method import identity

    return identity(token)
