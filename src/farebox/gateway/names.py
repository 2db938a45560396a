"""`Idempotency-Key` at a gateway's doors: whose names are read, what the service hears of them."""

from __future__ import annotations

from typing import Final

import msgspec

from farebox.gateway.asgi import Scope, header
from farebox.ids import derived_id
from farebox.paywall.model import Answer, BearerMoney, KeyPresented, Presented
from farebox.paywall.named import name_of

_NAME: Final = b"idempotency-key"


def named(
    presented: Presented | Answer, scope: Scope, asked: str, body: bytes
) -> Presented | Answer:
    """With the caller's name for the request, where an account pays and there is one.

    `asked` is its path and query. `body` is what tells it from others, or a digest of that.
    """
    if not isinstance(presented, KeyPresented | BearerMoney):
        return presented
    raw = header(scope["headers"], _NAME)
    if not raw:
        return presented
    # A name told before had the "?" of an empty query in it, too.
    target = asked if scope["query_string"] else f"{asked}?"
    name = name_of(raw, scope["method"], target, body)
    return name if isinstance(name, Answer) else msgspec.structs.replace(presented, name=name)


def rename(headers: list[tuple[bytes, bytes]], account: str) -> None:
    """The service knows all callers by one credential: a name that two of them chose would have it
    give one the answer of the other."""
    for at, (header_name, name) in enumerate(headers):
        if header_name == _NAME:
            headers[at] = (_NAME, derived_id("named", account, name).encode())
