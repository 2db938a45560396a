"""A whole house around the Cashu rail: a real book, real operations, play mints on loopback."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from farebox.clock import ManualClock, SystemClock
from farebox.errors import StoreError
from farebox.ledger.model import Outcome, Unit
from farebox.ledger.processes import PROCESS, Processes
from farebox.ledger.service import Ledger
from farebox.money import MSAT_PER_SAT
from farebox.payments import PaymentMethods, Refusal, Reserve
from farebox.payments.deposits import DEPOSIT
from farebox.payments.maturity import MATURING
from farebox.payments.model import OPERATION
from farebox.payments.operations import Operations
from farebox.payments.service import Payments, Pending, Received, Refunded
from farebox.rails.cashu import (
    CashuConfig,
    CashuMethod,
    MintLimits,
    MintTerms,
    Sweep,
    Upkeep,
    open_session,
)
from farebox.rails.cashu.config import custody_account, unswapped_account
from farebox.rails.cashu.records import PROOF, RECORDS, ProofUse
from farebox.rails.web.guard import open_guarded_session
from farebox.signer import Signer
from farebox.stores.sqlite import SqliteStore
from farebox.testing.asgi import serving
from farebox.testing.mint import PlayMint
from farebox.wire.cashu import crypto
from farebox.wire.cashu.token import decode_token, encode_token

SIGNER = Signer(bytes(range(32)))
LIMITS = MintLimits(connect_s=60, call_s=60, melt_s=60)
CUSTOMER = "customer:alice"


class PowerCut(StoreError):
    """The process ended here."""


class FragileStore(SqliteStore):
    """A store that stops the process before or after one commit, counted from now."""

    cut_before = cut_after = -1

    async def commit(self, unit: Unit, *, synced: bool = True) -> Outcome:
        self.cut_before -= 1
        self.cut_after -= 1
        if self.cut_before == 0:
            raise PowerCut("before a commit")
        outcome = await super().commit(unit, synced=synced)
        if self.cut_after == 0:
            raise PowerCut("after a commit")
        return outcome


@dataclass
class House:
    """Everything from the book to the rail; `restart` forgets all that is not in the file."""

    path: Path
    config: CashuConfig
    signer: Signer = SIGNER
    clock: ManualClock = field(default_factory=lambda: ManualClock(SystemClock().now_ns()))

    async def open(self) -> None:
        self.session: aiohttp.ClientSession = open_session()
        self.guarded = open_guarded_session(allow_private=self.config.allow_private)
        self.store = FragileStore(
            self.path, (PROCESS, OPERATION, DEPOSIT, MATURING, *RECORDS), clock=self.clock
        )
        self.ledger = Ledger(self.store, self.clock)
        processes = Processes(self.ledger, alone=True)
        await processes.start()
        self.operations = Operations(self.ledger, processes)
        self.method = CashuMethod(self.config, self.ledger, self.signer, self.session, self.guarded)
        self.methods = PaymentMethods()
        self.methods.register(self.method)
        self.payments = Payments(self.ledger, self.operations, self.methods, self.signer)
        self.sweep = Sweep(self.method, self.ledger, self.operations, self.signer)
        self.upkeep = Upkeep(self.method, self.ledger, self.operations, self.signer)
        await self.method.start()

    async def close(self) -> None:
        await self.store.close()
        await self.session.close()
        await self.guarded.close()

    async def restart(self) -> None:
        await self.close()
        await self.open()

    async def recover(self) -> None:
        """Restart, and look after what is unfinished once its next check is due."""
        await self.restart()
        self.clock.advance(400)
        await self.operations.recover()

    async def receive(
        self, token: str, account: str = CUSTOMER, *, reserve_sat: int = 0, owner: str = ""
    ) -> Received | Pending | Refusal:
        credentials = await self.method.parse_credential(token)
        reserve = Reserve(owner, reserve_sat * MSAT_PER_SAT) if owner or reserve_sat else None
        return await self.payments.receive(credentials, account, reserve=reserve)

    async def refund(
        self,
        amount_sat: int,
        operation_id: str,
        *,
        account: str = CUSTOMER,
        destination: str = "",
        metadata: dict[str, str] | None = None,
    ) -> Refunded | Pending | Refusal:
        return await self.payments.refund(
            account,
            amount_sat * MSAT_PER_SAT,
            method="cashu",
            operation_id=operation_id,
            destination=destination,
            metadata=metadata,
        )

    async def balance_sat(self, account: str = CUSTOMER) -> int:
        found = await self.store.account(account)
        return 0 if found is None else found.available // MSAT_PER_SAT

    async def custody_sat(self, mint: PlayMint) -> int:
        found = await self.store.account(custody_account(mint.url, "sat"))
        return 0 if found is None else found.held // MSAT_PER_SAT

    async def proofs_sat(self, mint: PlayMint) -> dict[ProofUse, int]:
        """What our rows say we have, by use."""
        sums: Counter[ProofUse] = Counter()
        for use in ProofUse:
            rows = await self.store.find(PROOF, {"mint": mint.url, "unit": "sat", "use": use})
            sums[use] += sum(row.value.amount for _, row in rows)
        return dict(sums)

    async def assert_whole(self, mint: PlayMint) -> None:
        """Custody is what our unspent proofs are worth at the mint, and covers what we owe."""
        custody = await self.custody_sat(mint)
        spent = mint.audit().spent_ys
        worth = 0
        for use in (ProofUse.AVAILABLE, ProofUse.RESERVED):
            rows = await self.store.find(PROOF, {"mint": mint.url, "unit": "sat", "use": use})
            assert not any(bytes.fromhex(key) in spent for key, _ in rows), "a proof is spent"
            worth += sum(row.value.amount for _, row in rows)
        assert worth == custody
        assert not await self.operations.unfinished()
        owed = sum(
            account.available
            for account in await self.store.accounts()
            if account.id.startswith(("customer:", "revenue"))
        )
        held = sum(
            account.held
            for account in await self.store.accounts()
            if account.id.startswith(("custody:cashu", "expense"))
        )
        assert owed == held
        unswapped = await self.store.account(unswapped_account(mint.url, "sat"))
        waiting = await self.method.locked.waiting(mint.url, "sat", 1_000)
        worth_msat = sum(one.row.worth_msat for one in waiting)
        assert worth_msat == (0 if unswapped is None else unswapped.held)


@asynccontextmanager
async def house_of(
    path: Path,
    *mints: PlayMint,
    terms: Sequence[MintTerms] = (),
    offline_max_sat: int = 0,
    **options: object,
) -> AsyncIterator[House]:
    """A house that trusts `mints`, each served on loopback and under `terms` if given."""
    async with AsyncExitStack() as stack:
        for mint in mints:
            mint.url = await stack.enter_async_context(serving(mint))
        listed = terms or tuple(
            MintTerms(url=mint.url, offline_max_msat=offline_max_sat * MSAT_PER_SAT)
            for mint in mints
        )
        config = CashuConfig(mints=tuple(listed), limits=LIMITS, **options)  # type: ignore[arg-type]
        house = House(path / "book.db", config)
        await house.open()
        try:
            yield house
        finally:
            await house.close()


def issue(mint: PlayMint, amount: int, unit: str = "sat") -> str:
    """A token as a payer would send it."""
    return encode_token(mint.issue(amount, unit))


def is_spent(mint: PlayMint, token: str) -> bool:
    """Whether the mint has taken back any of a token's proofs."""
    spent = mint.audit().spent_ys
    return any(crypto.hash_to_curve(proof.secret) in spent for proof in decode_token(token).proofs)
