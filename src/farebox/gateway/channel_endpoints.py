"""A payee's own endpoints, and who asks: discovery, health, recovery, vouchers, claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from farebox.channels.claims import ClaimScheduler
from farebox.channels.model import accepted_voucher
from farebox.channels.payee import PaymentChannelPayeeClient
from farebox.channels.processor import PaymentProcessor
from farebox.clock import Clock, SystemClock, iso
from farebox.errors import InvalidCredential, RailError, StoreError
from farebox.gateway.asgi import (
    BodyTooLarge,
    CallerLeft,
    Receive,
    Scope,
    Send,
    header,
    read_body,
    with_query,
)
from farebox.paywall.channel_callers import Caller, Callers, Refused, SeenNonces
from farebox.wire.subrav import didauth, documents, multibase
from farebox.wire.subrav.keys import VerificationKey
from farebox.wire.subrav.model import ErrorCode, http_status
from farebox.wire.subrav.payload import HEADER_NAME

_BODY_MAX_BYTES: Final = 16_384
_NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True)
class EndpointAnswer:
    """What an endpoint answers."""

    status: int
    document: Any
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelService:
    """Everything the door needs.

    `channel_id` names the channel of (payer DID, payee DID, asset): `rooch.channel_id` or
    `ledger_channel_id`. `admins` are the keys, by DID URL, that may see and trigger claims. The
    gateway's own paywall has no `processor`.
    """

    payee: PaymentChannelPayeeClient
    info: documents.ServiceInfo
    channel_id: Callable[[str, str, str], str]
    processor: PaymentProcessor | None = None
    claims: ClaimScheduler | None = None
    admins: Mapping[str, VerificationKey] = field(default_factory=dict)
    clock: Clock = field(default_factory=SystemClock)
    nonces: SeenNonces = field(default_factory=SeenNonces)
    callers: Callers = field(init=False)

    def __post_init__(self) -> None:
        callers = Callers(
            payee=self.payee,
            asset_id=self.info.default_asset_id,
            channel_id=self.channel_id,
            clock=self.clock,
            admins=self.admins,
            nonces=self.nonces,
        )
        object.__setattr__(self, "callers", callers)

    @property
    def now(self) -> str:
        """The time, as documents have it."""
        return iso(self.clock.now_ns())

    def owns(self, path: str) -> bool:
        """Whether a path is an endpoint's, also one that is not there."""
        return path == documents.WELL_KNOWN_PATH or path.startswith(f"{self.info.base_path}/")


async def authenticate(service: ChannelService, scope: Scope) -> Caller | Refused | None:
    """Who asks, proven; None: the request does not say, and may still bring a voucher."""
    text = header(scope["headers"], b"authorization").decode("latin-1")
    if not text.startswith(didauth.SCHEME):
        return None
    try:
        auth = didauth.parse_did_auth(text)
    except InvalidCredential as error:
        return Refused(ErrorCode.AUTH_INVALID, str(error))
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    target = with_query(raw.partition(b"?")[0].decode("latin-1"), scope)
    return await service.callers.identify(auth, scope["method"], target)


async def send_endpoint(
    service: ChannelService, scope: Scope, receive: Receive, send: Send
) -> bool:
    """Answer a request for one of the payee's own endpoints; False: it is for another path."""
    try:
        answer = await endpoint(service, scope, receive)
    except (StoreError, RailError):
        answer = _failure(service, Refused(ErrorCode.INTERNAL_SERVER_ERROR, "Try again later."))
    if answer is None:
        return False
    body = msgspec.json.encode(answer.document)
    told = [
        (b"content-type", b"application/json; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"access-control-expose-headers", HEADER_NAME.encode()),
        *answer.headers,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": told})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
    return True


async def endpoint(
    service: ChannelService, scope: Scope, receive: Receive
) -> EndpointAnswer | None:
    """The answer of one of the payee's own endpoints; None: the request is for another path."""
    path, base = scope["path"], service.info.base_path
    if path == documents.WELL_KNOWN_PATH:
        return EndpointAnswer(
            200, service.info.document(), [(b"cache-control", b"max-age=3600, public")]
        )
    if not path.startswith(f"{base}/"):
        return None
    name = (scope["method"], path.removeprefix(base))
    if name == ("GET", "/health"):
        return _success(service, documents.health("healthy", service.now))
    if name in _FOR_PAYERS:
        caller = await authenticate(service, scope)
        if caller is None:
            caller = Refused(ErrorCode.AUTH_MISSING, "Say who asks: Authorization: DIDAuthV1 …")
        elif isinstance(caller, Caller) and caller.is_admin:
            caller = Refused(ErrorCode.CHANNEL_NOT_FOUND, "An admin's key has no channel.")
        if isinstance(caller, Refused):
            return _failure(service, caller)
        return await _FOR_PAYERS[name](service, scope, receive, caller)
    if name in _FOR_ADMINS:
        caller = await authenticate(service, scope)
        if caller is None:
            caller = Refused(ErrorCode.AUTH_MISSING, "Say who asks: Authorization: DIDAuthV1 …")
        elif isinstance(caller, Caller) and not caller.is_admin:
            caller = Refused(ErrorCode.AUTH_ADMIN_FORBIDDEN, "This is for admins only.")
        if isinstance(caller, Refused):
            return _failure(service, caller)
        return await _FOR_ADMINS[name](service, scope, receive, caller)
    return EndpointAnswer(
        _NOT_FOUND, documents.failure("NOT_FOUND", "There is no such endpoint.", 404, service.now)
    )


async def _recovery(
    service: ChannelService, scope: Scope, receive: Receive, caller: Caller
) -> EndpointAnswer:
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
    return _success(service, documents.recovery(told, pending, state, service.now))


async def _sub_rav(
    service: ChannelService, scope: Scope, receive: Receive, caller: Caller
) -> EndpointAnswer:
    """The newest voucher, to whoever signed it: what a payer without a record begins again from."""
    row = await service.payee.sub_channels.read(caller.channel_id, caller.fragment)
    signed = None if row is None else accepted_voucher(row, service.payee.contract.chain_id)
    asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("nonce", [""])[0]
    if signed is None or str(signed.sub_rav.nonce) != asked:
        missing = "Only the newest voucher is kept, and it has another nonce."
        return EndpointAnswer(
            _NOT_FOUND, documents.failure("NOT_FOUND", missing, _NOT_FOUND, service.now)
        )
    return _success(service, documents.stored_voucher(signed))


async def _commit(
    service: ChannelService, scope: Scope, receive: Receive, caller: Caller
) -> EndpointAnswer:
    """Pay the last request without making another: a stub in payment-kit, which takes nothing."""
    try:
        document = multibase.read_json(await read_body(receive, _BODY_MAX_BYTES), "voucher")
        signed = documents.read_committed_voucher(document)
    except (InvalidCredential, BodyTooLarge, CallerLeft) as error:
        return _failure(service, Refused(ErrorCode.INVALID_PAYMENT, str(error)))
    if (signed.sub_rav.channel_id, signed.sub_rav.vm_id_fragment) != (
        caller.channel_id,
        caller.fragment,
    ):
        return _failure(service, Refused(ErrorCode.AUTH_INVALID, "The voucher is another's."))
    confirmed = await service.payee.confirm_signed_proposal(signed)
    if confirmed.is_valid:
        return _success(service, {"success": True})
    assert confirmed.error_code is not None
    return _failure(service, Refused(confirmed.error_code, confirmed.error or ""))


async def _status(
    service: ChannelService, scope: Scope, receive: Receive, caller: Caller
) -> EndpointAnswer:
    claims = service.claims
    told = None if claims is None else asdict(claims.status) | {"policy": asdict(claims.policy)}
    processor = service.processor
    stats = None if processor is None else asdict(processor.get_processing_stats())
    document = {"claims": told, "processor": stats, "timestamp": service.now}
    return _success(service, document)


async def _claim(
    service: ChannelService, scope: Scope, receive: Receive, caller: Caller
) -> EndpointAnswer:
    try:
        document = multibase.read_json(await read_body(receive, _BODY_MAX_BYTES), "request")
        asked = documents.convert(document, documents.ClaimTriggerJson, "request")
    except (InvalidCredential, BodyTooLarge, CallerLeft) as error:
        return _failure(service, Refused(ErrorCode.INVALID_PAYMENT, str(error)))
    queued: dict[str, int] = {}
    skipped: dict[str, str] = {}
    if service.claims is not None:
        queued, skipped = await service.claims.trigger(asked.channelId)
    return _success(service, documents.claim_triggered(asked.channelId, queued, skipped))


_FOR_PAYERS: Final = {
    ("GET", "/recovery"): _recovery,
    ("GET", "/subrav"): _sub_rav,
    ("POST", "/commit"): _commit,
}
_FOR_ADMINS: Final = {
    ("GET", "/admin/status"): _status,
    ("POST", "/admin/claim-trigger"): _claim,
}


def _success(service: ChannelService, data: object) -> EndpointAnswer:
    return EndpointAnswer(200, documents.success(data, service.now))


def _failure(service: ChannelService, why: Refused) -> EndpointAnswer:
    status = http_status(why.code)
    return EndpointAnswer(status, documents.failure(why.code, why.message, status, service.now))
