"""The Bitcoin network itself, by compact filters (BIP-157, BIP-158): nobody learns our addresses.

Only blocks are seen: what waits for one is not, neither what is paid to us nor what we pay. What
was found is kept in a file of the library's: without it the chain is looked through anew from the
wallet's first block. A chain that has become shorter is believed once it is as long again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import bdkpython as bdk

from farebox.errors import RailUnavailable
from farebox.rails.bitcoin.chain import GENESIS, Block, ChainInfo
from farebox.rails.bitcoin.follower import Follower
from farebox.rails.bitcoin.keys import WalletKeys
from farebox.rails.bitcoin.peers import PeerAddress, greet, send
from farebox.wire.bitcoin import read_tx

#: Addresses beyond the last that was given out which are looked for as well.
_AHEAD = 200
#: The library steps back so many blocks where it goes on: only a wallet that has more can.
_STEPS_BACK = 10
#: So many more change addresses than others may have been used, in a wallet found anew.
_MORE_CHANGE = 1_000
_LOST_MAX = 3
_EXTERNAL, _INTERNAL = bdk.KeychainKind.EXTERNAL, bdk.KeychainKind.INTERNAL


class Filters:
    """Nodes that serve filters. `keys` are the wallet's, `first` the block before its first one.

    Without `first` all of the chain is looked through, as it is on the test networks anyway.
    """

    def __init__(
        self,
        peers: Sequence[PeerAddress],
        keys: WalletKeys,
        *,
        file: Path,
        first: Block | None = None,
    ) -> None:
        self._peers = peers
        self._keys = keys
        self._file = file
        self._first = first
        self._agent = "nodes by their filters"
        self._seen: bdk.Wallet | None = None  # as the file has it
        self._follower: Follower | None = None
        self._waiting: list[bdk.Update] = []
        self._recovers = 0  # how many change addresses a wallet found anew was looked for at
        self._change_more = _MORE_CHANGE
        self._lost = 0  # followers in a row that found the chain to be another one
        self._sent: dict[str, str] = {}  # transactions, and the tip at which they were sent
        self._rate: tuple[str, int | None] = ("", None)

    def __repr__(self) -> str:
        return f"Filters({', '.join(map(str, self._peers))})"

    def info(self) -> ChainInfo:
        """How far it has come; before it follows the chain every node is greeted instead.

        More than half of them have to serve filters.
        """
        genesis = GENESIS[self._keys.network_name]
        if self._follower is not None:
            return ChainInfo(self._agent, genesis, self._tip(), self._follower.is_synced)
        found, faults = greet(self._peers, self._keys.network_name)
        if len(found) <= len(self._peers) // 2:
            raise RailUnavailable("; ".join(faults))
        self._agent = found[0].agent
        return ChainInfo(self._agent, genesis, Block(max(one.height for one in found), ""))

    def tip(self) -> Block:
        """The best block that was looked through; what came since is laid by for `sync`.

        Raises RailUnavailable until the chain was looked through once.
        """
        if self._follower is not None:
            news, has_ended = self._follower.news()
            self._waiting += news
            if has_ended:
                self._ended(self._follower)
        return self._tip()

    def sync(self, wallet: bdk.Wallet, tip: Block, since: int) -> bdk.Wallet | None:
        """A wallet of what was found.

        What was laid by counts if all addresses given out until then were looked for.
        """
        revealed = wallet.derivation_index(_EXTERNAL)
        given = 0 if revealed is None else revealed + 1
        if self._follower is not None and given > self._follower.covers:
            self._stop()
        if self._follower is None:
            self._start(given)
            return None
        if not self._waiting:
            if given > self._follower.covers - _AHEAD // 2:
                self._stop()
            return None
        return self._taken_in(given)

    def broadcast(self, raw: bytes) -> None:
        """Hand it to all nodes, once per block. Raises RailRejected, RailUnavailable."""
        txid, at = read_tx(raw).txid, self._tip().hash
        if self._sent.get(txid) == at:
            return
        send(self._peers, self._keys.network_name, raw)
        self._sent = {one: sent for one, sent in self._sent.items() if sent == at} | {txid: at}

    def fee_rate(self, blocks: int) -> int | None:
        """What the last block's transactions paid on average: nobody is there to estimate."""
        if self._follower is None or not self._follower.is_synced:
            return None
        at = self._tip().hash
        if self._rate[0] != at:
            self._rate = (at, self._follower.fee_rate(bdk.BlockHash.from_string(at)))
        return self._rate[1]

    def close(self) -> None:
        """End the light client."""
        self._stop()

    # ── following ────────────────────────────────────────────────────────────────────────────────

    def _start(self, given: int) -> None:
        """Follow on from what is known, looking for so many addresses and some more."""
        seen = self._known()
        self._reveal(seen, given)
        first = self._first.height if self._first is not None else 0
        self._recovers = 0
        scan = bdk.ScanType.SYNC()
        if seen.latest_checkpoint().height < first + _STEPS_BACK:
            self._recovers = given + self._change_more
            scan = bdk.ScanType.RECOVERY(self._recovers, _birthday(self._first))
        covers = max(0, given - 1) + _AHEAD
        self._follower = Follower(seen, self._peers, scan, covers)

    def _taken_in(self, given: int) -> bdk.Wallet | None:
        seen = self._known()
        try:
            for update in self._waiting:
                seen.apply_update(update)
        except bdk.CannotConnectError:
            self._forget()
            return None
        self._waiting.clear()
        self._lost = 0
        change = seen.derivation_index(_INTERNAL) or 0
        if self._recovers and change + _AHEAD > self._recovers:  # there may be more of it
            self._change_more *= 2
            self._forget()
            return None
        self._recovers = 0
        self._reveal(seen, given)
        return bdk.Wallet.load(self._keys.external, self._keys.change, self._persister())

    def _ended(self, follower: Follower) -> None:
        self._stop()
        if follower.is_synced:
            return
        self._lost += follower.has_lost_chain
        if self._lost == _LOST_MAX:
            self._forget()
        raise RailUnavailable("no node could be followed: all are away, or on another chain")

    def _stop(self) -> None:
        self._waiting.clear()
        if self._follower is not None:
            self._follower.close()
            self._follower = None

    # ── what is known ────────────────────────────────────────────────────────────────────────────

    def _tip(self) -> Block:
        at = self._known().latest_checkpoint()
        return Block(at.height, str(at.hash))

    def _known(self) -> bdk.Wallet:
        if self._seen is None:
            self._seen = self._loaded() or self._fresh()
        return self._seen

    def _loaded(self) -> bdk.Wallet | None:
        if not self._file.exists():
            return None
        try:
            external, change = self._keys.external, self._keys.change
            return bdk.Wallet.load(external, change, self._persister(), _AHEAD)
        except (bdk.LoadWithPersistError, bdk.PersistenceError):
            return None

    def _fresh(self) -> bdk.Wallet:
        self._file.unlink(missing_ok=True)
        keys = self._keys
        return bdk.Wallet(keys.external, keys.change, keys.network, self._persister(), _AHEAD)

    def _forget(self) -> None:
        """Look through the chain from the start, as if there were no file."""
        self._stop()
        self._lost = 0
        self._seen = self._fresh()

    def _reveal(self, seen: bdk.Wallet, given: int) -> None:
        if given:
            seen.reveal_addresses_to(_EXTERNAL, given - 1)
        seen.persist(self._persister())

    def _persister(self) -> bdk.Persister:
        return bdk.Persister.new_sqlite(str(self._file))


def _birthday(first: Block | None) -> bdk.RecoveryPoint:
    if first is None:
        return bdk.RecoveryPoint.GENESIS_BLOCK()
    place = bdk.BlockId(height=first.height, hash=bdk.BlockHash.from_string(first.hash))
    return bdk.RecoveryPoint.OTHER(place)
