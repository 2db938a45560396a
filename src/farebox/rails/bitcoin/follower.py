"""The library's light client (BIP-157): it follows the chain by its nodes, in threads of its own.

Nodes send the headers, which prove their work, and a filter for each block, over whose headers
more than half of the named nodes have to agree; blocks whose filters match are fetched whole.
It ends by itself once it has no node left: then another one is started.
"""

from __future__ import annotations

import asyncio
import ipaddress
import queue
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import bdkpython as bdk
import structlog

from farebox.errors import RailUnavailable
from farebox.rails.bitcoin.peers import PeerAddress

_log = structlog.get_logger("farebox.bitcoin")
#: How long is waited for the first news; it goes on looking meanwhile.
_FIRST_S = 5
_ANSWER_S = 5
_STOP_S = 10
_GREETING_MS, _ANSWER_MS = 5_000, 10_000
_KWU_PER_KVB = 4
#: What the library says of headers that begin before those it was told to begin with.
_NOT_OURS = "does not connect to any header of ours"


class Follower:
    """One light client from its start to its end, looking for the scripts of `wallet`.

    `covers` is how many addresses it looks for. Nodes that it hears of are never connected to.
    Raises RailUnavailable where no node's name can be looked up.
    """

    def __init__(
        self, wallet: bdk.Wallet, peers: Sequence[PeerAddress], scan: bdk.ScanType, covers: int
    ) -> None:
        self.covers = covers
        self.is_synced = False
        self._agreeing = len(peers) // 2 + 1
        self._strangers = 0
        self._looked_through = "nothing yet"
        self._updates: queue.SimpleQueue[bdk.Update | None] = queue.SimpleQueue()
        made = (
            bdk.CbfBuilder()
            .peers(_resolved(peers))
            .only_configured_peers()
            .connections(self._agreeing)
            .configure_timeout_millis(_GREETING_MS, _ANSWER_MS)
            .scan_type(scan)
            .build(wallet)
        )
        self._client = made.client
        self._loop = asyncio.new_event_loop()
        made.node.run()
        # A daemon: whatever becomes of it, nobody's end waits for it.
        self._thread = threading.Thread(target=self._listen, name="bitcoin-filters", daemon=True)
        self._thread.start()

    def news(self) -> tuple[list[bdk.Update], bool]:
        """What it found since, and whether it has ended; waits for the first.

        Raises RailUnavailable until it has looked through the chain once.
        """
        found: list[bdk.Update] = []
        while True:
            try:
                one = self._updates.get(timeout=0 if self.is_synced else _FIRST_S)
            except queue.Empty:
                if self.is_synced:
                    return found, False
                raise RailUnavailable(
                    f"the chain is still looked through: {self._looked_through}"
                ) from None
            if one is None:
                return found, True
            self.is_synced = True
            found.append(one)

    @property
    def has_lost_chain(self) -> bool:
        """Most nodes are on a chain that has left what is known here too far behind."""
        return self._strangers >= self._agreeing

    def fee_rate(self, block: bdk.BlockHash) -> int | None:
        """What a block's transactions paid on average, at least what nodes relay; satoshi per
        1,000 virtual bytes. None: nothing, or nobody tells.
        """
        mean = self._ask(self._client.average_fee_rate(block))
        least = self._ask(self._client.min_broadcast_feerate())
        if mean is None or least is None or not mean.to_sat_per_kwu():
            return None
        return int(max(mean.to_sat_per_kwu(), least.to_sat_per_kwu())) * _KWU_PER_KVB

    def close(self) -> None:
        """End it and its threads."""
        with suppress(bdk.CbfError):  # it has ended already
            self._client.shutdown()
        self._thread.join(_STOP_S)

    def _ask(self, question: Coroutine[Any, Any, bdk.FeeRate]) -> bdk.FeeRate | None:
        try:
            return asyncio.run_coroutine_threadsafe(question, self._loop).result(_ANSWER_S)
        except (RuntimeError, TimeoutError, asyncio.CancelledError, bdk.CbfError):
            question.close()
            return None

    # ── the thread ───────────────────────────────────────────────────────────────────────────────

    def _listen(self) -> None:
        async def all_of_it() -> None:
            client = self._client
            await asyncio.gather(
                _each(client.update, self._updates.put),
                _each(client.next_info, self._informed),
                _each(client.next_warning, self._warned),
            )

        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(all_of_it())
        finally:
            self._updates.put(None)

    def _informed(self, info: bdk.Info) -> None:
        if info.is_PROGRESS():
            part = int(info.filters_downloaded_percent)
            self._looked_through = f"{part} % of its {info.chain_height} blocks"

    def _warned(self, warning: bdk.Warning) -> None:
        # Others say nothing new, or a node could say them without end.
        if warning.is_UNEXPECTED_SYNC_ERROR() or warning.is_NO_COMPACT_FILTERS():
            told = str(warning)[:200]
            self._strangers += _NOT_OURS in told
            _log.warning("bitcoin.filters", told=told)


async def _each(ask: Callable[[], Awaitable[Any]], tell: Callable[[Any], None]) -> None:
    """Tell what comes until the client ends. Unheard, it would stand still."""
    with suppress(bdk.CbfError):
        while True:
            tell(await ask())


def _resolved(peers: Sequence[PeerAddress]) -> list[bdk.Peer]:
    """In another order each time: the first one that is asked tells what the others must fit."""
    found = []
    for one in peers:
        try:
            known = socket.getaddrinfo(one.host, one.port, type=socket.SOCK_STREAM)
        except OSError:
            continue
        ip = ipaddress.ip_address(str(known[0][4][0]).partition("%")[0])
        if isinstance(ip, ipaddress.IPv4Address):
            address = bdk.IpAddress.from_ipv4(*ip.packed)
        else:
            parts = ip.exploded.split(":")
            address = bdk.IpAddress.from_ipv6(*(int(part, 16) for part in parts))
        found.append(bdk.Peer(address=address, port=one.port, v2_transport=False))
    if not found:
        raise RailUnavailable("no node of those that are named has an address")
    secrets.SystemRandom().shuffle(found)
    return found
