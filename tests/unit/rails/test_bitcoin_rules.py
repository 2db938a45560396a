"""What the Bitcoin rail decides without asking anybody: keys, depths, shares of fees, names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from farebox.clock import SystemClock
from farebox.errors import InvalidCredential, InvalidInput
from farebox.ledger.model import ABSENT, Put, Unit
from farebox.ledger.service import Ledger
from farebox.payments.deposits import Deposit, DepositState
from farebox.payments.rail import Limits
from farebox.rails.bitcoin import BitcoinConfig, Depth
from farebox.rails.bitcoin.arrivals import judged, where
from farebox.rails.bitcoin.batches import Batches, shares, winner
from farebox.rails.bitcoin.chain import Block, ChainInfo, View, is_known
from farebox.rails.bitcoin.keys import WalletKeys
from farebox.rails.bitcoin.method import fault_of
from farebox.rails.bitcoin.records import BATCH, Batch, BatchState, BatchTry
from farebox.stores.sqlite import SqliteStore

#: The mnemonic of BIP-84's own test vectors.
BIP84 = "abandon " * 11 + "about"
CONFIG = BitcoinConfig(
    name="main",
    deposits=Limits(1, 10**15),
    payouts=Limits(1, 10**15),
    depths=(Depth(0, 1), Depth(1_000, 3), Depth(50_000, 6)),
)


def test_addresses_are_those_of_bip_84() -> None:
    keys = WalletKeys(BIP84, "bitcoin")
    assert keys.address(0) == "bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu"
    assert keys.address(1) == "bc1qnjg0jd8228aq7egyzacy8cys3knf9xvrerkf9g"
    assert keys.can_sign


def test_the_public_side_gives_the_same_addresses_and_cannot_sign() -> None:
    keys = WalletKeys(BIP84, "bitcoin")
    public = str(keys.external.as_public()).partition("#")[0].replace("/0/*", "/<0;1>/*")
    watching = WalletKeys(public, "bitcoin")
    assert watching.address(7) == keys.address(7)
    assert not watching.can_sign
    assert watching.checksum != ""


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("abandon " * 12, "bitcoin"),
        ("wpkh(xprv9s21ZrQH143K/<0;1>/*)", "bitcoin"),
        ("something", "bitcoin"),
        (BIP84, "nonet"),
    ],
)
def test_a_wrong_key_is_refused_and_not_quoted(text: str, network: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        WalletKeys(text, network)
    assert text not in str(refused.value)
    assert "abandon" not in str(refused.value)


def test_a_key_never_shows() -> None:
    keys = WalletKeys(BIP84, "bitcoin")
    assert "abandon" not in repr(keys)
    assert "prv" not in repr(keys)


def test_more_value_needs_more_confirmations() -> None:
    needed = [CONFIG.confirmations(sat) for sat in (1, 999, 1_000, 49_999, 50_000, 10**9)]
    assert needed == [1, 1, 3, 3, 6, 6]


@pytest.mark.parametrize(
    ("booked", "depth", "told"),
    [
        (None, 0, DepositState.DETECTED),
        (None, 2, DepositState.DETECTED),
        (None, 3, DepositState.CONFIRMED),
        (DepositState.DETECTED, 0, None),
        (DepositState.DETECTED, 2, None),
        (DepositState.DETECTED, 3, DepositState.CONFIRMED),
        (DepositState.CONFIRMED, 3, DepositState.CONFIRMED),
        (DepositState.CREDITED, 3, None),
        (DepositState.CREDITED, 1, None),
        (DepositState.CREDITED, 0, DepositState.REVERSED),
        (DepositState.REVERSED, 0, None),
        (DepositState.REVERSED, 1, DepositState.DETECTED),
        (DepositState.REVERSED, 3, DepositState.CONFIRMED),
    ],
)
def test_what_an_output_three_blocks_are_asked_of_is_told_to_be(
    booked: DepositState | None, depth: int, told: DepositState | None
) -> None:
    assert judged(booked, depth, 3) is told


def test_nothing_is_confirmed_without_a_block_whatever_the_settings_say() -> None:
    assert judged(None, 0, 0) is DepositState.DETECTED


_DEPOSIT = Deposit(
    source="bitcoin",
    reference="aa",
    account="a",
    custody="c",
    asset="BTC",
    currency="BTC",
    amount_msat=1,
    amount=1,
)


def test_a_block_that_was_left_is_another_place_when_the_chain_comes_back_to_it() -> None:
    block, other = Block(5, "five"), Block(6, "six")
    gone = replace(
        _DEPOSIT, state=DepositState.REVERSED, seen_in="five", gone_from=("five",), turn=2
    )
    assert where(None, block, DepositState.CONFIRMED) == "five"
    assert where(None, None, DepositState.DETECTED) == ""
    assert where(gone, other, DepositState.CONFIRMED) == "six"
    assert where(gone, block, DepositState.CONFIRMED) == "five~3"
    stands = replace(_DEPOSIT, state=DepositState.CREDITED, seen_in="five~3")
    assert where(stands, None, DepositState.REVERSED) == "five~3"


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=20), st.data())
def test_a_fee_is_parted_whole_alike_and_within_each_limit(
    limits: list[int], data: st.DataObject
) -> None:
    fee_sat = data.draw(st.integers(0, sum(limits)))
    found = shares(fee_sat, limits)
    assert sum(found) == fee_sat
    assert all(0 <= share <= limit for share, limit in zip(found, limits, strict=True))
    below = [share for share, limit in zip(found, limits, strict=True) if share < limit]
    assert not below or max(below) - min(below) <= 1


def _batch(*names: str) -> Batch:
    tries = tuple(BatchTry(name, b"raw", 1, 1, 1) for name in names)
    return Batch(wallet="main", payouts=(), inputs=("in:0",), state=BatchState.SENT, tries=tries)


def test_the_try_in_a_block_is_the_one_that_won() -> None:
    tip, block = Block(9, "nine"), Block(8, "eight")
    batch = _batch("first", "second")
    assert winner(batch, View(tip)) == (None, None)
    found, place = winner(batch, View(tip, txs={"second": None}))
    assert (found, place) == (batch.tries[1], None)
    found, place = winner(batch, View(tip, txs={"first": block, "second": None}))
    assert (found, place) == (batch.tries[0], block)


def test_a_child_is_paid_for_where_its_parent_won() -> None:
    child = BatchTry("child", b"raw", 500, 1, 1)
    first, second = BatchTry("first", b"raw", 100, 1, 1), BatchTry("second", b"raw", 120, 1, 1)
    batch = Batch(
        wallet="main",
        payouts=(),
        inputs=("in:0",),
        state=BatchState.SENT,
        tries=(first, second),
        child=child,
        child_of="first",
    )
    assert [batch.cost_sat(one) for one in batch.tries] == [600, 120]


def test_a_source_on_another_chain_or_behind_is_at_fault() -> None:
    tip, other = Block(1, "one"), "00" * 32
    genesis = "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f"
    assert fault_of(ChainInfo("it", genesis, tip), CONFIG) == ""
    assert "another chain" in fault_of(ChainInfo("it", other, tip), CONFIG)
    assert "catching up" in fault_of(ChainInfo("it", genesis, tip, is_synced=False), CONFIG)


@pytest.mark.parametrize(
    "refusal",
    [
        "TX rejected: already have transaction 00",
        "TX rejected: transaction already exists in blockchain",
        "txn-already-in-mempool",
        "Transaction already in block chain",
    ],
)
def test_what_is_there_already_is_no_refusal(refusal: str) -> None:
    assert is_known(refusal)
    assert not is_known("insufficient fee, rejecting replacement")


@pytest.mark.parametrize("state", [BatchState.PAID, BatchState.OLD, BatchState.DEAD])
async def test_what_has_come_to_its_end_is_not_signed_any_more(
    state: BatchState, tmp_path: Path
) -> None:
    """A dearer form waited for its signature while an earlier one won, or all have lost."""
    store = SqliteStore(tmp_path / "book.db", [BATCH], clock=SystemClock())
    nothing = cast("Any", SimpleNamespace(register=lambda kind, handler: None))
    batches = Batches(CONFIG, nothing, nothing, Ledger(store, SystemClock()), nothing)
    batch = replace(_batch("first"), state=state, psbt="cHNidP8=")
    await store.commit(Unit("made", puts=(Put(BATCH, "batch", batch, ABSENT),)))
    with pytest.raises(InvalidCredential, match="waits for a signature"):
        await batches.sign("batch", "cHNidP8=")
    await store.close()
