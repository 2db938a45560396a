"""A customer with balances in ETH and a token, and payments out of them as operations."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from farebox.ledger.model import Applied, Hold, Kind, Open, Transfer, Unit, hold_id
from farebox.ledger.processes import Processes
from farebox.payments import RefundRequest, Refusal, Rejected, Unresolved
from farebox.payments.exchange import Exchange
from farebox.payments.model import Changes, Operation, OperationState, Succeeded, Verdict
from farebox.payments.operations import Operations
from farebox.payments.rail import Limits
from farebox.rails.evm.disperse import Disperse
from farebox.rails.evm.outbox import custody_of
from farebox.rails.evm.payouts import (
    PaidAsset,
    Payouts,
    PayoutTerms,
)
from tests.integration.evm_desk import ETHER, Desk, desk_of
from tests.peers.anvil import CONTRACTS, Anvil, Contract

CUSTOMER = {"ETH": "customer:one/ETH", "TOK": "customer:one/TOK"}
FUNDS = 10**20
MOST = 10**19


@dataclass
class Rates:
    """One wei of gas is one unit of the token."""

    are_known: bool = True

    def msat_per_unit(self, asset: str) -> Fraction | None:
        return Fraction(1) if self.are_known else None


@dataclass
class Carrying:
    """Between the journal and the rail, as the core does it."""

    payouts: Payouts

    async def attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        paid = await self.payouts.pay(operation.plan)
        if isinstance(paid, Rejected | Unresolved):
            return paid
        reply = repr(dict(paid.reply)).encode()
        return Succeeded(paid.amount, reply, Changes(paid.steps, paid.puts))


@dataclass
class Till:
    """Pays out."""

    desk: Desk
    token: Contract
    payouts: Payouts
    disperse: Disperse
    operations: Operations
    rates: Rates
    opened: list[str] = field(default_factory=list)

    async def order(self, destination: str, amount: int, asset: str = "ETH", **more: object) -> str:
        """Open a payment; its operation."""
        name = f"pay_{secrets.token_hex(8)}"
        order = RefundRequest(name, amount, destination, asset=asset, **more)  # type: ignore[arg-type]
        plan = await self.payouts.plan(order)
        assert not isinstance(plan, Refusal), plan
        operation = Operation(
            id=name,
            kind="payout",
            account=CUSTOMER[asset],
            hold=hold_id(name, 0),
            plan=plan.payload,
        )
        hold = Hold(CUSTOMER[asset], plan.custody, plan.amount, "payout")
        opened = await self.operations.open(operation, Changes((hold,), plan.puts))
        assert isinstance(opened, Applied), opened
        self.opened.append(name)
        return name

    async def refused(
        self, destination: str, amount: int, asset: str = "ETH", **more: object
    ) -> str:
        """The code that a payment is refused with."""
        order = RefundRequest("never", amount, destination, asset=asset, **more)  # type: ignore[arg-type]
        plan = await self.payouts.plan(order)
        assert isinstance(plan, Refusal), plan
        return plan.code

    async def finish(self, *names: str) -> list[Operation]:
        """Carry payments to their end."""
        for _ in range(30):
            ends = [await self.operations.advance(name) for name in names or self.opened]
            if all(one.state is not OperationState.OPEN for one in ends):
                return ends
            await self.desk.sending.tick()
            await self.desk.mine()
        raise AssertionError(ends)

    async def balance(self, account: str) -> int:
        found = await self.desk.ledger.store.account(account)
        assert found is not None
        return found.credits_posted - found.debits_posted

    async def assert_right(self) -> None:
        """Books and chain agree: what senders have is custody and the operator's float."""
        await self.desk.audited()
        anvil, sender = self.desk.anvil, self.desk.sender
        gas = await self.desk.gas_booked()
        custody = -await self.balance(custody_of("anvil", "ETH"))
        assert anvil.balance(sender) == custody + ETHER - gas
        tokens = -await self.balance(custody_of("anvil", "TOK"))
        assert self.token.call("balanceOf", sender) == tokens


@asynccontextmanager
async def till_of(
    anvil: Anvil, folder: Path, token: str = "PlainToken", **terms: object
) -> AsyncIterator[Till]:
    """A sender that holds a customer's ETH and tokens, and an ether of the operator's own."""
    async with desk_of(anvil, folder) as desk:
        contract = await asyncio.to_thread(anvil.deploy, CONTRACTS / f"{token}.sol")
        mint = await asyncio.to_thread(contract.send, "mint", desk.sender, FUNDS)
        await asyncio.to_thread(anvil.mined, mint)
        have = contract.call("balanceOf", desk.sender)
        await asyncio.to_thread(anvil.rpc, "anvil_setBalance", desk.sender, hex(FUNDS + ETHER))
        for asset, held in (("ETH", FUNDS), ("TOK", have)):
            custody = custody_of("anvil", asset)
            steps = (
                Open(custody, asset, Kind.CUSTODY),
                Open(CUSTOMER[asset], asset, Kind.CUSTOMER),
                Transfer(custody, CUSTOMER[asset], held, "deposit"),
            )
            assert isinstance(await desk.ledger.store.commit(Unit(f"in:{asset}", steps)), Applied)
        processes = Processes(desk.ledger, alone=True)
        await processes.start()
        operations, rates = Operations(desk.ledger, processes), Rates()
        limits = Limits(1, MOST)
        assets = (PaidAsset("ETH", "", limits), PaidAsset("TOK", contract.address, limits))
        payout_terms = PayoutTerms(assets=assets, **terms)  # type: ignore[arg-type]
        payouts = Payouts(payout_terms, desk.sending, desk.ledger, Exchange(rates))
        disperse = Disperse(desk.sending, desk.ledger)
        operations.register("payout", Carrying(payouts))
        operations.register(disperse.kind, disperse)
        yield Till(desk, contract, payouts, disperse, operations, rates)
        await processes.stop()
