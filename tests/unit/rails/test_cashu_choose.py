"""Which proofs leave: exact ones first, few, alive, and not those that another plan wants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.clock import ManualClock
from farebox.ids import derived_id, new_id
from farebox.ledger.model import ABSENT, Applied, Put, Unit
from farebox.ledger.service import Ledger
from farebox.rails.cashu.choose import Claims, alive, cover, exact, worth
from farebox.rails.cashu.inventory import Held, Inventory
from farebox.rails.cashu.records import PROOF, RECORDS, ProofUse, StoredProof
from farebox.stores.sqlite import SqliteStore
from farebox.wire.cashu.model import Keyset

LIVE, DEAD = "00" + "11" * 7, "00" + "22" * 7
KEYS = {1 << bit: b"\x02" * 33 for bit in range(20)}


def keyset(keyset_id: str = LIVE, fee_ppk: int = 0, expiry: int | None = None) -> Keyset:
    return Keyset(keyset_id, "sat", True, fee_ppk, expiry, KEYS)


def stored(amount: int, keyset_id: str = LIVE, counter: int = 0) -> StoredProof:
    return StoredProof(
        mint="https://m",
        unit="sat",
        keyset_id=keyset_id,
        amount=amount,
        fee_ppk=0,
        counter=counter,
        C=b"\x02" * 33,
    )


def held(*amounts: int, keyset_id: str = LIVE) -> list[Held]:
    return [
        Held(f"{keyset_id}{index}", stored(amount, keyset_id), 1)
        for index, amount in enumerate(amounts)
    ]


def test_exact_proofs_are_found() -> None:
    chosen = exact(held(1, 2, 4, 8, 16), 21)

    assert chosen is not None
    assert sorted(one.stored.amount for one in chosen) == [1, 4, 16]
    assert exact(held(4, 8), 5) is None


def test_a_fee_is_included_or_on_top() -> None:
    keysets = {LIVE: keyset(fee_ppk=1_000)}

    included = cover(held(8, 4), 8, keysets, fee_included=True)
    on_top = cover(held(8, 4), 8, keysets, fee_included=False)

    assert included is not None
    assert (included.amount, included.fee) == (8, 1)
    assert on_top is not None
    assert (on_top.amount, on_top.fee) == (12, 2)
    assert cover(held(8), 8, keysets, fee_included=False) is None


def test_proofs_not_worth_their_fee_and_of_unknown_keysets_are_left() -> None:
    keysets = {LIVE: keyset(fee_ppk=2_000)}

    assert cover(held(2, 2, 2), 4, keysets, fee_included=True) is None
    assert cover(held(64, keyset_id=DEAD), 4, keysets, fee_included=True) is None


def test_proofs_of_an_expired_keyset_are_left() -> None:
    keysets = {LIVE: keyset(), DEAD: keyset(DEAD, expiry=100)}
    both = [*held(1), *held(2, keyset_id=DEAD)]

    assert [one.stored.amount for one in alive(both, keysets, 99)] == [1, 2]
    assert [one.stored.amount for one in alive(both, keysets, 100)] == [1]


def test_worth_is_net_of_one_fee() -> None:
    assert worth(held(8, 4), {LIVE: keyset(fee_ppk=500)}) == 11


def test_claimed_proofs_are_free_again_after_a_moment() -> None:
    clock = ManualClock()
    claims, all_of_them = Claims(clock), held(1, 2)
    claims.add([all_of_them[0].key])

    assert claims.free(all_of_them) == all_of_them[1:]
    clock.advance(3)
    assert claims.free(all_of_them) == all_of_them


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "book.db", RECORDS)
    yield opened
    await opened.close()


async def test_all_of_a_large_inventory_is_seen_once(store: SqliteStore) -> None:
    inventory = Inventory(Ledger(store, ManualClock()), bytes(32))
    puts = [
        Put(PROOF, f"0{2 + number % 2}" + derived_id("x", str(number))[2:], stored(1), ABSENT)
        for number in range(2_500)
    ]
    for at in range(0, 2_500, 500):
        outcome = await store.commit(Unit(new_id("fill"), puts=tuple(puts[at : at + 500])))
        assert isinstance(outcome, Applied)

    for _ in range(5):
        every = await inventory.available("https://m", "sat", all_pages=True)
        page = await inventory.available("https://m", "sat")

        assert sorted(one.key for one in every) == sorted(put.key for put in puts)
        assert 1_000 <= len({one.key for one in page}) == len(page) < 2_500


async def test_counters_ascend_across_blocks_keysets_and_restarts(store: SqliteStore) -> None:
    ledger = Ledger(store, ManualClock())
    inventory = Inventory(ledger, bytes(32))
    taken: list[int] = []
    for count in (10, 500, 10, 1_000, 1):
        first = await inventory.take_counters(LIVE, count)
        taken += range(first, first + count)
    assert await inventory.take_counters(DEAD, 1) == 0
    await inventory.skip_counters(LIVE, 5_000)
    taken.append(await inventory.take_counters(LIVE, 1))
    taken.append(await Inventory(ledger, bytes(32)).take_counters(LIVE, 1))

    assert taken == sorted(set(taken))
    assert taken[-2] - taken[-3] > 5_000


async def test_a_spent_proof_keeps_nothing_that_is_money(store: SqliteStore) -> None:
    put = held(4)[0].becomes(ProofUse.SPENT, "op_1")

    assert (put.value.C, put.value.e, put.value.s, put.value.owner) == (b"", b"", b"", "op_1")
    assert "0202" not in repr(stored(4))
