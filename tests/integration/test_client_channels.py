"""A payer's channel at a Farebox elsewhere, over its API alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from farebox.channels import ChannelStatus
from farebox.client import RemoteLedgerContract, channels
from farebox.clock import ManualClock
from farebox.errors import RailRejected, RailUnavailable
from farebox.testing.asgi import Receive, Scope, Send, serving
from farebox.wire.subrav.keys import KeyType, SigningKey
from tests.integration.channel_house import FRAGMENT, HOUSE_DID, KEY, House, house

OTHER = SigningKey(KeyType.SECP256K1, b"\x02" * 32)


@asynccontextmanager
async def account_at(shop: House, url: str = "") -> AsyncIterator[RemoteLedgerContract]:
    async with aiohttp.ClientSession(url or shop.url) as session:
        yield RemoteLedgerContract(session, shop.key)


async def test_a_channel_is_opened_topped_up_given_a_key_and_closed(tmp_path: Path) -> None:
    async with house(tmp_path) as shop, account_at(shop) as account:
        assert await account.channel(shop.channel_id) is None
        opened = await account.open_channel_with_sub_channel(
            payer_did=shop.did,
            payee_did=HOUSE_DID,
            asset_id="BTC",
            collateral=300_000,
            fragment=FRAGMENT,
            key=KEY.public,
        )
        assert (opened.channel_id, opened.status) == (shop.channel_id, ChannelStatus.ACTIVE)
        await account.open(100_000, FRAGMENT, KEY.public, "top-up")
        await account.open(100_000, FRAGMENT, KEY.public, "top-up")
        assert await account.balance() == 400_000, "one name locks once"
        phone = await account.authorize_sub_channel(opened.channel_id, "phone", OTHER.public)
        assert (phone.key, phone.last_confirmed_nonce) == (OTHER.public, 0)
        assert await account.sub_channel(opened.channel_id, "tablet") is None
        assert (await account.request_close(opened.channel_id)).status is ChannelStatus.CLOSING
        with pytest.raises(RailRejected):
            await account.close(opened.channel_id)
        assert isinstance(shop.clock, ManualClock)
        shop.clock.advance(601)
        assert await shop.desk.close_due() == 1
        assert (await account.close(opened.channel_id)).status is ChannelStatus.CLOSED
        assert await shop.balance() == 10_000_000


async def test_what_was_locked_when_its_answer_was_lost_is_not_locked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_BACK_OFF_S", 0)
    lost = 0

    async def lossy(scope: Scope, receive: Receive, send: Send) -> None:
        async def drop(_: object) -> None: ...

        nonlocal lost
        is_lost = scope.get("method") == "POST" and lost < 2
        lost += is_lost
        await shop.farebox.app(scope, receive, drop if is_lost else send)

    async with (
        house(tmp_path) as shop,
        serving(lossy) as url,
        account_at(shop, url) as account,
    ):
        await account.open(300_000, FRAGMENT, KEY.public)
        assert lost == 2
        assert await account.balance() == 300_000
        assert await shop.balance() == 10_000_000 - 300_000


async def test_what_the_house_refuses_is_said_and_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_BACK_OFF_S", 0)
    async with house(tmp_path) as shop, account_at(shop) as account:
        with pytest.raises(RailRejected, match="does not hold so much"):
            await account.open(10**12, FRAGMENT, KEY.public)
        with pytest.raises(RailRejected, match=HOUSE_DID):
            await account.open_channel_with_sub_channel(
                payer_did=shop.did,
                payee_did="did:farebox:another",
                asset_id="BTC",
                collateral=1_000,
                fragment=FRAGMENT,
                key=KEY.public,
            )
        with pytest.raises(RailRejected):
            await account.request_close("0x" + "00" * 32)
        async with aiohttp.ClientSession(shop.url) as session:
            with pytest.raises(RailRejected):
                await RemoteLedgerContract(session, "sk-nobody").open(1, FRAGMENT, KEY.public)
        assert await shop.balance() == 10_000_000
        async with account_at(shop, "http://127.0.0.1:1") as nowhere:
            with pytest.raises(RailUnavailable):
                await nowhere.channel(shop.channel_id)
