"""How often one caller may present a wrong credential."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

from farebox.clock import NS_PER_S, Clock

#: Addresses remembered; beyond it the one that failed longest ago is forgotten.
_ADDRESSES_MAX = 100_000
#: An IPv6 customer is given a whole /64: counting single addresses would count nothing.
_IPV6_PREFIX = 64


class FailureLimit:
    """A token bucket of failures per client address: `failures_max` at once, refilled evenly.

    One integer per address: the time at which its bucket would be full again. Keys have 256
    random bits, so this protects the store from load rather than the keys from being guessed.
    """

    def __init__(self, clock: Clock, failures_max: int, window_s: int) -> None:
        self._clock = clock
        self._window_ns = window_s * NS_PER_S
        self._cost_ns = self._window_ns // failures_max
        self._full_at: OrderedDict[str, int] = OrderedDict()

    def wait_s(self, address: str) -> int:
        """0 when this address may try, else the seconds until it may."""
        now = self._clock.now_ns()
        # A clock that stepped back must not lock anyone out for longer than the window.
        ahead = min(self._full_at.get(_group(address), now) - now, self._window_ns)
        excess = ahead - (self._window_ns - self._cost_ns)
        return -(-excess // NS_PER_S) if excess > 0 else 0

    def failed(self, address: str) -> None:
        """Count one wrong credential."""
        group, now = _group(address), self._clock.now_ns()
        ahead = max(0, min(self._full_at.pop(group, now) - now, self._window_ns))
        self._full_at[group] = now + ahead + self._cost_ns
        if len(self._full_at) > _ADDRESSES_MAX:
            self._full_at.popitem(last=False)


def _group(address: str) -> str:
    if ":" not in address:
        return address
    try:
        known = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if known.ipv4_mapped is not None:  # a socket of both kinds writes all of IPv4 in one /64
        return str(known.ipv4_mapped)
    return str(ipaddress.IPv6Network((known, _IPV6_PREFIX), strict=False))
