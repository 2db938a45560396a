"""A book, keys and a real chain: what the tests of sending work with."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

from farebox.channels import RECORDS as CHANNEL_RECORDS
from farebox.clock import SystemClock
from farebox.ledger.checkpoint import Checkpoint
from farebox.ledger.invariants import Verified, verify
from farebox.ledger.model import ABSENT, Applied, Put, Unit
from farebox.ledger.processes import PROCESS
from farebox.ledger.replay import Broken
from farebox.ledger.service import Ledger
from farebox.payments.deposits import DEPOSIT, DEPOSIT_REQUEST
from farebox.payments.model import OPERATION
from farebox.rails.evm.keys import Keys, keys_from
from farebox.rails.evm.outbox import INTENT, Call, Intent, Slot
from farebox.rails.evm.reads import RpcChain
from farebox.rails.evm.records import RECORDS as EVM_RECORDS
from farebox.rails.evm.rpc import Rpc, open_rpc_session
from farebox.rails.evm.sending import Held, Parcel, Sending, SendTerms
from farebox.rails.web import Breaker
from farebox.stores.sqlite import SqliteStore
from farebox.stores.sqlite.audit import SqliteAuditReader
from tests.peers.anvil import CHAIN_ID, Anvil

RECORDS = (*EVM_RECORDS, *CHANNEL_RECORDS, OPERATION, PROCESS, DEPOSIT, DEPOSIT_REQUEST)
ETHER = 10**18
CONFIRMATIONS = 3


def somebody() -> str:
    """An address that nobody has a key of."""
    return keys_from(secrets.token_hex(32)).addresses[0]


@dataclass
class Desk:
    """One process's view of a chain and a book."""

    anvil: Anvil
    path: Path
    ledger: Ledger
    keys: Keys
    sending: Sending
    rpc: Rpc

    @property
    def sender(self) -> str:
        return self.keys.addresses[0]

    def another(self) -> Sending:
        """Another process on the same book, as far as the rows can tell."""
        return Sending(self.sending.terms, self.sending.chain, self.keys, self.ledger)

    async def intend(self, to: str, amount: int) -> str:
        """An intent as an operation's opening commit makes it."""
        key = f"op_{secrets.token_hex(8)}"
        intent = Intent(chain=self.sending.terms.chain, to=to, amount=amount)
        put = Put(INTENT, key, intent, ABSENT)
        assert isinstance(await self.ledger.store.commit(Unit(key, puts=(put,))), Applied)
        return key

    def parcel(self, key: str, to: str, amount: int) -> Parcel:
        return Parcel(self.sender, Call(to, amount), key, (key,))

    async def sent(self, to: str, amount: int = 1_000) -> Slot:
        """Something sent that must not be held."""
        key = await self.intend(to, amount)
        slot = await self.sending.send(self.parcel(key, to, amount))
        assert isinstance(slot, Slot), slot
        await asyncio.to_thread(self.anvil.taken, slot.newest.hash)
        return slot

    async def held(self, to: str) -> Held:
        key = await self.intend(to, 1)
        held = await self.sending.send(self.parcel(key, to, 1))
        assert isinstance(held, Held), held
        return held

    async def mine(self, blocks: int = 1) -> None:
        await asyncio.to_thread(self.anvil.mine, blocks)

    async def finish(self) -> None:
        """Push until nothing is on its way."""
        for _ in range(20):
            await self.sending.tick()
            if not await self.sending.open_slots():
                return
            await self.mine()
        raise AssertionError(await self.sending.open_slots())

    async def audited(self) -> Verified:
        """The books as an auditor finds them; the gas in them is what the chain took."""
        found = await asyncio.to_thread(self._verify)
        assert not isinstance(found, Broken), found
        return found[0]

    def _verify(self) -> tuple[Verified, Checkpoint] | Broken:
        with closing(SqliteAuditReader(self.path, RECORDS)) as reader:
            return verify(reader)

    async def gas_booked(self) -> int:
        account = await self.ledger.store.account(self.sending.terms.expense)
        return account.held if account else 0


@asynccontextmanager
async def desk_of(
    anvil: Anvil, folder: Path, key: str = "", *, deposits: str = "", **terms: int
) -> AsyncIterator[Desk]:
    """A sender with a hundred ether and its book: with a new key, an empty one.

    It may sign for the addresses of `deposits` as well.
    """
    path = folder / "book.db"
    store = SqliteStore(path, RECORDS, clock=SystemClock())
    ledger = Ledger(store, SystemClock())
    keys = keys_from(key or secrets.token_hex(32), 1, deposits)
    await asyncio.to_thread(anvil.rpc, "anvil_setBalance", keys.addresses[0], hex(100 * ETHER))
    async with open_rpc_session() as session:
        rpc = Rpc(anvil.url, session, Breaker(SystemClock(), who="the node"))
        asked = {"confirmations": CONFIRMATIONS, **terms}
        send_terms = SendTerms(chain="anvil", chain_id=CHAIN_ID, native="ETH", **asked)
        yield Desk(anvil, path, ledger, keys, Sending(send_terms, RpcChain(rpc), keys, ledger), rpc)
    await store.close()
