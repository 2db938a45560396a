"""What a mint's refusal to answer a question may not cost; where withdrawn money comes from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from farebox.bootstrap import Farebox
from farebox.cli.desk import carry_out
from farebox.cli.requests import Withdraw
from farebox.errors import InvalidInput
from farebox.ledger.model import Applied, Kind, Open, Transfer, Unit
from farebox.money import BTC
from farebox.payments import Refusal
from farebox.payments.service import Pending, Received, Refunded
from farebox.rails.cashu.records import ProofUse
from farebox.settings import load_settings
from farebox.testing.asgi import serving
from farebox.testing.mint import DropAfter, DropBefore, ExecutesLate, PlayMint, Refuse
from tests.integration.cashu_house import House, house_of, issue
from tests.integration.test_cashu_melt import invoice, paying_house
from tests.integration.test_cashu_upkeep import leftovers
from tests.slowness import PATIENCE_S, impatient
from tests.waiting import eventually


async def test_a_question_that_a_mint_refuses_rejects_no_consolidation(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint, consolidate_proofs=10) as house:
        await leftovers(house, mint)
        mint.faults.next("swap", DropAfter())
        assert (await house.upkeep.run()).consolidated == 0

        mint.faults.next("keysets", Refuse(12001))
        await house.recover()
        house.clock.advance(400)
        await house.operations.recover()

        assert (await house.proofs_sat(mint))[ProofUse.RESERVED] == 0
        await house.assert_whole(mint)


@asynccontextmanager
async def earning(tmp_path: Path, *amounts: int) -> AsyncIterator[tuple[Farebox, list[PlayMint]]]:
    """A house that has earned so much, in sat, at a mint each."""
    mints = [PlayMint() for _ in amounts]
    async with AsyncExitStack() as stack:
        for mint in mints:
            mint.url = await stack.enter_async_context(serving(mint))
        given = {
            "data_dir": str(tmp_path),
            "mint": [{"url": mint.url} for mint in mints],
            "upstream": [{"urls": ["http://127.0.0.1:9"]}],
            "price": [{"per_request": "1 sat"}],
        }
        house = await stack.enter_async_context(
            Farebox(load_settings(None, {}, given), bytes(range(32)))
        )
        http = await stack.enter_async_context(
            httpx.AsyncClient(
                transport=httpx.ASGITransport(house.app),
                base_url="http://farebox.test",
            )
        )
        for mint, amount in zip(mints, amounts, strict=True):
            made = await http.post("/create", json={"initial_balance_token": issue(mint, amount)})
            key = await house.keys.authenticate(made.json()["api_key"])
            step = Transfer(key.account, "revenue", amount * 1_000, "earn")  # type: ignore[union-attr]
            assert isinstance(await house.store.commit(Unit(f"earn{amount}", (step,))), Applied)
        yield house, mints


async def test_a_withdrawal_comes_from_the_mint_that_was_named(tmp_path: Path) -> None:
    async with earning(tmp_path, 64, 16) as (house, mints):
        for number, mint in enumerate((mints[1], mints[0])):
            wanted = Withdraw(f"w{number}", 8_000, "", mint.url + "/")
            assert (await carry_out(house, wanted))["mint"] == mint.url

        elsewhere = Withdraw("w2", 8_000, "", "http://other.test")
        with pytest.raises(InvalidInput, match="nothing is held at http"):
            await carry_out(house, elsewhere)
        with pytest.raises(InvalidInput, match="no mint holds this much"):
            await carry_out(house, Withdraw("w3", 9_000, "", mints[1].url))
        assert (await carry_out(house, Withdraw("w4", None, "", mints[1].url)))["sats"] == "8"


async def test_two_withdrawals_at_once_take_what_is_free_out_once(tmp_path: Path) -> None:
    """Half of what was earned is made good to customers: each mint has what is left of it."""
    async with earning(tmp_path, 64, 65) as (house, mints):
        lost = (
            Open("expense:lost", BTC.code, Kind.EXPENSE),
            Open("customer:one", BTC.code, Kind.CUSTOMER),
            Transfer("expense:lost", "customer:one", 65_000, "lost"),
        )
        assert isinstance(await house.store.commit(Unit("lost", lost)), Applied)
        wanted = [Withdraw(f"w{at}", 64_000, "", mint.url) for at, mint in enumerate(mints)]
        told = await asyncio.gather(
            *(carry_out(house, one) for one in wanted), return_exceptions=True
        )
        (taken,) = (one for one in told if isinstance(one, dict))
        (refused,) = (one for one in told if isinstance(one, InvalidInput))
        assert taken["amount_msat"] == 64_000
        assert "0 sat are beyond what customers own" in str(refused)


async def test_a_token_tried_again_is_not_taken_for_the_try_before(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 1))  # our view of the keysets is fresh
        token = issue(mint, 20)
        mint.rotate()
        house.clock.advance(5)
        mint.faults.next("swap", Refuse(12002), Refuse(11006))
        refused = await house.receive(token)
        assert isinstance(refused, Refusal)

        mint.faults.next("swap", DropAfter())
        assert isinstance(await house.receive(token), Pending)
        await house.recover()

        assert isinstance(await house.receive(token), Received)
        assert await house.balance_sat() == 21
        await house.assert_whole(mint)


@asynccontextmanager
async def late(house: House, mint: PlayMint, path: str) -> AsyncIterator[None]:
    """The answer to a call is lost, a second one is refused in vague words, the first arrives."""
    before = len(mint.audit().spent_ys)
    mint.faults.next(path.split("/")[2], ExecutesLate(3 * PATIENCE_S), Refuse(0))
    with impatient(path):
        yield
    house.clock.advance(5)
    await house.operations.recover()
    await eventually(lambda: len(mint.audit().spent_ys) > before)
    house.clock.advance(60)
    await house.operations.recover()


async def test_a_swap_that_arrives_late_is_not_called_rejected_before(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        token = issue(mint, 20)
        async with late(house, mint, "/v1/swap"):
            assert isinstance(await house.receive(token), Pending)
        assert isinstance(await house.receive(token), Received)
        assert await house.balance_sat() == 20
        await house.assert_whole(mint)


async def test_a_refund_that_arrives_late_is_not_given_twice(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 64))
        async with late(house, mint, "/v1/swap"):
            assert isinstance(await house.refund(20, "ref_1"), Pending)
        assert isinstance(await house.refund(20, "ref_1"), Refunded)
        assert await house.balance_sat() == 44
        await house.assert_whole(mint)


async def test_vague_words_are_believed_once_nothing_can_be_on_its_way(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        token = issue(mint, 20)
        mint.faults.next("swap", DropBefore())
        assert isinstance(await house.receive(token), Pending)
        mint.faults.always("swap", Refuse(0))
        for _ in range(12):
            house.clock.advance(60)
            await house.operations.recover()
        assert not await house.operations.unfinished()
        mint.faults.clear()
        assert isinstance(await house.receive(token), Received), "and the token is still good"
        await house.assert_whole(mint)


async def test_a_clock_that_jumps_forward_does_not_cut_the_wait_for_a_late_call_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mint has spent the inputs and stores its signatures later; our clock is set meanwhile."""
    mint = PlayMint()
    restore = mint._bank.restore
    async with house_of(tmp_path, mint) as house:
        token = issue(mint, 20)
        mint.faults.next("swap", DropAfter())
        assert isinstance(await house.receive(token), Pending)
        monkeypatch.setattr(mint._bank, "restore", lambda _: ())
        for _ in range(4):
            house.clock.jump(24 * 3_600)
            await house.operations.recover()
        monkeypatch.setattr(mint._bank, "restore", restore)
        house.clock.jump(24 * 3_600)
        assert isinstance(await house.receive(token), Received)
        assert await house.balance_sat() == 20
        await house.assert_whole(mint)


async def test_a_lightning_payment_that_goes_out_late_is_not_given_back(tmp_path: Path) -> None:
    mint = PlayMint()
    async with paying_house(tmp_path, mint) as (house, _):
        async with late(house, mint, "/v1/melt/bolt11"):
            paying = house.refund(100, "ref_1", destination=invoice(50))
            assert isinstance(await paying, Pending)
        paid = await house.refund(100, "ref_1")
        assert isinstance(paid, Refunded)
        assert await house.balance_sat() == 200 - paid.amount // 1_000
        await house.assert_whole(mint)
