"""What no race, no strange wish and no failing neighbour may do to a paid request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.identity import token_account
from farebox.identity.keys import KeyTerms, NewKey, new_account
from farebox.ledger.model import Applied, Kind, Open, Outcome, Transfer, Unit
from farebox.payments import PaymentCredentials, PaymentPlan, PlannedChange, Refusal, Reserve
from farebox.paywall.model import (
    Admission,
    Answer,
    BearerMoney,
    ChangeWish,
    EmbeddedMoney,
    Ended,
    KeyPresented,
    Presented,
)
from farebox.pricing.usage import Usage
from tests.integration.test_paywall import FACTS, House, document


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path / "book.db")
    await made.start()
    yield made
    await made.store.close()


async def funded_key(house: House) -> tuple[NewKey, str]:
    account = new_account()
    made = await house.keys.create(account, KeyTerms())
    assert isinstance(made, NewKey)
    steps = (
        Open("custody:x", "BTC", Kind.CUSTODY),
        Open(account, "BTC", Kind.CUSTOMER),
        Transfer("custody:x", account, 25_000, "fund"),
    )
    assert isinstance(await house.store.commit(Unit(f"fund:{account}", steps)), Applied)
    return made, account


@pytest.mark.parametrize("way", ["key", "bearer", "embedded", "embedded later"])
async def test_a_request_is_never_taken_for_a_crashed_one_while_it_is_admitted(
    house: House, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    key, _ = await funded_key(house)
    if way == "embedded later":  # the money is on its account, without a request
        house.coins.silent = True
        await house.refused(EmbeddedMoney("coin:a:25000"))
        house.clock.advance(400)
        await house.operations.recover()
    commit = house.store.commit

    async def seen_by_recovery(unit: Unit, *, synced: bool = True) -> Outcome:
        """Recovery reads the rows after a commit, before whoever waits for it hears of it."""
        outcome = await commit(unit, synced=synced)
        if ":settle" not in unit.id:
            await house.paywall.recover()
        return outcome

    presented: Presented = EmbeddedMoney("coin:a:25000")
    if way == "key":
        presented = KeyPresented(key.secret)
    elif way == "bearer":
        presented = BearerMoney("coin:a:25000")
    with monkeypatch.context() as patched:
        patched.setattr(house.store, "commit", seen_by_recovery)
        admitted = await house.admit(presented)
    settled = await house.paywall.settle(admitted, Usage(), Ended.COMPLETE)
    assert settled.charged_msat == 10_000
    assert await house.balance("revenue") == 10_000


async def test_change_that_stays_where_it_is_settles(house: House) -> None:
    """A key to the token's own account is named as the place for the change."""
    account = token_account("coin:a:25000")
    own = await house.keys.create(account, KeyTerms())
    assert isinstance(own, NewKey)
    for coin in ("coin:a:25000", "coin:b:25000"):
        wish = ChangeWish(as_credit=True, key_id=own.key.id)
        admitted = await house.admit(EmbeddedMoney(coin, wish))
        settled = await house.paywall.settle(admitted, Usage(), Ended.COMPLETE)
        assert settled.charged_msat == 10_000
    assert await house.balance(account) == 30_000
    assert await house.balance("revenue") == 20_000


async def test_what_cannot_be_settled_keeps_nothing_else_from_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    coins = ["coin:a:25000", "coin:b:25000", "coin:c:25000"]
    admitted = {coin: await house.admit(EmbeddedMoney(coin)) for coin in coins}
    bad = sorted(admitted.values(), key=lambda one: one.request_id)[0].request_id
    plan_change = house.coins.plan_change

    async def fails_for_one(owner: str, amount_msat: int) -> PlannedChange | None:
        if owner == bad:
            raise RuntimeError("a method with a defect")
        return await plan_change(owner, amount_msat)

    monkeypatch.setattr(house.coins, "plan_change", fails_for_one)
    await house.crash()
    await house.paywall.recover()
    states = [
        document(await house.paywall.change(one.request_id, BearerMoney(coin)))["code"]
        if one.request_id == bad
        else document(await house.paywall.change(one.request_id, BearerMoney(coin)))["state"]
        for coin, one in admitted.items()
    ]
    assert sorted(states) == ["request_in_progress", "settled", "settled"]
    monkeypatch.undo()
    await house.paywall.recover()
    for coin, one in admitted.items():
        told = document(await house.paywall.change(one.request_id, BearerMoney(coin)))
        assert (told["state"], told["returned_msat"]) == ("settled", 25_000)


async def test_a_bill_outlives_whatever_went_wrong_while_it_was_written(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted = await house.admit(EmbeddedMoney("coin:a:25000"))

    async def fails(owner: str, amount_msat: int) -> PlannedChange | None:
        raise RuntimeError("a method with a defect")

    with monkeypatch.context() as patched:
        patched.setattr(house.coins, "plan_change", fails)
        with pytest.raises(RuntimeError):
            await house.paywall.settle(admitted, Usage(), Ended.COMPLETE)
        await house.paywall.recover()
    await house.paywall.recover()
    assert await house.balance("revenue") == 10_000


async def test_change_never_goes_to_a_key_that_opens_nothing(house: House) -> None:
    key, account = await funded_key(house)
    await house.keys.revoke(key.key.id)
    answer = await house.paywall.authorise(
        EmbeddedMoney("coin:a:25000", ChangeWish(as_credit=True, key_id=key.key.id)), FACTS
    )
    if isinstance(answer, Admission):
        await house.paywall.settle(answer, Usage(), Ended.COMPLETE)
    assert await house.balance(account) == 25_000, "the change is where nobody can take it"
    assert isinstance(answer, Answer)
    assert document(answer)["code"] == "change_not_understood"
    assert house.coins.taken == []


@pytest.mark.parametrize(("chars", "fits"), [(4_000, True), (20_000, False)])
async def test_change_makes_no_answer_too_large_to_be_read(
    house: House, monkeypatch: pytest.MonkeyPatch, chars: int, fits: bool
) -> None:
    async def render(_: bytes) -> str:
        return "c" * chars

    monkeypatch.setattr(house.coins, "render_change", render)
    admitted = await house.admit(EmbeddedMoney("coin:a:25000"))
    settled = await house.paywall.settle(admitted, Usage(), Ended.COMPLETE)
    told = await house.paywall.change(admitted.request_id, BearerMoney("coin:a:25000"))
    for headers in (settled.headers, told.headers):
        assert (b"x-cashu" in dict(headers)) is fits
        assert all(len(value) < 8_192 for _, value in headers)
    assert document(told)["token"] == "c" * chars
    assert b"link" in dict(admitted.headers)


async def test_a_request_whose_money_another_call_has_begun_to_take_is_served(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    coin, plan = "coin:a:25000", house.coins.plan_payment

    async def overtaken(
        credentials: PaymentCredentials, reserve: Reserve | None
    ) -> PaymentPlan | Refusal:
        monkeypatch.setattr(house.coins, "plan_payment", plan)
        house.coins.silent = True
        assert (await house.refused(BearerMoney(coin)))["status"] == 503
        return await plan(credentials, reserve)

    monkeypatch.setattr(house.coins, "plan_payment", overtaken)
    admission = await house.admit(EmbeddedMoney(coin))
    await house.paywall.recover()
    settled = await house.paywall.settle(admission, Usage(), Ended.COMPLETE)
    assert (settled.charged_msat, settled.returned_msat) == (10_000, 15_000)
