"""Payment channels from the settings: the chain they are backed by, and all that sells on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from farebox.channels.chain import PayeeContract
from farebox.channels.claims import ClaimPolicy, ClaimScheduler
from farebox.channels.closing import CooperativeClose
from farebox.channels.ledger_chain import LedgerContract, ledger_channel_id
from farebox.channels.ledger_desk import LedgerDesk
from farebox.channels.payee import CreditPolicy, PaymentChannelPayeeClient
from farebox.errors import InvalidSettings
from farebox.gateway import ChannelService
from farebox.identity import FailureLimit
from farebox.ledger.processes import Processes
from farebox.ledger.service import Ledger
from farebox.money import BTC
from farebox.payments.exchange import Exchange
from farebox.payments.rail import DepositMethod
from farebox.paywall.channels import ChannelTill
from farebox.settings import ChannelChain, ChannelsSettings
from farebox.wire.subrav.documents import WELL_KNOWN_PATH, ServiceInfo
from farebox.wire.subrav.keys import VerificationKey
from farebox.worker import Duty, Job

_CLAIM_EVERY_S = 2
_SEND_EVERY_S = 5
_LIMITS_EVERY_S = 30
_CLOSE_EVERY_S = 10
_WRITE_OFF_EVERY_S = 60
_OPEN_PATH = "/v1/channels"


@dataclass(frozen=True, slots=True)
class Channels:
    """What a house that sells through channels has more than another. `desk` is for channels that
    accounts of its own back."""

    service: ChannelService
    till: ChannelTill
    desk: LedgerDesk | None
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class House:
    """What channels need of the house they sell for."""

    ledger: Ledger
    processes: Processes
    failures: FailureLimit
    exchange: Exchange
    public_url: str


def channels_of(
    found: ChannelsSettings, house: House, methods: Iterable[DepositMethod]
) -> Channels | None:
    """Everything that channels need; None where none pays. A chain of `methods` may back them.

    Raises InvalidSettings.
    """
    match found.chain:
        case ChannelChain.NONE:
            return None
        case ChannelChain.LEDGER:
            return _on_ledger(found, house)
        case ChannelChain.EVM:
            return _on_evm(found, house, methods)


def _on_ledger(found: ChannelsSettings, house: House) -> Channels:
    did = house_did(found)
    contract = LedgerContract(house.ledger, did, challenge_s=found.challenge_s)
    payee = _payee(house, contract, did, credit_of(found))
    claims = ClaimScheduler(payee, claiming_of(found))
    info = ServiceInfo(
        service_id=found.name, service_did=did, network="farebox", default_asset_id=BTC.code
    )
    service = _service(found, payee, info, ledger_channel_id, claims)
    desk = LedgerDesk(contract, payee, claims, BTC.code)
    closing = Duty("channel closing", desk.close_due, house.ledger, house.processes)
    jobs = (
        *_jobs(found, house, claims, payee),
        Job("channel closing", _CLOSE_EVERY_S, closing.run),
    )
    till = _till(house, service, claims, {"open": f"{house.public_url}{_OPEN_PATH}"})
    return Channels(service, till, desk, jobs)


def _on_evm(found: ChannelsSettings, house: House, methods: Iterable[DepositMethod]) -> Channels:
    try:
        from farebox.bootstrap.evm_channels import NOBODY, WATCH_S, SatLimits, payee_of
        from farebox.rails.evm.channels import CHALLENGE_S
    except ImportError:
        allowed = "`pip install 'farebox[evm]'` first, or another one"
        raise InvalidSettings("channels.chain", found.chain.value, allowed) from None
    contract = payee_of(found, methods, house.exchange)
    claiming = replace(claiming_of(found), watch_s=WATCH_S)
    payee = _payee(house, contract, contract.did, NOBODY)
    claims = ClaimScheduler(payee, claiming)
    limits = SatLimits(credit_of(found), claiming, house.exchange, found.asset)
    info = ServiceInfo(
        service_id=found.name,
        service_did=contract.did,
        network=f"eip155:{contract.chain_id}",
        default_asset_id=found.asset,
    )
    closing = CooperativeClose(payee, contract)
    service = _service(found, payee, info, contract.terms.channel_id, claims, closing)
    close = Duty("channel closing", closing.run, house.ledger, house.processes)

    async def keep_limits() -> None:
        limits.keep(payee, claims)

    jobs = (
        Job("channel limits", _LIMITS_EVERY_S, keep_limits),
        *_jobs(found, house, claims, payee),
        Job("claims on the chain", _SEND_EVERY_S, contract.run),
        Job("channel closing", _CLOSE_EVERY_S, close.run),
    )
    where = {
        "contract": contract.terms.contract,
        "token": contract.terms.token(found.asset),
        "challenge_s": CHALLENGE_S,
    }
    return Channels(service, _till(house, service, claims, where), None, jobs)


def _payee(
    house: House, contract: PayeeContract, did: str, policy: CreditPolicy
) -> PaymentChannelPayeeClient:
    return PaymentChannelPayeeClient(house.ledger, house.processes, contract, did, policy=policy)


def _service(
    found: ChannelsSettings,
    payee: PaymentChannelPayeeClient,
    info: ServiceInfo,
    channel_id: Callable[[str, str, str], str],
    claims: ClaimScheduler,
    closing: CooperativeClose | None = None,
) -> ChannelService:
    clock = payee.sub_channels.ledger.clock
    admins = {
        f"{did}#{did.removeprefix('did:key:')}": VerificationKey.from_did_key(did)
        for did in found.admins
    }
    return ChannelService(
        payee=payee,
        info=info,
        channel_id=channel_id,
        claims=claims,
        closing=closing,
        admins=admins,
        clock=clock,
    )


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


def _till(
    house: House, service: ChannelService, claims: ClaimScheduler, where: Mapping[str, object]
) -> ChannelTill:
    """`where` says where a channel is opened."""
    info: Mapping[str, object] = service.info.document()
    terms = {
        "payee_did": info["serviceDid"],
        "network": info["network"],
        "chain_id": service.payee.contract.chain_id,
        "asset": info["defaultAssetId"],
        "info": f"{house.public_url}{WELL_KNOWN_PATH}",
        **where,
    }
    return ChannelTill(service, house.failures, claims, house.exchange, terms=terms)


def _jobs(
    found: ChannelsSettings,
    house: House,
    claims: ClaimScheduler,
    payee: PaymentChannelPayeeClient,
) -> tuple[Job, ...]:
    """One process looks for what is due, for all; each claims what it has noticed itself."""
    duty = Duty("claims", claims.run_once, house.ledger, house.processes)

    async def claim() -> None:
        if not await duty.run():
            await claims.run_noticed()

    async def write_off() -> None:
        await payee.pending.cleanup(found.proposal_expiry_s)

    expiry = Duty("channel proposals", write_off, house.ledger, house.processes)
    return (
        Job("claims", _CLAIM_EVERY_S, claim),
        Job("channel proposals", _WRITE_OFF_EVERY_S, expiry.run),
    )
