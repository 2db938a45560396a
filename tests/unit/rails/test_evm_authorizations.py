"""A signed transfer that somebody else has sent is credited, wherever in the chain it stands.

The chain is the few answers that a transfer asks for; `test_evm_authorizations_anvil.py` has a
real one.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import pytest
from eth_account import Account

from farebox.clock import NS_PER_S, SystemClock
from farebox.errors import RailRejected
from farebox.ledger.model import Unit
from farebox.ledger.service import Ledger
from farebox.payments import PaymentResult, Refusal, Rejected, Unresolved
from farebox.payments.exchange import Exchange
from farebox.rails.evm.authorizations import Authorizations, AuthorizedAsset
from farebox.rails.evm.contracts import calldata, topic
from farebox.rails.evm.fees import GWEI, History
from farebox.rails.evm.keys import keys_from
from farebox.rails.evm.outbox import Call
from farebox.rails.evm.reads import Log, Receipt
from farebox.rails.evm.rpc import Data, Quantity
from farebox.rails.evm.sending import Sending, SendTerms
from farebox.stores.sqlite import SqliteStore
from tests.integration.evm_desk import RECORDS
from tests.signed_transfers import credential_of, domain_of

CHAIN_ID, VALUE = 31_337, 5_000_000
TOKEN = "0x" + "70" * 20
_CANCELED = topic("AuthorizationCanceled(address,bytes32)")
_IS_USED = calldata("authorizationState(address,bytes32)", TOKEN, bytes(32))[:10]


class Dollars:
    """Gas costs next to nothing."""

    def msat_per_unit(self, asset: str) -> Fraction | None:
        return Fraction(1) if asset == "USDC" else Fraction(1, 10**18)


@dataclass
class Chain:
    """A node that shows a transfer once a stranger has sent it."""

    blocks: int = 500
    strangers: Receipt | None = None
    is_cancelled: bool = False
    #: A node may know the state of the newest block, and not yet its events.
    shows_events: bool = True

    async def height(self) -> int:
        return self.blocks

    async def history(self) -> History:
        return History((GWEI, GWEI), ((GWEI, GWEI, GWEI),), (False,))

    async def suggested_tip(self) -> int | None:
        return GWEI

    async def gas(self, sender: str, call: Call) -> int:
        return 60_000

    async def run(self, sender: str, call: Call) -> bytes:
        is_over = self.strangers is not None or self.is_cancelled
        if call.data.startswith(_IS_USED):
            return int(is_over).to_bytes(32)
        if is_over:
            raise RailRejected("execution reverted", code=3)
        return b""

    async def told(self, contract: str, topics: Sequence[str], since: int) -> str | None:
        if not self.shows_events:
            return None
        if topics[0] == _CANCELED:
            return f"0x{secrets.token_hex(32)}" if self.is_cancelled else None
        found = self.strangers
        return found.transaction_hash if found and found.block_number >= since else None

    async def receipt(self, transaction: str) -> Receipt | None:
        return self.strangers


@dataclass
class Taken:
    """A transfer that was handed in."""

    chain: Chain
    taking: Authorizations
    payload: bytes
    ends: tuple[str, str]

    def a_stranger_sends_it(self, blocks_ago: int) -> str:
        """Gives the transaction."""
        made = receipt_of(*self.ends, self.chain.blocks - blocks_ago)
        self.chain.strangers = made
        return str(made.transaction_hash)

    async def told(self) -> PaymentResult | Rejected | Unresolved:
        return await self.taking.receive(self.payload)


@pytest.fixture
async def taken(tmp_path: Path) -> AsyncIterator[Taken]:
    store = SqliteStore(tmp_path / "book.db", RECORDS, clock=SystemClock())
    ledger, chain = Ledger(store, SystemClock()), Chain()
    keys, payer = keys_from(secrets.token_hex(32)), Account.create()
    terms = SendTerms(chain="dev", chain_id=CHAIN_ID, native="ETH")
    taking = Authorizations(
        [AuthorizedAsset("USDC", TOKEN, "USD Coin", "2", 1, 10**9)],
        Sending(terms, cast("Any", chain), keys, ledger),
        ledger,
        Exchange(worths=Dollars()),
        gas_percent=2,
    )
    ends = (payer.address, keys.addresses[0])
    message = {
        "from": ends[0],
        "to": ends[1],
        "value": VALUE,
        "validAfter": 0,
        "validBefore": SystemClock().now_ns() // NS_PER_S + 3_600,
        "nonce": f"0x{secrets.token_hex(32)}",
    }
    plan = await taking.plan(credential_of(payer, domain_of(TOKEN, CHAIN_ID), message))
    assert not isinstance(plan, Refusal), plan
    await store.commit(Unit("opened", puts=plan.puts))
    yield Taken(chain, taking, plan.payload, ends)
    await store.close()


async def test_who_is_quicker_in_a_branch_that_leaves_the_blocks_that_were_there_has_paid(
    taken: Taken,
) -> None:
    """The stranger's block is older than the newest was when the transfer was handed in."""
    transaction = taken.a_stranger_sends_it(20)
    told = await taken.told()
    assert isinstance(told, PaymentResult), told
    assert (told.amount, told.transaction_id.partition(":")[0]) == (VALUE, transaction)


async def test_a_node_that_does_not_show_who_has_sent_it_yet_ends_nothing(taken: Taken) -> None:
    taken.chain.shows_events = False
    taken.a_stranger_sends_it(20)
    assert isinstance(await taken.told(), Unresolved)
    taken.chain.shows_events = True
    assert isinstance(await taken.told(), PaymentResult)


async def test_a_transfer_that_its_payer_has_cancelled_is_refused(taken: Taken) -> None:
    taken.chain.is_cancelled = True
    assert isinstance(await taken.told(), Rejected)


def receipt_of(payer: str, to: str, height: int) -> Receipt:
    """A transfer as its token tells of it."""
    ends = tuple(f"0x{address[2:].lower():0>64}" for address in (payer, to))
    moved = Log(
        TOKEN, (topic("Transfer(address,address,uint256)"), *ends), Data(VALUE.to_bytes(32))
    )
    name, block = (f"0x{secrets.token_hex(32)}" for _ in range(2))
    one = Quantity(1)
    return Receipt(name, Quantity(height), block, one, one, one, logs=(moved,))
