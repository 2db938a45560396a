"""What an operator sees of a rail: its metrics, against a node that can be made to fail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from farebox.clock import SystemClock
from farebox.testing.asgi import serving
from tests.integration.lightning_house import LightningHouse, house_on
from tests.integration.scraping import Samples, of, scraped
from tests.simulation.lightning import CAPACITY_MSAT, ModelLnd, Moods

MACAROON = "0123456789abcdef" * 8
PLACE = {"asset": "BTC", "place": "lightning:main"}


@asynccontextmanager
async def modelled(
    path: Path, patch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[LightningHouse, ModelLnd]]:
    """A house whose node is the model that passes the node contract: it fails when told to."""
    node = ModelLnd(SystemClock(), Moods(Random(1)), macaroon=MACAROON)
    async with serving(node) as url:
        lightning = {"url": url, "key": MACAROON, "network": "bcrt", "timeout_s": 60}
        async with house_on(path, lightning, (MACAROON,), patch) as house:
            yield house, node


async def scrape(house: LightningHouse) -> Samples:
    house.farebox.operator._metrics._census._last = None  # not as of some seconds ago
    return (await scraped(house.farebox))[1]


async def funded(house: LightningHouse, node: ModelLnd, amount_msat: int) -> str:
    asked = await house.asked(amount_msat)
    assert node.pay_in(asked["pay"])
    told = await house.until_credited(asked)
    assert told["state"] == "credited"
    body = {"initial_balance_token": asked["pay"], "claim_secret": asked["claim_secret"]}
    return str((await house.post("/create", body)).json()["api_key"])


async def test_what_came_in_is_counted_once_and_compared_with_what_the_node_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with modelled(tmp_path, monkeypatch) as (house, node):
        await funded(house, node, 21_000)
        [watch] = house.farebox._watches
        await watch.weigh()
        samples = await scrape(house)
        assert of(samples, "farebox_deposits_total", method="lightning", state="credited") == 1
        assert of(samples, "farebox_custody", **PLACE) == 21_000
        assert of(samples, "farebox_held", **PLACE) == CAPACITY_MSAT + 21_000
        assert of(samples, "farebox_rail_works", method="lightning") == 1
        assert of(samples, "farebox_rail_looked_seconds_ago", method="lightning") < 60


async def test_a_node_that_is_away_does_not_work_and_is_not_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with modelled(tmp_path, monkeypatch) as (house, node):
        await house.farebox.worker.stop()  # it probes and looks by itself
        [watch] = house.farebox._watches
        await watch.probe()
        assert watch.rail.standing().works
        await watch.poll()
        await house.asked(21_000)  # so that there is something to ask about
        node.moods.is_down = True
        await watch.probe()
        seen_s = watch.looked_at_s
        house.clock.ahead_s += 60
        await watch.poll()
        assert watch.looked_at_s == seen_s
        assert of(await scrape(house), "farebox_rail_works", method="lightning") == 0
        node.moods.is_down = False


async def test_a_payout_that_hangs_is_seen_with_its_age_and_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with modelled(tmp_path, monkeypatch) as (house, node):
        key = await funded(house, node, 50_000)
        node.moods.hangs, node.moods.hangs_s, node.moods.hangs_up = 1, 3_600, 1
        body = {
            "method": "lightning",
            "destination": node.payee_invoice(20_000),
            "amount_msat": 20_000,
        }
        paying = await house.post("/v1/payouts", body, key, "once")
        assert paying.status_code == 202, paying.text
        samples = await scrape(house)
        assert of(samples, "farebox_payouts_open", older_than_s="0") == 1
        assert of(samples, "farebox_payouts_open", older_than_s="3600") == 0
        assert of(samples, "farebox_custody_leaving", **PLACE) >= 20_000
        house.clock.ahead_s += 3_700
        assert of(await scrape(house), "farebox_payouts_open", older_than_s="3600") == 1
        node.end_all()
        await house.settled()
        assert of(await scrape(house), "farebox_payouts_open", older_than_s="0") == 0
