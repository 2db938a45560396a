"""Payments out over a real chain: together, dearer where they are stuck, again where lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from farebox.errors import RailUnavailable
from farebox.rails.bitcoin.core import Core
from farebox.wire.bitcoin import read_tx
from tests.integration.bitcoin_house import (
    PAYOUT_CONFIRMATIONS,
    BitcoinHouse,
    bitcoin_house,
    bitcoin_settings,
)
from tests.peers.bitcoin import BitcoinChain
from tests.waiting import eventually

pytestmark = pytest.mark.peer
IN_SAT, OUT_SAT = 90_000, 20_000


def terms(chain: BitcoinChain, **more: object) -> dict[str, object]:
    return bitcoin_settings(chain, start_height=chain.node.height() + 1, **more)


async def waiting(chain: BitcoinChain, *, beside: str = "") -> str:
    """The id of the one transaction in the node's pool, once there is one that is not `beside`."""
    pool = await eventually(
        lambda: asyncio.to_thread(chain.node.pool), lambda found: found and found != [beside]
    )
    (found,) = pool
    return str(found)


async def raw_of(chain: BitcoinChain, txid: str) -> bytes:
    """A transaction of the node's, as it is sent."""
    return bytes.fromhex(await asyncio.to_thread(chain.node.call, "getrawtransaction", txid))


async def mine(house: BitcoinHouse, chain: BitcoinChain, *raws: bytes) -> None:
    """A block of what waits or, with `raws`, of these alone; and the house has seen it."""
    if raws:
        await asyncio.to_thread(chain.node.mine_only, *(raw for raw in raws if raw))
    else:
        await asyncio.to_thread(chain.node.mine)
    await house.passed(await asyncio.to_thread(chain.node.height))


async def elsewhere(house: BitcoinHouse) -> dict[str, bytes]:
    """For each coin what another program with the same words would send, and pay more for."""
    back = house.method.wallet.keys.address(5_000)
    view = await house.method._addresses.look()
    coins = [one.outpoint for one in view.coins if not one.is_spent]
    drafts = [await house.method.wallet.build([(back, 60_000)], 40_000, [one]) for one in coins]
    return {draft.inputs[0]: draft.raw for draft in drafts}


async def over(house: BitcoinHouse, chain: BitcoinChain) -> None:
    """Enough blocks for everything that is out; the books hold what the wallet has."""
    for _ in range(2):
        await mine(house, chain)
    await house.settled()
    assert await house.wallet_sat() * 1_000 == await house.held_msat()


async def test_prices_that_are_asked_take_no_change_addresses_with_them(
    tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    async with bitcoin_house(tmp_path, terms(bitcoin)) as house:
        await house.credited(bitcoin, IN_SAT)
        wallet, change = house.method.wallet, set()
        (coin,) = [one.outpoint for one in (await house.method._addresses.look()).coins]
        for amount_sat in range(OUT_SAT, OUT_SAT + 5):
            draft = await wallet.build([(bitcoin.payer.address(30), amount_sat)], 5_000, [coin])
            outputs = read_tx(draft.raw).outputs
            change |= {one.script for one in outputs if one.amount_sat != amount_sat}
        assert len(change) == 1


async def test_payments_that_wait_leave_in_one_transaction_and_share_its_fee(
    tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    settings = terms(bitcoin, batch_window_s=3_600, batch_most=3)
    async with bitcoin_house(tmp_path, settings) as house:
        key, _ = await house.credited(bitcoin, IN_SAT)
        to = [bitcoin.payer.address(place) for place in (31, 32, 33)]
        for address in to:
            assert await asyncio.to_thread(bitcoin.node.pool) == []
            await house.paid_out(key, address, OUT_SAT, address)
        await waiting(bitcoin)
        await over(house, bitcoin)
        told = [await house.told_of(key, address, OUT_SAT, address) for address in to]
        assert len({one["txid"] for one in told}) == 1
        fees = [int(one["fee_msat"]) for one in told]
        assert max(fees) - min(fees) <= 1_000
        left = await house.held_msat()
        assert left == (IN_SAT - 3 * OUT_SAT) * 1_000 - sum(fees)
        for place in (31, 32, 33):
            assert await asyncio.to_thread(bitcoin.payer.received_sat, place) == OUT_SAT


async def test_a_payment_that_no_miner_takes_is_sent_again_dearer(
    tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    async with bitcoin_house(tmp_path, terms(bitcoin, bump_after_blocks=2)) as house:
        key, _ = await house.credited(bitcoin, IN_SAT)
        await house.paid_out(key, bitcoin.payer.address(34), OUT_SAT, "stuck")
        first = await waiting(bitcoin)
        for _ in range(2):
            await mine(house, bitcoin, b"")
        second = await waiting(bitcoin, beside=first)
        assert second != first
        await over(house, bitcoin)
        told = await house.told_of(key, bitcoin.payer.address(34), OUT_SAT, "stuck")
        assert told["txid"] == second


async def test_an_earlier_try_that_wins_after_all_is_what_was_paid(
    tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    async with bitcoin_house(tmp_path, terms(bitcoin, bump_after_blocks=1)) as house:
        key, _ = await house.credited(bitcoin, IN_SAT)
        await house.paid_out(key, bitcoin.payer.address(35), OUT_SAT, "first wins")
        first = await waiting(bitcoin)
        raw = await raw_of(bitcoin, first)
        await mine(house, bitcoin, b"")
        await waiting(bitcoin, beside=first)
        await mine(house, bitcoin, raw)
        await over(house, bitcoin)
        told = await house.told_of(key, bitcoin.payer.address(35), OUT_SAT, "first wins")
        assert told["txid"] == first
        assert await asyncio.to_thread(bitcoin.payer.received_sat, 35) == OUT_SAT


async def test_what_its_receiver_has_spent_already_is_not_replaced_but_paid_for_by_its_change(
    tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    payer = bitcoin.payer
    async with bitcoin_house(tmp_path, terms(bitcoin, bump_after_blocks=1)) as house:
        key, _ = await house.credited(bitcoin, IN_SAT)
        to = payer.address(39)
        await house.paid_out(key, to, OUT_SAT, "pinned")
        first = await waiting(bitcoin)
        raw = await raw_of(bitcoin, first)
        spent = await asyncio.to_thread(payer.spending, raw, 39, 5_000)
        theirs = await asyncio.to_thread(payer.send, spent)

        async def nothing_is_mined() -> list[str]:
            await mine(house, bitcoin, b"")
            return await asyncio.to_thread(bitcoin.node.pool)

        pool = await eventually(nothing_is_mined, lambda found: len(found) == 3)
        assert {first, theirs} < set(pool)
        await over(house, bitcoin)
        told = await house.told_of(key, to, OUT_SAT, "pinned")
        assert told["txid"] == first


async def test_a_payment_whose_block_leaves_the_chain_is_sent_again_and_paid_once(
    tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    async with bitcoin_house(tmp_path, terms(bitcoin)) as house:
        key, _ = await house.credited(bitcoin, IN_SAT)
        await house.paid_out(key, bitcoin.payer.address(36), OUT_SAT, "again")
        await waiting(bitcoin)
        await mine(house, bitcoin)
        await asyncio.to_thread(bitcoin.node.undo, 1)
        await house.passed(await asyncio.to_thread(bitcoin.node.height))
        assert await house.farebox.operations.unfinished()
        await waiting(bitcoin)
        await over(house, bitcoin)
        assert await asyncio.to_thread(bitcoin.payer.received_sat, 36) == OUT_SAT


async def test_payments_whose_coins_the_same_key_has_spent_elsewhere_leave_anew(
    tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    async with bitcoin_house(tmp_path, terms(bitcoin)) as house:
        key, _ = await house.credited(bitcoin, IN_SAT)
        await house.credited(bitcoin, IN_SAT)
        to, others = bitcoin.payer.address(40), await elsewhere(house)
        await house.paid_out(key, to, OUT_SAT, "anew")
        first = await waiting(bitcoin)
        raw = await raw_of(bitcoin, first)
        spent = read_tx(raw).spends
        await asyncio.to_thread(bitcoin.payer.send, others[spent[0]].hex())
        for _ in range(2):
            await mine(house, bitcoin)
        second = await waiting(bitcoin)
        assert not set(spent) & set(read_tx(await raw_of(bitcoin, second)).spends)
        for _ in range(2):
            await mine(house, bitcoin)
        await house.settled()
        assert (await house.told_of(key, to, OUT_SAT, "anew"))["txid"] == second
        assert await asyncio.to_thread(bitcoin.payer.received_sat, 40) == OUT_SAT


async def test_a_payment_that_is_undone_after_it_was_over_calls_a_person(
    tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    async with bitcoin_house(tmp_path, terms(bitcoin, payout_confirmations=1)) as house:
        key, _ = await house.credited(bitcoin, IN_SAT)
        others = await elsewhere(house)
        await house.paid_out(key, bitcoin.payer.address(45), OUT_SAT, "undone")
        raw = await raw_of(bitcoin, await waiting(bitcoin))
        other = others[read_tx(raw).spends[0]]
        await mine(house, bitcoin)
        await house.settled()
        await asyncio.to_thread(bitcoin.node.undo, 1)
        await mine(house, bitcoin, other)
        await mine(house, bitcoin, b"")

        async def heard() -> bool:
            return "bitcoin.payments_undone" in house.log.getvalue()

        await eventually(heard)


async def test_an_answer_that_is_lost_on_the_way_pays_once(
    tmp_path: Path, bitcoin: BitcoinChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, lost = Core.broadcast, list[bytes]()

    def broadcast(self: Core, raw: bytes) -> None:
        really(self, raw)
        if len(lost) < 3:
            lost.append(raw)
            raise RailUnavailable("the answer is lost")

    monkeypatch.setattr(Core, "broadcast", broadcast)
    async with bitcoin_house(tmp_path, terms(bitcoin)) as house:
        key, _ = await house.credited(bitcoin, IN_SAT)
        await house.paid_out(key, bitcoin.payer.address(37), OUT_SAT, "once")
        await waiting(bitcoin)
        await over(house, bitcoin)
        assert len(set(lost)) == 1
        assert await asyncio.to_thread(bitcoin.payer.received_sat, 37) == OUT_SAT


async def test_fees_have_a_limit_and_dust_is_refused_with_the_reason(
    tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    async with bitcoin_house(tmp_path, terms(bitcoin, payout_min="1 sat")) as house:
        key, _ = await house.credited(bitcoin, IN_SAT)
        to = bitcoin.payer.address(38)
        body = {"destination": to, "amount_msat": OUT_SAT * 1_000}
        dry = (await house.post("/v1/payouts", {**body, "dry_run": True}, key)).json()
        assert (dry["amount"], dry["is_covered"]) == (OUT_SAT * 1_000, True)
        assert 0 < dry["fee_estimate"] <= dry["fee_max"]
        limited = {**body, "max_fee_msat": dry["fee_estimate"] - 1_000}
        refused = await house.post("/v1/payouts", limited, key)
        assert (refused.status_code, refused.json()["code"]) == (400, "fee_over_limit")
        dust = await house.post("/v1/payouts", {**body, "amount_msat": 500_000}, key)
        assert dust.json()["code"] == "amount_too_small"
        assert "dust" in dust.json()["detail"]
        asking = {**body, "destination": f"bitcoin:{to}?amount=0.5"}
        another = await house.post("/v1/payouts", {**asking, "dry_run": True}, key)
        assert another.json()["code"] == "destination_invalid"
        mainnet = "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"
        other = await house.post("/v1/payouts", {**body, "destination": mainnet}, key)
        assert other.json()["code"] == "destination_invalid"
        assert await house.balance_msat(key) == IN_SAT * 1_000


async def test_a_payment_that_the_coins_do_not_suffice_for_holds_up_no_other(
    tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    async with bitcoin_house(tmp_path, terms(bitcoin)) as house:
        small, _ = await house.credited(bitcoin, 2 * OUT_SAT)
        large, _ = await house.credited(bitcoin, IN_SAT, blocks=1)  # not deep enough to be spent
        to, other = bitcoin.payer.address(90), bitcoin.payer.address(91)
        await house.paid_out(large, to, 3 * OUT_SAT, "large")
        await house.paid_out(small, other, OUT_SAT, "small")
        first = await waiting(bitcoin)
        await mine(house, bitcoin)
        assert await asyncio.to_thread(bitcoin.payer.received_sat, 91) == OUT_SAT
        assert await asyncio.to_thread(bitcoin.payer.received_sat, 90) == 0
        await waiting(bitcoin, beside=first)
        for _ in range(PAYOUT_CONFIRMATIONS):
            await mine(house, bitcoin)
        assert await asyncio.to_thread(bitcoin.payer.received_sat, 90) == 3 * OUT_SAT
        await house.settled()


async def test_what_no_batch_can_take_for_hours_goes_back_to_its_account(
    tmp_path: Path, bitcoin: BitcoinChain
) -> None:
    async with bitcoin_house(tmp_path, terms(bitcoin)) as house:
        key, _ = await house.credited(bitcoin, IN_SAT, blocks=1)  # not deep enough to be spent
        to = bitcoin.payer.address(39)
        name = await house.paid_out(key, to, OUT_SAT, "waits")
        assert await house.balance_msat(key) < (IN_SAT - OUT_SAT) * 1_000
        waits = await house.farebox.operations.get(name)
        assert waits is not None
        assert waits.error == "the wallet holds too little that is confirmed; it waits"
        house.clock.ahead_s += 43_300
        await house.settled()
        assert await house.balance_msat(key) == IN_SAT * 1_000
        body = {"destination": to, "amount_msat": OUT_SAT * 1_000}
        told = await house.post("/v1/payouts", body, key, "waits")
        assert told.json().get("code") == "not_payable", told.text
        await mine(house, bitcoin)  # there are coins now, and still nothing leaves
        assert await asyncio.to_thread(bitcoin.node.pool) == []
        assert await house.method.batches.form() == ""
