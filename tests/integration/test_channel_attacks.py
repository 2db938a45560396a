"""What a payer that means harm tries, and what two readings of one chain may not do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from farebox.channels import (
    ChannelInfo,
    ChannelStatus,
    ClaimPolicy,
    CreditPolicy,
    PaymentChannelPayeeClient,
)
from farebox.channels.book import Charge, Turn
from farebox.channels.claims import ClaimOutcome
from farebox.channels.model import SUB_CHANNEL, proposed, sub_channel_key
from farebox.channels.postings import custody_account, loss_account
from farebox.channels.weighing import Accepted, Rejected
from farebox.clock import ManualClock
from farebox.errors import RailRejected
from farebox.ledger.model import Put, Unit
from farebox.ledger.processes import Processes
from farebox.wire.subrav.didauth import parse_did_auth
from farebox.wire.subrav.keys import KeyType, SigningKey, sign_sub_rav
from farebox.wire.subrav.model import SignedSubRAV
from tests.integration.channel_world import (
    ASSET,
    CHANNEL_ID,
    ECHO_COST,
    FRAGMENT,
    KEY,
    PAYEE_DID,
    World,
    check_books,
    world,
)
from tests.integration.test_channel_ledger import HOUSE, bank, voucher

OTHER = SigningKey(KeyType.ED25519, b"\x02" * 32)


async def pays(town: World, times: int = 1) -> SignedSubRAV:
    """Be served once more than so often, and pay for all but the last; the newest voucher."""
    told = await town.asks()
    for _ in range(times):
        assert told.status == 200
        signed = sign_sub_rav(told.proposal, KEY)
        told = await town.asks(voucher=signed)
    return signed


# ── closing ──────────────────────────────────────────────────────────────────────────────────────


async def assert_lost(town: World, backing: str, amount: int) -> None:
    """What was owed is a loss, and stands in no custody any more."""
    custody = await town.ledger.store.account(custody_account(backing))
    assert custody is not None
    assert custody.held == 0
    loss = await town.ledger.store.account(loss_account(ASSET))
    assert loss is not None
    assert loss.held == amount


async def test_a_payer_does_not_close_at_once_with_a_voucher_of_its_own_making(
    tmp_path: Path,
) -> None:
    async with bank(tmp_path) as town:
        channel = await town.opens(HOUSE)
        with pytest.raises(RailRejected):
            await town.contract.close(channel.channel_id, [voucher(channel, 0)])
        assert await town.contract.claim(voucher(channel, 5_000)) == 5_000


async def test_vouchers_are_claimed_before_a_closing_channel_is_closed(tmp_path: Path) -> None:
    """However little they are worth, and however young they are: later they are worth nothing."""
    clock = ManualClock()
    policy = ClaimPolicy(min_claim_amount=100 * ECHO_COST)
    async with world(tmp_path, clock=clock, claim_policy=policy) as town:
        await town.open()
        await pays(town)
        assert await town.claims.run_once() == 0
        await town.contract.request_close(CHANNEL_ID)
        clock.advance(policy.watch_s)
        assert await town.claims.run_once() == 1
        await town.contract.close(CHANNEL_ID)
        assert town.contract.claims == [(FRAGMENT, ECHO_COST)]
    check_books(tmp_path)


async def test_what_a_closed_channel_owed_is_no_longer_in_the_books(tmp_path: Path) -> None:
    clock = ManualClock()
    async with world(tmp_path, clock=clock, claim_policy=ClaimPolicy(min_claim_amount=1)) as town:
        await town.open()
        newest = await pays(town, 3)
        backing = (await channel_of(town)).backing
        row = await town.payee.sub_channels.read(CHANNEL_ID, FRAGMENT)
        assert row is not None
        first = msgspec.structs.replace(newest.sub_rav, nonce=1, accumulated_amount=ECHO_COST)
        await town.contract.claim(sign_sub_rav(first, KEY))  # paid on the chain, and not yet booked
        await town.contract.close(CHANNEL_ID)
        assert await town.claims.claim(row) is ClaimOutcome.LOST
        assert await town.payee.pending.cleanup(-1) == 1
        await assert_lost(town, backing, 3 * ECHO_COST)
        await town.claims.run_once()
        assert town.claims.status.refused == 1
        await town.open()
        clock.advance(6)
        assert (await town.asks()).proposal.channel_epoch == 1
    check_books(tmp_path)


async def test_what_an_ended_epoch_owed_is_no_longer_in_the_books(tmp_path: Path) -> None:
    """Its payer has opened the channel anew, and signs with another key: nobody comes back to the
    old one, and what it owed must not take room under the new collateral for ever."""
    async with world(tmp_path, claim_policy=ClaimPolicy(min_claim_amount=1)) as town:
        await town.open()
        await pays(town, 3)
        backing = (await channel_of(town)).backing
        await town.contract.close(CHANNEL_ID)
        await town.open(fragment="another", key=OTHER.public)
        assert await town.claims.trigger(CHANNEL_ID) == ({}, {FRAGMENT: "channel_closed"})
        await assert_lost(town, backing, 3 * ECHO_COST)
        assert await town.claims.trigger(CHANNEL_ID) == ({}, {FRAGMENT: "no_delta"})
    check_books(tmp_path)


async def test_what_a_close_of_ours_was_paid_is_no_loss_where_the_payer_is_back_already(
    tmp_path: Path,
) -> None:
    """The close is final, and not yet booked: `CooperativeClose` knows what it has brought."""
    async with world(tmp_path, claim_policy=ClaimPolicy(min_claim_amount=1)) as town:
        await town.open()
        await pays(town)
        store, key = town.ledger.store, sub_channel_key(CHANNEL_ID, FRAGMENT)
        found = await store.get(SUB_CHANNEL, key)
        assert found is not None
        frozen = msgspec.structs.replace(found.value, is_closing=True)
        await store.commit(Unit("agreed", puts=(Put(SUB_CHANNEL, key, frozen, found.version),)))
        await town.contract.close(CHANNEL_ID)
        await town.open()
        assert await town.claims.trigger(CHANNEL_ID) == ({}, {FRAGMENT: "refused"})


async def test_nothing_is_served_where_no_nonce_is_left(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        await town.open()
        sub = town.contract.subs[CHANNEL_ID, FRAGMENT]
        town.contract.subs[CHANNEL_ID, FRAGMENT] = replace(sub, last_confirmed_nonce=2**64 - 1)
        told = await town.asks()
        assert (told.status, told.code) == (409, "RAV_CONFLICT")
        assert town.served == {}


async def test_an_endpoint_tells_that_the_chain_is_away(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        await town.open()
        await town.payee.sub_channel_info(CHANNEL_ID, FRAGMENT)
        town.contract.is_away = True
        told = await town.asks("/payment-channel/recovery", payment="")
        assert told.status == 500
        assert told.answer.json()["error"]["code"] == "INTERNAL_SERVER_ERROR"


# ── what the payer redeems itself ────────────────────────────────────────────────────────────────


async def test_a_great_nonce_on_the_ledger_takes_nothing_from_the_payee(tmp_path: Path) -> None:
    async with bank(tmp_path) as town:
        channel = await town.opens(HOUSE)
        assert await town.contract.claim(voucher(channel, 1, 2**64 - 1)) == 1
        assert await town.contract.claim(voucher(channel, 5_000, 7)) == 5_000


async def test_nothing_is_served_for_vouchers_that_the_chain_will_not_pay(tmp_path: Path) -> None:
    """On Rooch anyone may submit a voucher, and one with a lower nonce is worth nothing after."""
    clock = ManualClock()
    async with world(tmp_path, clock=clock, claim_policy=ClaimPolicy(min_claim_amount=1)) as town:
        await town.open()
        newest = await pays(town)
        made_up = msgspec.structs.replace(newest.sub_rav, nonce=2**63, accumulated_amount=1)
        await town.contract.claim(sign_sub_rav(made_up, KEY))
        clock.advance(6)
        owed = (await town.asks()).proposal
        told = await town.asks(voucher=sign_sub_rav(owed, KEY))
        assert (told.status, told.code) == (409, "RAV_CONFLICT")
        assert town.served == {"/echo": 2}
        row = await town.payee.sub_channels.read(CHANNEL_ID, FRAGMENT)
        assert row is not None
        assert await town.claims.claim(row) is ClaimOutcome.REFUSED
        assert town.claims.status.claimed == 0
    check_books(tmp_path)


# ── a channel that was closed and opened anew ────────────────────────────────────────────────────


async def reopened(town: World) -> None:
    """Claim, so that the old epoch ends at some amount, and begin a new one."""
    await town.claims.trigger(CHANNEL_ID)
    await town.contract.close(CHANNEL_ID)
    await town.open()


async def test_a_new_epoch_does_not_begin_at_what_was_claimed_in_the_old_one(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    async with world(tmp_path, clock=clock) as town:
        await town.open()
        await pays(town)
        await town.claims.trigger(CHANNEL_ID)
        clock.advance(6)
        await town.payee.sub_channel_info(CHANNEL_ID, FRAGMENT)  # claimed: one request
        await reopened(town)
        town.payee.forget(await channel_of(town))  # the channel is read anew, its key is not
        told = await town.asks()
        if told.status != 200:
            assert told.code == "INTERNAL_SERVER_ERROR"
            told = await town.asks()
        assert (told.status, told.proposal.channel_epoch) == (200, 1)
        assert (told.proposal.accumulated_amount, told.proposal.nonce) == (ECHO_COST, 1)


async def test_a_process_that_still_reads_the_old_epoch_does_not_bring_it_back(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    async with world(tmp_path, clock=clock) as town:
        await town.open()
        await pays(town)
        old_turn = await town.payee.turn(CHANNEL_ID, FRAGMENT, None)
        await reopened(town)
        clock.advance(6)
        told = await town.asks()
        assert told.proposal.channel_epoch == 1
        assert isinstance(old_turn, Turn)
        standing = await town.payee.sub_channels.serve(old_turn, None, "")
        assert isinstance(standing.verdict, Rejected)
        assert standing.verdict.code == "EPOCH_MISMATCH"
        assert standing.row is not None
        assert standing.row.epoch == 1
        paid = await town.asks(voucher=sign_sub_rav(told.proposal, KEY))
        assert paid.status == 200
    check_books(tmp_path)


async def channel_of(town: World) -> ChannelInfo:
    channel = await town.contract.channel(CHANNEL_ID)
    assert channel is not None
    assert channel.status is ChannelStatus.ACTIVE
    return channel


# ── credit ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_claim_lowers_at_once_what_other_processes_trust(tmp_path: Path) -> None:
    """They may have read the collateral before the claim, and believe it for some seconds."""
    policy = CreditPolicy(backing_min=0)
    async with world(tmp_path, policy=policy) as town:
        await town.open(3 * ECHO_COST)
        other = PaymentChannelPayeeClient(
            town.ledger,
            Processes(town.ledger, alone=True),
            town.contract,
            PAYEE_DID,
            policy=policy,
        )
        told = await town.asks()
        turn = await other.turn(CHANNEL_ID, FRAGMENT, sign_sub_rav(told.proposal, KEY))
        assert isinstance(turn, Turn)
        before = await other.covered(turn)
        assert isinstance(before, Turn)
        paid = await other.sub_channels.serve(before, Charge(2 * ECHO_COST, 0), "srv")
        assert isinstance(paid.verdict, Accepted)
        await town.claims.trigger(CHANNEL_ID)  # 2 are left, and asked for; `other` believes in 3
        assert paid.row is not None
        owed = proposed(paid.row, town.contract.chain_id)
        assert owed is not None
        again = msgspec.structs.replace(before, voucher=sign_sub_rav(owed, KEY))
        refused = await other.sub_channels.serve(again, Charge(ECHO_COST, 0), "srv")
        assert isinstance(refused.verdict, Rejected)
        assert refused.verdict.code == "HUB_INSUFFICIENT_FUNDS"
        assert await town.latest() == again.voucher


async def test_a_final_cost_is_not_waived_where_the_collateral_is_used_up(tmp_path: Path) -> None:
    policy = CreditPolicy(backing_min=0)
    async with world(tmp_path, policy=policy) as town:
        await town.open(2 * ECHO_COST)
        newest = await pays(town)
        told = await town.asks("/echo", newest)
        last = await town.asks(
            "/process", sign_sub_rav(told.proposal, KEY), method="POST", body={"a": 1}
        )
        assert (last.status, last.code) == (402, "HUB_INSUFFICIENT_FUNDS")
        assert "/process" not in town.served


async def test_one_reference_for_two_proposals_makes_two(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        await town.open()
        await town.open(fragment="other")
        for fragment in (FRAGMENT, "other"):
            made = await town.payee.generate_proposal(CHANNEL_ID, fragment, 5, "an order")
            kept = await town.payee.pending.find_latest_by_sub_channel(CHANNEL_ID, fragment)
            assert kept == made


@pytest.mark.parametrize("told", [{"timestamp": 2**60}, {"more": 1.5}])
async def test_an_authorization_that_javascript_would_read_otherwise_is_refused(
    tmp_path: Path, told: dict[str, object]
) -> None:
    """Anybody may write one: to name a channel's key takes none."""
    async with world(tmp_path) as town:
        await town.open()
        auth = parse_did_auth(town.authorization("GET", "/echo"))
        odd = replace(auth, signed_data={**auth.signed_data, **told}).header()
        for path in ("/echo", "/payment-channel/recovery"):
            answer = await town.asks(path, auth=odd, payment="")
            assert answer.status == 400, answer.answer.text
        assert not town.served


async def test_an_authorization_for_no_uri_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        await town.open()
        told = await town.asks(auth=town.authorization("GET", "[/echo"))
        assert (told.status, told.code) == (400, "AUTH_INVALID")


async def test_amounts_beyond_64_bits_are_paid(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        await town.open()
        sub = town.contract.subs[CHANNEL_ID, FRAGMENT]
        town.contract.subs[CHANNEL_ID, FRAGMENT] = replace(sub, last_claimed_amount=2**200)
        newest = await pays(town, 2)
        assert newest.sub_rav.accumulated_amount == 2**200 + 2 * ECHO_COST
    check_books(tmp_path)
