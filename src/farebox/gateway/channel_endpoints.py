"""A payee's own endpoints, and who asks: discovery, health, recovery, vouchers, claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from farebox.errors import InvalidCredential, RailError, StoreError
from farebox.gateway.asgi import (
    App,
    BodyTooLarge,
    CallerLeft,
    Receive,
    Scope,
    Send,
    header,
    read_body,
    with_query,
)
from farebox.gateway.channel_questions import NotFound, Question, ask
from farebox.paywall.channel_service import Caller, ChannelService, HttpAsked, Refused
from farebox.wire.subrav import didauth, documents, multibase
from farebox.wire.subrav.model import ErrorCode, http_status
from farebox.wire.subrav.payload import HEADER_NAME

_BODY_MAX_BYTES: Final = 16_384
_NOT_FOUND: Final = 404
_QUESTIONS: Final = {
    ("GET", "/recovery"): Question.RECOVERY,
    ("GET", "/subrav"): Question.SUB_RAV,
    ("POST", "/commit"): Question.COMMIT,
    ("POST", "/close"): Question.CLOSE,
    ("GET", "/admin/status"): Question.STATUS,
    ("POST", "/admin/claim-trigger"): Question.CLAIM,
}


@dataclass(frozen=True, slots=True)
class EndpointAnswer:
    """What an endpoint answers."""

    status: int
    document: Any
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class ChannelEndpoints:
    """ASGI middleware that answers a payee's endpoints, before an app that takes payments itself:
    an MCP server whose tools are sold."""

    def __init__(self, app: App, service: ChannelService) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the app."""
        if scope["type"] != "http" or not await send_endpoint(self._service, scope, receive, send):
            await self._app(scope, receive, send)


async def authenticate(
    service: ChannelService, scope: Scope, operation: str = didauth.HTTP_OPERATION
) -> Caller | Refused | None:
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
    return await service.identify(auth, HttpAsked(scope["method"], target, operation))


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
    question = _QUESTIONS.get(name)
    if question is None:
        return _missing(service, "There is no such endpoint.")
    is_close = question is Question.CLOSE
    operation = didauth.CLOSE_OPERATION if is_close else didauth.HTTP_OPERATION
    caller = await authenticate(service, scope, operation)
    told: Mapping[str, Any] = {}
    if isinstance(caller, Caller):
        try:
            told = await _told(scope, receive)
        except (InvalidCredential, BodyTooLarge, CallerLeft) as error:
            return _failure(service, Refused(ErrorCode.INVALID_PAYMENT, str(error)))
    answer = await ask(service, question, caller, told)
    if isinstance(answer, Refused):
        return _failure(service, answer)
    if isinstance(answer, NotFound):
        return _missing(service, answer.message)
    return _success(service, answer)


async def _told(scope: Scope, receive: Receive) -> Mapping[str, Any]:
    if scope["method"] == "GET":
        return dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
    document = multibase.read_json(await read_body(receive, _BODY_MAX_BYTES), "request")
    if not isinstance(document, dict):
        raise InvalidCredential("the request is no JSON object")
    return document


def _success(service: ChannelService, data: object) -> EndpointAnswer:
    return EndpointAnswer(200, documents.success(data, service.now))


def _missing(service: ChannelService, message: str) -> EndpointAnswer:
    document = documents.failure("NOT_FOUND", message, _NOT_FOUND, service.now)
    return EndpointAnswer(_NOT_FOUND, document)


def _failure(service: ChannelService, why: Refused) -> EndpointAnswer:
    status = http_status(why.code)
    return EndpointAnswer(status, documents.failure(why.code, why.message, status, service.now))
