"""A payer signs what follows from its last voucher and the stated cost, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from farebox.channels import (
    ChannelStatus,
    HttpPaymentCodec,
    McpPaymentCodec,
    PaymentChannelPayerClient,
    PaymentCodec,
    SignSubRAVOptions,
    SpendingLimits,
)
from farebox.channels.payer import PayerSubChannel
from farebox.errors import InvalidCredential, SigningRefused
from farebox.testing.channels import PlayContract
from farebox.wire.subrav.keys import SigningKey, sign_sub_rav
from farebox.wire.subrav.model import SignedSubRAV, SubRAV
from farebox.wire.subrav.payload import PaymentError, ResponsePayload
from tests.integration.channel_world import CHANNEL_ID, ECHO_COST, FRAGMENT, KEY, World, world

HTTP = HttpPaymentCodec()
LIMITS = SpendingLimits(request_max=100, unserved_max=150, total_max=1_000)


@dataclass
class Payer:
    """A payer, and a payee that says whatever the test wants."""

    client: PaymentChannelPayerClient
    contract: PlayContract
    codec: PaymentCodec

    async def asks(self, reference: str = "r", max_amount: int = 100) -> SignedSubRAV | None:
        options = SignSubRAVOptions(client_tx_ref=reference, max_amount=max_amount)
        encoded = await self.client.sign_and_encode(None, self.codec, options)
        decoded = self.codec.decode(encoded)
        assert decoded.metadata.client_tx_ref == reference
        assert decoded.metadata.max_amount == max_amount
        return decoded.signed_sub_rav

    async def hears(
        self,
        amount: int,
        nonce: int,
        cost: int | None = None,
        reference: str = "r",
        **change: object,
    ) -> SubRAV | None:
        """An answer with a cost, or without one a demand to pay what came before."""
        error = PaymentError("PAYMENT_REQUIRED", "sign") if cost is None else None
        payload = ResponsePayload(
            client_tx_ref=reference,
            sub_rav=msgspec.structs.replace(proposal(amount, nonce), **change),
            cost=cost,
            error=error,
        )
        encoded = self.codec.encode_response(payload)
        return (await self.client.decode_and_validate(encoded, self.codec)).sub_rav

    async def state(self) -> PayerSubChannel:
        state = await self.client.state()
        assert state is not None
        return state


def proposal(amount: int, nonce: int) -> SubRAV:
    return SubRAV(
        chain_id=4,
        channel_id=CHANNEL_ID,
        channel_epoch=0,
        vm_id_fragment=FRAGMENT,
        accumulated_amount=amount,
        nonce=nonce,
    )


@asynccontextmanager
async def paying(
    directory: Path, codec: PaymentCodec = HTTP, limits: SpendingLimits = LIMITS
) -> AsyncIterator[Payer]:
    async with world(directory) as town:
        await town.open()
        yield Payer(payer_of(town, limits), town.contract, codec)


def payer_of(town: World, limits: SpendingLimits) -> PaymentChannelPayerClient:
    return PaymentChannelPayerClient(town.ledger, town.contract, KEY, CHANNEL_ID, FRAGMENT, limits)


@pytest.mark.parametrize("codec", [HttpPaymentCodec(), McpPaymentCodec()])
async def test_each_request_pays_for_the_one_before(tmp_path: Path, codec: PaymentCodec) -> None:
    async with paying(tmp_path, codec) as payer:
        assert await payer.asks() is None
        assert await payer.hears(40, 1, cost=40) == proposal(40, 1)
        assert await payer.asks() == sign_sub_rav(proposal(40, 1), KEY)
        assert await payer.hears(60, 2, cost=20) == proposal(60, 2)
        assert await payer.asks() == sign_sub_rav(proposal(60, 2), KEY)
        assert (await payer.state()).unserved == 0


@pytest.mark.parametrize(
    ("amount", "nonce", "cost", "change"),
    [
        (40, 1, 39, {}),  # the total rises by more than the cost
        (40, 1, 41, {}),
        (101, 1, 101, {}),  # more than the request allowed
        (10**30, 999, 1, {}),  # payment-kit signs this
        (40, 2, 40, {}),
        (0, 0, 0, {}),
        (40, 1, 40, {"channel_epoch": 1}),
        (40, 1, 40, {"chain_id": 1}),
        (40, 1, 40, {"version": 2}),
        (40, 1, 40, {"channel_id": "0x" + "ab" * 32}),
        (40, 1, 40, {"vm_id_fragment": "other"}),
        (40, 1, 40, {"reference": "another"}),
        (40, 1, None, {}),  # a demand, though no answer was lost
    ],
    ids=str,
)
async def test_what_does_not_follow_is_not_signed(
    tmp_path: Path, amount: int, nonce: int, cost: int | None, change: dict[str, object]
) -> None:
    async with paying(tmp_path) as payer:
        await payer.asks()
        with pytest.raises(SigningRefused):
            await payer.hears(amount, nonce, cost, **change)  # type: ignore[arg-type]
        assert await payer.asks("next") is None


async def test_a_total_that_falls_or_exceeds_its_limit_is_not_signed(tmp_path: Path) -> None:
    limits = SpendingLimits(request_max=100, unserved_max=0, total_max=150)
    async with paying(tmp_path, limits=limits) as payer:
        await payer.asks()
        await payer.hears(100, 1, cost=100)
        await payer.asks()
        with pytest.raises(SigningRefused, match="falls"):
            await payer.hears(99, 2, cost=0)
        with pytest.raises(SigningRefused, match="total"):
            await payer.hears(151, 2, cost=51)
        assert await payer.hears(150, 2, cost=50) == proposal(150, 2)


async def test_only_what_was_validated_is_signed(tmp_path: Path) -> None:
    async with paying(tmp_path) as payer:
        await payer.asks()
        await payer.hears(40, 1, cost=40)
        with pytest.raises(SigningRefused):
            await payer.client.sign_and_encode(proposal(41, 1), HTTP)
        await payer.client.sign_and_encode(proposal(40, 1), HTTP)


async def test_a_lost_answer_is_paid_for_once_and_within_its_limit(tmp_path: Path) -> None:
    async with paying(tmp_path) as payer:
        await payer.asks("lost")
        await payer.asks("next")
        assert await payer.hears(90, 1, reference="next") == proposal(90, 1)
        assert await payer.asks("retry") == sign_sub_rav(proposal(90, 1), KEY)
        assert (await payer.state()).unserved == 90
        with pytest.raises(SigningRefused, match="no answer of ours was lost"):
            await payer.hears(95, 2, reference="retry")
        await payer.hears(95, 2, cost=5, reference="retry")
        # Another is lost: together they would exceed what may be lost in all.
        await payer.asks("lost")
        await payer.asks("next")
        with pytest.raises(SigningRefused, match="lost answers cost 151"):
            await payer.hears(156, 3, reference="next")
        with pytest.raises(SigningRefused, match="over 100"):
            await payer.hears(196, 3, reference="next")


async def test_a_voucher_that_did_not_arrive_is_given_again_without_a_new_promise(
    tmp_path: Path,
) -> None:
    async with paying(tmp_path) as payer:
        await payer.asks()
        await payer.hears(40, 1, cost=40)
        voucher = await payer.asks("lost")
        await payer.asks("next")
        assert await payer.hears(40, 1, reference="next") == proposal(40, 1)
        assert await payer.asks("retry") == voucher
        assert (await payer.state()).unserved == 0


@pytest.mark.parametrize("status", [ChannelStatus.CLOSING, ChannelStatus.CLOSED])
async def test_nothing_is_signed_on_a_channel_that_is_not_open(
    tmp_path: Path, status: ChannelStatus
) -> None:
    async with paying(tmp_path) as payer:
        await payer.asks()
        await payer.hears(40, 1, cost=40)
        channel = payer.contract.channels[CHANNEL_ID]
        payer.contract.channels[CHANNEL_ID] = replace(channel, status=status)
        with pytest.raises(SigningRefused, match="not open"):
            await payer.asks()


async def test_a_key_that_the_channel_does_not_know_signs_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        await town.open()
        other = SigningKey(KEY.type, b"\x07" * 32)
        for key, fragment in ((other, FRAGMENT), (KEY, "other")):
            payer = PaymentChannelPayerClient(
                town.ledger, town.contract, key, CHANNEL_ID, fragment, LIMITS
            )
            with pytest.raises(SigningRefused, match="may not sign"):
                await payer.sign_and_encode(None, HTTP)


async def test_an_answer_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    async with paying(tmp_path) as payer:
        await payer.asks()
        before = await payer.state()
        with pytest.raises(InvalidCredential):
            await payer.client.decode_and_validate("garbage", HTTP)
        assert await payer.state() == before


async def test_a_payer_begins_again_from_its_own_signature(tmp_path: Path) -> None:
    async with paying(tmp_path) as payer:
        last = sign_sub_rav(proposal(700, 8), KEY)
        forged = sign_sub_rav(proposal(900, 9), SigningKey(KEY.type, b"\x07" * 32))
        with pytest.raises(SigningRefused, match="our signature"):
            await payer.client.recover(forged)
        assert (await payer.client.recover(last)).amount == 700
        # An older voucher moves nothing back.
        assert (await payer.client.recover(sign_sub_rav(proposal(40, 1), KEY))).amount == 700
        await payer.asks()
        assert await payer.hears(790, 9) == proposal(790, 9)
        assert await payer.asks() == sign_sub_rav(proposal(790, 9), KEY)


async def test_ours_pays_ours_through_losses_of_everything(tmp_path: Path) -> None:
    limits = SpendingLimits(
        request_max=10 * ECHO_COST, unserved_max=10 * ECHO_COST, total_max=10**12
    )
    async with world(tmp_path) as town:
        await town.open()
        payer = payer_of(town, limits)
        for _ in range(3):
            told = await town.asks(payment=await payer.sign_and_encode(None, HTTP))
            assert told.payment is not None
            await payer.decode_and_validate(told.payment.header(), HTTP)
        # An answer is lost, then another: the payee asks for what the first one cost.
        await town.asks(payment=await payer.sign_and_encode(None, HTTP))
        told = await town.asks(payment=await payer.sign_and_encode(None, HTTP))
        assert told.status == 402
        assert told.payment is not None
        answer = await payer.decode_and_validate(told.payment.header(), HTTP)
        assert answer.is_retry_wanted
        told = await town.asks(payment=await payer.sign_and_encode(answer.sub_rav, HTTP))
        assert (told.status, told.proposal.nonce) == (200, 5)
        assert town.served == {"/echo": 5}
