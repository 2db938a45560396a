"""Seeds that CI lives through, and the proof that they would find what they look for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import msgspec
import pytest

from farebox.ecash import codes, saga
from farebox.ledger.model import ABSENT, Put, Transfer
from farebox.ledger.processes import Processes
from farebox.ledger.service import Ledger
from farebox.payments.model import Rejected, Unresolved, Verdict
from farebox.payments.operations import Operations
from farebox.paywall.service import Paywall
from farebox.rails.cashu.inventory import Inventory
from farebox.rails.cashu.locked import Locked
from farebox.rails.cashu.records import LOCKED
from farebox.rails.cashu.sweep import Sweep
from farebox.wire.cashu import crypto
from tests.simulation import callers, planted_cards, planted_evm, planted_rails, world
from tests.simulation.disk import Disk
from tests.simulation.scenes import SCENES
from tests.simulation.weather import forecast
from tests.simulation.world import run

#: One to three houses, with and without crashes, frozen ones, locked tokens, broken locks, slow
#: disks, shuffled callbacks, tokens that cross Lightning; three or more of each rail. None of
#: them takes long.
SEEDS = (1, 4, 11, 26, 9, 14, 18, 32, 40, 50, 126, 98, 122, 244, 196, 220)
#: Seeds of its scene in which a defect is looked for. A quarter of them find it, or more: that the
#: house's timing moves does not make the search long, let alone fail. The one that finds most of
#: them comes first.
TRIED = sorted(range(1, 17), key=lambda seed: seed != 7)


@pytest.mark.parametrize("seed", SEEDS)
def test_both_promises_hold(seed: int) -> None:
    story = run(seed)
    assert not story.fault, f"python -m tests.simulation --seed {seed} --trace: {story.fault}"


def test_every_rail_and_all_that_it_offers_is_among_the_seeds() -> None:
    worlds = [forecast(seed) for seed in SEEDS]
    assert any(one.node for one in worlds)
    assert any(one.chain for one in worlds)
    evm = [one.evm for one in worlds if one.evm]
    assert any(one.signs and one.copies for one in evm)
    assert any(one.batch_wait_s for one in evm)
    charged = {one.cards.provider for one in worlds if one.cards and one.cards.charges}
    assert charged == {"stripe", "paypal"}


def test_a_seed_is_one_story_to_the_last_bit_in_any_process() -> None:
    seed = 14  # three houses, frozen now and then
    elsewhere = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", str(seed)],
        env={**os.environ, "PYTHONHASHSEED": "1"},  # this process hashes otherwise
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here = run(seed)
    assert here == run(seed)
    assert f"trace {here.trace_digest[:12]}, book {here.book_digest[:12]}" in elsewhere


# ── defects that were planted ────────────────────────────────────────────────────────────────────


def a_lost_answer_is_taken_for_a_no() -> AbstractContextManager[object]:
    honest = Operations._attempt

    async def attempt(self: Operations, operation: Any, *, asked_before: bool) -> Verdict:
        verdict = await honest(self, operation, asked_before=asked_before)
        return Rejected("no", "no answer") if isinstance(verdict, Unresolved) else verdict

    return patch.object(Operations, "_attempt", attempt)


def every_refusal_of_a_mint_is_final() -> AbstractContextManager[object]:
    return patch.object(saga, "verdict", lambda *_: codes.Verdict.DEFINITE)


def answers_do_not_wait_for_the_disk() -> AbstractContextManager[object]:
    honest = Disk.write

    def write(self: Disk, staged: Any, *, is_synced: bool) -> None:
        honest(self, staged, is_synced=False)

    return patch.object(Disk, "write", write)


def recovery_settles_what_still_runs() -> AbstractContextManager[object]:
    honest = Paywall.recover

    async def recover(self: Paywall) -> int:
        live, self._settler.live = self._settler.live, {}
        try:
            return await honest(self)
        finally:
            self._settler.live = live

    return patch.object(Paywall, "recover", recover)


def nobody_else_counts_as_alive() -> AbstractContextManager[object]:
    async def others(self: Processes) -> frozenset[str]:
        return frozenset()

    return patch.object(Processes, "others", others)


def a_locked_proof_may_be_claimed_again() -> AbstractContextManager[object]:
    async def claimed(self: Locked, rows: Any) -> tuple[Put, ...]:
        puts = []
        for proof, row in rows:
            key = crypto.hash_to_curve(proof.secret).hex()
            known = await self._ledger.store.get(LOCKED, key)
            puts.append(Put(LOCKED, key, row, ABSENT if known is None else known.version))
        return tuple(puts)

    return patch.object(Locked, "_claimed", claimed)


def nothing_limits_what_waits_for_its_swap() -> AbstractContextManager[object]:
    honest = Ledger.limit_custody

    async def limit_custody(self: Ledger, account: str, asset: str, ceiling: int | None) -> None:
        is_unswapped = account.startswith("custody:cashu-unswapped")
        await honest(self, account, asset, None if is_unswapped else ceiling)

    def is_taken(self: Locked, *_: object) -> Any:
        async def taken() -> bool:
            return True

        return taken()

    stack = ExitStack()
    stack.enter_context(patch.object(Ledger, "limit_custody", limit_custody))
    stack.enter_context(patch.object(Locked, "_is_taken", is_taken))
    return stack


def what_a_broken_lock_costs_is_not_booked() -> AbstractContextManager[object]:
    honest = Sweep._refused

    async def refused(self: Sweep, *args: Any) -> Rejected:
        verdict = await honest(self, *args)
        steps = tuple(step for step in verdict.changes.steps if not isinstance(step, Transfer))
        return replace(verdict, changes=msgspec.structs.replace(verdict.changes, steps=steps))

    return patch.object(Sweep, "_refused", refused)


def counters_are_kept_in_memory() -> AbstractContextManager[object]:
    async def take(self: Inventory, keyset_id: str, count: int) -> int:
        first, _ = self._blocks.get(keyset_id, (0, 0))
        self._blocks[keyset_id] = (first + count, 0)
        return first

    stack = ExitStack()
    stack.enter_context(patch.object(Inventory, "take_counters", take))
    # Nobody is ever told: so many tries are enough for an honest house in these seeds.
    stack.enter_context(patch.object(callers, "_TRIES_IN_CALM", 14))
    return stack


@pytest.mark.parametrize(
    ("defect", "scene"),
    [
        (a_lost_answer_is_taken_for_a_no, "answers of mints are lost"),
        (every_refusal_of_a_mint_is_final, "mints refuse what they have done"),
        (answers_do_not_wait_for_the_disk, "the power goes"),
        (recovery_settles_what_still_runs, "mints are slow"),
        (counters_are_kept_in_memory, "crashes"),
        (nobody_else_counts_as_alive, "three houses"),
        (a_locked_proof_may_be_claimed_again, "locked tokens"),
        (nothing_limits_what_waits_for_its_swap, "little may be locked"),
        (what_a_broken_lock_costs_is_not_booked, "locks are broken"),
        (planted_rails.every_sighting_is_a_deposit_of_its_own, "payments come in by Lightning"),
        (planted_rails.whoever_hands_in_an_invoice_has_its_money, "payments come in by Lightning"),
        (planted_rails.nobody_asks_about_open_deposits, "the line to the node is dead"),
        (planted_rails.a_payment_in_flight_counts_as_failed, "payments go out by Lightning"),
        (planted_rails.a_failed_payment_is_believed_at_once, "calls to the node are late"),
        (planted_rails.what_leaves_the_chain_stays_credited, "blocks are left"),
        (planted_rails.one_block_is_enough_for_any_value, "blocks are left"),
        (planted_rails.a_payment_is_over_once_it_is_sent, "payments go out on the chain"),
        (
            planted_evm.a_transfer_that_moved_in_its_block_is_another,
            "an EVM chain is reorganised",
        ),
        (planted_evm.what_leaves_the_chain_stays_credited, "payments vanish from an EVM chain"),
        (
            planted_evm.what_is_in_no_block_is_sent_under_another_nonce,
            "answers of an EVM node are lost",
        ),
        (
            planted_evm.what_a_batch_could_not_pay_counts_as_paid,
            "payments leave an EVM chain together",
        ),
        (
            planted_evm.a_claim_takes_what_others_paid_in_the_same_transaction,
            "EVM payments are signed",
        ),
        (
            planted_evm.a_transfer_that_a_stranger_was_quicker_with_never_came,
            "EVM payments are signed",
        ),
        (planted_cards.each_notice_is_a_payment_of_its_own, "PayPal takes payments back"),
        (planted_cards.chargebacks_are_ignored, "card payments are taken back"),
        (planted_cards.only_webhooks_are_heard, "card payments are taken back"),
        (planted_cards.chargebacks_are_ignored, "PayPal takes payments back"),
        (planted_cards.a_refund_is_repeated_under_a_new_key, "answers about refunds are lost"),
        (planted_cards.a_lost_answer_leads_to_the_next_card, "answers about charges are lost"),
        (
            planted_cards.a_lost_answer_leads_to_the_next_card,
            "answers of PayPal about charges are lost",
        ),
        (
            planted_cards.a_refund_is_repeated_under_a_new_key,
            "answers of PayPal about refunds are lost",
        ),
    ],
)
def test_a_planted_defect_is_found(
    defect: Callable[[], AbstractContextManager[object]], scene: str
) -> None:
    # What never comes to rest is known to after a quarter of the time that honest worlds are given.
    impatience = patch.object(world, "_CALM_S", 1_000)
    with defect(), impatience:
        found = next((seed for seed in TRIED if run(seed, weather=SCENES[scene]).fault), None)
    assert found is not None, f"not found by --scene {scene!r} --first 1 --count {len(TRIED)}"
    without = run(found, weather=SCENES[scene])
    assert not without.fault, f"the seed fails without the defect too: {without.fault}"
