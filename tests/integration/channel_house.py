"""A service behind the gateway that is sold through channels, and a payer with an account there."""

from __future__ import annotations

import asyncio
from typing import Any

from farebox.testing.asgi import Receive, Scope, Send, respond, start
from farebox.testing.upstream import PlayUpstream
from farebox.wire.subrav.keys import SigningKey

PRICE_MSAT = 10_000
TOKEN_MSAT = 1_000
DEAR_MSAT = 5_000_000
PRICES: list[dict[str, object]] = [
    {"path": "/v1/chat/completions", "per_output_token": "1 sat"},
    {"path": "/free", "free": True},
    {"path": "/dear", "per_request": "5000 sat"},
    {"path": "/*", "per_request": "10 sat"},
]
LINES = (b'{"t":0}\n', b'{"t":1}\n')


class Shop:
    """The play upstream, with a few paths more. `served` counts what was asked for."""

    def __init__(self) -> None:
        self.play = PlayUpstream()
        self.served: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.served[path] = self.served.get(path, 0) + 1
        match path:
            case "/free" | "/dear":
                await respond(send, 200, b'{"free":true}')
            case "/slow":
                await asyncio.sleep(0.08)
                await respond(send, 200, b'{"slow":true}')
            case "/broken":
                await respond(send, 503, b'{"error":"broken"}')
            case "/ndjson":
                await start(send, 200, "application/x-ndjson")
                for line in LINES:
                    await send({"type": "http.response.body", "body": line, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            case _:
                await self.play(scope, receive, send)


def key_terms(fragment: str, key: SigningKey, amount_msat: int) -> dict[str, Any]:
    """The body that opens a channel, tops it up, or lets one more key sign."""
    return {
        "amount_msat": amount_msat,
        "fragment": fragment,
        "key_type": key.type.value,
        "public_key": key.public.multibase,
    }
