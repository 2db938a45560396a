"""The doors in front of a service: a reverse proxy, and middleware for an app of one's own.

Promises: nothing goes on before it is paid for or free; both ways are streamed, and the last chunk
leaves after the settling commit; a request is carried to its settling whoever hangs up; the
caller's money stays here and the upstream's key does, too.
Never: a stream buffered, a header of one hop passed on, a framework known, a setting read.
"""

from __future__ import annotations

from farebox.gateway.app import Gateway, Limits
from farebox.gateway.catalogue import Catalogue
from farebox.gateway.delivery import Supervision
from farebox.gateway.middleware import Paywall, price
from farebox.gateway.upstream import UpstreamConfig, Upstreams
from farebox.paywall.channel_service import ChannelService

__all__ = [
    "Catalogue",
    "ChannelService",
    "Gateway",
    "Limits",
    "Paywall",
    "Supervision",
    "UpstreamConfig",
    "Upstreams",
    "price",
]
