"""What paying by channel costs: the books beside the signature, the gateway beside a key.

    python -m benchmarks.channels [--json] [--seconds 5] [--requests 3000] [--rounds 3]

Vouchers per second through `process_payment`, beside the bare verification of their signatures: the
same vouchers, by the same call (the bytes encoded, hashed and verified), in rounds that take turns
in one process pinned to one core. The first also weighs each voucher, charges the request, proposes
the next, and has all of it committed and synced. Sub-channels pay side by side, as payers do, so
that their commits share the disk. Each is given in CPU time as well, which tells more where others
use the machine.

Requests per second through the gateway, paid by voucher (and by voucher with an authorization each,
as payment-kit sends it), beside the same paid by account key: one gateway, 64 payers, each with an
account or a channel of its own, rounds that take turns, the median of each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import uvloop

from benchmarks.channel_payers import KeyHolder, Payer, drive_payers, open_channel
from benchmarks.servers import Server, stopping
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
from farebox.wire.subrav.keys import (
    PAYMENT_KIT_KEYS,
    KeyType,
    SigningKey,
    sign_sub_rav,
    verify_sub_rav,
)
from farebox.wire.subrav.model import SignedSubRAV, SubRAV

HOUSE = "did:farebox:house"
PAYERS = 200
_CONNECTIONS = 64


@dataclass(frozen=True)
class Measured:
    """One kind of key. `ratio` is what the books cost: 0.5 means as much as the signature."""

    key_type: str
    bare_verifications_per_s: int
    vouchers_per_s: int
    ratio: float
    bare_cpu_us: float
    voucher_cpu_us: float
    cpu_ratio: float


@dataclass(frozen=True)
class Rate:
    """How fast something goes, and what it takes of a processor."""

    per_s: float
    cpu_us: float


async def measured(key: SigningKey, seconds: float, directory: Path) -> list[tuple[Rate, Rate]]:
    """Rounds of one voucher for each payer: its signature verified and nothing else, then the same
    voucher taken. Signing is the payers' work, and is not counted."""
    store = SqliteStore(directory / f"{key.type}.db", [*RECORDS, PROCESS])
    try:
        processor, channels = await shop(Ledger(store, SystemClock()), key)
        proposals = [await paid(processor, channel, None) for channel in channels]
        rounds: list[tuple[Rate, Rate]] = []
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            vouchers, public = [sign_sub_rav(proposal, key) for proposal in proposals], key.public
            start = time.perf_counter(), time.process_time()
            for voucher in vouchers:
                assert verify_sub_rav(voucher, public)
            alone = _rate(len(vouchers), start)
            start = time.perf_counter(), time.process_time()
            proposals = await asyncio.gather(
                *(paid(processor, each.sub_rav.channel_id, each) for each in vouchers)
            )
            rounds.append((alone, _rate(len(vouchers), start)))
        return rounds
    finally:
        await store.close()


def _rate(count: int, start: tuple[float, float]) -> Rate:
    took_s, used_s = time.perf_counter() - start[0], time.process_time() - start[1]
    return Rate(count / took_s, used_s / count * 1e6)


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
    """Both rates for one kind of key: medians of rounds, and of the ratio within each."""
    key = SigningKey(key_type, b"\x01" * 32)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # that of `farebox serve`
        rounds = runner.run(measured(key, seconds, directory))
    return Measured(
        key_type.value,
        round(median(alone.per_s for alone, _ in rounds)),
        round(median(taken.per_s for _, taken in rounds)),
        round(median(taken.per_s / alone.per_s for alone, taken in rounds), 3),
        round(median(alone.cpu_us for alone, _ in rounds), 1),
        round(median(taken.cpu_us for _, taken in rounds), 1),
        round(median(alone.cpu_us / taken.cpu_us for alone, taken in rounds), 3),
    )


@dataclass(frozen=True)
class Served:
    """One way to pay the gateway, beside an account key in the same run."""

    paid_by: str
    per_s: int
    key_per_s: int
    ratio: float
    cpu_us: int
    key_cpu_us: int
    cpu_ratio: float


async def served(key_type: KeyType, *, says_who: bool, requests: int, rounds: int) -> Served:
    """Requests through a gateway, by voucher and by key in turns."""
    with stopping() as these:
        upstream = these.started(Server("load", None, "PORT", "0"))
        book, url = these.folder(Path()), f"http://127.0.0.1:{upstream.port}"
        gateway = these.started(Server("paid_gateway", 0, url, "PORT", book, "10 sat"))
        keys = [await asyncio.to_thread(gateway.line, "sk-") for _ in range(_CONNECTIONS)]
        for server in (upstream, gateway):
            await server.ready()
        key, port = SigningKey(key_type, b"\x01" * 32), gateway.port
        dids = [open_channel(port, secret, "bench", key, 10**13) for secret in keys]
        payers = [Payer(port, did, "bench", key, says_who) for did in dids]
        holders = [KeyHolder(port, secret) for secret in keys]
        lanes: tuple[list[Rate], list[Rate]] = ([], [])
        for number in range(rounds + 1):
            for at, lane in enumerate(lanes):
                used = gateway.cpu_s()
                load = await drive_payers(port, holders if at else payers, requests)
                if number:
                    lane.append(Rate(load.per_s, (gateway.cpu_s() - used) / requests * 1e6))
        vouchers, accounts = (
            Rate(median(one.per_s for one in lane), median(one.cpu_us for one in lane))
            for lane in lanes
        )
    return Served(
        f"{key_type.value}{', authorized' if says_who else ''}",
        round(vouchers.per_s),
        round(accounts.per_s),
        round(vouchers.per_s / accounts.per_s, 3),
        round(vouchers.cpu_us),
        round(accounts.cpu_us),
        round(accounts.cpu_us / vouchers.cpu_us, 3),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--requests", type=int, default=3_000, help="requests in a round")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    cores = os.sched_getaffinity(0)
    quieten_collector()  # as `farebox serve` does
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=".") as directory:
        os.sched_setaffinity(0, {min(cores)})
        results = [measure(each, asked.seconds, Path(directory)) for each in PAYMENT_KIT_KEYS]
        os.sched_setaffinity(0, {max(cores)})  # the gateway has the first to itself
    ways: list[tuple[KeyType, bool]] = [(each, False) for each in PAYMENT_KIT_KEYS]
    ways.append((KeyType.ED25519, True))
    gateway = [
        asyncio.run(served(each, says_who=who, requests=asked.requests, rounds=asked.rounds))
        for each, who in ways
    ]
    if asked.json:
        vouchers, paid = [asdict(one) for one in results], [asdict(one) for one in gateway]
        print(json.dumps({"vouchers": vouchers, "gateway": paid}))
        return
    for result in results:
        print(
            f"{result.key_type:36} {result.bare_verifications_per_s:>7} verified/s alone, "
            f"{result.vouchers_per_s:>6} vouchers/s committed, ratio {result.ratio}; "
            f"CPU {result.bare_cpu_us} and {result.voucher_cpu_us} µs, ratio {result.cpu_ratio}"
        )
    for one in gateway:
        print(
            f"gateway, {one.paid_by:46} {one.per_s:>5}/s, by key {one.key_per_s:>5}/s, "
            f"ratio {one.ratio}; CPU {one.cpu_us} and {one.key_cpu_us} µs, ratio {one.cpu_ratio}"
        )


if __name__ == "__main__":
    main()
