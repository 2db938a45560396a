"""Addresses given out: each to one deposit, by a counter in the book that all processes share."""

from __future__ import annotations

from farebox.errors import RailUnavailable
from farebox.ids import new_id
from farebox.ledger.model import ABSENT, Applied, Put, Unit
from farebox.ledger.service import Ledger, State
from farebox.rails.bitcoin.chain import View
from farebox.rails.bitcoin.config import BitcoinConfig
from farebox.rails.bitcoin.records import ADDRESS, COUNTER, AddressCounter, GivenAddress
from farebox.rails.bitcoin.wallet import Wallet

#: A new wallet looks so many blocks back: a reorganisation may put what pays it there.
_MAY_BE_REPLACED = 6


class Addresses:
    """Gives addresses out, and looks at the chain with all of them."""

    def __init__(self, config: BitcoinConfig, wallet: Wallet, ledger: Ledger) -> None:
        self._config = config
        self._wallet = wallet
        self._ledger = ledger

    async def give(self) -> str:
        """An address that nobody was given before. Raises RailUnavailable."""
        await self._begun()
        name, given = self._config.name, ""

        def decide(state: State, _: int) -> Unit:
            nonlocal given
            row = state.row(COUNTER, name)
            assert row is not None, "the wallet has begun"
            index = row.value.given
            given = self._wallet.keys.address(index)
            counted = AddressCounter(index + 1, row.value.descriptor, row.value.since_height)
            place = GivenAddress(name, index, f"0/{index}")
            return Unit(
                new_id("address"),
                puts=(
                    Put(COUNTER, name, counted, row.version),
                    Put(ADDRESS, given, place, ABSENT),
                ),
            )

        outcome = await self._ledger.transact([(COUNTER, name)], decide)
        if not isinstance(outcome, Applied):
            raise RailUnavailable("the book is busy: no address could be counted")
        return given

    async def look(self) -> View:
        """The chain as it is now. Raises RailUnavailable."""
        await self._begun()

        async def given() -> tuple[int, int]:
            row = await self._ledger.store.get(COUNTER, self._config.name)
            assert row is not None, "the wallet has begun"
            return row.value.given, row.value.since_height

        return await self._wallet.sync(given)

    async def _begun(self) -> None:
        """The counter stands in the book. Raises RailUnavailable, also for another wallet's."""
        name, checksum = self._config.name, self._wallet.keys.checksum
        row = await self._ledger.store.get(COUNTER, name)
        if row is None:
            since = self._config.start_height
            if since is None:
                since = max(0, (await self._wallet.info()).tip.height - _MAY_BE_REPLACED)
            put = Put(COUNTER, name, AddressCounter(0, checksum, since), ABSENT)
            await self._ledger.store.commit(Unit(new_id("wallet"), puts=(put,)))
            row = await self._ledger.store.get(COUNTER, name)
        if row is None or row.value.descriptor != checksum:
            raise RailUnavailable(
                f"the book knows another wallet as {name!r}: give this one a name of its own"
            )
