"""Callers in browsers: pages of other origins may call, where the operator names them (Fetch §3.3).

A preflight is answered here: it bears no payment, asks for none, takes no turn and reaches nobody.
What the service behind us says of origins is replaced: it knows nothing of who may pay here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from farebox.gateway.asgi import App, Message, Receive, Scope, Send, header, send_answer
from farebox.paywall.model import Answer, Headers

ANY_ORIGIN: Final = "*"

_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE"
#: What a page may read of an answer, beside what every page may: where money and its terms are.
_EXPOSED: Final = (
    b"X-Cashu, Link, X-Farebox-Request-Id, X-Farebox-Receipt, X-Payment-Channel-Data, "
    b"WWW-Authenticate, Retry-After, Content-Disposition"
)
_MAX_AGE_S: Final = b"7200"
_PREFIX: Final = b"access-control-"


class Cors:
    """`app` for pages of `origins`, each as a browser sends it, or `*` for those of any."""

    def __init__(self, app: App, origins: Collection[str]) -> None:
        self._app = app
        self._is_open = ANY_ORIGIN in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        granted = self._granted(header(scope["headers"], b"origin"))
        asked = header(scope["headers"], b"access-control-request-method")
        if scope["method"] == "OPTIONS" and asked:
            names = header(scope["headers"], b"access-control-request-headers")
            await send_answer(send, Answer(204, (*granted, *_preflight(names)), b""))
            return

        async def send_granted(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = [pair for pair in message["headers"] if pair[0][:15].lower() != _PREFIX]
                exposed = (b"access-control-expose-headers", _EXPOSED)
                message = {**message, "headers": [*told, *granted, exposed]}
            await send(message)

        await self._app(scope, receive, send_granted)

    def _granted(self, origin: bytes) -> Headers:
        """Nothing is allowed with a browser's own cookies: who pays says so in a header."""
        if self._is_open:
            return ((b"access-control-allow-origin", b"*"),)
        # Said in every answer, so that no cache gives one origin what another was told.
        vary = (b"vary", b"Origin")
        if origin not in self._origins:
            return (vary,)
        return ((b"access-control-allow-origin", origin), vary)


def _preflight(names: bytes) -> Headers:
    """Any header may come, and `*` would leave `Authorization` out."""
    allowed = ((b"access-control-allow-headers", names),) if names else ()
    return (
        (b"access-control-allow-methods", _METHODS),
        *allowed,
        (b"access-control-max-age", _MAX_AGE_S),
    )
