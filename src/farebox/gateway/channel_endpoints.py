"""A payee's own endpoints, and who asks: discovery, health, recovery, vouchers, claims."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from farebox.channels.claims import ClaimScheduler
from farebox.channels.model import accepted_voucher
from farebox.channels.payee import PaymentChannelPayeeClient
from farebox.channels.processor import PaymentProcessor
from farebox.clock import NS_PER_S, Clock, SystemClock, iso
from farebox.errors import InvalidCredential, RailError
from farebox.gateway.asgi import BodyTooLarge, CallerLeft, Receive, Scope, header, read_body
from farebox.wire.subrav import didauth, documents, multibase
from farebox.wire.subrav.keys import VerificationKey
from farebox.wire.subrav.model import ErrorCode, http_status

_BODY_MAX_BYTES: Final = 16_384
#: Some 3,000 requests a second, for as long as an authorization is good.
_NONCES_MAX: Final = 1_000_000
_S_PER_MINUTE: Final = 60
_NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, by a signature of its sub-channel's key."""

    did: str
    fragment: str
    channel_id: str
    is_admin: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Who asks is not who it says, or may not."""

    code: ErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class EndpointAnswer:
    """What an endpoint answers."""

    status: int
    document: Any
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class SeenNonces:
    """Nonces of authorizations, each good once. Of this process alone: two of them that share a
    book take one twice, which is worth one request on credit to whoever copied the header."""

    def __init__(self) -> None:
        #: Digests by the minute in which their authorizations end.
        self._ending: dict[int, set[bytes]] = {}

    def take(self, did: str, nonce: str, timestamp_s: int, now_s: int) -> bool:
        """Whether the nonce is fresh. Where no more can be remembered, none is."""
        for minute in [each for each in self._ending if each < now_s // _S_PER_MINUTE]:
            del self._ending[minute]
        digest = hashlib.blake2b(f"{did} {nonce}".encode(), digest_size=16).digest()
        if any(digest in ending for ending in self._ending.values()):
            return False
        if sum(map(len, self._ending.values())) >= _NONCES_MAX:
            return False
        ends_s = timestamp_s + didauth.WINDOW_S
        self._ending.setdefault(ends_s // _S_PER_MINUTE, set()).add(digest)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelService:
    """Everything the door needs.

    `channel_id` names the channel of (payer DID, payee DID, asset): `rooch.channel_id` or
    `ledger_channel_id`. `admins` are the keys, by DID URL, that may see and trigger claims.
    """

    processor: PaymentProcessor
    payee: PaymentChannelPayeeClient
    info: documents.ServiceInfo
    channel_id: Callable[[str, str, str], str]
    claims: ClaimScheduler | None = None
    admins: Mapping[str, VerificationKey] = field(default_factory=dict)
    clock: Clock = field(default_factory=SystemClock)
    nonces: SeenNonces = field(default_factory=SeenNonces)

    @property
    def now(self) -> str:
        """The time, as documents have it."""
        return iso(self.clock.now_ns())


async def authenticate(service: ChannelService, scope: Scope) -> Caller | Refused | None:
    """Who asks, proven; None: the request does not say, and may still bring a voucher."""
    text = header(scope["headers"], b"authorization").decode("latin-1")
    if not text.startswith(didauth.SCHEME):
        return None
    try:
        auth = didauth.parse_did_auth(text)
        admin = service.admins.get(auth.key_id)
        if admin is not None:
            refused = _judge(service, scope, auth, admin)
            return refused or Caller(auth.signer_did, auth.fragment, "", is_admin=True)
        channel_id = service.channel_id(
            auth.signer_did, service.info.service_did, service.info.default_asset_id
        )
        sub_channel = await service.payee.sub_channel_info(channel_id, auth.fragment)
    except InvalidCredential as error:
        return Refused(ErrorCode.AUTH_INVALID, str(error))
    except RailError:
        return Refused(ErrorCode.DID_RESOLVE_FAILED, "The chain cannot be asked; try later.")
    if sub_channel is None:
        return Refused(
            ErrorCode.SUBCHANNEL_NOT_AUTHORIZED, f"{auth.key_id} has no channel with us; open one."
        )
    return _judge(service, scope, auth, sub_channel.key) or Caller(
        auth.signer_did, auth.fragment, channel_id
    )


def _judge(
    service: ChannelService, scope: Scope, auth: didauth.DidAuth, key: VerificationKey
) -> Refused | None:
    """Why an authorization is not good. What it says of the request is compared with it, though
    the wire leaves that unsigned: it keeps honest mistakes out, and nobody else."""
    now_s = service.clock.now_ns() // NS_PER_S
    try:
        target = urlsplit(str(auth.params.get("uri", "")))
    except ValueError:
        return Refused(ErrorCode.AUTH_INVALID, "The authorization's URI cannot be read.")
    query = scope.get("query_string", b"").decode("latin-1")
    if not auth.verifies(key):
        why = "The authorization is not signed by its key."
    elif abs(now_s - auth.timestamp_s) > didauth.WINDOW_S:
        why = f"The authorization's time is more than {didauth.WINDOW_S} s off."
    elif auth.operation != didauth.HTTP_OPERATION or auth.params.get("method") != scope["method"]:
        why = "The authorization is for another operation."
    elif (target.path or "/", target.query) != (_raw_path(scope), query):
        why = "The authorization is for another URI."
    elif not service.nonces.take(auth.signer_did, auth.nonce, auth.timestamp_s, now_s):
        why = "The authorization was used before; sign a new one."
    else:
        return None
    return Refused(ErrorCode.AUTH_INVALID, why)


def _raw_path(scope: Scope) -> str:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.partition(b"?")[0].decode("latin-1")


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
    confirmed = await service.processor.confirm_deferred_payment(signed)
    if confirmed.is_valid:
        return _success(service, {"success": True})
    assert confirmed.error_code is not None
    return _failure(service, Refused(confirmed.error_code, confirmed.error or ""))


async def _status(
    service: ChannelService, scope: Scope, receive: Receive, caller: Caller
) -> EndpointAnswer:
    claims = service.claims
    told = None if claims is None else asdict(claims.status) | {"policy": asdict(claims.policy)}
    stats = asdict(service.processor.get_processing_stats())
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
