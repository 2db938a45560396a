"""Paying many at once: cheaper where it is chosen, and no item spoils another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from farebox.ledger.model import Applied, Unit
from farebox.payments.model import OperationState
from farebox.rails.evm.contracts import ARTIFACTS, DEPLOYER, artifact
from farebox.rails.evm.disperse import GAS, Item, chosen
from farebox.rails.evm.outbox import Intent
from tests.integration.evm_contracts import compiled
from tests.integration.evm_desk import somebody
from tests.integration.evm_till import CUSTOMER, FUNDS, Till, till_of
from tests.peers.anvil import CONTRACTS, Anvil, Contract, compile_contract

pytestmark = pytest.mark.peer
AMOUNT = 10**15
ABI = Path(ARTIFACTS).parent / "Disperse.sol"


@pytest.fixture
async def till(anvil: Anvil, tmp_path: Path) -> AsyncIterator[Till]:
    async with till_of(anvil, tmp_path, batch_wait_s=3_600) as found:
        yield found
        await found.assert_right()


async def batched(till: Till) -> list[str]:
    """Run until what must be prepared is, and batches are made."""
    for _ in range(20):
        if made := await till.disperse.run():
            return made
        await till.desk.sending.tick()
        await till.desk.mine()
    raise AssertionError("no batch was made")


async def alive(till: Till, people: Iterable[str]) -> None:
    """Accounts that are not empty."""
    for one in people:
        await asyncio.to_thread(till.desk.anvil.rpc, "anvil_setBalance", one, hex(1))


def test_the_artifacts_are_what_the_sources_compile_to_on_anvil(anvil: Anvil) -> None:
    assert ARTIFACTS.read_text() == compiled(anvil)


async def test_tokens_are_paid_together_and_each_child_ends_alone(till: Till) -> None:
    people = [somebody() for _ in range(5)]
    names = [await till.order(one, AMOUNT, "TOK", is_exact=True) for one in people]
    (batch,) = await batched(till)
    (parent, *ends) = await till.finish(batch, *names)
    assert {one.state for one in (parent, *ends)} == {OperationState.SUCCEEDED}
    assert {one.parent for one in ends} == {batch}
    assert [till.token.call("balanceOf", one) for one in people] == [AMOUNT] * 5


async def test_ether_goes_together_to_those_who_have_some_and_alone_to_the_others(
    till: Till,
) -> None:
    known, new = [somebody() for _ in range(4)], [somebody() for _ in range(3)]
    await alive(till, known)
    first = [await till.order(one, AMOUNT, is_exact=True) for one in known]
    for one in new:
        await till.order(one, AMOUNT, is_exact=True)
    (batch,) = await batched(till)
    await till.finish(batch, *first)
    assert [till.desk.anvil.balance(one) for one in known] == [AMOUNT + 1] * 4
    assert [till.desk.anvil.balance(one) for one in new] == [0] * 3
    for name in till.opened:
        await till.payouts.cancel(name)
    await till.finish()


async def test_what_an_operator_has_given_up_joins_no_batch(till: Till) -> None:
    people = [somebody() for _ in range(3)]
    names = [await till.order(one, AMOUNT, "TOK", is_exact=True) for one in people]
    gone = await till.operations.get(names[0])
    assert gone is not None
    puts = await till.payouts.give_up(gone.plan)
    assert isinstance(await till.desk.ledger.store.commit(Unit("given-up", puts=puts)), Applied)
    (batch,) = await batched(till)
    (_, ended, *paid) = await till.finish(batch, *names)
    assert ended.state is OperationState.REJECTED
    assert {one.parent for one in paid} == {batch}
    assert [till.token.call("balanceOf", one) for one in people] == [0, AMOUNT, AMOUNT]
    assert await till.payouts.give_up(gone.plan) == ()


async def test_a_chain_that_cannot_have_the_contract_is_paid_on_one_by_one(
    anvil: Anvil, till: Till
) -> None:
    with anvil.lacking(DEPLOYER, till.disperse.contract):
        people = [somebody() for _ in range(2)]
        names = [await till.order(one, AMOUNT, "TOK", is_exact=True) for one in people]
        assert await till.disperse.run() == []
        assert await till.desk.sending.open_slots() == []  # no gas went to where nobody is
        till.payouts.terms = replace(till.payouts.terms, batch_wait_s=0)
        assert {one.state for one in await till.finish(*names)} == {OperationState.SUCCEEDED}
    assert [till.token.call("balanceOf", one) for one in people] == [AMOUNT] * 2


async def test_one_bad_item_never_fails_its_neighbours(till: Till) -> None:
    people = [somebody() for _ in range(4)]
    await alive(till, people)
    names = [await till.order(one, AMOUNT, is_exact=True) for one in people]
    # After it was planned, one of them became a contract that takes no ether.
    await asyncio.to_thread(till.desk.anvil.rpc, "anvil_setCode", people[1], "0x60006000fd")
    (batch,) = await batched(till)
    (_, *ends) = await till.finish(batch, *names)
    states = [one.state for one in ends]
    assert states == [
        OperationState.SUCCEEDED,
        OperationState.REJECTED,
        OperationState.SUCCEEDED,
        OperationState.SUCCEEDED,
    ]
    fees = await till.balance("revenue/ETH")
    assert await till.balance(CUSTOMER["ETH"]) == FUNDS - 3 * AMOUNT - fees


async def test_a_batch_that_reverts_is_paid_one_by_one(till: Till) -> None:
    people = [somebody() for _ in range(3)]
    await alive(till, people)
    with till.desk.anvil.paused():
        names = [await till.order(one, AMOUNT, is_exact=True) for one in people]
        (batch,) = await batched(till)
        contract, rpc = till.disperse.contract, till.desk.anvil.rpc
        code = await asyncio.to_thread(rpc, "eth_getCode", contract, "latest")
        await asyncio.to_thread(rpc, "anvil_setCode", contract, "0x60006000fd")
        await till.desk.mine()
        await asyncio.to_thread(rpc, "anvil_setCode", contract, code)
        (parent, *ends) = await till.finish(batch, *names)
    assert parent.state is OperationState.REJECTED
    assert {one.state for one in ends} == {OperationState.SUCCEEDED}
    assert [till.desk.anvil.balance(one) for one in people] == [AMOUNT + 1] * 3


async def test_the_contract_keeps_nothing_and_cannot_be_robbed_from_within(till: Till) -> None:
    people = [somebody() for _ in range(3)]
    await alive(till, people)
    names = [await till.order(one, AMOUNT, is_exact=True) for one in people]
    (batch,) = await batched(till)
    await till.finish(batch, *names)
    assert till.desk.anvil.balance(till.disperse.contract) == 0


def dispersing(anvil: Anvil) -> Contract:
    abi, _ = compile_contract(ABI)
    made = artifact("Disperse")
    if anvil.rpc("eth_getCode", made.address, "latest") == "0x":
        anvil.mined(anvil.send(DEPLOYER, 0, data=made.deployment))
    return Contract(anvil, made.address, abi)


@pytest.mark.parametrize(("is_token", "is_fresh"), sorted(GAS))
def test_the_gas_figures_are_those_of_the_chain_anvil(
    anvil: Anvil, is_token: bool, is_fresh: bool
) -> None:
    contract, figures = dispersing(anvil), GAS[is_token, is_fresh]
    people = [somebody() for _ in range(100)]
    token = anvil.deploy(CONTRACTS / "PlainToken.sol") if is_token else None
    if token is not None:
        anvil.mined(token.send("mint", anvil.accounts[0], FUNDS))
        anvil.mined(token.send("approve", contract.address, FUNDS))

    def pay() -> int:
        amounts = [AMOUNT] * len(people)
        if token is not None:
            sent = contract.send("payToken", token.address, people, amounts)
        else:
            sent = contract.send("payNative", people, amounts, value=sum(amounts))
        return int(anvil.mined(sent)["gasUsed"], 16)

    used = pay()
    if not is_fresh:
        used = pay()
    told = figures.shared + len(people) * figures.item
    assert abs(used - told) * 100 <= told  # within a hundredth


def item(*, is_token: bool, is_fresh: bool) -> Item:
    intent = Intent(chain="c", to="0x", amount=1, token="0x1" if is_token else "")
    return Item("key", intent, is_fresh)


def test_only_what_is_cheaper_together_is_batched_not_on_anvil() -> None:
    empty = item(is_token=False, is_fresh=True)
    known = item(is_token=False, is_fresh=False)
    token = item(is_token=True, is_fresh=True)
    assert chosen([]) == []
    assert chosen([empty] * 50) == []
    assert chosen([known] * 2) == []
    assert chosen([known] * 3 + [empty]) == [known] * 3
    assert chosen([token]) == []
    assert chosen([token] * 2) == [token] * 2
    assert len(chosen([token] * 150)) == 100
