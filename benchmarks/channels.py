"""Vouchers per second through `process_payment`, beside the bare verification of their signatures.

    python -m benchmarks.channels [--json] [--seconds 5]

Both run in one process with the same library; the first also weighs each voucher, charges the
request, proposes the next, and has all of it committed and synced. Sub-channels pay side by side,
as payers do, so that their commits share the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from farebox.channels import (
    RECORDS,
    BillingEngine,
    BillingRule,
    CreditPolicy,
    FixedRates,
    LedgerContract,
    PaymentChannelPayeeClient,
    PaymentProcessor,
    PaymentProcessorConfig,
    PerRequest,
    RequestMetadata,
)
from farebox.channels.ledger_chain import account_did
from farebox.cli.serve import quieten_collector
from farebox.clock import SystemClock
from farebox.ledger.model import Kind, Open, Transfer, Unit
from farebox.ledger.processes import PROCESS, Processes
from farebox.ledger.service import Ledger
from farebox.stores.sqlite import SqliteStore
from farebox.wire.subrav.keys import KeyType, SigningKey, sign_sub_rav, verify_sub_rav
from farebox.wire.subrav.model import SignedSubRAV, SubRAV

HOUSE = "did:farebox:house"
PAYERS = 200


@dataclass(frozen=True)
class Measured:
    """One kind of key. `ratio` is what the books cost: 0.5 means as much as the signature."""

    key_type: str
    bare_verifications_per_s: int
    vouchers_per_s: int
    ratio: float


def bare(key: SigningKey, seconds: float) -> int:
    """Signatures verified per second, and nothing else."""
    sub_rav = SubRAV(
        chain_id=402,
        channel_id="0x" + "ab" * 32,
        channel_epoch=0,
        vm_id_fragment="key",
        accumulated_amount=1,
        nonce=1,
    )
    signed, public = sign_sub_rav(sub_rav, key), key.public
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(100):
            assert verify_sub_rav(signed, public)
        done += 100
    return round(done / (time.perf_counter() - began))


async def processed(key: SigningKey, seconds: float, directory: Path) -> int:
    """Vouchers taken per second. Signing is the payers' work, and is not counted."""
    store = SqliteStore(directory / f"{key.type}.db", [*RECORDS, PROCESS])
    try:
        processor, channels = await shop(Ledger(store, SystemClock()), key)
        spent_s = taken = 0.0
        proposals = [await paid(processor, channel, None) for channel in channels]
        while spent_s < seconds:
            vouchers = [sign_sub_rav(proposal, key) for proposal in proposals]
            began = time.perf_counter()
            proposals = await asyncio.gather(
                *(paid(processor, each.sub_rav.channel_id, each) for each in vouchers)
            )
            spent_s += time.perf_counter() - began
            taken += len(vouchers)
        return round(taken / spent_s)
    finally:
        await store.close()


async def paid(processor: PaymentProcessor, channel_id: str, signed: SignedSubRAV | None) -> SubRAV:
    """One request; what it asks to sign next."""

    request = RequestMetadata(
        operation="ask",
        channel_id=channel_id,
        vm_id_fragment="key",
        payer_did=None if signed else account_of[channel_id],
    )
    result = await processor.process_payment(request, signed)
    assert result.is_admitted, result
    assert result.unsigned_sub_rav is not None
    return result.unsigned_sub_rav


#: Who pays on which channel, for the first requests, which bring no voucher.
account_of: dict[str, str] = {}


async def shop(ledger: Ledger, key: SigningKey) -> tuple[PaymentProcessor, list[str]]:
    """A payee, and a channel of each payer with it."""
    processes = Processes(ledger, alone=True)
    await processes.start()
    contract = LedgerContract(ledger, HOUSE)
    steps: list[Open | Transfer] = [Open("custody:mint", "BTC", Kind.CUSTODY)]
    for number in range(PAYERS):
        account = f"customer:p{number}"
        steps += [
            Open(account, "BTC", Kind.CUSTOMER),
            Transfer("custody:mint", account, 10**12, "deposit"),
        ]
    await ledger.store.commit(Unit("funds", tuple(steps)))
    channels = []
    for number in range(PAYERS):
        did = account_did(f"customer:p{number}")
        channel = await contract.open_channel_with_sub_channel(
            payer_did=did,
            payee_did=HOUSE,
            asset_id="BTC",
            collateral=10**12,
            fragment="key",
            key=key.public,
        )
        account_of[channel.channel_id] = did
        channels.append(channel.channel_id)
    payee = PaymentChannelPayeeClient(
        ledger, processes, contract, HOUSE, policy=CreditPolicy(backing_min=1)
    )
    rule = BillingRule(id="all", strategy=PerRequest(10), is_default=True)
    config = PaymentProcessorConfig(
        payee_client=payee,
        billing_engine=BillingEngine([rule], FixedRates({"BTC": 1})),
        service_id="bench",
        default_asset_id="BTC",
    )
    return PaymentProcessor(config), channels


def measure(key_type: KeyType, seconds: float, directory: Path) -> Measured:
    """Both rates for one kind of key."""
    key = SigningKey(key_type, b"\x01" * 32)
    alone = bare(key, seconds)
    together = asyncio.run(processed(key, seconds, directory))
    return Measured(key_type.value, alone, together, round(together / alone, 3))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=5)
    asked = parser.parse_args()
    quieten_collector()  # as `farebox serve` does
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=".") as directory:
        results = [measure(each, asked.seconds, Path(directory)) for each in KeyType]
    if asked.json:
        print(json.dumps([asdict(result) for result in results]))
        return
    for result in results:
        print(
            f"{result.key_type:36} {result.bare_verifications_per_s:>7} verified/s alone, "
            f"{result.vouchers_per_s:>6} vouchers/s committed, ratio {result.ratio}"
        )


if __name__ == "__main__":
    main()
