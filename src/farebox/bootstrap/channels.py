"""Payment channels from the settings: the chain they are backed by, and all that sells on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from farebox.channels.claims import ClaimPolicy, ClaimScheduler
from farebox.channels.ledger_chain import LedgerContract, ledger_channel_id
from farebox.channels.ledger_desk import LedgerDesk
from farebox.channels.payee import CreditPolicy, PaymentChannelPayeeClient
from farebox.errors import InvalidSettings
from farebox.gateway import ChannelService
from farebox.identity import FailureLimit
from farebox.ledger.processes import Processes
from farebox.ledger.service import Ledger
from farebox.money import BTC
from farebox.paywall.channels import ChannelTill
from farebox.settings import ChannelChain, ChannelsSettings
from farebox.wire.subrav.documents import WELL_KNOWN_PATH, ServiceInfo
from farebox.worker import Duty, Job

_CLAIM_EVERY_S = 2
_CLOSE_EVERY_S = 10
_WRITE_OFF_EVERY_S = 60
_OPEN_PATH = "/v1/channels"


@dataclass(frozen=True, slots=True)
class Channels:
    """What a house that sells through channels has more than another."""

    service: ChannelService
    till: ChannelTill
    desk: LedgerDesk
    jobs: tuple[Job, ...]


def channels_of(
    found: ChannelsSettings,
    ledger: Ledger,
    processes: Processes,
    failures: FailureLimit,
    public_url: str,
) -> Channels | None:
    """Everything that channels need; None where none pays. Raises InvalidSettings."""
    if found.chain is ChannelChain.NONE:
        return None
    did = house_did(found)
    contract = LedgerContract(ledger, did, challenge_s=found.challenge_s)
    payee = PaymentChannelPayeeClient(ledger, processes, contract, did, policy=credit_of(found))
    claims = ClaimScheduler(payee, claiming_of(found))
    info = ServiceInfo(
        service_id=found.name, service_did=did, network="farebox", default_asset_id=BTC.code
    )
    service = ChannelService(
        payee=payee, info=info, channel_id=ledger_channel_id, claims=claims, clock=ledger.clock
    )
    till = ChannelTill(payee, service.callers, failures, claims, terms=_terms(service, public_url))
    desk = LedgerDesk(contract, payee, claims, BTC.code)
    return Channels(service, till, desk, _jobs(found, ledger, processes, claims, payee, desk))


def house_did(found: ChannelsSettings) -> str:
    """Who is paid."""
    return f"did:farebox:{found.name}"


def credit_of(found: ChannelsSettings) -> CreditPolicy:
    """How far a payer is trusted. One limit says what is worth a claim, for a collateral and for
    vouchers: what lets a payer begin can be claimed."""
    if found.claim_least_msat > found.exposure_max_msat:
        raise InvalidSettings(
            "channels.claim_least", f"{found.claim_least_msat} msat", "at most exposure_max"
        )
    return CreditPolicy(
        exposure_max=found.exposure_max_msat,
        request_max=found.request_max_msat,
        backing_min=found.claim_least_msat,
    )


def claiming_of(found: ChannelsSettings) -> ClaimPolicy:
    """When vouchers are claimed."""
    return ClaimPolicy(
        min_claim_amount=found.claim_least_msat,
        threshold=max(found.claim_at_msat, found.claim_least_msat),
        age_s=found.claim_age_s,
        idle_s=found.claim_idle_s,
        watch_s=max(1, found.challenge_s // 3),
    )


def _terms(service: ChannelService, public_url: str) -> dict[str, object]:
    info: Mapping[str, object] = service.info.document()
    return {
        "payee_did": info["serviceDid"],
        "network": info["network"],
        "chain_id": service.payee.contract.chain_id,
        "asset": info["defaultAssetId"],
        "info": f"{public_url}{WELL_KNOWN_PATH}",
        "open": f"{public_url}{_OPEN_PATH}",
    }


def _jobs(
    found: ChannelsSettings,
    ledger: Ledger,
    processes: Processes,
    claims: ClaimScheduler,
    payee: PaymentChannelPayeeClient,
    desk: LedgerDesk,
) -> tuple[Job, ...]:
    """One process looks for what is due, for all; each claims what it has noticed itself."""
    duty = Duty("claims", claims.run_once, ledger, processes)
    closing = Duty("channel closing", desk.close_due, ledger, processes)

    async def claim() -> None:
        if not await duty.run():
            await claims.run_noticed()

    async def write_off() -> None:
        await payee.pending.cleanup(found.proposal_expiry_s)

    expiry = Duty("channel proposals", write_off, ledger, processes)
    return (
        Job("claims", _CLAIM_EVERY_S, claim),
        Job("channel closing", _CLOSE_EVERY_S, closing.run),
        Job("channel proposals", _WRITE_OFF_EVERY_S, expiry.run),
    )
