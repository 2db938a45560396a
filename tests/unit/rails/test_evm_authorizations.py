"""A signed transfer that somebody else has sent is credited, wherever in the chain it stands.

The chain is the few answers that a transfer asks for; `test_evm_authorizations_anvil.py` has a
real one.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from eth_account import Account

from farebox.clock import NS_PER_S, SystemClock
from farebox.ledger.model import Unit
from farebox.ledger.service import Ledger
from farebox.payments import PaymentResult, Refusal
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

    async def height(self) -> int:
        return self.blocks

    async def history(self) -> History:
        return History((GWEI, GWEI), ((GWEI, GWEI, GWEI),), (False,))

    async def suggested_tip(self) -> int | None:
        return GWEI

    async def gas(self, sender: str, call: Call) -> int:
        return 60_000

    async def run(self, sender: str, call: Call) -> bytes:
        is_used = call.data.startswith(_IS_USED) and self.strangers is not None
        return int(is_used).to_bytes(32)

    async def told(self, contract: str, topics: Sequence[str], since: int) -> str | None:
        found = self.strangers
        return found.transaction_hash if found and found.block_number >= since else None

    async def receipt(self, transaction: str) -> Receipt | None:
        return self.strangers


async def test_who_is_quicker_in_a_branch_that_leaves_the_blocks_that_were_there_has_paid(
    tmp_path: Path,
) -> None:
    """The stranger's block is older than the newest was when the transfer was handed in."""
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
    message = {
        "from": payer.address,
        "to": keys.addresses[0],
        "value": VALUE,
        "validAfter": 0,
        "validBefore": SystemClock().now_ns() // NS_PER_S + 3_600,
        "nonce": f"0x{secrets.token_hex(32)}",
    }
    plan = await taking.plan(credential_of(payer, domain_of(TOKEN, CHAIN_ID), message))
    assert not isinstance(plan, Refusal), plan
    await store.commit(Unit("opened", puts=plan.puts))
    chain.strangers = receipt_of(payer.address, keys.addresses[0], chain.blocks - 20)
    told = await taking.receive(plan.payload)
    assert isinstance(told, PaymentResult), told
    assert (told.amount, told.transaction_id.partition(":")[0]) == (
        VALUE,
        chain.strangers.transaction_hash,
    )
    await store.close()


def receipt_of(payer: str, to: str, height: int) -> Receipt:
    """A transfer as its token tells of it."""
    ends = tuple(f"0x{address[2:].lower():0>64}" for address in (payer, to))
    moved = Log(
        TOKEN, (topic("Transfer(address,address,uint256)"), *ends), Data(VALUE.to_bytes(32))
    )
    name, block = (f"0x{secrets.token_hex(32)}" for _ in range(2))
    one = Quantity(1)
    return Receipt(name, Quantity(height), block, one, one, one, logs=(moved,))
