"""EIP-3009 on a real chain: signed by the payer, sent by us, credited once."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from farebox.clock import NS_PER_S
from farebox.errors import InvalidCredential
from farebox.ledger.model import Applied, Hold, Kind, Open, hold_id
from farebox.ledger.processes import Processes
from farebox.payments import Refusal, Rejected, Unresolved
from farebox.payments.exchange import Exchange
from farebox.payments.model import Changes, Operation, OperationState, Succeeded, Verdict
from farebox.payments.operations import Operations
from farebox.rails.evm.authorizations import Authorizations, AuthorizedAsset
from farebox.rails.evm.outbox import custody_of
from tests.integration.evm_desk import Desk, desk_of, somebody
from tests.peers.anvil import CHAIN_ID, CONTRACTS, Anvil, Contract
from tests.signed_transfers import domain_of, encoded, payload_of

pytestmark = pytest.mark.peer
VALUE = 5_000_000
CUSTOMER = "customer:one/USDC"


class Dollars:
    """Ether is worth 2,000 dollars; one of these is worth 10^18 msat here, which is no matter."""

    def msat_per_unit(self, asset: str) -> Fraction | None:
        return Fraction(10**12) if asset == "USDC" else Fraction(2_000)


@dataclass
class Receiving:
    """Between the journal and the rail, as the core does it."""

    authorizations: Authorizations

    async def attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        got = await self.authorizations.receive(operation.plan)
        if isinstance(got, Rejected | Unresolved):
            return got
        return Succeeded(got.amount, got.transaction_id.encode(), Changes(puts=got.puts))


@dataclass
class Counter:
    """Takes authorisations."""

    desk: Desk
    token: Contract
    taking: Authorizations
    operations: Operations

    def signed(self, value: int = VALUE, **changes: Any) -> str:
        """A credential of a new payer who has the money."""
        payer = Account.create()
        self.desk.anvil.mined(self.token.send("mint", payer.address, VALUE))
        return self.signed_by(payer, value, **changes)

    def signed_by(self, payer: Any, value: int = VALUE, **changes: Any) -> str:
        now_s = self.desk.ledger.clock.now_ns() // NS_PER_S
        message = {
            "from": payer.address,
            "to": self.desk.sender,
            "value": value,
            "validAfter": 0,
            "validBefore": now_s + 3_600,
            "nonce": f"0x{secrets.token_hex(32)}",
        } | {key: change for key, change in changes.items() if key != "network"}
        return encoded(
            {
                "x402Version": 1,
                "scheme": "exact",
                "network": changes.get("network", "anvil"),
                "payload": payload_of(payer, domain_of(self.token.address, CHAIN_ID), message),
            }
        )

    async def take(self, credential: str) -> str | Refusal:
        """Open its operation, as the core does for whoever hands it in."""
        name = self.taking.identity(credential)
        plan = await self.taking.plan(credential)
        if isinstance(plan, Refusal):
            return plan
        opened = await self.operations.open(
            Operation(
                id=name, kind="receive", account=CUSTOMER, hold=hold_id(name, 2), plan=plan.payload
            ),
            Changes(
                (
                    Open(plan.custody, "USDC", Kind.CUSTODY),
                    Open(CUSTOMER, "USDC", Kind.CUSTOMER),
                    Hold(plan.custody, CUSTOMER, plan.amount, "receive"),
                ),
                plan.puts,
            ),
        )
        if isinstance(opened, Applied):
            await self.operations.advance(name, fresh=True)
        return name

    async def finish(self, name: str) -> Operation:
        for _ in range(20):
            done = await self.operations.advance(name)
            if done.state is not OperationState.OPEN:
                return done
            await self.desk.mine()
        raise AssertionError(done)

    async def credited(self) -> int:
        found = await self.desk.ledger.store.account(CUSTOMER)
        return found.available if found else 0

    async def assert_right(self) -> None:
        await self.desk.audited()
        held = await self.desk.ledger.store.account(custody_of("anvil", "USDC"))
        in_books = held.held if held else 0
        assert self.token.call("balanceOf", self.desk.sender) == in_books == await self.credited()


@pytest.fixture
async def counter(anvil: Anvil, tmp_path: Path) -> AsyncIterator[Counter]:
    async with desk_of(anvil, tmp_path) as desk:
        token = await asyncio.to_thread(anvil.deploy, CONTRACTS / "AuthorizedToken.sol")
        of = AuthorizedAsset("USDC", token.address, "USD Coin", "2", 1_000, 10**12)
        rates = Exchange(Dollars())
        taking = Authorizations([of], desk.sending, desk.ledger, rates, gas_percent=10)
        processes = Processes(desk.ledger, alone=True)
        await processes.start()
        operations = Operations(desk.ledger, processes)
        operations.register("receive", Receiving(taking))
        found = Counter(desk, token, taking, operations)
        yield found
        await found.assert_right()
        await processes.stop()


async def test_the_payer_needs_no_gas_and_is_credited(counter: Counter) -> None:
    name = await counter.take(counter.signed())
    assert isinstance(name, str), name
    assert (await counter.finish(name)).state is OperationState.SUCCEEDED
    assert await counter.credited() == VALUE
    assert await counter.desk.gas_booked() > 0


async def test_five_at_once_are_one_transaction_and_one_credit(counter: Counter) -> None:
    credential = counter.signed()
    names = await asyncio.gather(*(counter.take(credential) for _ in range(5)))
    (name,) = {one for one in names if isinstance(one, str)}
    await counter.finish(name)
    assert await counter.credited() == VALUE
    assert await counter.desk.sending.chain.used(counter.desk.sender) == 1
    again = await counter.take(credential)
    assert isinstance(again, Refusal)
    assert again.code == "already_credited"


async def test_what_cannot_be_taken_is_refused_before_anything(counter: Counter) -> None:
    now_s = counter.desk.ledger.clock.now_ns() // NS_PER_S
    poor = Account.create()
    for credential, code in (
        (counter.signed(to=somebody()), "not_addressed_to_us"),
        (counter.signed(10), "amount_out_of_bounds"),
        (counter.signed(2_000), "amount_too_small"),
        (counter.signed(validBefore=now_s + 5), "authorization_expired"),
        (counter.signed(validAfter=now_s + 500), "authorization_early"),
        (counter.signed(VALUE + 1), "authorization_refused"),
        (counter.signed_by(poor), "authorization_refused"),
    ):
        refused = await counter.take(credential)
        assert isinstance(refused, Refusal), code
        assert refused.code == code
    for wrong in (counter.signed(network="eip155:1"), "e30=", "!", "A" * 10_000):
        with pytest.raises(InvalidCredential):
            counter.taking.identity(wrong)


async def test_another_amount_than_was_signed_is_refused(counter: Counter) -> None:
    document = json.loads(base64.b64decode(counter.signed()))
    document["payload"]["authorization"]["value"] = str(VALUE - 1)
    forged = base64.b64encode(json.dumps(document).encode()).decode()
    refused = await counter.take(forged)
    assert isinstance(refused, Refusal)
    assert refused.code == "signature_invalid"


async def test_a_no_before_it_was_sent_releases_it(counter: Counter) -> None:
    payer = Account.create()
    counter.desk.anvil.mined(counter.token.send("mint", payer.address, VALUE))
    credential = counter.signed_by(payer)
    plan = await counter.taking.plan(credential)
    assert not isinstance(plan, Refusal)
    name, rpc = counter.taking.identity(credential), counter.desk.anvil.rpc
    holding = (
        Open(plan.custody, "USDC", Kind.CUSTODY),
        Open(CUSTOMER, "USDC", Kind.CUSTOMER),
        Hold(plan.custody, CUSTOMER, plan.amount, "receive"),
    )
    first = Operation(
        id=name, kind="receive", account=CUSTOMER, hold=hold_id(name, 2), plan=plan.payload
    )
    await counter.operations.open(first, Changes(holding, plan.puts))
    kept = await asyncio.to_thread(rpc, "evm_snapshot")
    await asyncio.to_thread(rpc, "anvil_setBalance", payer.address, hex(10**18))
    await asyncio.to_thread(rpc, "anvil_impersonateAccount", payer.address)
    gone = counter.token.send("transfer", somebody(), VALUE, sender=payer.address)
    await asyncio.to_thread(counter.desk.anvil.mined, gone)
    ended = await counter.operations.advance(name, fresh=True)
    assert (ended.state, ended.may_try_again) == (OperationState.REJECTED, True)
    assert await counter.desk.sending.chain.used(counter.desk.sender) == 0
    await asyncio.to_thread(rpc, "evm_revert", kept)
    again = await counter.taking.plan(credential)
    assert not isinstance(again, Refusal)
    assert again.payload != plan.payload


async def test_if_somebody_else_sends_it_the_money_is_credited_all_the_same(
    counter: Counter,
) -> None:
    credential = counter.signed()
    with counter.desk.anvil.paused():
        name = await counter.take(credential)
        assert isinstance(name, str), name
        slot = (await counter.desk.sending.open_slots())[0]
        await asyncio.to_thread(counter.desk.anvil.rpc, "anvil_dropAllTransactions")
        other = counter.desk.anvil.send(slot.call.to, 0, data=slot.call.data)
        await counter.desk.mine()
        assert counter.desk.anvil.receipt(other)
        done = await counter.finish(name)
    assert done.state is OperationState.SUCCEEDED
    assert done.result.decode().startswith(other)
    assert await counter.credited() == VALUE
