"""What a victim says of its books."""

from __future__ import annotations

import msgspec


class AccountSeen(msgspec.Struct, frozen=True):
    """An account's balances in msat."""

    id: str
    debits_posted: int
    credits_posted: int
    debits_pending: int
    credits_pending: int


class ProofSeen(msgspec.Struct, frozen=True):
    """A proof of the inventory: its Y in hex, its worth in sat, what it is for."""

    y: str
    amount: int
    use: str


class CrashedSeen(msgspec.Struct, frozen=True):
    """A request that was cut off by a crash: what was metered durably, what was charged."""

    checkpoint_msat: int
    charged_msat: int


class Books(msgspec.Struct, frozen=True):
    """All of it, once nothing moves any more."""

    accounts: tuple[AccountSeen, ...]
    proofs: tuple[ProofSeen, ...]
    unfinished: tuple[str, ...]
    open_requests: int
    crashed: tuple[CrashedSeen, ...]
    broken: str

    @property
    def custody_msat(self) -> int:
        """What the ledger says lies at mints."""
        return sum(
            one.debits_posted - one.credits_posted
            for one in self.accounts
            if one.id.startswith("custody:")
        )

    @property
    def revenue_msat(self) -> int:
        """What was earned."""
        return self._owed("revenue")

    @property
    def customers_msat(self) -> int:
        """What is owed to customers."""
        return self._owed("customer:")

    @property
    def pending(self) -> list[str]:
        """Accounts with a hold on them."""
        return [one.id for one in self.accounts if one.debits_pending or one.credits_pending]

    def worth(self, *uses: str) -> int:
        """What the proofs of these uses are worth, in sat."""
        return sum(proof.amount for proof in self.proofs if proof.use in uses)

    def _owed(self, prefix: str) -> int:
        return sum(
            one.credits_posted - one.debits_posted
            for one in self.accounts
            if one.id.startswith(prefix)
        )
