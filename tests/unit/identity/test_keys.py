"""Account keys: made once, found by hash, ended for good."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.clock import NS_PER_S, ManualClock
from farebox.identity import (
    RECORDS,
    ApiKey,
    KeyRefused,
    KeyRefusedReason,
    Keys,
    KeysExhausted,
    KeyState,
    KeyTerms,
    NewKey,
    new_account,
    token_account,
)
from farebox.ledger.service import Ledger
from farebox.stores.sqlite import SqliteStore


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def ledger(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Ledger]:
    store = SqliteStore(tmp_path / "book.db", RECORDS, clock=clock)
    yield Ledger(store, clock)
    await store.close()


def everything_under(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def made(keys: Keys, terms: KeyTerms | None = None) -> NewKey:
    new = await keys.create(new_account(), terms or KeyTerms())
    assert isinstance(new, NewKey)
    return new


async def refusal(keys: Keys, secret: str) -> KeyRefusedReason:
    refused = await keys.authenticate(secret)
    assert isinstance(refused, KeyRefused)
    return refused.reason


async def test_a_key_opens_its_account(ledger: Ledger) -> None:
    new = await made(Keys(ledger), KeyTerms(label="laptop", refund_address="me@example.com"))
    found = await Keys(ledger).authenticate(new.secret)
    assert found == new.key
    assert isinstance(found, ApiKey)
    assert (found.label, found.refund_address) == ("laptop", "me@example.com")


async def test_the_secret_is_nowhere_in_the_book(ledger: Ledger, tmp_path: Path) -> None:
    new = await made(Keys(ledger))
    await ledger.store.close()
    stored = everything_under(tmp_path)
    assert new.key.id.encode() in stored
    assert new.secret.encode() not in stored
    assert new.secret not in repr(new)
    assert new.key.masked == new.secret[:7] + "…"


@pytest.mark.parametrize(
    "secret", ["sk-" + "a" * 43, "sk-", "", "nonsense", "sk-" + "a" * 10_000, "sk-\udcff", "sk-ü"]
)
async def test_an_unknown_secret_is_refused(ledger: Ledger, secret: str) -> None:
    assert await refusal(Keys(ledger), secret) is KeyRefusedReason.UNKNOWN


async def test_a_revoked_key_is_refused_at_once_though_it_was_remembered(ledger: Ledger) -> None:
    keys = Keys(ledger)
    new = await made(keys)
    assert isinstance(await keys.authenticate(new.secret), ApiKey)
    revoked = await keys.revoke(new.key.id)
    assert revoked is not None
    assert revoked.state is KeyState.REVOKED
    assert await refusal(keys, new.secret) is KeyRefusedReason.REVOKED
    assert await keys.revoke(new.key.id) == revoked, "revoking twice changes nothing"
    assert await keys.revoke("key_unknown") is None


async def test_a_key_is_refused_from_its_expiry_on(ledger: Ledger, clock: ManualClock) -> None:
    keys = Keys(ledger)
    ends = await made(keys, KeyTerms(expires_at=clock.now_ns() + 60 * NS_PER_S))
    lasts = await made(keys)
    assert isinstance(await keys.authenticate(ends.secret), ApiKey)
    assert await keys.due() == []
    clock.advance(60)
    assert await refusal(keys, ends.secret) is KeyRefusedReason.EXPIRED
    assert [key.id for _, key in await keys.due()] == [ends.key.id]
    await keys.expire(ends.key.id)
    assert await keys.due() == []
    assert await refusal(keys, ends.secret) is KeyRefusedReason.EXPIRED
    assert isinstance(await keys.authenticate(lasts.secret), ApiKey)


async def test_no_more_keys_are_made_than_allowed(ledger: Ledger) -> None:
    keys = Keys(ledger, keys_max=2)
    for _ in range(2):
        assert await keys.has_room()
        await made(keys)
    assert not await keys.has_room()
    assert await keys.create(new_account(), KeyTerms()) == KeysExhausted(2)


async def test_keys_are_listed_by_account_id_and_page(ledger: Ledger) -> None:
    keys = Keys(ledger)
    account = token_account("cred_1")
    for label in ("a", "b"):
        assert isinstance(await keys.create(account, KeyTerms(label=label)), NewKey)
    other = await made(keys)
    assert {key.label for key in await keys.of_account(account)} == {"a", "b"}
    assert await keys.by_id(other.key.id) == other.key
    assert await keys.by_id("key_unknown") is None
    first = await keys.page(limit=2)
    rest = await keys.page(after=first[-1][0])
    assert len({key.id for _, key in first + rest}) == 3


async def test_authenticating_a_remembered_key_is_quick(ledger: Ledger) -> None:
    keys = Keys(ledger)
    new = await made(keys)
    started = time.process_time()  # ours alone: the machine may be busy
    for _ in range(2_000):
        await keys.authenticate(new.secret)
    assert (time.process_time() - started) / 2_000 < 100e-6  # about 3 µs
