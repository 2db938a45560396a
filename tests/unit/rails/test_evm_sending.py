"""What is offered for a transaction can be paid by who sends it, however long it is stuck.

The chain is the few answers that sending asks for; `test_evm_sending_anvil.py` has a real one.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from farebox.clock import ManualClock
from farebox.ledger.service import Ledger
from farebox.rails.evm.fees import GWEI, Fees, History
from farebox.rails.evm.keys import keys_from
from farebox.rails.evm.outbox import STUCK_BLOCKS, Call, Slot
from farebox.rails.evm.reads import Chain, Receipt
from farebox.rails.evm.sending import Held, Parcel, Sending, SendTerms
from farebox.stores.sqlite import SqliteStore
from tests.integration.evm_desk import RECORDS

ETHER, PLAIN_GAS = 10**18, 21_000
TREASURY = "0x" + "ab" * 20


@dataclass
class StuckChain:
    """A node whose blocks have room for others only."""

    coin: int
    base_fee: int = 10 * GWEI
    blocks: int = 100
    heard: list[str] = field(default_factory=list)

    async def height(self) -> int:
        return self.blocks

    async def history(self) -> History:
        return History((self.base_fee, self.base_fee), ((GWEI, GWEI, GWEI),), (False,))

    async def suggested_tip(self) -> int | None:
        return GWEI

    async def receipt(self, transaction: str) -> Receipt | None:
        del transaction
        return None

    async def used(self, sender: str, at: int | None = None) -> int:
        del sender, at
        return 0

    async def pending(self, sender: str) -> int:
        del sender
        return 0

    async def balance(self, address: str) -> int:
        del address
        return self.coin

    async def broadcast(self, raw: str) -> None:
        self.heard.append(raw)


def most(slot: Slot) -> int:
    """What the newest attempt may take from its sender."""
    return slot.call.gas * slot.newest.max_fee + slot.call.value


async def test_a_sweep_that_is_stuck_is_never_offered_for_more_than_lies_there(
    tmp_path: Path,
) -> None:
    keys = keys_from(secrets.token_hex(32))
    store = SqliteStore(tmp_path / "book.db", RECORDS, clock=(clock := ManualClock()))
    room = 2 * PLAIN_GAS * (2 * 10 + 1) * GWEI
    chain = StuckChain(coin=ETHER)
    terms = SendTerms(chain="dev", chain_id=1, native="ETH")
    sending = Sending(terms, cast("Chain", chain), keys, Ledger(store, clock))
    sweep = Call(TREASURY, ETHER - room, gas=PLAIN_GAS)
    slot = await sending.send(Parcel(keys.addresses[0], sweep, "sweep:there:ETH"))
    assert isinstance(slot, Slot)
    for _ in range(20):
        chain.blocks += STUCK_BLOCKS
        chain.base_fee = chain.base_fee * 9 // 8  # gas gets dear
        slot = await sending.push(slot.key)
        assert most(slot) <= chain.coin
        assert slot.newest.raw, "what is broadcast again and again"
    assert 1 < len(slot.attempts) < 20, "as long as there was coin for it, more was offered"
    assert chain.heard[-1] == slot.newest.raw
    await store.close()


async def test_what_its_sender_could_not_pay_for_takes_no_nonce(tmp_path: Path) -> None:
    """Gas may get dear between what is left for it and the signing: nothing could follow then."""
    keys = keys_from(secrets.token_hex(32))
    store = SqliteStore(tmp_path / "book.db", RECORDS, clock=(clock := ManualClock()))
    chain = StuckChain(coin=ETHER)
    terms = SendTerms(chain="dev", chain_id=1, native="ETH")
    sending = Sending(terms, cast("Chain", chain), keys, Ledger(store, clock))
    offered = await sending.offer()
    assert isinstance(offered, Fees)
    room = 2 * PLAIN_GAS * offered.max_fee
    sweep = Parcel(keys.addresses[0], Call(TREASURY, ETHER - room, gas=PLAIN_GAS), "sweep:a:ETH")
    chain.base_fee *= 5
    assert isinstance(await sending.send(sweep), Held)
    assert await sending.open_slots() == []
    chain.base_fee //= 5
    slot = await sending.send(sweep)
    assert isinstance(slot, Slot)
    assert (slot.nonce, most(slot) <= chain.coin) == (0, True)
    await store.close()
