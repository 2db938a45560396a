"""payment-kit's unmodified client pays our server over loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from farebox.clock import SystemClock
from farebox.testing.asgi import serving
from farebox.wire.subrav.keys import KeyType, SigningKey
from tests.integration.channel_world import (
    CHANNEL_ID,
    ECHO_COST,
    FRAGMENT,
    KEY,
    PAYEE_DID,
    PAYER_DID,
    World,
    world,
)
from tests.peers.payment_kit import PaymentKit, key_document

pytestmark = pytest.mark.peer

OTHER_KEY = SigningKey(KeyType.SECP256K1, b"\x02" * 32)
THIRD_KEY = SigningKey(KeyType.SECP256R1, b"\x03" * 32)
CHAIN = {"channelId": CHANNEL_ID, "payerDid": PAYER_DID, "payeeDid": PAYEE_DID}
CHAT_COST = 24_000_000


@dataclass
class Counter:
    """The payee, its address, and payment-kit to pay it."""

    town: World
    url: str
    kit: PaymentKit

    async def pays(self, *steps: Mapping[str, Any], **settings: Any) -> list[Any]:
        """What came of a scenario of payment-kit's client."""
        scenario = {
            "baseUrl": self.url,
            "chain": CHAIN,
            "keys": {
                "main": key_document(PAYER_DID, FRAGMENT, KEY),
                "other": key_document(PAYER_DID, "other-key", OTHER_KEY),
                "third": key_document(PAYER_DID, "third-key", THIRD_KEY),
            },
            "steps": steps,
            **settings,
        }
        return await asyncio.to_thread(self.kit.drive, scenario)


@asynccontextmanager
async def counter(directory: Path, kit: PaymentKit) -> AsyncIterator[Counter]:
    async with world(directory, clock=SystemClock()) as town:
        await town.open()
        await town.open(0, fragment="other-key", key=OTHER_KEY.public)
        await town.open(0, fragment="third-key", key=THIRD_KEY.public)
        async with serving(town.app) as url:
            yield Counter(town, url, kit)


def echo(text: str, **more: Any) -> dict[str, Any]:
    return {"path": f"/echo?q={text}", **more}


CHAT = {"method": "POST", "path": "/chat/completions"}


async def test_paid_free_and_metered_requests(tmp_path: Path, payment_kit: PaymentKit) -> None:
    async with counter(tmp_path, payment_kit) as shop:
        happened = await shop.pays(
            {"do": "health"},
            echo("1"),
            echo("2"),
            {"path": "/free"},
            CHAT | {"body": {"messages": []}},
            {"method": "POST", "path": "/process", "body": {"a": 1}},
            echo("3"),
        )
        latest = await shop.town.latest()
    assert [step.get("body") for step in happened] == [
        None,
        '{"echo":"1"}',
        '{"echo":"2"}',
        '{"free":true}',
        '{"usage":{"total_tokens":120}}',
        '{"processed":{"a":1}}',
        '{"echo":"3"}',
    ]
    costs = [int(step["payment"]["cost"]) for step in happened if step.get("payment")]
    assert costs == [ECHO_COST, ECHO_COST, CHAT_COST, 100_000_000, ECHO_COST]
    assert latest is not None
    assert latest.sub_rav.accumulated_amount == sum(costs[:-1])


async def test_streams_carry_their_payment_inside(tmp_path: Path, payment_kit: PaymentKit) -> None:
    async with counter(tmp_path, payment_kit) as shop:
        sse, ndjson, last = await shop.pays(
            CHAT | {"body": {"stream": True}},
            CHAT | {"body": {"stream": True, "ndjson": True}},
            echo("last"),
        )
        latest = await shop.town.latest()
    assert sse["body"].strip() == 'data: {"t":0}\n\ndata: {"t":1}'
    assert ndjson["body"].strip() == '{"t":0}\n{"t":1}'
    assert [int(each["payment"]["cost"]) for each in (sse, ndjson)] == [CHAT_COST, CHAT_COST]
    assert last["body"] == '{"echo":"last"}'
    assert latest is not None
    assert latest.sub_rav.accumulated_amount == 2 * CHAT_COST


async def test_a_payer_that_lost_its_state_is_asked_once_and_retries(
    tmp_path: Path, payment_kit: PaymentKit
) -> None:
    async with counter(tmp_path, payment_kit) as shop:
        happened = await shop.pays(echo("1"), {"do": "forget"}, echo("2"), {"do": "recover"})
        latest = await shop.town.latest()
        served = dict(shop.town.served)
    assert happened[2]["body"] == '{"echo":"2"}'
    assert served == {"/echo": 2}
    assert latest is not None
    assert latest.sub_rav.accumulated_amount == ECHO_COST
    recovered = happened[3]["recovered"]
    assert recovered["channel"]["channelId"] == CHANNEL_ID
    assert recovered["pendingSubRav"]["nonce"] == "2"


async def test_keys_have_sub_channels_of_their_own_and_pay_at_once(
    tmp_path: Path, payment_kit: PaymentKit
) -> None:
    async with counter(tmp_path, payment_kit) as shop:
        clients = ("main", "other", "third")
        at_once = {"parallel": [{"path": "/slow", "client": name} for name in clients]}
        happened = await shop.pays(at_once, at_once, at_once)
        fragments = (FRAGMENT, "other-key", "third-key")
        latest = [await shop.town.latest(fragment) for fragment in fragments]
    assert [[step["status"] for step in steps] for steps in happened] == [[200] * 3] * 3
    amounts = [signed.sub_rav.accumulated_amount for signed in latest if signed is not None]
    assert amounts == [2 * ECHO_COST] * 3


async def test_of_parallel_calls_none_is_served_unpaid(
    tmp_path: Path, payment_kit: PaymentKit
) -> None:
    async with counter(tmp_path, payment_kit) as shop:
        happened = await shop.pays({"parallel": [{"path": "/slow"}] * 5}, echo("last"))
        latest = await shop.town.latest()
        served = shop.town.served["/slow"]
    statuses = [step["status"] for step in happened[0]]
    # It retries once, often with a voucher that another brought first.
    assert set(statuses) <= {200, 402}
    assert served == statuses.count(200)
    assert happened[1]["status"] == 200
    assert latest is not None
    assert latest.sub_rav.accumulated_amount == served * ECHO_COST


async def test_a_price_above_the_limit_of_the_client_is_neither_served_nor_charged(
    tmp_path: Path, payment_kit: PaymentKit
) -> None:
    async with counter(tmp_path, payment_kit) as shop:
        happened = await shop.pays({"path": "/expensive"}, maxAmount="1000")
        assert "BILLING_MAX_AMOUNT_EXCEEDED" in happened[0]["body"]
        assert shop.town.served == {}
        assert await shop.town.payee.pending.find(CHANNEL_ID, 1) is None
