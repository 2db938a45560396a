"""What is logged while requests, refusals, refunds and faults go through a running house.

That no secret is in any line is proved for every test of the whole house, when it closes.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from farebox.errors import StoreError
from farebox.testing.mint import DropAfter, Fail, Garbage, Refuse
from farebox.wire.cashu.token import encode_token
from farebox.worker import Job, Worker
from tests.integration.whole_house import Door, WholeHouse, whole_house
from tests.waiting import eventually


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[WholeHouse]:
    async with whole_house(tmp_path) as opened:
        yield opened


def lines(house: WholeHouse) -> list[dict[str, Any]]:
    """Our own lines: a library may write in a form of its own beside them."""
    written = house.log.getvalue().splitlines()
    return [json.loads(line) for line in written if line.startswith("{")]


def of(house: WholeHouse, event: str) -> list[dict[str, Any]]:
    return [line for line in lines(house) if line["event"] == event]


async def test_what_a_request_meets_is_logged_with_its_id(
    house: WholeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = await house.chat("status=401")
    assert told.status_code == 502
    [refused] = of(house, "upstream.refused_us")
    assert refused["request"] == told.headers["x-farebox-request-id"]

    async def fails(*_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(house.farebox.store, "commit", fails)
        await house.chat()
    [unheld] = of(house, "request.not_authorised")
    assert unheld["request"].startswith("req_")
    assert unheld["request"] != refused["request"]


@pytest.mark.parametrize(("play", "streams"), [("cut=1", False), ("cut=5", True)])
async def test_an_upstream_that_breaks_off_is_one_line_without_a_traceback(
    house: WholeHouse, play: str, streams: bool
) -> None:
    told = await house.chat(play, stream=streams)
    [broken] = of(house, "upstream.broke_off")
    assert broken["request"] == told.headers["x-farebox-request-id"]
    assert "broke off" in broken["error"]
    assert "exception" not in broken
    assert [line["level"] for line in lines(house) if line["event"].startswith("request.")] == []


async def test_what_an_operation_meets_is_logged_with_both_ids(house: WholeHouse) -> None:
    house.mint.faults.next("swap", DropAfter())
    house.mint.faults.next("restore", Fail(503))
    house.mint.faults.next("checkstate", Fail(503))
    await house.present(Door.EMBEDDED, house.token())
    [waits] = of(house, "operation.unresolved")
    assert waits["operation"].startswith("rcv_")
    assert waits["request"].startswith("req_")
    house.mint.faults.clear()
    await house.recover()


async def test_a_job_s_lines_name_the_job(house: WholeHouse) -> None:
    async def fails() -> None:
        raise StoreError("the disk is full")

    worker = Worker([Job("unlucky", 3600, fails)])
    worker.start()
    await eventually(lambda: of(house, "worker.job_failed"))
    await worker.stop()
    [failed] = of(house, "worker.job_failed")
    assert failed["job"] == "unlucky"
    assert "StoreError: the disk is full" in failed["exception"]
    assert worker.runs["unlucky"].failures == 1


async def test_no_secret_is_logged_whatever_goes_wrong(
    house: WholeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is looked for is every key and every proof, in the lines as they are before anything
    that looks like a secret is taken out of them."""
    quoted = house.money()
    secret = quoted.proofs[0].secret
    body = json.dumps({"detail": f"{secret} is spent", "code": 11001})
    for fault in (Garbage(body), Refuse(11001, secret), DropAfter(), Fail(500)):
        house.mint.faults.next("swap", fault)
        await house.present(Door.EMBEDDED, house.token())
    await house.present(Door.EMBEDDED, encode_token(quoted))
    await house.present(Door.BEARER, house.token())
    await house.present(Door.TOPUP, house.token(1))
    await house.present(Door.TOPUP, house.token()[:-9])
    await house.http.get("/echo", headers=house.auth(house.key[:-1]))
    await house.http.get("/echo", headers={**house.auth(), "X-Cashu": house.token()})
    for play in ("status=500", "drop", "garbage", "cut=1"):
        await house.chat(play, stream=play == "cut=1")

    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    with monkeypatch.context() as defect:
        defect.setattr(house.farebox.prices, "quote", breaks)
        await house.present(Door.EMBEDDED, house.token())
        await house.http.get("/echo", headers=house.auth())
    refunded = await house.http.post("/refund", headers=house.auth())
    assert refunded.status_code == 200
    house.keeps_secrets(house.log.getvalue())
    assert refunded.json()["token"] not in house.log.getvalue()
    assert b"k".hex() * 32 not in house.log.getvalue()
    events = {line["event"] for line in lines(house)}
    assert {"request.not_authorised", "operation.unresolved"} <= events
    for _ in range(3):
        await house.recover()
