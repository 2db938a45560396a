"""Payments out on a real chain: checked before, paid once, booked to the unit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.payments import RefundQuote, RefundRequest, Refusal
from farebox.payments.model import OperationState
from farebox.rails.evm.contracts import DEPLOYER
from tests.integration.evm_desk import somebody
from tests.integration.evm_till import CUSTOMER, FUNDS, Till, till_of
from tests.peers.anvil import Anvil

pytestmark = pytest.mark.peer
AMOUNT = 10**17


@pytest.fixture
async def till(anvil: Anvil, tmp_path: Path) -> AsyncIterator[Till]:
    async with till_of(anvil, tmp_path) as found:
        yield found
        await found.assert_right()


@pytest.mark.parametrize("asset", ["ETH", "TOK"])
async def test_what_is_to_arrive_arrives_and_the_quoted_fee_is_taken(
    till: Till, asset: str
) -> None:
    to = somebody()
    quote = await till.payouts.quote(RefundRequest("q", AMOUNT, to, is_exact=True, asset=asset))
    assert isinstance(quote, RefundQuote)
    await till.order(to, AMOUNT, asset, is_exact=True)
    (paid,) = await till.finish()
    assert paid.state is OperationState.SUCCEEDED
    assert paid.amount == AMOUNT + await till.balance(f"revenue/{asset}")
    assert await till.balance(CUSTOMER[asset]) == FUNDS - paid.amount
    arrived = till.desk.anvil.balance(to) if asset == "ETH" else till.token.call("balanceOf", to)
    assert arrived == AMOUNT


async def test_a_refund_takes_the_fee_off_the_amount(till: Till) -> None:
    to = somebody()
    await till.order(to, AMOUNT)
    (paid,) = await till.finish()
    fee = await till.balance("revenue/ETH")
    assert (paid.amount, till.desk.anvil.balance(to)) == (AMOUNT, AMOUNT - fee)


@pytest.mark.parametrize("token", ["TetherLike", "AuthorizedToken"])
async def test_a_token_of_each_kind_is_paid(anvil: Anvil, tmp_path: Path, token: str) -> None:
    async with till_of(anvil, tmp_path, token) as till:
        to = somebody()
        await till.order(to, AMOUNT, "TOK", is_exact=True)
        (paid,) = await till.finish()
        assert paid.state is OperationState.SUCCEEDED
        assert till.token.call("balanceOf", to) == AMOUNT
        await till.assert_right()


async def test_a_token_that_keeps_a_part_is_refused(anvil: Anvil, tmp_path: Path) -> None:
    async with till_of(anvil, tmp_path, "FeeToken") as till:
        assert await till.refused(somebody(), AMOUNT, "TOK") == "token_takes_fee"
        await till.assert_right()


async def test_bad_destinations_are_refused(till: Till) -> None:
    wrong = somebody().swapcase().replace("0X", "0x")
    for destination, code in (
        (f"0x{'0' * 40}", "destination_invalid"),
        (till.desk.sender, "destination_invalid"),
        (till.token.address, "destination_invalid"),
        (wrong, "destination_invalid"),
        ("0x12", "destination_invalid"),
        (f"eip155:1:{somebody()}", "destination_invalid"),
        (f"ethereum:{somebody()}@10", "destination_invalid"),
        (DEPLOYER, "destination_is_contract"),
    ):
        assert await till.refused(destination, AMOUNT) == code, destination
    chain_id = till.desk.sending.terms.chain_id
    of_token = f"ethereum:{till.token.address}@{chain_id}/transfer?address={somebody()}"
    for fine, asset in (
        (f"ethereum:{somebody()}@{chain_id}", "ETH"),
        (f"ethereum:{somebody()}@{chain_id}", "TOK"),
        (f"ethereum:{somebody()}@{chain_id}?value={AMOUNT}", "ETH"),
        (of_token, "TOK"),
        (f"{of_token}&uint256={AMOUNT}", "TOK"),
    ):
        quote = await till.payouts.quote(RefundRequest("q", AMOUNT, fine, asset=asset))
        assert not isinstance(quote, Refusal), (fine, quote)
    for other, asset in (
        (f"ethereum:{somebody()}@{chain_id}?value={AMOUNT}", "TOK"),
        (f"ethereum:{somebody()}@{chain_id}?value={AMOUNT + 1}", "ETH"),
        (of_token, "ETH"),
        (f"{of_token}&uint256={AMOUNT + 1}", "TOK"),
    ):
        exact = RefundRequest("q", AMOUNT, other, is_exact=True, asset=asset)
        quote = await till.payouts.quote(exact)
        assert isinstance(quote, Refusal), other
        assert quote.code == "destination_invalid"


async def test_limits_allow_list_and_fee_limit_hold(anvil: Anvil, tmp_path: Path) -> None:
    friend = somebody()
    async with till_of(anvil, tmp_path, allowed=frozenset({friend})) as till:
        assert await till.refused(somebody(), AMOUNT) == "destination_not_allowed"
        assert await till.refused(friend, AMOUNT, fee_max=1) == "fee_over_limit"
        assert await till.refused(friend, 1) == "amount_too_small"
        assert await till.refused(friend, 10**20) == "amount_out_of_bounds"
        assert await till.refused(friend, AMOUNT, "XYZ") == "asset_unknown"
        till.rates.are_known = False
        assert await till.refused(friend, AMOUNT, "TOK") == "rate_unavailable"
        await till.order(friend, AMOUNT)
        await till.finish()
        await till.assert_right()


async def test_what_waits_is_cancelled_and_the_hold_released(till: Till) -> None:
    to = somebody()
    name = await till.order(to, AMOUNT)
    assert await till.payouts.cancel(name)
    (ended,) = await till.finish()
    assert ended.state is OperationState.REJECTED
    assert await till.balance(CUSTOMER["ETH"]) == FUNDS
    assert till.desk.anvil.balance(to) == 0


async def test_what_was_sent_is_cancelled_by_a_self_send(till: Till) -> None:
    to = somebody()
    with till.desk.anvil.paused():
        name = await till.order(to, AMOUNT)
        await till.operations.advance(name, fresh=True)
        assert await till.payouts.cancel(name)
        (ended,) = await till.finish()
    assert (ended.state, ended.error) == (OperationState.REJECTED, "cancelled: it was cancelled")
    assert till.desk.anvil.balance(to) == 0
    assert await till.balance(CUSTOMER["ETH"]) == FUNDS


async def test_a_reverted_one_is_a_definite_no(till: Till) -> None:
    to = somebody()
    with till.desk.anvil.paused():
        name = await till.order(to, AMOUNT, "TOK", is_exact=True)
        await till.operations.advance(name, fresh=True)
        slot = await till.desk.sending.slot_of(name)
        assert slot is not None
        # Before it is mined the token stops to know us.
        code = await asyncio.to_thread(
            till.desk.anvil.rpc, "eth_getCode", till.token.address, "latest"
        )
        await asyncio.to_thread(
            till.desk.anvil.rpc, "anvil_setCode", till.token.address, "0x60006000fd"
        )
        await till.desk.mine()
        await asyncio.to_thread(till.desk.anvil.rpc, "anvil_setCode", till.token.address, code)
        (ended,) = await till.finish()
    assert ended.state is OperationState.REJECTED
    assert ended.error.startswith("reverted")
    assert await till.balance(CUSTOMER["TOK"]) == FUNDS
    assert await till.desk.gas_booked() > 0


async def test_a_token_that_refuses_is_asked_before_anything_is_stored(
    anvil: Anvil, tmp_path: Path
) -> None:
    async with till_of(anvil, tmp_path, token="GuardedToken") as till:
        to = somebody()
        for name, arguments in (("setBlocked", (to,)), ("setPaused", ()), ("setLies", ())):
            await asyncio.to_thread(till.token.send, name, *arguments, True)
            assert await till.refused(to, AMOUNT, "TOK", is_exact=True) == "destination_refused", (
                name
            )
            await asyncio.to_thread(till.token.send, name, *arguments, False)
        await till.order(to, AMOUNT, "TOK", is_exact=True)
        await till.finish()
        assert till.token.call("balanceOf", to) == AMOUNT
        await till.assert_right()


@pytest.mark.parametrize("name", ["setPaused", "setLies"])
async def test_a_token_that_stops_after_that_gives_the_money_back(
    anvil: Anvil, tmp_path: Path, name: str
) -> None:
    async with till_of(anvil, tmp_path, token="GuardedToken") as till:
        before = await till.balance(CUSTOMER["TOK"])
        await till.order(somebody(), AMOUNT, "TOK", is_exact=True)
        await asyncio.to_thread(till.token.send, name, True)
        (ended,) = await till.finish()
        assert ended.state is OperationState.REJECTED, ended
        assert await till.balance(CUSTOMER["TOK"]) == before
        await asyncio.to_thread(till.token.send, name, False)
        await till.assert_right()
