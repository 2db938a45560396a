"""Servers that know who was paid what: asked about every address of the wallet, and its change.

The library's client asks and proves, the wallet takes in what is new. A chain that has become
shorter is believed once it is as long again: until then what it has lost still counts.
"""

from __future__ import annotations

import abc

import bdkpython as bdk

from farebox.rails.bitcoin.chain import Block, ChainInfo

#: Change addresses beyond the last that was used which are asked about as well.
_AHEAD = 20
#: How often a wallet may turn out to have used more of them than were asked about.
_ROUNDS_MAX = 1_000


class IndexedSource(abc.ABC):
    """What an Electrum server and an Esplora have in common."""

    @abc.abstractmethod
    def info(self) -> ChainInfo:
        """Who it is. Raises RailUnavailable."""

    @abc.abstractmethod
    def tip(self) -> Block:
        """The best block now. Raises RailUnavailable."""

    @abc.abstractmethod
    def broadcast(self, raw: bytes) -> None:
        """Send a transaction. Raises RailRejected, RailUnavailable."""

    @abc.abstractmethod
    def fee_rate(self, blocks: int) -> int | None:
        """Satoshi per 1,000 virtual bytes; None: not known. Raises RailUnavailable."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of it."""

    @abc.abstractmethod
    def _news(self, request: bdk.SyncRequest) -> bdk.Update:
        """What the server knows of the addresses in a request. Raises RailUnavailable."""

    def sync(self, wallet: bdk.Wallet, tip: Block, since: int) -> bdk.Wallet:
        """Ask about every address given out, and about change until some was never used."""
        for _ in range(_ROUNDS_MAX):
            asked = _change_used(wallet) + _AHEAD
            wallet.reveal_addresses_to(bdk.KeychainKind.INTERNAL, asked)
            request = wallet.start_sync_with_revealed_spks().build()
            wallet.apply_update(self._news(request))
            if _change_used(wallet) + _AHEAD == asked:
                break
        return wallet


def _change_used(wallet: bdk.Wallet) -> int:
    """The furthest place of change that was ever paid; -1 for none."""
    internal = bdk.KeychainKind.INTERNAL
    return max(
        (one.derivation_index for one in wallet.list_output() if one.keychain is internal),
        default=-1,
    )
