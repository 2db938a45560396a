"""Deposit addresses: one for each request, derived from an extended key, never handed out twice.

A *tree* is the extended key whose ordinary children (BIP-32) the addresses are: its public half is
enough to be paid. Its counter is one row, whatever chains it is used on: an address of ours is ours
on every EVM chain, and so it belongs to one request on one chain only.

| boundary               | what can fail | recovery                                            |
|------------------------|---------------|-----------------------------------------------------|
| counter and row commit | we stop       | the address was shown to nobody; its number is used |
| shown → paid           | anything      | it is watched by its row, as long as that is young  |
"""

from __future__ import annotations

from coincurve import PublicKey
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from farebox.clock import NS_PER_S
from farebox.errors import StoreBusy
from farebox.ledger.model import ABSENT, Applied, Put, Unit
from farebox.ledger.service import Ledger, State
from farebox.rails.evm.records import ADDRESS, TREE, Address, Tree, address_key
from farebox.wire.bip32 import ExtendedKey

_PAGE = 500
_DAY_S = 86_400


class DepositTree:
    """The public half of an extended key: it derives addresses and signs nothing."""

    def __init__(self, key: ExtendedKey) -> None:
        self._key = key.public
        #: Tells this tree from others, in the names of rows.
        self.name = keccak(key.point + key.chain_code)[:8].hex()

    def address(self, index: int) -> str:
        """The address with a number, with its checksum."""
        return address_of(self._key.child(index).point)


def address_of(point: bytes) -> str:
    """The address of a public key."""
    return to_checksum_address(keccak(PublicKey(point).format(compressed=False)[1:])[12:])


class Addresses:
    """The deposit addresses of one chain. After `watch_days` one is no longer watched."""

    def __init__(
        self, chain: str, tree: DepositTree, ledger: Ledger, *, watch_days: int = 90
    ) -> None:
        self._chain = chain
        self._tree = tree
        self._ledger = ledger
        self._watch_ns = watch_days * _DAY_S * NS_PER_S
        #: What `watched` has told last.
        self.known: dict[str, Address] = {}
        self._last = ""

    async def fresh(self, height: int) -> Address:
        """An address that nobody has been shown; `height` is of the chain's newest block now."""
        tree, made = self._tree, list[Address]()

        def decide(state: State, now_ns: int) -> Unit:
            index = (state.value(TREE, tree.name) or Tree(0)).next_index
            one = Address(
                address=tree.address(index),
                chain=self._chain,
                tree=tree.name,
                index=index,
                height=height,
                created_at=now_ns,
            )
            made.append(one)
            puts = (
                Put(TREE, tree.name, Tree(index + 1), state.version(TREE, tree.name)),
                Put(ADDRESS, address_key(tree.name, index), one, ABSENT),
            )
            # Two processes may decide the same: the chain is in the name, and `Replayed` is no yes.
            return Unit(f"address:{tree.name}:{index}:{self._chain}:{now_ns}", puts=puts)

        outcome = await self._ledger.transact([(TREE, tree.name)], decide)
        if not isinstance(outcome, Applied):
            raise StoreBusy("another process took the same address; ask again")
        return made[-1]

    async def watched(self) -> dict[str, Address]:
        """Those that are looked for, by themselves in lower case; also those made elsewhere."""
        where = {"chain": self._chain, "tree": self._tree.name}
        oldest = self._ledger.clock.now_ns() - self._watch_ns
        while page := await self._ledger.store.find(ADDRESS, where, after=self._last, limit=_PAGE):
            self.known |= {row.value.address.lower(): row.value for _, row in page}
            self._last = page[-1][0]
        for name in [name for name, one in self.known.items() if one.created_at < oldest]:
            del self.known[name]
        return self.known

    async def find(self, address: str) -> Address | None:
        """Whose address this is, of whatever chain."""
        rows = await self._ledger.store.find(ADDRESS, {"address": address}, limit=1)
        return rows[0][1].value if rows else None
