"""What one operation may not do to the others, and one attempt not to the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from farebox.bootstrap import Farebox
from farebox.ledger.model import ABSENT, Put
from farebox.payments import PaymentResult, Rejected, Unresolved
from farebox.payments.model import Operation, Succeeded, Verdict
from farebox.payments.operations import Operations
from farebox.paywall.model import REQUEST, EmbeddedMoney, Request
from farebox.paywall.service import Paywall
from farebox.settings import load_settings
from tests.integration.test_paywall import House
from tests.waiting import WAIT_S


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path / "book.db")
    await made.start()
    yield made
    await made.store.close()


async def test_a_defect_in_one_operation_keeps_no_other_open(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.coins.silent = True
    coins = [f"coin:{name}:25000" for name in "abcdef"]
    for coin in coins:
        await house.refused(EmbeddedMoney(coin))
    receive = house.coins.receive_payment

    async def defective(
        payload: bytes, *, asked_before: bool
    ) -> PaymentResult | Rejected | Unresolved:
        result = await receive(payload, asked_before=asked_before)
        if payload.decode() != coins[0] or not isinstance(result, PaymentResult):
            return result
        twice = Put(REQUEST, "twice", msgspec.convert(_REQUEST, Request), ABSENT)
        return PaymentResult(
            result.amount_msats, "msat", "coins", coins[0], result.amount, (twice, twice)
        )

    monkeypatch.setattr(house.coins, "receive_payment", defective)
    house.clock.advance(400)
    await house.operations.recover()
    house.coins.silent = False
    for coin in coins[1:]:
        assert await house.balance(f"customer:{coin}") == 25_000


_REQUEST = {
    "account": "a",
    "hold": "h",
    "owner": "o",
    "quote": {
        "id": "q",
        "rule": "r",
        "terms": {"denominator": 1},
        "maximum_msat": 1,
        "expires_at_ns": 1,
    },
    "created_at": 1,
}


class _Slow:
    """Remembers how it was asked; the first attempt never ends by itself."""

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.begun = asyncio.Event()

    async def attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        self.asked.append(asked_before)
        self.begun.set()
        if len(self.asked) == 1:
            await asyncio.Event().wait()
        return Succeeded(0)


async def test_an_attempt_that_was_cancelled_is_known_to_the_next(house: House) -> None:
    slow = _Slow()
    operations: Operations = house.operations
    operations.register("slow", slow)
    await operations.open(Operation(id="op_1", kind="slow", account="", hold="", plan=b""))
    other = asyncio.create_task(operations.advance("op_1"))
    await slow.begun.wait()
    opener = asyncio.create_task(operations.advance("op_1", fresh=True))
    await asyncio.sleep(0)
    other.cancel()
    await opener
    assert slow.asked == [True, True]
    with pytest.raises(asyncio.CancelledError):
        await other


async def test_requests_are_settled_while_a_rail_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = asyncio.Event()

    async def hangs(_: Operations) -> int:
        await asyncio.Event().wait()
        return 0

    async def looks(_: Paywall) -> int:
        looked.set()
        return 0

    monkeypatch.setattr(Operations, "recover", hangs)
    monkeypatch.setattr(Paywall, "recover", looks)
    given = {"data_dir": str(tmp_path), "upstream": [{"urls": ["http://127.0.0.1:9"]}]}
    async with Farebox(load_settings(None, {}, given), bytes(32)), asyncio.timeout(WAIT_S):
        await looked.wait()
