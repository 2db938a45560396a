"""Payments out that are asked for clumsily: nothing is made, moved or told that was not meant."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from fractions import Fraction
from pathlib import Path

import pytest

from farebox.clock import ManualClock
from farebox.identity import KeyTerms
from farebox.identity.keys import ApiKey, NewKey
from farebox.money import BTC, Asset
from farebox.payments import RefundPlan, RefundQuote, RefundRequest, Refusal
from farebox.payments.exchange import Exchange
from farebox.payments.links import WITHDRAW_LINK
from farebox.payments.rail import (
    AssetTerms,
    DepositMethod,
    DepositOrder,
    Limits,
    Payable,
    Sighting,
    Terms,
    Watched,
)
from farebox.wire import bech32
from tests.integration.api_world import PlayMoney, World, methods_of, problem_of, world_of


class Wire(DepositMethod):
    """A rail that pays out in bitcoin alone."""

    payment_type = "wire"
    place = "custody:wire"

    def can_handle(self, credential: str) -> bool:
        return credential.startswith("wire:")

    def reference_of(self, credential: str) -> str:
        return credential

    async def ask(self, order: DepositOrder) -> Payable | Refusal:
        raise NotImplementedError

    async def look(self, reference: str) -> list[Sighting]:
        return []

    async def watch(self, cursor: str) -> AsyncGenerator[Watched, None]:
        told: list[Watched] = []
        for watched in told:
            yield watched

    async def probe(self) -> None:
        return None

    async def quote_refund(self, request: RefundRequest) -> RefundQuote | Refusal:
        return RefundQuote(request.amount, 0)

    async def plan_refund(self, request: RefundRequest) -> RefundPlan | Refusal:
        return RefundPlan(b"", self.place, request.amount)

    def fee_max(self, amount: int, asset: str) -> int:
        return 10

    def terms(self) -> Terms:
        return Terms((AssetTerms(BTC, None, Limits(1, 10**9)),), "none", 1)


class LightWire(Wire):
    """One that pays Lightning invoices."""

    payment_type = "light"
    place = "custody:light"
    pays_invoices = True


class Chain(Wire):
    """One that pays out in what is held and in what is converted."""

    payment_type = "chain"
    place = "custody:chain"
    planned: RefundRequest | None = None

    async def plan_refund(self, request: RefundRequest) -> RefundPlan | Refusal:
        self.planned = request
        return Refusal("rail_unavailable", "not now")

    def terms(self) -> Terms:
        assets = (Asset("DAI", 18), Asset("USD", 2))
        return Terms(tuple(AssetTerms(one, None, Limits(1, 10**9)) for one in assets), "none", 1)


class Dollars:
    """A dollar's cent, at 100,000 dollars for a bitcoin."""

    def msat_per_unit(self, asset: str) -> Fraction | None:
        return Fraction(10_000) if asset == "USD" else None


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    methods = methods_of(PlayMoney(), Wire(), LightWire(), Chain())
    exchange = Exchange(Dollars(), held=frozenset({"DAI"}))
    made = World(tmp_path / "book.db", methods, ManualClock(), exchange)
    await made.processes.start()
    yield made
    await made.close()


async def test_a_dry_run_makes_no_withdraw_link(world: World) -> None:
    key = await world.created()
    told = await world.post("/v1/refunds", {"lnurl": True, "dry_run": True}, bearer=key)
    assert told.status_code == 200, told.text
    assert told.json() == {
        "dry_run": True,
        "method": "light",
        "asset": "BTC",
        "most_msat": 5_000,
        "is_covered": True,
    }
    assert not await world.store.find(WITHDRAW_LINK, {})


async def test_a_withdraw_link_is_of_a_method_that_pays_invoices(world: World) -> None:
    key = await world.created()
    body = {"lnurl": True, "method": "wire"}
    problem_of(await world.post("/v1/refunds", body, bearer=key), 400, "method_unknown")
    made = await world.post("/v1/refunds", {"lnurl": True, "amount_msat": 3_000}, bearer=key)
    assert made.status_code == 201, made.text
    ((_, row),) = await world.store.find(WITHDRAW_LINK, {})
    assert (row.value.method, row.value.most_msat) == ("light", 3_000)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"destination": "lnbc1"}, "link_unlimited"),
        ({"max_fee_msat": 0}, "link_unlimited"),
        ({"asset": "USD", "amount": "300"}, "asset_unknown"),
    ],
)
async def test_a_withdraw_link_with_what_it_cannot_keep_is_refused(
    world: World, more: dict[str, object], code: str
) -> None:
    key = await world.created()
    answer = await world.post("/v1/refunds", {"lnurl": True, **more}, bearer=key)
    problem_of(answer, 400, code)
    assert not await world.store.find(WITHDRAW_LINK, {})


async def test_a_link_whose_method_is_gone_says_so(world: World, tmp_path: Path) -> None:
    key = await world.created()
    made = (await world.post("/v1/refunds", {"lnurl": True}, bearer=key)).json()
    words = bech32.decode(made["lnurl"], bech32.Checksum.BECH32, 1_000).words
    path = bech32.to_bytes(words).decode().removeprefix("http://farebox.test")
    assert (await world.get(path)).json()["tag"] == "withdrawRequest"
    await world.close()
    async with world_of(tmp_path / "book.db", methods_of(PlayMoney()), world.clock) as later:
        for asked in (path, f"{path}&pr=lnbc1"):
            assert (await later.get(asked)).json()["status"] == "ERROR"


@pytest.mark.parametrize("path", ["/v1/refunds", "/v1/payouts"])
@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("method", ["wire", "play"])
async def test_a_method_is_not_taken_to_pay_out_what_it_does_not(
    world: World, path: str, method: str, *, dry_run: bool
) -> None:
    """Else an amount of cents would be one of millisatoshi to it."""
    key = await world.created()
    body = {"method": method, "asset": "USD", "amount": "300", "destination": "somebody"}
    answer = await world.post(path, {**body, "dry_run": dry_run}, bearer=key)
    problem_of(answer, 400, "asset_unknown")
    assert await world.balance(key) == 5_000


@pytest.mark.parametrize("wanted", ["DAI", "dai", ""])
async def test_a_balance_in_msat_does_not_leave_in_what_is_held(world: World, wanted: str) -> None:
    """Else so many msat would be as many units of it."""
    first = await world.keys.authenticate(await world.created())
    assert isinstance(first, ApiKey)
    terms = KeyTerms(refund_method="chain", refund_currency=wanted)
    key = await world.keys.create(first.account, terms, origin="op")
    assert isinstance(key, NewKey)
    told = await world.post("/refund", {"destination": "somebody"}, bearer=key.secret)
    assert told.json()["code"] == "rail_unavailable", told.text
    chain = world.payments.methods["chain"]
    assert isinstance(chain, Chain)
    assert chain.planned is not None
    assert (chain.planned.asset, chain.planned.quoted is not None) == ("USD", True)
