"""Vouchers are claimed when they are due, once, and what came of it stands in the books."""

from __future__ import annotations

from pathlib import Path

import pytest

from farebox.channels import ClaimPolicy
from farebox.channels.claims import ClaimReason, claim_reason
from farebox.channels.model import SubChannel, Voucher
from farebox.clock import NS_PER_S, ManualClock
from farebox.testing.channels import PlayContract
from farebox.wire.subrav.keys import sign_sub_rav
from tests.integration.channel_world import (
    ASSET,
    CHANNEL_ID,
    ECHO_COST,
    FRAGMENT,
    KEY,
    World,
    check_books,
    world,
)

EAGER = ClaimPolicy(min_claim_amount=1, threshold=2 * ECHO_COST)


async def pays(town: World, times: int) -> None:
    """Be served so often, each time paying for the time before."""
    told = await town.asks()
    assert told.status == 200
    for _ in range(times):
        told = await town.asks(voucher=sign_sub_rav(told.proposal, KEY))
        assert told.status == 200


@pytest.mark.parametrize(
    ("unclaimed", "age_s", "idle_s", "ceiling", "reason"),
    [
        (9, 10**6, 10**6, 10, None),
        (100, 0, 0, 0, ClaimReason.THRESHOLD),
        (99, 0, 0, 0, None),
        (50, 0, 0, 100, ClaimReason.EXPOSURE),
        (50, 0, 0, 101, None),
        (10, 500, 0, 0, ClaimReason.AGE),
        (10, 499, 0, 0, None),
        (10, 60, 60, 0, ClaimReason.IDLE),
        (10, 60, 59, 0, None),
    ],
)
def test_a_claim_is_due_by_amount_exposure_age_or_idleness(
    unclaimed: int, age_s: int, idle_s: int, ceiling: int, reason: ClaimReason | None
) -> None:
    policy = ClaimPolicy(
        min_claim_amount=10, threshold=100, age_s=500, idle_s=60, exposure_percent=50
    )
    now = 10**9 * NS_PER_S
    row = SubChannel(
        channel_id=CHANNEL_ID,
        fragment=FRAGMENT,
        asset_id=ASSET,
        backing="hub",
        payer_did="did",
        epoch=0,
        accepted=Voucher(unclaimed, 1, b""),
        unclaimed_since=now - age_s * NS_PER_S,
        last_at=now - idle_s * NS_PER_S,
    )
    assert claim_reason(row, policy, now, ceiling) is reason


async def test_a_voucher_over_the_threshold_is_claimed_and_the_books_agree(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, claim_policy=EAGER) as town:
        await town.open()
        await pays(town, 1)
        assert await town.claims.run_once() == 0
        await pays_more(town)
        assert await town.claims.run_once() == 1
        assert await town.claims.run_once() == 0
        assert town.contract.claims == [(FRAGMENT, 2 * ECHO_COST)]
        store = town.ledger.store
        paid = await store.account(f"custody:rooch:{ASSET}")
        owed = await store.account(f"custody:channel:{town.contract.channels[CHANNEL_ID].backing}")
        receivable = await store.account(f"receivable:channel:{CHANNEL_ID}#{FRAGMENT}")
        earned = await store.account(f"revenue/{ASSET}")
        assert paid is not None
        assert owed is not None
        assert receivable is not None
        assert earned is not None
        assert (paid.held, owed.held) == (2 * ECHO_COST, 0)
        assert receivable.held == ECHO_COST  # the last request is not signed for yet
        assert earned.available == 3 * ECHO_COST
    check_books(tmp_path)


async def pays_more(town: World) -> None:
    told = await town.asks()
    assert (await town.asks(voucher=sign_sub_rav(told.proposal, KEY))).status == 200


async def test_a_claim_whose_answer_was_lost_is_booked_once(tmp_path: Path) -> None:
    clock = ManualClock()
    async with world(tmp_path, claim_policy=EAGER, clock=clock) as town:
        await town.open()
        await pays(town, 2)
        contract: PlayContract = town.contract
        contract.loses_answers = True
        assert await town.claims.run_once() == 0
        assert town.claims.status.unknown == 1
    contract.loses_answers = False
    clock.advance(3_601)
    async with world(tmp_path, claim_policy=EAGER, clock=clock, contract=contract) as town:
        assert await town.claims.run_once() == 1
        assert contract.claims == [(FRAGMENT, 2 * ECHO_COST)]
        paid = await town.ledger.store.account(f"custody:rooch:{ASSET}")
        assert paid is not None
        assert paid.held == 2 * ECHO_COST


async def test_a_refused_claim_waits_longer_each_time_and_is_never_given_up(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    async with world(tmp_path, claim_policy=EAGER, clock=clock) as town:
        await town.open()
        await pays(town, 2)
        hub = next(iter(town.contract.hubs))
        held, town.contract.hubs[hub] = town.contract.hubs[hub], 0
        for wait_s, tries in ((0, 1), (59, 1), (2, 2), (119, 2), (2, 3), (239, 3), (2, 4)):
            clock.advance(wait_s)
            await town.claims.run_once()
            assert town.claims.status.refused == tries
        town.contract.hubs[hub] = held
        clock.advance(10**6)
        assert await town.claims.run_once() == 1


async def test_idle_vouchers_are_claimed_also_after_a_restart(tmp_path: Path) -> None:
    clock = ManualClock()
    async with world(tmp_path, clock=clock) as town:
        await town.open()
        await pays(town, 1)
        contract = town.contract
    async with world(tmp_path, clock=clock, contract=contract) as town:
        assert await town.claims.run_once() == 0
        clock.advance(3_601)
        assert await town.claims.run_once() == 1
