"""The simulation's model of Stripe answers as localstripe does, call by call.

What localstripe does not know (idempotency keys, the lists of payments and of events, Checkout,
disputes, refunds that are too large or fail later) is written from Stripe's reference and compared
with nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from random import Random

import pytest

from farebox.payments.cards.connector import Connector
from farebox.payments.cards.model import (
    Captured,
    CardOrder,
    Declined,
    GivenBack,
    RequiresAction,
    StoredToken,
)
from farebox.testing.asgi import serving
from tests.contract.rail.test_stripe_connector import (
    CHALLENGED,
    DECLINED,
    GOOD,
    connected,
)
from tests.peers.stripe import Localstripe
from tests.simulation.card_dialects import API_KEY, StripeDialect
from tests.simulation.cards import CardMoods, ModelProvider


async def lived(
    connector: Connector,
    card: Callable[[str], Awaitable[str]],
    prove: Callable[[RequiresAction], Awaitable[None]],
) -> list[object]:
    """What is seen of one life, but for names that the provider gives."""

    async def stored(number: str) -> StoredToken:
        found = await connector.store(await card(number), "acc_of_the_model")
        assert isinstance(found, StoredToken)
        return found

    good = await stored(GOOD)
    order = CardOrder("ord_of_the_model", 1_250, "USD", good.customer, good.token)
    taken = await connector.authorise(order, asked_before=False)
    assert isinstance(taken, Captured)
    seen: list[object] = [taken.amount]

    async def refund(amount: int, key: str, *, asked_before: bool = False) -> object:
        return await connector.refund(taken.external, amount, "USD", key, asked_before=asked_before)

    first = await refund(250, "op_1")
    assert isinstance(first, GivenBack)
    seen += [first.amount, await refund(250, "op_1", asked_before=True) == first]
    seen.append(isinstance(await refund(1_000, "op_3", asked_before=True), GivenBack))
    stands = await connector.sync(taken.reference)
    assert stands is not None
    seen += [stands.phase, stands.captured, stands.disputed, stands.order]
    seen.append(sorted((one.amount, one.key) for one in stands.refunds))

    asked = await stored(CHALLENGED)
    for name, is_proven in (("ord_3", True), ("ord_4", False)):
        proof = replace(order, order=name, customer=asked.customer, token=asked.token)
        wanted = await connector.authorise(proof, asked_before=False)
        assert isinstance(wanted, RequiresAction)
        stands = await connector.sync(wanted.reference)
        assert stands is not None
        seen += [stands.phase, stands.captured, stands.order]
        if is_proven:
            await prove(wanted)
        seen.append(type(await connector.void(wanted.reference, f"{name}-void")))
        stands = await connector.sync(wanted.reference)
        assert stands is not None
        seen += [stands.phase, stands.captured]

    bad = await stored(DECLINED)
    broke = replace(order, order="ord_2", customer=bad.customer, token=bad.token)
    seen.append(isinstance(await connector.authorise(broke, asked_before=False), Declined))
    return seen


@pytest.mark.peer
async def test_the_simulated_provider_answers_as_localstripe_does_localstripe(
    localstripe: Localstripe,
) -> None:
    async with connected(localstripe.url, localstripe.api_key) as connector:

        async def prove(wanted: RequiresAction) -> None:
            proven = {"client_secret": wanted.client_secret, "success": "true"}
            path = f"/v1/payment_intents/{wanted.reference}/_authenticate"
            await asyncio.to_thread(localstripe.call, path, proven)

        expected = await lived(
            connector, lambda number: asyncio.to_thread(localstripe.card, number), prove
        )

    kinds = {GOOD: "pm_good", DECLINED: "pm_stolen", CHALLENGED: "pm_3ds"}

    async def card(number: str) -> str:
        return dialect.card(kinds[number])

    async def goes_on(wanted: RequiresAction) -> None:
        dialect.go_on(wanted.reference)

    async def nobody(_: object) -> None:
        return None

    moods, dialect = CardMoods(Random(1)), StripeDialect()
    model = ModelProvider(dialect, moods, nobody, lambda _: None, lambda _: None)  # type: ignore[arg-type]
    async with serving(model) as url, connected(url, API_KEY) as connector:
        assert await lived(connector, card, goes_on) == expected
