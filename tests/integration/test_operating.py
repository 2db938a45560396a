"""What an operator sees of a running house: readiness, metrics, and how it stops."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from farebox.bootstrap import Farebox
from farebox.clock import NS_PER_S
from farebox.errors import InvalidSettings, StoreError
from farebox.ledger.checkpoint import CHECKPOINT_FILE, Checkpoint, seal_checkpoint
from farebox.operating import Verdict, Vitals
from farebox.rails.web.breaker import FAILURES_TO_OPEN, PAUSE_S
from farebox.settings import load_settings
from farebox.tally import Counts, Spread
from farebox.testing.mint import DropAfter, Fail
from farebox.wire.cashu.token import decode_token
from tests.integration.scraping import Samples, of, scraped
from tests.integration.whole_house import Door, WholeHouse, whole_house
from tests.slowness import answers_wait
from tests.waiting import eventually


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[WholeHouse]:
    async with whole_house(tmp_path) as opened:
        yield opened


async def scrape(house: WholeHouse) -> tuple[str, Samples]:
    return await scraped(house.farebox)


async def readiness(house: WholeHouse) -> tuple[int, dict[str, dict[str, str]]]:
    answer = await house.http.get("/readyz")
    document: dict[str, Any] = answer.json()
    assert document["status"] == ("ready" if answer.status_code == 200 else "unready")
    return answer.status_code, {one["check"]: one for one in document["checks"]}


# ── readiness ────────────────────────────────────────────────────────────────────────────────────


async def test_a_well_house_is_ready_and_says_of_what(house: WholeHouse) -> None:
    status, checks = await readiness(house)
    assert status == 200
    names = {"serving", "book", "disk space", "clock", "root key", "upstream /"}
    assert set(checks) == names | {f"mint {house.mint.url}"}
    assert {one["state"] for one in checks.values()} == {"ok"}
    assert {one["reason"] for one in checks.values()} == {""}


async def test_a_mint_that_is_away_is_a_warning_since_keys_go_on_paying(house: WholeHouse) -> None:
    house.mint.faults.always("swap", Fail(503))
    for _ in range(FAILURES_TO_OPEN):
        await house.present(Door.EMBEDDED, house.token())
    before = sum(house.mint.calls.values())
    status, checks = await readiness(house)
    assert status == 200
    assert checks[f"mint {house.mint.url}"]["state"] == "warning"
    assert sum(house.mint.calls.values()) == before, "a probe must not ask the mint"
    assert (await house.http.get("/echo", headers=house.auth())).status_code == 200
    house.mint.faults.clear()
    house.clock.advance(PAUSE_S + 1)
    await house.recover()
    assert (await readiness(house))[1][f"mint {house.mint.url}"]["state"] == "ok"


async def test_without_any_upstream_requests_belong_elsewhere_for_a_while(tmp_path: Path) -> None:
    nowhere = {"urls": ["http://127.0.0.1:9"]}
    async with whole_house(tmp_path, upstream_terms=nowhere) as house:
        assert (await readiness(house))[0] == 200, "nothing is known against it yet"

        async def asked() -> tuple[int, dict[str, Any]]:
            assert (await house.http.get("/echo", headers=house.auth())).status_code == 502
            return await readiness(house)

        # It is for a second only, and a slow machine may be later than that with its question.
        _, checks = await eventually(asked, lambda told: told[0] == 503)
        assert checks["upstream /"]["state"] == "failure"
        assert "127.0.0.1" not in str(checks["upstream /"])
        service = house.farebox.vitals.upstreams()
        assert "127.0.0.1" not in str(service)


async def test_a_book_that_cannot_be_written_is_unready_until_it_can(
    house: WholeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.farebox.worker.stop()  # what it writes would say that the book can be written
    commits = house.farebox._commits
    commits.failed(everybodys=True)
    status, checks = await readiness(house)
    assert (status, checks["book"]["state"]) == (503, "failure")

    async def fails(_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(house.farebox.store, "commit", fails)
        await house.farebox.vitals.look()
    assert (await readiness(house))[0] == 503
    await house.farebox.vitals.look()  # nobody pays meanwhile: it has to try by itself
    assert (await readiness(house))[0] == 200


async def test_what_was_not_verified_yet_is_told_until_it_is(house: WholeHouse) -> None:
    farebox = house.farebox
    await farebox.worker.stop()  # so that no event comes but the request's
    await house.http.get("/echo", headers=house.auth())
    _, samples = await scrape(house)
    events = of(samples, "farebox_book_events")
    assert of(samples, "farebox_event_lag", consumer="verify") == events > 0
    assert not any(name == "farebox_verified_seconds_ago" for name, _ in samples)
    checkpoint = Checkpoint(event=int(events))
    sealed = seal_checkpoint(checkpoint, farebox.signer.derive("checkpoint"))
    path = farebox.settings.data_dir / CHECKPOINT_FILE
    path.write_bytes(sealed)
    os.utime(path, (house.clock.now_ns() / NS_PER_S, house.clock.now_ns() / NS_PER_S))
    house.clock.advance(60)
    await farebox.vitals.look()
    _, samples = await scrape(house)
    assert of(samples, "farebox_event_lag", consumer="verify") == 0
    assert of(samples, "farebox_verified_seconds_ago") == pytest.approx(60)


async def test_a_full_disk_is_unready(house: WholeHouse) -> None:
    house.farebox.vitals.free_bytes = 1 << 20
    status, checks = await readiness(house)
    assert (status, checks["disk space"]["state"]) == (503, "failure")
    assert "MiB" in checks["disk space"]["reason"]


async def test_a_clock_behind_the_book_is_a_warning(house: WholeHouse) -> None:
    house.clock.advance(-3600)
    status, checks = await readiness(house)
    assert (status, checks["clock"]["state"]) == (200, "warning")
    house.clock.advance(3600)


async def test_dollars_without_a_rate_are_a_warning(tmp_path: Path) -> None:
    given = {"data_dir": str(tmp_path), "price": [{"per_request": "1 USD"}]}
    async with Farebox(load_settings(None, {}, given), b"a" * 32) as farebox:
        [found] = farebox.vitals.rate()
        assert found.verdict is Verdict.WARNING
    given |= {"rates.btc_usd": "97000"}
    async with Farebox(load_settings(None, {}, given), b"a" * 32) as farebox:
        await eventually(lambda: farebox.prices.rates)
        [found] = farebox.vitals.rate()
        assert found.verdict is Verdict.FINE


async def test_probes_are_answered_when_every_turn_is_taken(tmp_path: Path) -> None:
    limits = {"gateway.requests_max": 1, "gateway.queue_max": 0}
    async with whole_house(tmp_path, limits=limits) as house:
        with answers_wait(house.upstream):
            running = asyncio.create_task(house.chat())
            await eventually(lambda: house.farebox.app.turns.running)
            busy = await house.http.get("/echo", headers=house.auth())
            assert (busy.status_code, busy.json()["code"]) == (503, "busy")
            assert (await house.http.get("/healthz")).status_code == 200
            assert (await house.http.get("/readyz")).status_code == 200
        await running


async def test_a_stopping_house_lives_and_is_not_ready(tmp_path: Path) -> None:
    async with whole_house(tmp_path) as house:
        house.farebox.vitals.is_stopping = True  # draining: told, and still serving
        status, checks = await readiness(house)
        assert (status, checks["serving"]["reason"]) == (503, "being stopped")
        assert (await house.http.get("/echo", headers=house.auth())).status_code == 200
        await house.farebox.app.stop()
        assert (await readiness(house))[0] == 503
        assert (await house.http.get("/healthz")).status_code == 200
        stopped = await house.http.get("/echo", headers=house.auth())
        assert (stopped.status_code, stopped.json()["code"]) == (503, "stopping")


async def test_what_is_cut_before_it_was_forwarded_gets_its_money_back(tmp_path: Path) -> None:
    async with whole_house(tmp_path) as house:
        with answers_wait(house.mint):
            paying = asyncio.create_task(house.present(Door.EMBEDDED, house.token()))
            await eventually(lambda: house.mint.calls["swap"])
            house.farebox.app.cut()
        answer = await paying
        told = house.problem(answer, 503, "stopping")
        assert "goes back" in told["money"]
        assert decode_token(answer.headers["x-cashu"]).amount == 64


async def test_a_book_is_not_opened_with_another_root_key(tmp_path: Path) -> None:
    settings = load_settings(None, {}, {"data_dir": str(tmp_path)})
    async with Farebox(settings, b"a" * 32):
        pass
    with pytest.raises(InvalidSettings, match="root_key"):
        async with Farebox(settings, b"b" * 32):
            pass
    async with Farebox(settings, b"a" * 32) as opened:
        assert isinstance(opened.vitals, Vitals)


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────


async def test_requests_are_counted_by_what_became_of_them(house: WholeHouse) -> None:
    assert (await house.http.get("/echo")).status_code == 402
    assert (await house.http.get("/echo", headers=house.auth("sk-nobody"))).status_code == 401
    assert (await house.http.get("/echo", headers=house.auth())).status_code == 200
    assert (await house.present(Door.EMBEDDED, house.token())).status_code == 200
    assert (await house.chat("status=500")).status_code == 500
    await house.settled()
    _, samples = await scrape(house)
    requests = "farebox_requests_total"
    assert of(samples, requests, outcome="admitted", code="") == 3
    assert of(samples, requests, outcome="challenged", code="payment_required") == 1
    assert of(samples, requests, outcome="refused", code="key_unknown") == 1
    assert of(samples, "farebox_requests_settled_total", ended="complete") == 2
    assert of(samples, "farebox_requests_settled_total", ended="refused") == 1
    for stage, count in {"authorise": 5, "first_byte": 3, "settle": 3, "deliver": 3}.items():
        assert of(samples, "farebox_request_seconds_count", stage=stage) == count
    assert of(samples, "farebox_requests_running") == 0


async def test_calls_of_the_wallet_are_counted_by_their_answers(house: WholeHouse) -> None:
    await house.present(Door.TOPUP, house.token(1))
    await house.present(Door.TOPUP, "no token")
    await house.http.get("/info", headers=house.auth("sk-nobody"))
    _, samples = await scrape(house)
    calls = "farebox_wallet_calls_total"
    assert of(samples, calls, endpoint="create", status="200") == 1
    assert of(samples, calls, endpoint="topup", status="200") == 1
    assert of(samples, calls, endpoint="topup", status="400") == 1
    assert of(samples, calls, endpoint="info", status="401") == 1


async def test_the_books_are_told_to_the_unit(house: WholeHouse) -> None:
    assert (await house.http.get("/echo", headers=house.auth())).status_code == 200
    _, samples = await scrape(house)
    place = f"cashu:{house.mint.url}:sat"
    assert of(samples, "farebox_custody", asset="BTC", place=place) == 256_000
    assert of(samples, "farebox_custody_ceiling", asset="BTC", place=place) == 100_000_000
    assert of(samples, "farebox_liabilities", asset="BTC", kind="customers") == 246_000
    assert of(samples, "farebox_liabilities", asset="BTC", kind="revenue") == 10_000
    assert of(samples, "farebox_reserved", asset="BTC") == 0
    assert of(samples, "farebox_holds_open") == 0
    assert of(samples, "farebox_book_units") > 3
    assert of(samples, "farebox_book_events") >= 2
    assert of(samples, "farebox_commit_units_count") > 3
    assert of(samples, "farebox_commit_seconds_count", part="sync") > 3


async def test_more_customers_than_a_page_are_summed_without_being_read(
    house: WholeHouse,
) -> None:
    for _ in range(120):
        made = await house.present(Door.CREATE, house.token(2))
        assert made.status_code == 200
    _, samples = await scrape(house)
    assert of(samples, "farebox_liabilities", asset="BTC", kind="customers") == 256_000 + 240_000


async def test_a_running_request_is_seen_as_a_hold(house: WholeHouse) -> None:
    with answers_wait(house.upstream):
        running = asyncio.create_task(house.chat(stream=True))
        await eventually(lambda: house.farebox.app.carrier.tally.admitted)
        _, samples = await scrape(house)
        assert of(samples, "farebox_requests_running") == 1
        assert of(samples, "farebox_holds_open") == 1
        assert of(samples, "farebox_reserved", asset="BTC") == 20_000
    await running


async def test_an_unfinished_operation_is_seen_with_its_age(house: WholeHouse) -> None:
    house.mint.faults.always("swap", DropAfter())
    house.mint.faults.always("restore", Fail(503))
    answer = await house.present(Door.EMBEDDED, house.token())
    house.problem(answer, 503, "payment_pending")
    house.clock.advance(90)
    _, samples = await scrape(house)
    assert sum(v for (name, _), v in samples.items() if name == "farebox_operations") == 1
    assert of(samples, "farebox_operation_oldest_seconds", state="open") >= 90
    calls = "farebox_mint_calls_total"
    assert of(samples, calls, mint=house.mint.url, call="swap", outcome="unavailable") >= 1
    assert of(samples, "farebox_mint_call_seconds_count", mint=house.mint.url) >= 2
    house.mint.faults.clear()
    await house.recover()


async def test_labels_hold_nothing_that_a_caller_chose(house: WholeHouse) -> None:
    for path in ("/a/secret/path", "/v1/x?y=z"):
        await house.http.get(path)
        await house.http.get(path, headers=house.auth("sk-made-up"))
    await house.present(Door.EMBEDDED, house.token())
    text, _ = await scrape(house)
    assert not any(word in text for word in ("secret", "y=z", "made-up", "customer:", "sk-"))
    house.keeps_secrets(text)


async def test_where_the_book_cannot_be_read_the_rest_is_told(
    house: WholeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        raise StoreError("the book could not be read")

    with monkeypatch.context() as broken:
        broken.setattr(house.farebox.store, "accounts", fails)
        text, samples = await scrape(house)
    assert of(samples, "farebox_book_read") == 0
    assert "farebox_custody{" not in text
    assert "farebox_requests_running" in text


async def test_strangers_get_no_metrics(house: WholeHouse) -> None:
    answer = await house.http.get("/metrics")
    assert "farebox_" not in answer.text
    assert answer.status_code == 402, "it is a path of the service behind"


def test_names_are_bounded_whatever_is_counted() -> None:
    counts = Counts()
    for number in range(1_000):
        counts.add(f"code_{number}")
    assert len(counts) == 129
    assert counts["other"] == 1_000 - 128


def test_a_value_falls_into_the_bucket_of_the_first_bound_it_does_not_exceed() -> None:
    spread = Spread((1, 2))
    for value in (0, 1, 1.5, 2, 3):
        spread.add(value)
    assert (spread.buckets, spread.sum) == ([2, 2, 1], 7.5)
