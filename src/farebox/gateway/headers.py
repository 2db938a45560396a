"""Which headers pass a gateway, and which do not (RFC 9110 §7.6.1).

Towards the upstream: nothing of one hop, nothing that is money, nothing by which a request could
become another one than was priced. Towards the caller: nothing of one hop, no money but ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from farebox.gateway.asgi import RawHeaders
from farebox.paywall.model import Headers

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
#: A caller's money and keys. Some of these are other dialects': they are nobody's business either.
_MONEY: Final = frozenset(
    {
        b"authorization",
        b"x-api-key",
        b"x-cashu",
        b"x-payment",
        b"x-payment-channel-data",
        b"payment",
        b"payment-signature",
        b"payment-required",
        b"payment-response",
        b"x-payment-response",
        b"x-farebox-stream-receipt",
        b"x-farebox-request-id",
        b"x-farebox-receipt",
    }
)
#: An upstream that obeys one of these serves another request than the one that was priced.
_REROUTING: Final = frozenset(
    {
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-original-url",
        b"x-rewrite-url",
        b"x-original-uri",
    }
)
KEPT_FROM_UPSTREAM: Final = (
    _HOP_BY_HOP
    | _MONEY
    | _REROUTING
    | {b"host", b"content-length", b"expect", b"accept-encoding"}
    | {b"x-request-id"}
)
#: The server in front of us dates every answer, and an answer has one date.
_SAID_BY_US: Final = frozenset({b"content-length", b"date"})
_KEPT_FROM_CALLER: Final = (_HOP_BY_HOP | _MONEY) - {b"authorization", b"x-api-key"} | _SAID_BY_US
_NONE: Final[frozenset[bytes]] = frozenset()
_RELIED_ON: Final = frozenset({b"content-type", b"content-encoding"})


def for_upstream(headers: RawHeaders, kept_out: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    """A caller's headers as they go on, but for `kept_out`: `KEPT_FROM_UPSTREAM`, and what is set
    by us."""
    named = _named_by_connection(headers)
    if named:
        kept_out = kept_out.union(named)
    return [
        pair
        for pair in headers
        if pair[0] not in kept_out
        # CGI's heirs (WSGI, PHP) take the one for the other.
        and (b"_" not in pair[0] or pair[0].replace(b"_", b"-") not in kept_out)
    ]


def for_caller(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """An upstream's headers as they go back; how long the body is, is said by who sends it."""
    named = _named_by_connection(headers)
    kept_out = _KEPT_FROM_CALLER.union(named) if named else _KEPT_FROM_CALLER
    return [pair for pair in headers if pair[0] not in kept_out]


def relocated(headers: Headers, url: str) -> Headers:
    """An upstream's headers whose `Location` is here, where it names itself: at its own address
    nobody pays, and a caller would not reach it."""
    base = url.rstrip("/").encode()
    path = urlsplit(base).path
    return tuple(
        (name, _within(value, path if value[:1] == b"/" else base))
        if name == b"location"
        else (name, value)
        for name, value in headers
    )


def _within(location: bytes, base: bytes) -> bytes:
    if not base or location[: len(base)].lower() != base.lower():
        return location
    rest = location[len(base) :]
    if rest[:1] not in (b"", b"/", b"?", b"#"):
        return location
    # What begins with two slashes would name another host.
    return b"/" + rest.lstrip(b"/")


def lowered(headers: RawHeaders) -> Headers:
    """The same headers with lower-case names."""
    return tuple((name.lower(), value) for name, value in headers)


def _named_by_connection(headers: RawHeaders) -> frozenset[bytes]:
    values = [value for name, value in headers if name == b"connection"]
    if not values:
        return _NONE
    named = frozenset(part.strip().lower() for part in b",".join(values).split(b","))
    # A caller must not be able to take away what the gateway relies on.
    return named - _RELIED_ON
