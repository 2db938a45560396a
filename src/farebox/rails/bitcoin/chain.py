"""The source port: where the chain is asked, and what of it concerns the wallet.

`core.py`, `electrum.py`, `esplora.py` and `filters.py` do it. Calls block: they all run in the one
thread of `wallet.py`. Each raises RailUnavailable when nobody knows, RailRejected for a definite
no.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import bdkpython as bdk


@dataclass(frozen=True, slots=True)
class Block:
    """A block by its place. `time_s` is 0 where the source does not tell."""

    height: int
    hash: str
    time_s: int = 0


@dataclass(frozen=True, slots=True)
class ChainInfo:
    """Who the source is. `genesis` is the hash of the first block of its chain."""

    software: str
    genesis: str
    tip: Block
    is_synced: bool = True


@dataclass(frozen=True, slots=True)
class Coin:
    """An output of ours. `index` is its address's place; `block` None: unconfirmed."""

    outpoint: str
    amount_sat: int
    is_change: bool
    index: int
    block: Block | None
    is_spent: bool


@dataclass(frozen=True, slots=True)
class View:
    """What the best chain, and beside it the memory pool, say of our money at one moment.

    `txs` are the transactions that concern us and do not conflict with better ones; `spends` says
    which of them spends an output.
    """

    tip: Block
    coins: tuple[Coin, ...] = ()
    txs: Mapping[str, Block | None] = field(default_factory=dict)
    spends: Mapping[str, str] = field(default_factory=dict)

    def confirmations(self, block: Block | None) -> int:
        """How deep a block is; 1 at the tip, 0 for none."""
        return 0 if block is None else max(0, self.tip.height - block.height + 1)


class ChainSource(Protocol):
    """One place that knows the chain."""

    def info(self) -> ChainInfo:
        """Who it is and how far it has come."""
        ...

    def tip(self) -> Block:
        """The best block now."""
        ...

    def sync(self, wallet: bdk.Wallet, tip: Block, since: int) -> bdk.Wallet | None:
        """The wallet as of `tip` or later, with what is unconfirmed; None where nothing is new,
        or nothing can be told before `tip` is asked again.

        It has revealed every address that was given out before `tip` was asked for. Nothing of it
        is in a block below height `since`.
        """
        ...

    def broadcast(self, raw: bytes) -> None:
        """Send a transaction; one that is known already is no error. Raises RailRejected."""
        ...

    def fee_rate(self, blocks: int) -> int | None:
        """Satoshi per 1,000 virtual bytes to be in within so many blocks; None: not known."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


_KNOWN_WORDS = ("already have", "already in", "already exist", "already known", "txn-already")


def is_known(refusal: str) -> bool:
    """Whether a transaction was refused because it is there already, in the words of nodes."""
    return any(word in refusal.lower() for word in _KNOWN_WORDS)


#: The first blocks of the networks, as everybody shows them.
GENESIS = {
    "bitcoin": "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f",
    "testnet": "000000000933ea01ad0ee984209779baaec3ced90fa3f408719526f8d77f4943",
    "testnet4": "00000000da84f2bafbbc53dee25a72ae507ff4914b867c565be350b0da8bf043",
    "signet": "00000008819873e925422c1ff0f99f7cc9bbb232af63a077a480a3633bee1ef6",
    "regtest": "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206",
}
