"""Whatever breaks outside or beneath us, callers are told plainly and nobody loses a unit.

Every test runs through the real gateway over HTTP; leaving the house audits books and mint.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import apsw
import httpx
import pytest

from farebox.errors import StoreError
from farebox.ids import new_id
from farebox.ledger.model import Event, Unit
from farebox.stores.sqlite import SqliteStore
from farebox.testing.asgi import serving
from farebox.testing.mint import (
    AnswersLate,
    DropAfter,
    DropBefore,
    ExecutesLate,
    Fail,
    Fault,
    Garbage,
    PlayMint,
)
from farebox.testing.upstream import PlayUpstream
from farebox.wire.cashu.token import decode_token, encode_token
from tests.integration.whole_house import FUNDED_SAT, PRICE_SAT, Door, WholeHouse, whole_house
from tests.slowness import LATE_S, answers_wait, impatient
from tests.waiting import WAIT_S, eventually

FUNDED_MSAT = FUNDED_SAT * 1_000
#: The most that a chat of the tests can cost.
CHAT_MSAT = 20_000
DAY_S = 86_400


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[WholeHouse]:
    async with whole_house(tmp_path) as made:
        yield made


# ── the upstream ─────────────────────────────────────────────────────────────────────────────────


async def gives_all_back(house: WholeHouse, play: str, status: int, code: str) -> None:
    """A failed request charges neither a key, nor a token as key, nor a token in the request."""
    house.problem(await house.chat(play), status, code)
    assert await house.balance() == FUNDED_MSAT
    bearer, embedded = house.token(), house.token()
    house.problem(await house.chat(play, pay=house.auth(bearer)), status, code)
    assert await house.balance(bearer) == 64_000
    answer = await house.chat(play, pay={"X-Cashu": embedded})
    document = answer.json()
    assert (answer.status_code, document["code"]) == (status, code)
    assert "goes back" in document["money"]
    assert decode_token(answer.headers["x-cashu"]).amount == 64
    await house.still_pays(answer.headers["x-cashu"])


async def test_an_upstream_that_is_down_is_502_and_everything_goes_back(tmp_path: Path) -> None:
    nobody = {"urls": ["http://127.0.0.1:9"], "path": "/v1"}
    async with whole_house(tmp_path, upstreams=[nobody]) as house:
        await gives_all_back(house, "", 502, "upstream_unreachable")


@pytest.mark.parametrize("play", ["drop", "cut=1"])
async def test_an_upstream_that_hangs_up_is_502_and_everything_goes_back(
    house: WholeHouse, play: str
) -> None:
    await gives_all_back(house, play, 502, "upstream_unreachable")


async def test_a_slow_upstream_is_504_and_everything_goes_back(tmp_path: Path) -> None:
    async with serving(PlayUpstream()) as url:
        slow = {"urls": [url], "path": "/v1", "first_byte_timeout_s": 0.3}
        async with whole_house(tmp_path, upstreams=[slow]) as house:
            await gives_all_back(house, "slow=30", 504, "upstream_slow")


async def test_an_upstreams_own_error_is_passed_on_and_charges_nothing(house: WholeHouse) -> None:
    for status in (400, 404, 429, 500, 503):
        answer = await house.chat(f"status={status}")
        assert answer.status_code == status
        assert "failed on purpose" in answer.text
    assert await house.balance() == FUNDED_MSAT


async def test_an_upstream_that_refuses_us_is_502_and_everything_goes_back(
    house: WholeHouse,
) -> None:
    for status in (401, 402, 407):
        await gives_all_back(house, f"status={status}", 502, "upstream_refused_us")


async def test_an_upstream_that_talks_nonsense_costs_no_more_than_was_quoted(
    house: WholeHouse,
) -> None:
    answer = await house.chat("garbage")
    assert answer.status_code == 200
    assert await house.balance() == FUNDED_MSAT, "there is nothing in it that has a price"


async def test_a_stream_that_is_cut_says_so_and_charges_what_was_delivered(
    house: WholeHouse,
) -> None:
    answer = await house.chat("cut=5", stream=True)
    assert answer.status_code == 200
    assert '"code":"upstream_died"' in answer.text
    assert "[DONE]" not in answer.text
    house.keeps_secrets(answer.text)
    charged = FUNDED_MSAT - await house.balance()
    assert 0 < charged < CHAT_MSAT
    token = house.token()
    answer = await house.chat("cut=5", stream=True, pay={"X-Cashu": token})
    link = answer.links["payment-change"]["url"]
    told = await house.http.get(httpx.URL(link).path, headers={"X-Cashu": token})
    assert told.json()["charged_msat"] == charged
    assert told.json()["returned_msat"] + told.json()["credited_msat"] == 64_000 - charged


async def test_a_stream_that_falls_silent_is_ended_and_charges_what_was_delivered(
    tmp_path: Path,
) -> None:
    async with whole_house(tmp_path, upstream_terms={"idle_timeout_s": 0.4}) as house:
        answer = await house.chat("slow=2", stream=True)
        assert '"code":"upstream_silent"' in answer.text
        assert FUNDED_MSAT - CHAT_MSAT <= await house.balance() <= FUNDED_MSAT


@pytest.mark.parametrize("stream", [False, True])
async def test_an_upstream_that_lies_about_usage_charges_no_more_than_was_quoted(
    house: WholeHouse, stream: bool
) -> None:
    for lie in (10**6, 10**18, 2**63, 0, -1, -(10**9)):
        before = await house.balance()
        assert (await house.chat(f"lie={lie}", stream=stream)).status_code == 200
        charged = before - await house.balance()
        assert charged == CHAT_MSAT if lie > 0 else 0 <= charged <= CHAT_MSAT
        token = house.token()
        await house.chat(f"lie={lie}", stream=stream, pay={"X-Cashu": token})
        assert await house.balance(token) == 0, "change of whole units leaves nothing behind"


# ── the mint ─────────────────────────────────────────────────────────────────────────────────────

FAULTS: list[Fault] = [
    DropBefore(),
    DropAfter(),
    Fail(500),
    Fail(429),
    Garbage(),
    Garbage('{"signatures": []}'),
    Garbage("[" * 10_000),
    AnswersLate(LATE_S),
    ExecutesLate(LATE_S),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_a_mint_that_is_down_slow_garbled_or_late_costs_nobody_anything(
    house: WholeHouse, fault: Fault
) -> None:
    for door in Door:
        token = house.token()
        before = await house.balance()
        house.mint.faults.next("swap", fault)
        with impatient("/v1/swap"):
            waiting = await house.present(door, token)
        if door in (Door.EMBEDDED, Door.BEARER):
            house.problem(waiting, 503, "payment_pending")
            assert waiting.headers["retry-after"]
        else:
            assert (waiting.status_code, waiting.json()["state"]) == (202, "pending")
        assert not house.upstream.seen

        await house.recover()
        match door:
            case Door.EMBEDDED:
                await house.still_pays(token)
            case Door.BEARER:
                assert await house.balance(token) == 64_000
                assert (await house.present(door, token)).status_code == 200
                assert await house.balance(token) == 64_000 - PRICE_SAT * 1_000
            case Door.CREATE:
                assert await house.balance(waiting.json()["api_key"]) == 64_000
            case Door.TOPUP:
                assert await house.balance() == before + 64_000
                assert (await house.present(door, token)).json() == {"msats": 64_000}
        house.upstream.seen.clear()
    assert await house.balance() == FUNDED_MSAT + 64_000


async def test_a_payment_is_carried_through_by_asking_again(house: WholeHouse) -> None:
    token = house.token()
    house.mint.faults.next("swap", DropAfter())
    house.problem(await house.present(Door.EMBEDDED, token), 503, "payment_pending")
    await house.still_pays(token)


async def test_money_of_a_payment_that_was_pending_can_be_taken_out_instead(
    house: WholeHouse,
) -> None:
    token = house.token()
    house.mint.faults.next("swap", DropAfter())
    house.problem(await house.present(Door.EMBEDDED, token), 503, "payment_pending")
    await house.recover()
    assert await house.balance(token) == 64_000
    # Nobody else's money is there to give it from.
    assert (await house.http.post("/refund", headers=house.auth())).status_code == 200
    refund = await house.http.post("/refund", headers=house.auth(token))
    assert refund.status_code == 200, refund.text
    await house.still_pays(refund.json()["token"])


async def test_a_slow_mint_is_waited_for(house: WholeHouse) -> None:
    house.mint.faults.next("swap", AnswersLate(0.2))
    await house.still_pays(house.token())


async def test_a_mint_that_stays_down_is_left_alone_and_no_token_is_taken(
    house: WholeHouse,
) -> None:
    tokens = [house.token() for _ in range(8)]
    house.mint.faults.always("swap", Fail(503))
    told = [await house.present(Door.EMBEDDED, token) for token in tokens[:5]]
    assert {answer.json()["code"] for answer in told} == {"payment_pending"}
    swaps = house.mint.calls["swap"]
    for door, token in zip((Door.EMBEDDED, Door.BEARER, Door.CREATE), tokens[5:], strict=True):
        answer = await house.present(door, token)
        house.problem(answer, 503, "mint_unavailable")
        assert answer.headers["retry-after"]
    assert house.mint.calls["swap"] == swaps
    assert (await house.http.get("/echo", headers=house.auth())).status_code == 200
    house.mint.faults.clear()
    house.clock.advance(11)
    for token in tokens:
        await house.still_pays(token)


async def test_a_mint_that_is_down_from_the_start_takes_no_token(tmp_path: Path) -> None:
    async with whole_house(tmp_path) as house:
        house.clock.advance(DAY_S)  # what is known of its keysets is old by then
        for call in ("keysets", "keys", "swap"):
            house.mint.faults.always(call, Garbage())
        token = house.token()
        for door in Door:
            house.problem(await house.present(door, token), 503, "mint_unavailable")
        assert not house.mint.calls["swap"]
        house.mint.faults.clear()
        house.clock.advance(11)
        assert await house.balance() == FUNDED_MSAT
        await house.still_pays(token)


async def test_a_mint_at_its_ceiling_is_503_and_no_token_is_taken(tmp_path: Path) -> None:
    async with whole_house(tmp_path, mint_terms={"ceiling": f"{FUNDED_SAT} sat"}) as house:
        token = house.token()
        for door in Door:
            house.problem(await house.present(door, token), 503, "custody_full")
        assert not house.mint.calls["swap"]
        assert (await house.http.post("/refund", headers=house.auth())).status_code == 200
        await house.still_pays(token)


async def test_a_refund_while_the_mint_is_down_is_503_and_takes_nothing(house: WholeHouse) -> None:
    house.mint.faults.always("keysets", Fail(503))
    house.clock.advance(DAY_S)
    body = {"amount_msat": 3_000}
    answer = await house.http.post("/refund", json=body, headers=house.auth())
    house.problem(answer, 503, "mint_unavailable")
    assert await house.balance() == FUNDED_MSAT
    house.mint.faults.clear()
    answer = await house.http.post("/refund", json=body, headers=house.auth())
    assert decode_token(answer.json()["token"]).amount == 3


async def test_a_refund_of_more_than_any_mint_holds_is_503_and_takes_nothing(
    tmp_path: Path,
) -> None:
    other = PlayMint()
    async with serving(other) as url:
        other.url = url
        async with whole_house(tmp_path, mints=[{"url": url}]) as house:
            topped = await house.present(Door.TOPUP, encode_token(other.issue(64)))
            assert topped.json() == {"msats": 64_000}
            answer = await house.http.post("/refund", headers=house.auth())
            told = house.problem(answer, 503, "insufficient_funds")
            assert await house.balance() == FUNDED_MSAT + 64_000
            for amount_msat in (told["amount_msat_max"], 64_000):
                body = {"amount_msat": amount_msat}
                part = await house.http.post("/refund", json=body, headers=house.auth())
                assert part.status_code == 200, part.text
            assert await house.balance() == 0


# ── the disk ─────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _limited(house: WholeHouse) -> Iterator[None]:
    store = house.farebox.store
    assert isinstance(store, SqliteStore)
    db = store._writer._db
    _pragma(db, db.pragma("page_count"))
    try:
        yield
    finally:
        _pragma(db, 1_000_000)


def _pragma(db: apsw.Connection, pages: int) -> None:
    """The writer may be at work in its own thread: then the connection is not ours to use."""
    ends_at = time.monotonic() + WAIT_S
    while time.monotonic() < ends_at:
        with contextlib.suppress(apsw.ThreadingViolationError):
            db.pragma("max_page_count", pages)
            return
        time.sleep(0.001)
    raise AssertionError("the writer never rests")


@contextlib.asynccontextmanager
async def full_disk(house: WholeHouse) -> AsyncIterator[None]:
    """No page is left, and in the log of units no room for even a small one."""
    with _limited(house):
        for size in (20_000, 2_000, 200, 0):
            with contextlib.suppress(StoreError):
                for _ in range(5_000):
                    event = Event("filler", "disk", {"x": "x" * size})
                    await house.farebox.store.commit(Unit(new_id("fill"), events=(event,)))
                raise AssertionError("the disk has no end")
        yield


async def test_a_full_disk_is_503_before_anything_is_taken(house: WholeHouse) -> None:
    tokens = {door: house.token() for door in Door}
    async with full_disk(house):
        for door, token in tokens.items():
            answer = await house.present(door, token)
            in_header = door in (Door.EMBEDDED, Door.BEARER)
            code = "store_unavailable" if in_header else "books_unavailable"
            house.problem(answer, 503, code)
            assert answer.headers["retry-after"]
        answer = await house.http.get("/echo", headers=house.auth())
        house.problem(answer, 503, "store_unavailable")
        answer = await house.http.post("/refund", headers=house.auth())
        house.problem(answer, 503, "books_unavailable")
        assert await house.balance() == FUNDED_MSAT
    assert not house.mint.calls["swap"]
    assert not house.upstream.seen
    for token in tokens.values():
        await house.still_pays(token)


async def test_a_disk_that_fills_up_during_a_swap_loses_no_token(house: WholeHouse) -> None:
    token = house.token()
    async with contextlib.AsyncExitStack() as full:
        with answers_wait(house.mint):
            asked = asyncio.create_task(house.present(Door.EMBEDDED, token))
            await eventually(lambda: house.mint.calls["swap"] == 1)
            await full.enter_async_context(full_disk(house))
        house.problem(await asked, 503, "store_unavailable")
    await house.recover()
    await house.still_pays(token)


async def test_a_disk_that_fills_up_during_a_request_charges_it_later(house: WholeHouse) -> None:
    token = house.token()
    async with contextlib.AsyncExitStack() as full:
        with answers_wait(house.upstream):
            by_key = asyncio.create_task(house.chat())
            embedded = asyncio.create_task(house.chat(pay={"X-Cashu": token}))
            await eventually(lambda: len(house.upstream.seen) == 2)
            await full.enter_async_context(full_disk(house))
        answers = await asyncio.gather(by_key, embedded)
        assert [answer.status_code for answer in answers] == [200, 200]
    await house.recover()
    assert await house.balance() == FUNDED_MSAT - CHAT_MSAT
    path = f"/v1/change/{answers[1].headers['x-farebox-request-id']}"
    told = await house.http.get(path, headers={"X-Cashu": token})
    assert told.json()["charged_msat"] == CHAT_MSAT
    await house.still_pays(told.json()["token"])


# ── the clock ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seconds", [-1, -3_600, -400 * DAY_S])
async def test_a_clock_that_steps_back_stops_no_door(house: WholeHouse, seconds: int) -> None:
    await house.still_pays(house.token())
    house.clock.advance(seconds)
    for door in Door:
        assert (await house.present(door, house.token())).status_code == 200
    assert (await house.chat()).status_code == 200
    assert await house.balance() == FUNDED_MSAT + 64_000 - CHAT_MSAT
    assert (await house.http.post("/refund", headers=house.auth())).status_code == 200
    assert await house.balance() == 0


async def test_a_clock_that_steps_back_during_a_request_charges_it_as_ever(
    house: WholeHouse,
) -> None:
    token = house.token()
    with answers_wait(house.upstream):
        by_key = asyncio.create_task(house.chat())
        embedded = asyncio.create_task(house.chat(pay={"X-Cashu": token}))
        await eventually(lambda: len(house.upstream.seen) == 2)
        house.clock.advance(-DAY_S)
    answers = await asyncio.gather(by_key, embedded)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert await house.balance() == FUNDED_MSAT - CHAT_MSAT
    await house.still_pays(answers[1].headers["x-cashu"])


async def test_a_clock_that_steps_back_while_a_payment_is_pending_holds_it_up_for_nobody(
    house: WholeHouse,
) -> None:
    token = house.token()
    house.mint.faults.next("swap", DropAfter())
    house.problem(await house.present(Door.EMBEDDED, token), 503, "payment_pending")
    house.clock.advance(-DAY_S)
    await house.still_pays(token)


async def test_an_unfinished_payment_is_found_again_although_the_clock_stepped_back(
    house: WholeHouse,
) -> None:
    token = house.token()
    house.mint.faults.next("swap", DropAfter())
    house.problem(await house.present(Door.BEARER, token), 503, "payment_pending")
    house.clock.advance(-DAY_S)
    await house.recover()
    assert await house.balance(token) == 64_000
