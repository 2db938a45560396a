"""The endpoints by path, and the edge where requests become values and answers leave."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, cast

from litestar import Litestar, Request, Response
from litestar.handlers import HTTPRouteHandler
from litestar.response import Stream
from litestar.types import ASGIApp, Receive, Scope, Send

from farebox.api import (
    account,
    cards,
    change,
    channels,
    conversions,
    deposits,
    history,
    lnurl,
    methods,
    payouts,
    wallet,
    webhooks,
)
from farebox.api.context import ApiContext
from farebox.api.http import Incoming, Streamed
from farebox.api.problems import from_exception, headers_too_large
from farebox.paywall.model import Answer, Headers

Endpoint = Callable[[ApiContext, Incoming], Awaitable[Answer | Streamed]]

#: Where a request has the house that it is for.
_CONTEXT = "farebox.context"
_PREFIXES = ("/v1/wallet", "/v1/balance")
#: name → (methods, whether also without a prefix, what it does)
_WALLET: dict[str, tuple[tuple[str, ...], bool, Endpoint]] = {
    "create": (("GET", "POST"), True, wallet.create),
    "topup": (("POST",), True, wallet.topup),
    "refund": (("POST",), True, wallet.refund),
    "info": (("GET",), True, account.info),
    "refunds": (("GET",), False, account.refunds),
    "history": (("GET",), False, history.history),
}
#: name → (method, path, what it does)
_OTHER: dict[str, tuple[str, str, Endpoint]] = {
    "change": ("GET", "/v1/change/{request_id:str}", change.change),
    "operations": ("GET", "/v1/operations/{operation_id:str}", account.operation),
    "deposit": ("POST", "/v1/deposits", deposits.ask),
    "deposits": ("GET", "/v1/deposits/{deposit_id:str}", deposits.show),
    "refunds out": ("POST", "/v1/refunds", payouts.refund),
    "payouts": ("POST", "/v1/payouts", payouts.payout),
    "conversions": ("POST", "/v1/conversions", conversions.convert),
    "methods": ("GET", "/v1/methods", methods.methods),
    "channel": ("GET", "/v1/channels", channels.show),
    "channel funding": ("POST", "/v1/channels", channels.fund),
    "channel closing": ("POST", "/v1/channels/close", channels.close),
    "stored methods": ("GET", "/v1/payment-methods", cards.show),
    "storing": ("POST", "/v1/payment-methods", cards.add),
    "charge": ("POST", "/v1/payment-methods/charge", cards.charge),
    "default method": (
        "POST",
        "/v1/payment-methods/{method_id:str}/default",
        cards.make_default,
    ),
    "removing": ("DELETE", "/v1/payment-methods/{method_id:str}", cards.remove),
    "webhook": ("POST", "/v1/webhooks/{provider:str}", webhooks.hear),
    "withdraw": ("GET", lnurl.PATH, lnurl.withdraw),
}
_OWNED = frozenset(
    [
        *(f"/{name}" for name, (_, bare, _e) in _WALLET.items() if bare),
        *(path for _, path, _e in _OTHER.values() if "{" not in path),
    ]
)
_OWNED_PREFIXES = (
    *(f"{prefix}/" for prefix in _PREFIXES),
    *(path.partition("{")[0] for _, path, _e in _OTHER.values() if "{" in path),
)


def owns_path(path: str) -> bool:
    """Whether a path is the API's; every other one is for the service behind the gateway."""
    return path in _OWNED or path.startswith(_OWNED_PREFIXES)


def create_api(context: ApiContext) -> ASGIApp:
    """The wallet API of one house."""
    endpoints = _endpoints(context.body_bytes_max)

    async def api(scope: Scope, receive: Receive, send: Send) -> None:
        await endpoints(cast("Scope", {**scope, _CONTEXT: context}), receive, send)

    return api


@lru_cache(maxsize=4)
def _endpoints(body_bytes_max: int) -> Litestar:
    """The same for all houses of a process: routes take longer to build than a book to open."""
    handlers = [
        _handler(
            name,
            [f"/{name}"] * bare + [f"{prefix}/{name}" for prefix in _PREFIXES],
            methods,
            act,
        )
        for name, (methods, bare, act) in _WALLET.items()
    ]
    handlers += [
        _handler(name, [path], (method,), act) for name, (method, path, act) in _OTHER.items()
    ]
    return Litestar(
        route_handlers=handlers,
        exception_handlers={Exception: _on_exception},
        openapi_config=None,
        logging_config=None,
        request_max_body_size=body_bytes_max,
        debug=False,
    )


def _handler(
    name: str, paths: list[str], methods: tuple[str, ...], act: Endpoint
) -> HTTPRouteHandler:
    async def handle(request: Request[Any, Any, Any]) -> Response[Any]:
        context: ApiContext = cast("dict[str, Any]", request.scope)[_CONTEXT]
        headers: Headers = tuple(
            (bytes(key), bytes(value)) for key, value in request.scope["headers"]
        )
        if sum(len(key) + len(value) for key, value in headers) > context.header_bytes_max:
            return _response(headers_too_large())
        client = request.scope.get("client")
        incoming = Incoming(
            method=str(request.method),
            endpoint=name,
            headers=headers,
            query=dict(request.query_params.items()),
            body=await request.body(),
            address=client[0] if client else "",
            path={key: str(value) for key, value in request.path_params.items()},
        )
        try:
            answer = await act(context, incoming)
        except Exception as error:
            answer = from_exception(error)
        status = answer.status if isinstance(answer, Answer) else 200
        context.calls.add(f"{name} {status}")
        return _response(answer)

    return HTTPRouteHandler(
        paths,
        http_method=list(methods),  # type: ignore[arg-type]
        name=name,
        status_code=200,  # each answer says its own
    )(handle)


def _response(answer: Answer | Streamed) -> Response[Any]:
    fields = {name.decode().lower(): value.decode("latin-1") for name, value in answer.headers}
    media_type = fields.pop("content-type")
    fields.pop("content-length", None)  # the framework counts for itself
    if isinstance(answer, Streamed):
        return Stream(answer.body, headers=fields, media_type=media_type)
    return Response(answer.body, status_code=answer.status, headers=fields, media_type=media_type)


def _on_exception(_: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    return _response(from_exception(error))
