"""A session for addresses that a caller chose: it connects to public addresses only.

Checked where the connection is made, on the very address that is connected to: a name that
resolves to something else a moment later (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket

import aiohttp
from aiohttp.connector import AddrInfoType

_CONNECTIONS_MAX = 32
_CONNECTIONS_PER_HOST_MAX = 4


class AddressForbidden(OSError):
    """The address is not a public one. An OSError, so that the connector takes it as a failure."""


def open_guarded_session(*, allow_private: bool = False) -> aiohttp.ClientSession:
    """A session that reaches public addresses only; close it in the end. Needs a running loop.

    `allow_private` lifts the guard, for tests on loopback.
    """
    connector = aiohttp.TCPConnector(
        limit=_CONNECTIONS_MAX,
        limit_per_host=_CONNECTIONS_PER_HOST_MAX,
        socket_factory=None if allow_private else _public_socket,
        force_close=True,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
    )


def _public_socket(address: AddrInfoType) -> socket.socket:
    family, kind, protocol, _, where = address
    if not is_public(str(where[0])):
        raise AddressForbidden("the address is not a public one")
    return socket.socket(family, kind, protocol)


def is_public(address: str) -> bool:
    """Whether an IP address is one that the whole Internet can reach."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None and not is_public(str(inner)):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


#: 64:ff9b::/96 leads to the IPv4 address in its last 32 bits.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
