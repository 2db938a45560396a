"""What a payee tells of its channels, however it is asked: over HTTP or by a tool's call."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from farebox.channels.chain import ChannelStatus
from farebox.channels.model import accepted_voucher
from farebox.channels.weighing import Rejected
from farebox.errors import InvalidCredential
from farebox.paywall.channel_service import Caller, ChannelService, Refused
from farebox.wire.subrav import documents
from farebox.wire.subrav.model import ErrorCode


@dataclass(frozen=True, slots=True)
class NotFound:
    """What is asked for is not there."""

    message: str


class Question(enum.StrEnum):
    """What payers and admins may ask; `PAYERS` and `ADMINS` answer."""

    RECOVERY = "recovery"
    SUB_RAV = "subrav"
    COMMIT = "commit"
    CLOSE = "close"
    STATUS = "admin/status"
    CLAIM = "admin/claim-trigger"


async def ask(
    service: ChannelService,
    question: Question,
    caller: Caller | Refused | None,
    told: Mapping[str, Any],
) -> Any | Refused | NotFound:
    """Answer a question with a document; `told` came with it. Raises StoreError, RailError."""
    if isinstance(caller, Refused):
        return caller
    if caller is None:
        return Refused(ErrorCode.AUTH_MISSING, "Say who asks, by DIDAuthV1.")
    if question in _ADMINS and not caller.is_admin:
        return Refused(ErrorCode.AUTH_ADMIN_FORBIDDEN, "This is for admins only.")
    if question in _PAYERS and caller.is_admin:
        return Refused(ErrorCode.CHANNEL_NOT_FOUND, "An admin's key has no channel.")
    refused = await service.admit(caller)
    if refused is not None:
        return refused
    if question in _ADMINS:
        return await _ADMINS[question](service, told)
    return await _PAYERS[question](service, caller, told)


async def _recovery(service: ChannelService, caller: Caller, _: Mapping[str, Any]) -> Any:
    """All that a payer without a record must know to go on."""
    channel = await service.payee.channel_info(caller.channel_id)
    sub = await service.payee.sub_channel_info(caller.channel_id, caller.fragment)
    pending = await service.payee.pending.find_latest_by_sub_channel(
        caller.channel_id, caller.fragment
    )
    told = (
        None
        if channel is None
        else {
            "channelId": channel.channel_id,
            "payerDid": channel.payer_did,
            "payeeDid": channel.payee_did,
            "assetId": channel.asset_id,
            "epoch": channel.epoch,
            "status": channel.status.value,
        }
    )
    state = (
        None
        if sub is None
        else {
            "channelId": sub.channel_id,
            "vmIdFragment": sub.vm_id_fragment,
            "epoch": sub.epoch,
            "lastConfirmedNonce": sub.last_confirmed_nonce,
            "lastClaimedAmount": sub.last_claimed_amount,
            "lastUpdated": sub.last_updated_ms,
        }
    )
    return documents.recovery(told, pending, state, service.now)


async def _sub_rav(service: ChannelService, caller: Caller, told: Mapping[str, Any]) -> Any:
    """The newest voucher, to whoever signed it: what a payer without a record begins again from."""
    row = await service.payee.sub_channels.read(caller.channel_id, caller.fragment)
    signed = None if row is None else accepted_voucher(row, service.payee.contract.chain_id)
    if signed is None or str(signed.sub_rav.nonce) != str(told.get("nonce")):
        return NotFound("Only the newest voucher is kept, and it has another nonce.")
    return documents.stored_voucher(signed)


async def _commit(service: ChannelService, caller: Caller, told: Mapping[str, Any]) -> Any:
    """Pay the last request without making another: a stub in payment-kit, which takes nothing."""
    try:
        signed = documents.read_committed_voucher(told)
    except InvalidCredential as error:
        return Refused(ErrorCode.INVALID_PAYMENT, str(error))
    sub_rav = signed.sub_rav
    if (sub_rav.channel_id, sub_rav.vm_id_fragment) != (caller.channel_id, caller.fragment):
        return Refused(ErrorCode.AUTH_INVALID, "The voucher is another's.")
    confirmed = await service.payee.confirm_signed_proposal(signed)
    if confirmed.is_valid:
        return {"success": True}
    assert confirmed.error_code is not None
    return Refused(confirmed.error_code, confirmed.error or "")


async def _close(service: ChannelService, caller: Caller, _: Mapping[str, Any]) -> Any:
    """Close the channel at once: an endpoint of ours, which payment-kit does not know."""
    if service.closing is None:
        return NotFound("The house closes no channel of this chain; its payer does.")
    agreed = await service.closing.ask(caller.channel_id)
    if isinstance(agreed, Rejected):
        return Refused(agreed.code, agreed.message)
    return {"channelId": agreed.channel_id, "status": ChannelStatus.CLOSING.value}


async def _status(service: ChannelService, _: Mapping[str, Any]) -> Any:
    claims = service.claims
    told = None if claims is None else asdict(claims.status) | {"policy": asdict(claims.policy)}
    processor = service.processor
    stats = None if processor is None else asdict(processor.get_processing_stats())
    return {"claims": told, "processor": stats, "timestamp": service.now}


async def _claim(service: ChannelService, told: Mapping[str, Any]) -> Any:
    try:
        asked = documents.convert(dict(told), documents.ClaimTriggerJson, "request")
    except InvalidCredential as error:
        return Refused(ErrorCode.INVALID_PAYMENT, str(error))
    queued: dict[str, int] = {}
    skipped: dict[str, str] = {}
    if service.claims is not None:
        queued, skipped = await service.claims.trigger(asked.channelId)
    return documents.claim_triggered(asked.channelId, queued, skipped)


_PAYERS: Final[
    Mapping[Question, Callable[[ChannelService, Caller, Mapping[str, Any]], Awaitable[Any]]]
] = {
    Question.RECOVERY: _recovery,
    Question.SUB_RAV: _sub_rav,
    Question.COMMIT: _commit,
    Question.CLOSE: _close,
}
_ADMINS: Final[Mapping[Question, Callable[[ChannelService, Mapping[str, Any]], Awaitable[Any]]]] = {
    Question.STATUS: _status,
    Question.CLAIM: _claim,
}
