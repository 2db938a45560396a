"""Where payment-kit 0.7.0 serves for nothing, takes too little or forgets, this refuses."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest
import structlog

from farebox.channels import (
    BillingEngine,
    ChannelStatus,
    CreditPolicy,
    FixedRates,
    PaymentChannelPayeeClient,
    PaymentErrorCode,
    PaymentProcessor,
    PaymentProcessorConfig,
    PendingSubRAVStore,
    RequestMetadata,
    parse_rules,
    processor,
)
from farebox.channels.processor import Admission
from farebox.clock import ManualClock
from farebox.errors import InvalidInput
from farebox.ledger.processes import Processes
from farebox.ledger.service import Ledger
from farebox.testing.channels import RGAS, PlayContract
from farebox.wire.subrav import rooch
from farebox.wire.subrav.documents import signed_document, stored_voucher
from farebox.wire.subrav.frames import FrameReader, StreamFormat
from farebox.wire.subrav.keys import KeyType, SigningKey, sign_sub_rav
from farebox.wire.subrav.model import SubRAV
from farebox.wire.subrav.payload import parse_response_header
from tests.integration.channel_world import (
    ASSET,
    CHANNEL_ID,
    ECHO_COST,
    FRAGMENT,
    KEY,
    PAYEE_DID,
    PAYER_DID,
    RULES,
    Told,
    World,
    check_books,
    world,
)

OTHER_KEY = SigningKey(KeyType.SECP256K1, b"\x02" * 32)
STRANGER_DID = rooch.address_did(b"\x33" * 32)


async def first_request(town: World) -> SubRAV:
    """Open a channel and be served once on credit; what is to be signed for it."""
    await town.open()
    told = await town.asks()
    assert told.status == 200
    return told.proposal


def is_refused(told: Told, status: int, code: str) -> None:
    assert (told.status, told.code) == (status, code)
    assert told.answer.json()["error"]["code"] == code


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"accumulated_amount": 1}, 400, "TAMPERED_SUBRAV"),
        ({"accumulated_amount": ECHO_COST + 1}, 400, "TAMPERED_SUBRAV"),
        ({"channel_epoch": 1}, 400, "EPOCH_MISMATCH"),
        ({"chain_id": 1}, 400, "TAMPERED_SUBRAV"),
        ({"version": 2}, 400, "TAMPERED_SUBRAV"),
        ({"nonce": 1_000}, 409, "RAV_CONFLICT"),
        ({"nonce": 1_000, "accumulated_amount": 10**30}, 409, "RAV_CONFLICT"),
        ({"channel_id": "0x" + "ab" * 32}, 404, "CHANNEL_NOT_FOUND"),
        ({"vm_id_fragment": "other"}, 404, "SUBCHANNEL_NOT_AUTHORIZED"),
    ],
    ids=str,
)
async def test_a_voucher_for_anything_but_the_proposal_is_refused(
    tmp_path: Path, change: dict[str, object], status: int, code: str
) -> None:
    async with world(tmp_path) as town:
        proposal = await first_request(town)
        signed = sign_sub_rav(msgspec.structs.replace(proposal, **change), KEY)
        is_refused(await town.asks(voucher=signed), status, code)
        assert town.served == {"/echo": 1}
        # Nothing is poisoned by it: the honest voucher is still taken, and the next one follows.
        told = await town.asks(voucher=sign_sub_rav(proposal, KEY))
        assert told.status == 200
        assert (told.proposal.nonce, told.proposal.accumulated_amount) == (2, 2 * ECHO_COST)


async def test_a_wrong_signature_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        signed = sign_sub_rav(await first_request(town), SigningKey(KEY.type, b"\x07" * 32))
        for path in ("/echo", "/free"):
            is_refused(await town.asks(path, signed), 400, "INVALID_SIGNATURE")
        assert town.served == {"/echo": 1}


@pytest.mark.parametrize("payment", ["garbage", "uQQ", "u" + "A" * 9_000])
async def test_a_malformed_header_is_refused(tmp_path: Path, payment: str) -> None:
    async with world(tmp_path) as town:
        await town.open()
        is_refused(await town.asks(payment=payment), 400, "INVALID_PAYMENT")
        assert town.served == {}


async def test_who_has_no_channel_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        is_refused(await town.asks(), 404, "SUBCHANNEL_NOT_AUTHORIZED")
        is_refused(await town.asks(payment="", auth=None), 402, "PAYMENT_REQUIRED")
        is_refused(await town.asks(auth=None), 409, "CHANNEL_CONTEXT_MISSING")
        assert (await town.asks("/free", payment="", auth=None)).status == 200
        assert town.served == {"/free": 1}


@pytest.mark.parametrize("status", [ChannelStatus.CLOSING, ChannelStatus.CLOSED])
async def test_a_channel_that_closes_pays_for_nothing_more(
    tmp_path: Path, status: ChannelStatus
) -> None:
    clock = ManualClock()
    async with world(tmp_path, clock=clock) as town:
        signed = sign_sub_rav(await first_request(town), KEY)
        town.contract.channels[CHANNEL_ID] = replace(
            town.contract.channels[CHANNEL_ID], status=status
        )
        clock.advance(6)  # what the chain said is believed for some seconds
        is_refused(await town.asks(voucher=signed), 400, "CHANNEL_CLOSED")
        assert town.served == {"/echo": 1}


async def test_a_channel_that_pays_another_payee_is_none_of_ours(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        await town.open()
        other = await town.open(payee_did=STRANGER_DID)
        sub_rav = SubRAV(
            chain_id=4,
            channel_id=other,
            channel_epoch=0,
            vm_id_fragment=FRAGMENT,
            accumulated_amount=0,
            nonce=0,
        )
        is_refused(await town.asks(voucher=sign_sub_rav(sub_rav, KEY)), 404, "CHANNEL_NOT_FOUND")
        assert town.served == {}


async def test_who_asks_must_be_who_pays(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        signed = sign_sub_rav(await first_request(town), KEY)
        await town.open(payer_did=STRANGER_DID, key=OTHER_KEY.public)
        stranger = town.authorization("GET", "/echo", did=STRANGER_DID, key=OTHER_KEY)
        is_refused(await town.asks(voucher=signed, auth=stranger), 400, "AUTH_INVALID")
        assert town.served == {"/echo": 1}


async def test_an_authorization_is_good_once_now_and_here(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        await town.open()
        bad = [
            town.authorization("GET", "/echo", key=SigningKey(KEY.type, b"\x07" * 32)),
            town.authorization("GET", "/echo", age_s=301),
            town.authorization("GET", "/echo", age_s=-301),
            town.authorization("POST", "/echo"),
            town.authorization("GET", "/other"),
            town.authorization("GET", "/echo?q=1"),
            town.authorization("GET", "/echo", operation="mcp_tool_call"),
            "DIDAuthV1 uQQ",
        ]
        for auth in bad:
            is_refused(await town.asks(auth=auth), 400, "AUTH_INVALID")
        good = town.authorization("GET", "/free")
        assert (await town.asks("/free", auth=good)).status == 200
        is_refused(await town.asks("/free", auth=good), 400, "AUTH_INVALID")
        assert town.served == {"/free": 1}


@pytest.mark.parametrize("path", ["/echo", "/free", "/payment-channel/recovery"])
async def test_an_authorization_is_good_once_also_after_a_restart(
    tmp_path: Path, path: str
) -> None:
    clock, contract = ManualClock(), PlayContract()
    async with world(tmp_path, clock=clock, contract=contract) as town:
        await town.open()
        auth = town.authorization("GET", path)
        served = await town.asks(path, auth=auth)
        assert served.status == 200
        if path == "/echo":  # paid, so that the copy would be one more request on credit
            voucher = sign_sub_rav(served.proposal, KEY)
            assert (await town.asks("/free", voucher)).status == 200
    async with world(tmp_path, clock=clock, contract=contract) as town:
        refused = await town.asks(path, auth=auth, payment="")
        assert refused.status == 400
        assert refused.answer.json()["error"]["code"] == "AUTH_INVALID"
        assert not town.served


async def test_an_authorization_for_another_service_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        await town.open()
        theirs = town.authorization("GET", "/free", audience=STRANGER_DID)
        is_refused(await town.asks("/free", auth=theirs), 400, "AUTH_INVALID")
        ours = town.authorization("GET", "/free", audience=PAYEE_DID)
        assert (await town.asks("/free", auth=ours)).status == 200


async def test_a_request_above_its_limit_is_not_served_and_its_voucher_is_kept(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as town:
        signed = sign_sub_rav(await first_request(town), KEY)
        told = await town.asks("/expensive", signed, max_amount=1_000)
        is_refused(told, 400, "BILLING_MAX_AMOUNT_EXCEEDED")
        assert town.served == {"/echo": 1}
        assert await town.latest() == signed
        # The payer may not know: the same voucher again is no second payment, and owes nothing.
        told = await town.asks(voucher=signed, max_amount=0)
        assert told.proposal.nonce == 2


async def test_an_answer_that_costs_more_than_its_limit_is_neither_given_nor_charged(
    tmp_path: Path,
) -> None:
    """Else everything that is metered would cost as little as its payer likes."""
    async with world(tmp_path) as town:
        await town.open()
        told = await town.asks("/process", method="POST", body={"a": 1}, max_amount=70_000_000)
        is_refused(told, 400, "BILLING_MAX_AMOUNT_EXCEEDED")
        assert "processed" not in told.answer.text
        told = await town.asks("/process", method="POST", body={"a": 1}, max_amount=100_000_000)
        assert told.payment is not None
        assert (told.status, told.payment.cost) == (200, 100_000_000)


async def test_a_stream_is_cut_where_it_would_cost_more_than_its_limit(tmp_path: Path) -> None:
    body = {"stream": True}
    async with world(tmp_path) as town:
        await town.open()
        whole = await town.asks("/chat/completions", method="POST", body=body)
        reader = FrameReader(StreamFormat.SSE)
        assert b'{"t":1}' in reader.feed(whole.answer.content)
        owed = parse_response_header(reader.header or "")
        assert owed.sub_rav is not None
        assert owed.cost is not None
        paid = sign_sub_rav(owed.sub_rav, KEY)
        limit = owed.cost - 1
        cut = await town.asks("/chat/completions", paid, method="POST", body=body, max_amount=limit)
        reader = FrameReader(StreamFormat.SSE)
        assert b'"t"' not in reader.feed(cut.answer.content)
        assert parse_response_header(reader.header or "").cost == limit


async def test_of_five_parallel_first_calls_one_is_served(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        await town.open()
        answers = await asyncio.gather(*(town.asks("/slow") for _ in range(5)))
        assert sorted(told.status for told in answers) == [200, 402, 402, 402, 402]
        assert town.served == {"/slow": 1}
        assert {told.proposal for told in answers} == {answers[0].proposal}


async def test_of_parallel_requests_with_one_voucher_one_is_served(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        signed = sign_sub_rav(await first_request(town), KEY)
        answers = await asyncio.gather(*(town.asks("/slow", signed) for _ in range(5)))
        assert sorted(told.status for told in answers) == [200, 402, 402, 402, 402]
        assert town.served == {"/echo": 1, "/slow": 1}


async def test_a_replay_is_a_success_without_a_second_charge_or_service(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        signed = sign_sub_rav(await first_request(town), KEY)
        request = RequestMetadata(operation="GET:/echo", facts={"path": "/echo", "method": "GET"})
        first = await town.processor.process_payment(request, signed)
        again = await town.processor.process_payment(request, signed)
        assert first.is_admitted
        assert again == msgspec.structs.replace(first, is_replay=True)
        assert again.success
        assert not again.is_admitted
        assert (await town.processor.confirm_deferred_payment(signed)).is_replay
        # Over HTTP its answer is gone: what it cost is asked for, and nothing is served twice.
        told = await town.asks(voucher=signed)
        is_refused(told, 402, "PAYMENT_REQUIRED")
        assert told.proposal == first.unsigned_sub_rav
        assert town.served == {"/echo": 1}


async def test_what_has_no_price_is_not_served(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        await town.open()
        is_refused(await town.asks("/unpriced"), 500, "BILLING_CONFIG_ERROR")
        assert town.served == {}


async def test_what_is_for_admins_or_members_is_for_nobody_else(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        await town.open()
        is_refused(await town.asks("/admin"), 400, "AUTH_ADMIN_FORBIDDEN")
        is_refused(await town.asks("/admin", payment="", auth=None), 400, "AUTH_ADMIN_FORBIDDEN")
        is_refused(await town.asks("/members", payment="", auth=None), 400, "AUTH_MISSING")
        admin = SigningKey(KeyType.ED25519, b"\x09" * 32)
        auth = town.authorization("GET", "/admin", did=PAYEE_DID, fragment="admin", key=admin)
        assert (await town.asks("/admin", payment="", auth=auth)).status == 200
        assert (await town.asks("/members", payment="")).status == 200
        auth = town.authorization("GET", "/echo", did=PAYEE_DID, fragment="admin", key=admin)
        is_refused(await town.asks(auth=auth), 409, "CHANNEL_CONTEXT_MISSING")
        assert town.served == {"/admin": 1, "/members": 1}


async def test_two_processes_on_one_book_serve_one_of_two(tmp_path: Path) -> None:
    """Each has a ledger, locks and turns of its own; only the store is shared."""
    async with world(tmp_path) as town:
        signed = sign_sub_rav(await first_request(town), KEY)
        other = await another_process(town)
        request = RequestMetadata(operation="echo", facts={"path": "/echo"})
        both = (town.processor, other)
        told = await asyncio.gather(*(each.process_payment(request, signed) for each in both))
        assert sorted(each.is_admitted for each in told) == [False, True]
        assert told[0].unsigned_sub_rav == told[1].unsigned_sub_rav
        admitted = [each for each in told if each.unsigned_sub_rav]
        signed = sign_sub_rav(admitted[0].unsigned_sub_rav or signed.sub_rav, KEY)
        chat = RequestMetadata(
            operation="chat", facts={"path": "/chat/completions", "method": "POST"}
        )
        served = await asyncio.gather(*(each.admit(chat, signed) for each in both))
        assert sorted(isinstance(each, Admission) for each in served) == [False, True]


async def another_process(town: World) -> PaymentProcessor:
    ledger = Ledger(town.ledger.store, town.clock)
    processes = Processes(ledger)
    await processes.start()
    payee = PaymentChannelPayeeClient(ledger, processes, town.contract, PAYEE_DID)
    rates = FixedRates({ASSET: 100})
    config = PaymentProcessorConfig(
        payee_client=payee,
        billing_engine=BillingEngine(parse_rules(RULES, "yaml"), rates),
        service_id="echo-service",
        default_asset_id=RGAS,
    )
    return PaymentProcessor(config)


async def test_an_answer_that_is_an_error_costs_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        signed = sign_sub_rav(await first_request(town), KEY)
        told = await town.asks("/broken", signed)
        assert (told.status, told.payment) == (503, None)
        assert await town.latest() == signed
        assert (await town.asks(voucher=signed)).proposal.nonce == 2


async def test_nothing_is_served_while_the_chain_is_away(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        await town.open()
        town.contract.is_away = True
        is_refused(await town.asks(), 400, "DID_RESOLVE_FAILED")
        channel = RequestMetadata(
            operation="GET:/echo",
            channel_id=CHANNEL_ID,
            vm_id_fragment=FRAGMENT,
            payer_did=PAYER_DID,
            facts={"path": "/echo"},
        )
        told = await town.processor.process_payment(channel)
        assert told.error_code is PaymentErrorCode.INTERNAL_SERVER_ERROR
        town.contract.is_away = False
        assert (await town.processor.admit(channel)) is not None
        assert town.served == {}


async def test_a_collateral_backs_the_sum_of_what_its_sub_channels_owe(tmp_path: Path) -> None:
    """payment-kit compares the hub with each sub-channel alone, and so with each one again."""
    names = [f"key-{number}" for number in range(4)]
    async with world(tmp_path, policy=CreditPolicy(backing_min=0)) as town:
        for name in names:
            await town.open(0, fragment=name)
        await town.open(2 * ECHO_COST + 1, fragment=names[0])
        answers = [
            await town.asks(auth=town.authorization("GET", "/echo", fragment=name))
            for name in names
        ]
        assert [told.status for told in answers] == [200, 200, 402, 402]
        assert answers[2].code == "HUB_INSUFFICIENT_FUNDS"
        # A voucher takes no more room than its proposal did, and is taken where credit is not.
        signed = sign_sub_rav(answers[0].proposal, KEY)
        told = await town.asks(
            voucher=signed, auth=town.authorization("GET", "/echo", fragment=names[0])
        )
        is_refused(told, 402, "HUB_INSUFFICIENT_FUNDS")
        assert await town.latest(names[0]) == signed
        assert town.served == {"/echo": 2}


async def test_a_payers_exposure_is_limited_whatever_its_collateral(tmp_path: Path) -> None:
    policy = CreditPolicy(exposure_max=ECHO_COST)
    async with world(tmp_path, policy=policy) as town:
        signed = sign_sub_rav(await first_request(town), KEY)
        is_refused(await town.asks(voucher=signed), 402, "HUB_INSUFFICIENT_FUNDS")
        assert await town.claims.trigger(CHANNEL_ID) == ({FRAGMENT: ECHO_COST}, {})
        assert (await town.asks()).status == 200


async def test_a_request_that_a_crash_cut_off_is_charged_its_floor_and_blocks_nobody(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as town:
        await town.open()
        contract = town.contract
        chat = {"path": "/chat/completions", "method": "POST"}
        request = RequestMetadata(
            operation="POST:/chat/completions",
            channel_id=CHANNEL_ID,
            vm_id_fragment=FRAGMENT,
            payer_did=PAYER_DID,
            facts=chat,
        )
        assert isinstance(await town.processor.admit(request), Admission)
    async with world(tmp_path, contract=contract) as town:
        told = await town.asks()
        is_refused(told, 402, "PAYMENT_REQUIRED")
        assert told.proposal.accumulated_amount == 200_000  # one token
        told = await town.asks(voucher=sign_sub_rav(told.proposal, KEY))
        assert told.status == 200


async def test_a_price_by_the_request_is_that_of_the_units_known_before(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        await town.open()
        request = RequestMetadata(
            operation="echo",
            channel_id=CHANNEL_ID,
            vm_id_fragment=FRAGMENT,
            payer_did=PAYER_DID,
            facts={"path": "/echo"},
            usage=3,
        )
        admitted = await town.processor.admit(request)
        assert isinstance(admitted, Admission)
        assert await town.processor.is_within(admitted, 50)
        settled = await town.processor.settle(admitted, 50)
        assert (settled.cost, settled.cost_pico_usd) == (3 * ECHO_COST, 3 * ECHO_COST * 100)


async def test_two_keys_with_one_nonce_have_a_proposal_each(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        first = await first_request(town)
        other = SigningKey(KeyType.ED25519, b"\x05" * 32)
        await town.open(fragment="other", key=other.public)
        auth = town.authorization("GET", "/echo", fragment="other", key=other)
        second = (await town.asks(auth=auth)).proposal
        find, store = town.processor.find_pending_proposal, town.payee.pending
        assert first.nonce == second.nonce == 1
        assert await find(CHANNEL_ID, 1, FRAGMENT) == first
        assert await find(CHANNEL_ID, 1, "other") == second
        assert await find(CHANNEL_ID, 1) in (first, second)
        assert await find(CHANNEL_ID, 2) is None
        assert await store.remove(CHANNEL_ID, 1, "other")
        assert not await store.remove(CHANNEL_ID, 1, "other")
        assert (await store.get_stats()).pending_count == 1
    check_books(tmp_path)


async def test_an_expired_proposal_is_written_off_and_still_asked_for(tmp_path: Path) -> None:
    clock = ManualClock()
    async with world(tmp_path, clock=clock) as town:
        proposal = await first_request(town)
        clock.advance(29 * 60)
        assert await town.processor.clear_expired_proposals() == 0
        clock.advance(2 * 60)
        assert await town.processor.clear_expired_proposals() == 1
        assert await town.processor.clear_expired_proposals() == 0
        is_refused(await town.asks(), 402, "PAYMENT_REQUIRED")
        assert (await town.asks(voucher=sign_sub_rav(proposal, KEY))).status == 200
        assert town.served == {"/echo": 2}


async def test_the_store_of_proposals_makes_finds_and_writes_off(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        store, paid = town.payee.pending, await first_request(town)
        with pytest.raises(InvalidInput):
            await store.save(msgspec.structs.replace(paid, nonce=2))
        await store.save(paid)  # it is proposed already
        stats = await store.get_stats()
        assert (stats.pending_count, stats.oldest_at) == (1, town.clock.now_ns())
        assert await store.find(CHANNEL_ID, 1) == paid
        assert await store.find(CHANNEL_ID, 2) is None
        assert not await store.remove(CHANNEL_ID, 2, FRAGMENT)
        assert await store.remove(CHANNEL_ID, 1, FRAGMENT)
        assert not await store.remove(CHANNEL_ID, 1, FRAGMENT)
        assert (await store.get_stats()).pending_count == 0
        is_refused(await town.asks(), 402, "PAYMENT_REQUIRED")
        assert (await town.asks("/free", sign_sub_rav(paid, KEY))).status == 200
        upcoming = msgspec.structs.replace(
            paid, nonce=2, accumulated_amount=paid.accumulated_amount + 7
        )
        for wrong in (
            msgspec.structs.replace(upcoming, nonce=3),
            msgspec.structs.replace(upcoming, channel_epoch=1),
            msgspec.structs.replace(upcoming, chain_id=1),
            msgspec.structs.replace(upcoming, accumulated_amount=paid.accumulated_amount - 1),
            msgspec.structs.replace(upcoming, vm_id_fragment="nobody"),
        ):
            with pytest.raises(InvalidInput):
                await store.save(wrong)
        await store.save(upcoming)
        assert await store.find_latest_by_sub_channel(CHANNEL_ID, FRAGMENT) == upcoming
        assert await store.clear() == 1
    check_books(tmp_path)


async def test_a_processor_says_what_became_of_each_payment_where_it_should(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as town:
        await town.open()
        config = PaymentProcessorConfig(
            payee_client=town.payee,
            billing_engine=BillingEngine(parse_rules(RULES, "yaml"), FixedRates({ASSET: 100})),
            service_id="echo",
            pending_sub_rav_store=town.payee.pending,
            debug=True,
        )
        request = RequestMetadata(
            operation="echo",
            channel_id=CHANNEL_ID,
            vm_id_fragment=FRAGMENT,
            payer_did=PAYER_DID,
            facts={"path": "/echo"},
        )
        log = structlog.testing.CapturingLogger()
        with patch.object(processor, "_log", log):
            result = await PaymentProcessor(config).process_payment(request)
        assert result.is_admitted
        said = [(call.args[0], call.kwargs["cost"]) for call in log.calls]
        assert said == [("channel.payment", ECHO_COST)]
        with pytest.raises(InvalidInput):
            replace(config, pending_sub_rav_store=PendingSubRAVStore(town.payee.sub_channels, None))  # type: ignore[arg-type]


async def test_a_handshake_shows_a_key_and_pays_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        await town.open()
        zero = SubRAV(
            chain_id=4,
            channel_id=CHANNEL_ID,
            channel_epoch=0,
            vm_id_fragment=FRAGMENT,
            accumulated_amount=0,
            nonce=0,
        )
        assert (await town.processor.verify_handshake(sign_sub_rav(zero, KEY))).is_valid
        first = await town.asks(voucher=sign_sub_rav(zero, KEY), auth=None)
        assert (first.status, first.proposal.nonce) == (200, 1)
        is_refused(
            await town.asks(voucher=sign_sub_rav(zero, KEY), auth=None), 402, "PAYMENT_REQUIRED"
        )
        no = await town.processor.verify_handshake(sign_sub_rav(first.proposal, KEY))
        assert no.error_code is PaymentErrorCode.INVALID_PAYMENT
        stats = town.processor.get_processing_stats()
        assert (stats.handshakes, stats.failed_payments) == (1, 1)


async def test_a_new_epoch_begins_at_nothing(tmp_path: Path) -> None:
    clock = ManualClock()
    async with world(tmp_path, clock=clock) as town:
        old = sign_sub_rav(await first_request(town), KEY)
        await town.asks(voucher=old)
        await town.contract.close(CHANNEL_ID)
        await town.open()
        clock.advance(6)
        is_refused(await town.asks(voucher=old), 400, "EPOCH_MISMATCH")
        told = await town.asks()
        assert (told.proposal.channel_epoch, told.proposal.nonce) == (1, 1)
        assert told.proposal.accumulated_amount == ECHO_COST


async def test_payers_see_their_own_and_admins_claim(tmp_path: Path) -> None:
    async with world(tmp_path) as town:
        signed = sign_sub_rav(await first_request(town), KEY)
        commit = "/payment-channel/commit"
        body = {"subRav": {"subRav": {}, "signature": "u"}}
        assert (await town.asks(commit, method="POST", body=body)).status == 400
        body = {"subRav": signed_document(signed)}
        assert (await town.asks(commit, method="POST", body=body)).status == 200
        assert (await town.asks(commit, method="POST", body=body)).status == 200
        kept = await town.asks("/payment-channel/subrav?nonce=1")
        assert kept.answer.json()["data"] == stored_voucher(signed)
        assert (await town.asks("/payment-channel/subrav?nonce=2")).status == 404
        assert (await town.asks("/payment-channel/recovery", auth=None)).status == 400
        assert (await town.asks("/payment-channel/admin/status")).status == 400
        trigger = "/payment-channel/admin/claim-trigger"
        admin = SigningKey(KeyType.ED25519, b"\x09" * 32)
        auth = town.authorization("POST", trigger, did=PAYEE_DID, fragment="admin", key=admin)
        told = await town.asks(trigger, method="POST", auth=auth, body={"channelId": CHANNEL_ID})
        queued = [{"vmIdFragment": FRAGMENT, "delta": ECHO_COST}]
        assert told.answer.json()["data"]["queued"] == queued
        assert town.contract.claims == [(FRAGMENT, ECHO_COST)]
        status = "/payment-channel/admin/status"
        auth = town.authorization("GET", status, did=PAYEE_DID, fragment="admin", key=admin)
        told = await town.asks(status, auth=auth)
        assert told.answer.json()["data"]["claims"]["claimed"] == 1
        assert RGAS in (await town.asks("/.well-known/nuwa-payment/info")).answer.text
