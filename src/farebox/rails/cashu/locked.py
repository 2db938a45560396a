"""Proofs that a payer has locked to our key: credited without a call to their mint.

| checked here                       | against                                                     |
|------------------------------------|-------------------------------------------------------------|
| the mint's DLEQ, with `r`          | a proof that the mint never signed                          |
| the lock: ours alone, for long     | the payer, who would spend it elsewhere meanwhile           |
| that the mint says it enforces it  | a mint to which a lock is an ordinary secret                |
| the keyset's expiry                | a proof that dies before it is swapped                      |
| Y is not claimed (a row, ABSENT)   | the same proof twice, in one token or in two                |
| the ceiling of the unswapped       | a mint that lies, or runs away: all that we stand to lose   |

Every payment with such proofs claims them, also one that is swapped at once: else a proof that is
credited here could be swapped there. Change of a payment that was taken so stays as credit on the
token's own account: there are no proofs of ours yet to give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from farebox.ecash.receive import Receive
from farebox.errors import RailRejected, RailUnavailable, SignerError
from farebox.ledger.model import ABSENT, Put
from farebox.ledger.service import Ledger
from farebox.payments import PaymentPlan, PaymentResult, Refusal, Unresolved
from farebox.rails.cashu.config import MSAT_PER_UNIT, unswapped_account
from farebox.rails.cashu.mints import MintPlace
from farebox.rails.cashu.payloads import ReceiveLocked, to_bytes
from farebox.rails.cashu.records import LOCKED, LockedProof, LockedUse
from farebox.signer import Signer
from farebox.wire.cashu import crypto
from farebox.wire.cashu.locks import is_locked_to
from farebox.wire.cashu.model import Keyset, Proof

#: A lock and a keyset must hold for so long: time to swap, also where the mint is away for days.
_HOLDS_FOR_S = 14 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Claimed:
    """A locked proof's row as it was read."""

    key: str
    row: LockedProof
    version: int

    def becomes(self, use: LockedUse, owner: str = "", *, retry_at: int | None = None) -> Put:
        """The row after its next step; what makes it money is wiped once it is not waiting."""
        waits = use in (LockedUse.WAITING, LockedUse.SWAPPING)
        value = msgspec.structs.replace(
            self.row,
            use=use,
            owner=owner,
            sealed=self.row.sealed if waits else b"",
            retry_at=self.row.retry_at if retry_at is None else retry_at,
        )
        return Put(LOCKED, self.key, value, self.version)


class Locked:
    """Claims locked proofs, and takes those that nobody else can spend."""

    def __init__(self, ledger: Ledger, signer: Signer) -> None:
        self._ledger = ledger
        self._signer = signer
        self.private_key = signer.derive("cashu/lock")
        self.public_key = crypto.public_key(self.private_key)

    async def claims(
        self, proofs: Sequence[Proof], mint: str, unit: str, reference: str
    ) -> tuple[Put, ...] | Refusal:
        """What claims the locked ones among `proofs` for a payment that swaps them at once."""
        rows = [
            (proof, LockedProof(mint=mint, unit=unit, amount=proof.amount, owner=reference))
            for proof in proofs
            if proof.witness is not None
        ]
        return await self._claimed(rows)

    async def plan(
        self,
        place: MintPlace,
        proofs: Sequence[Proof],
        keysets: Mapping[str, Keyset],
        weighed: Receive,
        reference: str,
    ) -> PaymentPlan | Refusal | None:
        """How to take a token without a call; None where it has to be swapped at once."""
        unit_msat = MSAT_PER_UNIT[weighed.unit]
        net_msat = weighed.net * unit_msat
        if not await self._is_taken(place, proofs, keysets, weighed.unit, net_msat):
            return None
        worths = _worths(weighed.inputs, unit_msat, weighed.fee * unit_msat)
        rows = [
            (
                proof,
                LockedProof(
                    mint=place.url,
                    unit=weighed.unit,
                    amount=proof.amount,
                    owner=reference,
                    worth_msat=worth_msat,
                    sealed=self._sealed(proof),
                ),
            )
            for proof, worth_msat in zip(weighed.inputs, worths, strict=True)
        ]
        puts = await self._claimed(rows)
        if isinstance(puts, Refusal):
            return puts
        payload = ReceiveLocked(reference=reference, unit=weighed.unit, amount_msat=net_msat)
        return PaymentPlan(
            to_bytes(payload),
            unswapped_account(place.url, weighed.unit),
            amount_msat=net_msat,
            fee_msat=weighed.fee * unit_msat,
            puts=puts,
        )

    async def receive(self, job: ReceiveLocked, payment_type: str) -> PaymentResult | Unresolved:
        """Credit what is claimed: the claim was the hard part."""
        claimed = await self.owned(job.reference, LockedUse.CLAIMED)
        if sum(one.row.worth_msat for one in claimed) != job.amount_msat:
            return Unresolved("the proofs claimed for this payment are not all there", alarm=True)
        return PaymentResult(
            job.amount_msat,
            job.unit,
            payment_type,
            job.reference,
            amount=job.amount_msat // MSAT_PER_UNIT[job.unit],
            puts=tuple(one.becomes(LockedUse.WAITING) for one in claimed),
        )

    async def ends(self, reference: str, use: LockedUse) -> tuple[Put, ...]:
        """What ends the claims of a payment that was swapped at once, one way or the other."""
        claimed = await self.owned(reference, LockedUse.CLAIMED)
        return tuple(one.becomes(use) for one in claimed)

    async def owned(self, owner: str, use: LockedUse) -> list[Claimed]:
        """The locked proofs that a payment or an operation has, at this use."""
        found = await self._ledger.store.find(LOCKED, {"owner": owner, "use": use})
        return [Claimed(key, row.value, row.version) for key, row in found]

    async def waiting(self, mint: str, unit: str, limit: int, *, after: str = "") -> list[Claimed]:
        """Proofs that were credited and wait to be swapped, at most `limit`, keys above `after`."""
        where = {"mint": mint, "unit": unit, "use": LockedUse.WAITING}
        found = await self._ledger.store.find(LOCKED, where, after=after, limit=limit)
        return [Claimed(key, row.value, row.version) for key, row in found]

    def proof(self, claimed: Claimed) -> Proof:
        """The proof itself, with the witness that spends it."""
        raw = self._signer.unseal(claimed.row.sealed, claimed.key)
        try:
            return msgspec.json.decode(raw, type=Proof)
        except msgspec.DecodeError:
            raise SignerError("a sealed proof cannot be read") from None

    def _sealed(self, proof: Proof) -> bytes:
        return self._signer.seal(msgspec.json.encode(proof), _key(proof))

    async def _claimed(
        self, rows: Sequence[tuple[Proof, LockedProof]]
    ) -> tuple[Put, ...] | Refusal:
        puts = []
        for proof, row in rows:
            key = _key(proof)
            known = await self._ledger.store.get(LOCKED, key)
            if known is not None and known.value.use is not LockedUse.FREE:
                return Refusal("token_spent", "a proof in this token was taken here before")
            puts.append(Put(LOCKED, key, row, ABSENT if known is None else known.version))
        return tuple(puts)

    async def _is_taken(
        self,
        place: MintPlace,
        proofs: Sequence[Proof],
        keysets: Mapping[str, Keyset],
        unit: str,
        net_msat: int,
    ) -> bool:
        limit_msat = place.terms.offline_max_msat
        if net_msat > limit_msat:
            return False
        until_s = place.now_s() + _HOLDS_FOR_S
        for proof in proofs:  # a DLEQ that is there was checked when the token was weighed
            expiry_s = keysets[proof.keyset_id].final_expiry
            if proof.dleq is None or proof.dleq.r is None:
                return False
            if expiry_s is not None and expiry_s <= until_s:
                return False
            if not is_locked_to(proof.secret, self.public_key, until_s):
                return False
        account = await self._ledger.store.account(unswapped_account(place.url, unit))
        # The ceiling decides; a payment that would hit it is better swapped than refused.
        if account is not None and account.held + account.debits_pending + net_msat > limit_msat:
            return False
        try:
            return await place.enforces_locks()
        except (RailUnavailable, RailRejected):
            return False


def _key(proof: Proof) -> str:
    return crypto.hash_to_curve(proof.secret).hex()


def _worths(proofs: Sequence[Proof], unit_msat: int, fee_msat: int) -> list[int]:
    """What the books hold for each proof: together their value less the fee, none below zero."""
    left = fee_msat
    worths = [proof.amount * unit_msat for proof in proofs]
    for index in sorted(range(len(worths)), key=lambda index: -worths[index]):
        part = min(left, worths[index])
        worths[index] -= part
        left -= part
    return worths
