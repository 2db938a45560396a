"""Conversions over HTTP: what the page on rails shows, once for a name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path

import pytest

from farebox.clock import ManualClock
from farebox.identity.keys import ApiKey
from farebox.ledger.model import Applied, Kind, Open, Transfer, Unit
from farebox.payments.exchange import Exchange, balance_of
from tests.integration.api_world import PlayMoney, World, methods_of, problem_of
from tests.integration.test_rails_docs import shown

HELD = 5 * 10**18


class Dai:
    """A dollar with eighteen decimals, at 97,000 for a bitcoin."""

    def msat_per_unit(self, asset: str) -> Fraction | None:
        return Fraction(1, 970_000_000_000) if asset == "DAI" else None


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    exchange = Exchange(Dai(), 5_000, frozenset({"DAI"}))
    world = World(tmp_path / "book.db", methods_of(PlayMoney()), ManualClock(), exchange)
    yield world
    await world.close()


async def with_dai(world: World) -> str:
    """A key whose account has brought DAI too."""
    key = await world.created()
    found = await world.keys.authenticate(key)
    assert isinstance(found, ApiKey)
    held = balance_of(found.account, "DAI")
    steps = (
        Open("custody:chain:DAI", "DAI", Kind.CUSTODY),
        Open(held, "DAI", Kind.CUSTOMER),
        Transfer("custody:chain:DAI", held, HELD, "deposit"),
    )
    assert isinstance(await world.store.commit(Unit("fund", steps)), Applied)
    return key


async def test_a_quote_tells_what_the_page_shows_and_moves_nothing(world: World) -> None:
    key = await with_dai(world)
    told = await world.post("/v1/conversions", shown("convert"), bearer=key)
    assert told.json() == shown("conversion")
    assert (await world.get("/info", key)).json()["balances"] == {"DAI": str(HELD)}


async def test_a_conversion_is_made_once_for_its_name_and_shows_in_the_history(
    world: World,
) -> None:
    key = await with_dai(world)
    before = await world.balance(key)
    body = {"asset": "DAI", "amount": "2000000000000000000"}
    answers = [await world.post("/v1/conversions", body, bearer=key, name="mine") for _ in range(3)]
    assert len({answer.text for answer in answers}) == 1
    gained = answers[0].json()["credited_msat"]
    assert gained == shown("conversion")["credited_msat"]
    assert await world.balance(key) == before + gained
    assert (await world.get("/info", key)).json()["balances"] == {"DAI": str(HELD * 3 // 5)}
    history = (await world.get("/v1/wallet/history", key)).json()["history"]
    (entry,) = [one for one in history if one["event"] == "conversion.completed"]
    assert (entry["received_msat"], entry["reference"]) == (
        gained,
        answers[0].json()["conversion"],
    )


async def test_more_than_is_held_is_refused_and_stays(world: World) -> None:
    key = await with_dai(world)
    answer = await world.post(
        "/v1/conversions", {"asset": "DAI", "amount": str(HELD + 1)}, bearer=key
    )
    problem_of(answer, 402, "insufficient_balance")
    problem_of(
        await world.post("/v1/conversions", {"asset": "EUR"}, bearer=key), 400, "asset_not_held"
    )
    assert (await world.get("/info", key)).json()["balances"] == {"DAI": str(HELD)}
