"""Channels on Rooch, over a node's JSON-RPC. The node is a play one; payment-kit calls it, too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from farebox.channels import ChannelStatus, ClaimScheduler
from farebox.channels.claims import ClaimOutcome, ClaimPolicy
from farebox.clock import SystemClock
from farebox.errors import RailRejected, RailUnavailable
from farebox.rails.rooch import RoochContract, RoochRpc, open_rooch_session
from farebox.rails.web.breaker import Breaker
from farebox.testing.asgi import serving
from farebox.testing.channels import RGAS, PlayContract
from farebox.wire.subrav import rooch
from farebox.wire.subrav.documents import signed_document
from farebox.wire.subrav.keys import KeyType, SigningKey, sign_sub_rav
from farebox.wire.subrav.model import SubRAV
from tests.integration.channel_world import (
    ASSET,
    CHANNEL_ID,
    ECHO_COST,
    FRAGMENT,
    KEY,
    PAYEE_DID,
    PAYER_DID,
    check_books,
    world,
)
from tests.integration.rooch_node import PlayNode
from tests.peers.payment_kit import PaymentKit, key_document

PAYEE_KEY = SigningKey(KeyType.ED25519, b"\x05" * 32)
OTHER_KEY = SigningKey(KeyType.SECP256K1, b"\x02" * 32)
COLLATERAL = 10**12


@dataclass
class Town:
    """A node, and the contract as payee and payer reach it."""

    node: PlayNode
    url: str
    payee: RoochContract
    payer: RoochContract

    async def opens(self) -> None:
        await self.payer.open_channel_with_sub_channel(
            payer_did=PAYER_DID,
            payee_did=PAYEE_DID,
            asset_id=RGAS,
            collateral=COLLATERAL,
            fragment=FRAGMENT,
            key=KEY.public,
        )


@asynccontextmanager
async def town(*, chain_id: int = 4) -> AsyncIterator[Town]:
    documents = {
        f"{PAYEE_DID}#house": PAYEE_KEY.public,
        f"{PAYER_DID}#{FRAGMENT}": KEY.public,
        f"{PAYER_DID}#phone": OTHER_KEY.public,
    }
    node = PlayNode(PlayContract(), documents)
    async with serving(node) as url, open_rooch_session() as session:
        rpc = RoochRpc(url, session, Breaker(SystemClock(), who="the node"))
        yield Town(
            node,
            url,
            RoochContract(rpc, chain_id, PAYEE_DID, "house", PAYEE_KEY),
            RoochContract(rpc, chain_id, PAYER_DID, FRAGMENT, KEY),
        )


def voucher(amount: int, nonce: int) -> SubRAV:
    return SubRAV(
        chain_id=4,
        channel_id=CHANNEL_ID,
        channel_epoch=0,
        vm_id_fragment=FRAGMENT,
        accumulated_amount=amount,
        nonce=nonce,
    )


async def test_a_channel_is_opened_claimed_and_closed() -> None:
    async with town() as here:
        assert await here.payee.channel(CHANNEL_ID) is None
        assert await here.payee.sub_channel(CHANNEL_ID, FRAGMENT) is None
        assert await here.payee.balance(rooch.hub_id(PAYER_DID), RGAS) == 0
        await here.opens()
        await here.opens()  # tops up
        channel = await here.payee.channel(CHANNEL_ID)
        assert channel is not None
        assert channel == here.node.contract.channels[CHANNEL_ID]
        assert await here.payee.balance(channel.backing, RGAS) == 2 * COLLATERAL
        phone = await here.payer.authorize_sub_channel(CHANNEL_ID, "phone", OTHER_KEY.public)
        assert phone.key == OTHER_KEY.public
        with pytest.raises(RailRejected):
            await here.payer.authorize_sub_channel(CHANNEL_ID, "phone", KEY.public)
        assert await here.payee.claim(sign_sub_rav(voucher(100, 1), KEY)) == 100
        sent = len(here.node.transactions)
        assert await here.payee.claim(sign_sub_rav(voucher(100, 1), KEY)) == 100
        assert len(here.node.transactions) == sent, "what is claimed is not sent again"
        with pytest.raises(RailRejected):
            await here.payee.claim(sign_sub_rav(voucher(200, 2), OTHER_KEY))
        with pytest.raises(RailRejected):
            await here.payee.claim(sign_sub_rav(replace(voucher(200, 2), channel_epoch=1), KEY))
        assert (await here.payer.request_close(CHANNEL_ID)).status is ChannelStatus.CLOSING
        assert (await here.payer.close(CHANNEL_ID)).status is ChannelStatus.CLOSED
        assert await here.payee.balance(channel.backing, RGAS) == 2 * COLLATERAL - 100


async def test_a_claim_whose_answer_was_lost_is_told_the_next_time() -> None:
    async with town() as here:
        await here.opens()
        signed = sign_sub_rav(voucher(100, 1), KEY)
        here.node.loses_answers = True
        with pytest.raises(RailUnavailable):
            await here.payee.claim(signed)
        here.node.loses_answers = False
        assert await here.payee.claim(signed) == 100
        assert here.node.contract.claims == [(FRAGMENT, 100)]


async def test_parallel_claims_take_turns() -> None:
    async with town() as here:
        await here.opens()
        await here.payer.authorize_sub_channel(CHANNEL_ID, "phone", OTHER_KEY.public)
        other = replace(voucher(7, 1), vm_id_fragment="phone")
        claimed = await asyncio.gather(
            here.payee.claim(sign_sub_rav(voucher(5, 1), KEY)),
            here.payee.claim(sign_sub_rav(other, OTHER_KEY)),
        )
        assert list(claimed) == [5, 7]


async def test_a_node_of_another_chain_or_that_makes_no_sense_is_not_believed() -> None:
    async with town(chain_id=1) as here:
        with pytest.raises(RailUnavailable, match="chain 4"):
            await here.opens()
        assert not here.node.transactions
    async with town() as here:
        await here.opens()
        asked = here.node.rooch_getObjectStates

        async def cut(ids: str, how: object) -> list[dict[str, str]]:
            (found,) = await asked(ids, how)
            return [{"value": found["value"][:-60]}]

        here.node.rooch_getObjectStates = cut  # type: ignore[method-assign,assignment]
        with pytest.raises(RailUnavailable):
            await here.payee.channel(CHANNEL_ID)


async def test_a_payee_sells_and_claims_on_rooch(tmp_path: Path) -> None:
    async with town() as here:
        await here.opens()
        policy = ClaimPolicy(min_claim_amount=1, threshold=1)
        async with world(tmp_path, clock=SystemClock(), contract=here.payee) as shop:  # type: ignore[arg-type]
            told = await shop.asks()
            told = await shop.asks(voucher=sign_sub_rav(told.proposal, KEY))
            assert told.status == 200
            row = await shop.payee.sub_channels.read(CHANNEL_ID, FRAGMENT)
            assert row is not None
            claims = ClaimScheduler(shop.payee, policy)
            assert await claims.claim(row) is ClaimOutcome.CLAIMED
            held = await shop.ledger.store.account(f"custody:rooch:{ASSET}")
            assert held is not None
            assert held.held == ECHO_COST
        check_books(tmp_path)
        assert here.node.contract.claims == [(FRAGMENT, ECHO_COST)]


@pytest.mark.peer
async def test_payment_kits_contract_reads_and_writes_the_same(payment_kit: PaymentKit) -> None:
    """payment-kit's own class and Rooch's own SDK agree with us, byte for byte."""
    signed = sign_sub_rav(voucher(100, 1), KEY)
    scenario = {
        "channelId": CHANNEL_ID,
        "payerDid": PAYER_DID,
        "fragment": FRAGMENT,
        "assetId": RGAS,
        "key": key_document(PAYEE_DID, "house", PAYEE_KEY),
        "signed": signed_document(signed),
    }
    async with town() as theirs:
        await theirs.opens()
        told = await asyncio.to_thread(
            payment_kit.drive, {**scenario, "url": theirs.url}, "rooch.mjs"
        )
        assert theirs.node.contract.claims == [(FRAGMENT, 100)]
    async with town() as ours:
        await ours.opens()
        assert await ours.payee.claim(signed) == 100
    assert theirs.node.transactions == ours.node.transactions
    views = [
        {repr(asked) for asked in each.node.asked if asked[0] == "rooch_executeViewFunction"}
        for each in (theirs, ours)
    ]
    assert views[0] == views[1]
    channel, before, balance, after = told
    assert channel == {
        "channelId": CHANNEL_ID,
        "payerDid": PAYER_DID,
        "payeeDid": PAYEE_DID,
        "assetId": ASSET,
        "epoch": "0",
        "status": "active",
    }
    assert before["publicKey"] == KEY.public.multibase
    assert (before["lastClaimedAmount"], after["lastClaimedAmount"]) == ("0", "100")
    assert after["lastConfirmedNonce"] == "1"
    assert balance == str(COLLATERAL)
