"""One caller's name for one intent is answered once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.clock import ManualClock
from farebox.errors import InvalidInput
from farebox.identity import (
    RECORDS,
    FailureLimit,
    Idempotency,
    InProgress,
    KeyReused,
    Recorded,
    Ticket,
)
from farebox.ledger.processes import PROCESS, Processes
from farebox.ledger.service import Ledger
from farebox.signer import Signer
from farebox.stores.sqlite import SqliteStore

SIGNER = Signer(bytes(32))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def ledger(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Ledger]:
    store = SqliteStore(tmp_path / "book.db", (PROCESS, *RECORDS), clock=clock)
    yield Ledger(store, clock)
    await store.close()


def everything_under(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def alone(ledger: Ledger) -> Processes:
    """A process that starts when all before it have ended."""
    processes = Processes(ledger, alone=True)
    await processes.start()
    return processes


async def ticket(calls: Idempotency, name: str = "n", body: bytes = b"body") -> Ticket:
    begun = await calls.begin("account", name, body)
    assert isinstance(begun, Ticket)
    return begun


async def test_the_same_call_gets_the_same_answer(ledger: Ledger) -> None:
    calls = Idempotency(ledger, SIGNER, await alone(ledger))
    await calls.finish(await ticket(calls), 200, b"the token")
    assert await calls.begin("account", "n", b"body") == Recorded(200, b"the token")
    assert await Idempotency(ledger, SIGNER, await alone(ledger)).begin(
        "account", "n", b"body"
    ) == Recorded(200, b"the token")


async def test_another_request_under_the_same_name_is_refused(ledger: Ledger) -> None:
    calls = Idempotency(ledger, SIGNER, await alone(ledger))
    first = await ticket(calls)
    assert await calls.begin("account", "n", b"other") == KeyReused()
    await calls.finish(first, 200, b"")
    assert await calls.begin("account", "n", b"other") == KeyReused()


async def test_names_of_others_are_never_met(ledger: Ledger) -> None:
    calls = Idempotency(ledger, SIGNER, await alone(ledger))
    await calls.finish(await ticket(calls), 200, b"mine")
    assert isinstance(await calls.begin("another account", "n", b"other"), Ticket)


async def test_of_a_hundred_calls_at_once_one_acts(ledger: Ledger) -> None:
    calls = Idempotency(ledger, SIGNER, await alone(ledger))
    begun = await asyncio.gather(*(calls.begin("account", "n", b"body") for _ in range(100)))
    assert sum(isinstance(one, Ticket) for one in begun) == 1
    assert sum(one == InProgress() for one in begun) == 99


async def test_a_call_that_was_cut_off_resumes_with_the_same_operation(ledger: Ledger) -> None:
    first = await ticket(Idempotency(ledger, SIGNER, await alone(ledger)))
    after_restart = Idempotency(ledger, SIGNER, await alone(ledger))
    resumed = await ticket(after_restart)
    assert resumed.operation_id == first.operation_id
    await after_restart.release(resumed)
    again = await ticket(after_restart)
    assert again.operation_id == first.operation_id, "released: not final yet"


async def test_a_name_is_free_after_a_day_and_then_means_new_money(
    ledger: Ledger, clock: ManualClock
) -> None:
    calls = Idempotency(ledger, SIGNER, await alone(ledger))
    first = await ticket(calls)
    await calls.finish(first, 200, b"")
    clock.advance(24 * 3600)
    second = await ticket(calls, body=b"other")
    assert second.operation_id != first.operation_id


async def test_old_answers_are_wiped(ledger: Ledger, clock: ManualClock) -> None:
    calls = Idempotency(ledger, SIGNER, await alone(ledger))
    for name in ("a", "b"):
        await calls.finish(await ticket(calls, name), 200, b"answer")
    await calls.release(await ticket(calls, "cut off"))
    clock.advance(24 * 3600 - 1)
    await calls.finish(await ticket(calls, "young"), 200, b"answer")
    clock.advance(1)
    assert await calls.prune() == 2
    assert await calls.prune() == 0
    assert await calls.begin("account", "young", b"body") == Recorded(200, b"answer")
    clock.advance(31 * 24 * 3600)
    assert await calls.prune() == 2  # the young one, and what was never answered


async def test_a_call_without_an_end_is_the_same_one_for_days_and_its_answer_is_kept_for_one(
    ledger: Ledger, clock: ManualClock
) -> None:
    calls = Idempotency(ledger, SIGNER, await alone(ledger))
    first = await ticket(calls)
    for _ in range(8):  # nobody knows yet
        await calls.release(first)
        clock.advance(24 * 3600)
        await calls.prune()
        again = await ticket(calls)
        assert again.operation_id == first.operation_id, "else it would be paid twice"
    await calls.finish(again, 200, b"answer")
    clock.advance(24 * 3600 - 1)
    assert await calls.begin("account", "n", b"body") == Recorded(200, b"answer")


async def test_answers_are_sealed_at_rest(ledger: Ledger, tmp_path: Path) -> None:
    calls = Idempotency(ledger, SIGNER, await alone(ledger))
    await calls.finish(await ticket(calls), 200, b"cashuBsecret-token")
    await ledger.store.close()
    stored = everything_under(tmp_path)
    assert b"secret-token" not in stored


@pytest.mark.parametrize("name", ["", "x" * 256, "line\nbreak", "naïve"])
async def test_a_name_must_be_short_and_printable(ledger: Ledger, name: str) -> None:
    with pytest.raises(InvalidInput):
        await Idempotency(ledger, SIGNER, await alone(ledger)).begin("account", name, b"")


def test_failures_fill_a_bucket_that_drains_evenly() -> None:
    clock = ManualClock()
    limit = FailureLimit(clock, failures_max=3, window_s=60)
    for _ in range(3):
        assert limit.wait_s("192.0.2.1") == 0
        limit.failed("192.0.2.1")
    assert limit.wait_s("192.0.2.1") == 20
    assert limit.wait_s("192.0.2.2") == 0
    clock.advance(20)
    assert limit.wait_s("192.0.2.1") == 0
    clock.advance(-7200)
    assert limit.wait_s("192.0.2.1") <= 60, "a clock that steps back locks nobody out"


def test_an_ipv6_network_shares_one_bucket() -> None:
    limit = FailureLimit(ManualClock(), failures_max=1, window_s=60)
    limit.failed("2001:db8::1")
    assert limit.wait_s("2001:db8::2") > 0
    assert limit.wait_s("2001:db8:0:1::1") == 0


def test_callers_by_ipv4_are_told_apart_on_a_socket_of_both_kinds() -> None:
    limit = FailureLimit(ManualClock(), failures_max=1, window_s=60)
    limit.failed("::ffff:192.0.2.1")
    assert limit.wait_s("192.0.2.1") > 0
    assert limit.wait_s("::ffff:192.0.2.2") == 0
