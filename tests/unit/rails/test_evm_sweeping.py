"""What sweeps knows for itself how deep deposits are, whoever watches the chain.

The chain is the model of `test_evm_arrivals.py`; `test_evm_sweeping_anvil.py` has a real one.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from farebox.clock import SystemClock
from farebox.ledger.service import Ledger
from farebox.payments import Refusal
from farebox.payments.exchange import Exchange
from farebox.rails.evm.fees import Fees
from farebox.rails.evm.gas import PLAIN_GAS, Gas, L1Fee
from farebox.rails.evm.outbox import Call, SlotState
from farebox.rails.evm.sending import Parcel
from farebox.rails.evm.sweeping import Sweeping, SweepTerms
from farebox.stores.sqlite import SqliteStore
from tests.integration.evm_desk import RECORDS
from tests.unit.rails.test_evm_arrivals import ACCOUNT, CONFIRMATIONS, Chain, Payment, Watcher

COIN = 10**9
TREASURY = "0x" + "cd" * 20


class Sender:
    """As much of sending as a sweep of coin asks for; keeps what it is given."""

    def __init__(self) -> None:
        self.terms = SimpleNamespace(chain="model", native="ETH")
        self.keys = SimpleNamespace(
            can_sweep=True, learn=lambda address, index: None, addresses=(TREASURY,)
        )
        self.chain = self
        self.sent: list[Parcel] = []
        self.open: list[Any] = []
        self.cancelled: list[str] = []

    async def offer(self) -> Fees:
        return Fees(max_fee=1, tip=1)

    async def open_slots(self) -> list[Any]:
        return self.open

    async def cancel(self, key: str) -> None:
        self.cancelled.append(key)

    async def balance(self, address: str) -> int:
        return COIN

    async def gas(self, sender: str, call: Call) -> int:
        return PLAIN_GAS

    async def send(self, parcel: Parcel) -> object:
        self.sent.append(parcel)
        return object()


@pytest.mark.parametrize(("max_fee", "is_stuck"), [(1, False), (3, True)])
async def test_a_sweep_that_offers_more_than_is_left_beside_it_gives_its_nonce_free(
    tmp_path: Path, max_fee: int, is_stuck: bool
) -> None:
    store = SqliteStore(tmp_path / "book.db", RECORDS, clock=SystemClock())
    ledger, sender = Ledger(store, SystemClock()), Sender()
    slot = SimpleNamespace(
        key="lane:0",
        purpose="sweep:there:ETH",
        state=SlotState.SENT,
        token="",
        wants_cancel=False,
        sender="there",
        call=Call(TREASURY, COIN - 2 * PLAIN_GAS, gas=PLAIN_GAS),
        newest=SimpleNamespace(max_fee=max_fee),
    )
    sender.open = [slot]
    await sweeping_of(sender, Watcher(Chain(), ledger), ledger).run()
    assert sender.cancelled == (["lane:0"] if is_stuck else [])
    await store.close()


def sweeping_of(sender: Sender, watcher: Watcher, ledger: Ledger) -> Sweeping:
    sending = cast("Any", sender)
    terms = SweepTerms(assets={"ETH": ""}, treasuries=(TREASURY,))
    gas = Gas(sending, L1Fee.NONE)
    return Sweeping(terms, sending, gas, watcher.arrivals, ledger, Exchange())


async def test_a_process_that_sweeps_and_does_not_watch_sweeps_what_another_has_seen(
    tmp_path: Path,
) -> None:
    store = SqliteStore(tmp_path / "book.db", RECORDS, clock=SystemClock())
    ledger, chain, sender = Ledger(store, SystemClock()), Chain(), Sender()
    watching, sweeping = Watcher(chain, ledger), Watcher(chain, ledger)
    sweeper = sweeping_of(sender, sweeping, ledger)
    made = await watching.requests.ask("model", "ETH", None, ACCOUNT, opens_account=False)
    assert not isinstance(made, Refusal)
    address = made.request.reference
    chain.waiting.append(Payment(f"0x{secrets.token_hex(32)}", address, COIN))
    chain.mine()
    await watching.look()
    assert await sweeper.run() == 0  # it may vanish yet
    for _ in range(CONFIRMATIONS):
        chain.mine()
    await watching.look()
    assert await sweeper.run() == 1
    assert [one.sender for one in sender.sent] == [address]
    await store.close()
