"""Channels between accounts of one book: collateral, claims, closing, and the sums."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from farebox.channels import (
    RECORDS,
    BillingEngine,
    ChannelInfo,
    ChannelStatus,
    ClaimPolicy,
    ClaimScheduler,
    CreditPolicy,
    FixedRates,
    LedgerContract,
    PaymentChannelPayeeClient,
    PaymentProcessor,
    PaymentProcessorConfig,
    RequestMetadata,
    parse_rules,
)
from farebox.channels.ledger_chain import account_did, did_account, escrow_account
from farebox.clock import ManualClock
from farebox.errors import InvalidCredential, RailRejected
from farebox.ledger.model import Kind, Open, Transfer, Unit
from farebox.ledger.processes import PROCESS, Processes
from farebox.ledger.service import Ledger
from farebox.stores.sqlite import SqliteStore
from farebox.wire.subrav.keys import KeyType, SigningKey, sign_sub_rav
from farebox.wire.subrav.model import SignedSubRAV, SubRAV
from tests.integration.channel_world import check_books

KEY = SigningKey(KeyType.SECP256K1, b"\x01" * 32)
PAYER = account_did("customer:alice")
HOUSE = "did:farebox:house"
SELLER = account_did("customer:bob")


@dataclass
class Bank:
    """A book in which Alice has 100,000 msat."""

    ledger: Ledger
    contract: LedgerContract
    processes: Processes
    clock: ManualClock

    async def opens(
        self, payee: str, collateral: int = 60_000, key: SigningKey = KEY
    ) -> ChannelInfo:
        return await self.contract.open_channel_with_sub_channel(
            payer_did=PAYER,
            payee_did=payee,
            asset_id="BTC",
            collateral=collateral,
            fragment="key",
            key=key.public,
        )

    async def has(self, account: str) -> int:
        found = await self.ledger.store.account(account)
        if found is None:
            return 0
        return found.available if found.kind is not Kind.CLEARING else found.held


@asynccontextmanager
async def bank(directory: Path) -> AsyncIterator[Bank]:
    clock = ManualClock()
    store = SqliteStore(directory / "book.db", [*RECORDS, PROCESS], clock=clock)
    try:
        ledger = Ledger(store, clock)
        processes = Processes(ledger, alone=True)
        await processes.start()
        steps = (
            Open("custody:mint", "BTC", Kind.CUSTODY),
            Open("customer:alice", "BTC", Kind.CUSTOMER),
            Transfer("custody:mint", "customer:alice", 100_000, "deposit"),
        )
        await store.commit(Unit("funds", steps))
        yield Bank(ledger, LedgerContract(ledger, HOUSE), processes, clock)
    finally:
        await store.close()
    check_books(directory)


def voucher(channel: ChannelInfo, amount: int, nonce: int = 1, **change: object) -> SignedSubRAV:
    sub_rav = SubRAV(
        chain_id=402,
        channel_id=channel.channel_id,
        channel_epoch=channel.epoch,
        vm_id_fragment="key",
        accumulated_amount=amount,
        nonce=nonce,
    )
    return sign_sub_rav(replace(sub_rav, **change), KEY)


async def test_a_claim_moves_the_delta_and_a_close_gives_back_the_rest(tmp_path: Path) -> None:
    async with bank(tmp_path) as town:
        channel = await town.opens(SELLER)
        assert await town.has("customer:alice") == 40_000
        assert await town.contract.claim(voucher(channel, 5_000)) == 5_000
        assert await town.contract.claim(voucher(channel, 5_000)) == 5_000
        assert await town.contract.claim(voucher(channel, 4_000, 2)) == 5_000
        assert await town.contract.claim(voucher(channel, 7_000, 3)) == 7_000
        assert await town.contract.balance(channel.backing, "BTC") == 53_000
        closed = await town.contract.close_as_payee(
            channel.channel_id, [voucher(channel, 9_000, 4)]
        )
        assert closed.status is ChannelStatus.CLOSED
        assert await town.has("customer:bob") == 9_000
        assert await town.has("customer:alice") == 91_000
        assert await town.has(escrow_account(channel.channel_id)) == 0
        with pytest.raises(RailRejected):
            await town.contract.claim(voucher(channel, 20_000, 5))


async def test_a_payer_closes_only_after_the_challenge_period(tmp_path: Path) -> None:
    async with bank(tmp_path) as town:
        channel = await town.opens(SELLER)
        with pytest.raises(RailRejected):
            await town.contract.close(channel.channel_id)
        closing = await town.contract.request_close(channel.channel_id)
        assert closing.status is ChannelStatus.CLOSING
        town.clock.advance(86_000)
        await town.contract.request_close(channel.channel_id)  # does not begin it anew
        with pytest.raises(RailRejected):
            await town.contract.close(channel.channel_id)
        assert await town.contract.claim(voucher(channel, 5_000)) == 5_000
        town.clock.advance(401)
        await town.contract.close(channel.channel_id)
        assert await town.has("customer:alice") == 95_000


async def test_a_reopened_channel_pays_no_voucher_of_its_old_epoch(tmp_path: Path) -> None:
    async with bank(tmp_path) as town:
        old = await town.opens(SELLER)
        await town.contract.close_as_payee(old.channel_id, [voucher(old, 1_000)])
        new = await town.opens(SELLER, 10_000)
        assert (new.channel_id, new.epoch) == (old.channel_id, 1)
        with pytest.raises(RailRejected):
            await town.contract.claim(voucher(old, 2_000, 2))
        assert await town.contract.claim(voucher(new, 300)) == 300


async def test_a_key_that_was_lost_signs_no_more_once_the_channel_is_opened_anew(
    tmp_path: Path,
) -> None:
    async with bank(tmp_path) as town:
        old = await town.opens(SELLER)
        await town.contract.authorize_sub_channel(old.channel_id, "stolen", KEY.public)
        another = SigningKey(KeyType.SECP256K1, b"\x02" * 32)
        with pytest.raises(RailRejected, match="another key"):
            await town.opens(SELLER, key=another)
        await town.contract.close_as_payee(old.channel_id)
        new = await town.opens(SELLER, key=another)
        for fragment in ("key", "stolen"):
            with pytest.raises(RailRejected):
                await town.contract.claim(voucher(new, 1_000, vm_id_fragment=fragment))
        assert await town.contract.sub_channel(new.channel_id, "stolen") is None


@pytest.mark.parametrize(
    "change",
    [
        {"chain_id": 4},
        {"version": 2},
        {"channel_epoch": 1},
        {"vm_id_fragment": "other"},
        {"accumulated_amount": 60_001},
    ],
    ids=str,
)
async def test_what_the_contract_does_not_owe_is_not_paid(
    tmp_path: Path, change: dict[str, object]
) -> None:
    async with bank(tmp_path) as town:
        channel = await town.opens(SELLER)
        with pytest.raises(RailRejected):
            await town.contract.claim(voucher(channel, 5_000, 1, **change))
        forged = SignedSubRAV(voucher(channel, 5_000).sub_rav, b"\1" * 64)
        with pytest.raises(RailRejected):
            await town.contract.claim(forged)
        assert await town.contract.balance(channel.backing, "BTC") == 60_000


async def test_collateral_is_never_more_than_the_account_holds(tmp_path: Path) -> None:
    async with bank(tmp_path) as town:
        with pytest.raises(RailRejected):
            await town.opens(SELLER, 100_001)
        await town.opens(SELLER, 60_000)
        await town.opens(SELLER, 40_000)  # a top-up
        with pytest.raises(RailRejected):
            await town.opens(SELLER, 1)
        assert await town.has("customer:alice") == 0


async def test_a_fragment_keeps_its_key(tmp_path: Path) -> None:
    async with bank(tmp_path) as town:
        channel = await town.opens(SELLER)
        other = SigningKey(KeyType.ED25519, b"\x02" * 32).public
        with pytest.raises(RailRejected):
            await town.contract.authorize_sub_channel(channel.channel_id, "key", other)
        sub = await town.contract.authorize_sub_channel(channel.channel_id, "two", other)
        assert sub.key == other


def test_dids_name_accounts() -> None:
    assert did_account(PAYER) == "customer:alice"
    for did in ("did:farebox:", "did:rooch:x"):
        with pytest.raises(InvalidCredential):
            did_account(did)


async def test_the_house_sells_through_its_own_book_and_the_sums_agree(tmp_path: Path) -> None:
    rules = parse_rules("rules: [{id: a, default: true, strategy: {type: FinalCost}}]", "yaml")
    async with bank(tmp_path) as town:
        channel = await town.opens(HOUSE)
        payee = PaymentChannelPayeeClient(
            town.ledger,
            town.processes,
            town.contract,
            HOUSE,
            policy=CreditPolicy(backing_min=1_000),
        )
        claims = ClaimScheduler(payee, ClaimPolicy(min_claim_amount=1, threshold=1))
        processor = PaymentProcessor(
            PaymentProcessorConfig(
                payee_client=payee,
                billing_engine=BillingEngine(rules, FixedRates({"BTC": 2})),
                service_id="house",
                claim_scheduler=claims,
            )
        )
        request = RequestMetadata(
            operation="ask",
            channel_id=channel.channel_id,
            vm_id_fragment="key",
            payer_did=PAYER,
            usage=8_000,
        )
        result = await processor.process_payment(request)
        for _ in range(5):
            assert result.is_admitted
            assert result.unsigned_sub_rav is not None
            signed = sign_sub_rav(result.unsigned_sub_rav, KEY)
            result = await processor.process_payment(request, signed)
        assert (result.cost, result.auto_claim_triggered) == (4_000, True)
        assert await claims.run_once() == 1
        assert await town.has("revenue") == 24_000
        assert await town.has("clearing:channels:BTC") == 0
        assert await town.contract.balance(channel.backing, "BTC") == 40_000
        assert await town.has("customer:alice") == 40_000
