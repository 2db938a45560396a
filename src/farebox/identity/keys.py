"""Account keys: `sk-…` secrets that spend from an account.

Rows are found by the SHA-256 of the secret. Neither the lookup nor the cache compares in constant
time, and neither needs to: what timing could tell is how many leading bytes of *hashes* agree, and
nobody can steer a hash towards a stored one without having the secret.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from farebox.clock import NS_PER_S
from farebox.ids import new_id, new_secret, secret_hash
from farebox.ledger.model import ABSENT, Applied, Event, Put, Unit
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger, State
from farebox.ledger.store import PAGE_MAX

PREFIX = "sk-"
_SECRET_MAX_CHARS = 128
#: What is kept of a secret in the clear, so that its owner knows it again: 4 of 43 characters.
_HINT_CHARS = len(PREFIX) + 4
_CACHED_MAX = 50_000
#: How long a row read before is believed: another process may have ended the key meanwhile.
_BELIEVED_S = 1
_COUNT_KEY = "keys"
#: Of a label, of an address.
TEXT_MAX_CHARS = 2_048


class KeyState(enum.StrEnum):
    """Where a key stands. A key past its expiry is refused already before it is EXPIRED."""

    ACTIVE = "active"
    REVOKED = "revoked"
    EXPIRED = "expired"  # and its balance was refunded, or there was nowhere to refund it to


class KeyTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner says of a key: when it ends and where its money goes then.

    `expires_at` is UTC nanoseconds, None for never. `refund_address` empty means a new token of
    the method `refund_method`; `refund_metadata` is what that method said of the first payment.
    """

    label: str = ""
    expires_at: int | None = None
    refund_address: str = ""
    refund_currency: str = ""
    refund_mint_url: str = ""
    refund_method: str = ""
    refund_metadata: Mapping[str, str] = {}

    @property
    def is_printable(self) -> bool:
        """Whether its texts can be shown in a line, and are short enough to keep."""
        texts = (self.label, self.refund_address, self.refund_currency, self.refund_mint_url)
        return all(len(text) <= TEXT_MAX_CHARS and text.isprintable() for text in texts)


class ApiKey(KeyTerms, frozen=True, kw_only=True):
    """A key as stored, under the hash of its secret. `origin` is the call that made it."""

    id: str
    account: str
    hint: str
    created_at: int
    origin: str = ""
    state: KeyState = KeyState.ACTIVE
    revoked_at: int = 0

    @property
    def masked(self) -> str:
        """What may be shown of it: enough to know it again, useless to anyone else."""
        return f"{self.hint}…"

    @property
    def refund_terms(self) -> dict[str, str]:
        """What a refund must know: the owner's wishes over what the payment itself said."""
        wishes = {
            "refund_address": self.refund_address,
            "refund_currency": self.refund_currency,
            "refund_mint_url": self.refund_mint_url,
        }
        return {**self.refund_metadata, **{name: text for name, text in wishes.items() if text}}


class KeyCount(msgspec.Struct, frozen=True):
    """How many keys were ever made."""

    keys: int


API_KEY = RecordType("api_key", ApiKey, indexes=(("account",), ("id",), ("state", "expires_at")))
KEY_COUNT = RecordType("key_count", KeyCount)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made. The secret exists here and nowhere else."""

    secret: str = field(repr=False)
    key: ApiKey


class KeyRefusedReason(enum.StrEnum):
    """Why a secret opens nothing."""

    UNKNOWN = "unknown"
    REVOKED = "revoked"
    EXPIRED = "expired"


_WHY = {
    KeyRefusedReason.UNKNOWN: "No such key exists here; make one with POST /create.",
    KeyRefusedReason.REVOKED: "This key was revoked.",
    KeyRefusedReason.EXPIRED: "This key has expired; POST /refund still gives its balance back.",
}


@dataclass(frozen=True, slots=True)
class KeyRefused:
    """A secret that may not spend. `key` is the row, where there is one: its owner may still
    take the money of an expired key out."""

    reason: KeyRefusedReason
    key: ApiKey | None = None

    @property
    def message(self) -> str:
        """Why, in one sentence, and what to do."""
        return _WHY[self.reason]


@dataclass(frozen=True, slots=True)
class KeysExhausted:
    """As many keys exist as the operator allows."""

    keys_max: int


#: The ids of customers' accounts, and of no others, begin with this.
CUSTOMER_PREFIX = "customer:"


def new_account() -> str:
    """The name of a fresh customer account."""
    return f"{CUSTOMER_PREFIX}{new_id('acct')}"


def token_account(identity: str) -> str:
    """The account of a payment credential that serves as its own key.

    `identity` is `PaymentCredentials.identity_or_hash`. Whoever holds the credential holds the
    account.
    """
    return f"{CUSTOMER_PREFIX}{identity}"


class Keys:
    """The keys of a book. All writes to key rows in this process go through here.

    A key that ends here ends at once; one that another process ends is good here for at most
    `_BELIEVED_S` more: then its row is read again.
    """

    def __init__(self, ledger: Ledger, *, keys_max: int = 1_000_000) -> None:
        self._ledger = ledger
        self._keys_max = keys_max
        self._cache: OrderedDict[str, tuple[ApiKey, int]] = OrderedDict()
        self._writes = 0

    async def authenticate(self, secret: str) -> ApiKey | KeyRefused:
        """The key that a secret opens, from memory where it was seen before."""
        if len(secret) > _SECRET_MAX_CHARS or not secret.startswith(PREFIX):
            return KeyRefused(KeyRefusedReason.UNKNOWN)
        try:
            digest = secret_hash(secret)
        except UnicodeEncodeError:
            return KeyRefused(KeyRefusedReason.UNKNOWN)
        now = self._ledger.clock.now_ns()
        key, read_at = self._cache.get(digest, (None, 0))
        if key is None or not 0 <= now - read_at < _BELIEVED_S * NS_PER_S:
            key = await self._read(digest)
            if key is None:
                return KeyRefused(KeyRefusedReason.UNKNOWN)
        else:
            self._cache.move_to_end(digest)
        if key.state is KeyState.REVOKED:
            return KeyRefused(KeyRefusedReason.REVOKED, key)
        if key.state is KeyState.EXPIRED or _is_over(key, now):
            return KeyRefused(KeyRefusedReason.EXPIRED, key)
        return key

    async def has_room(self) -> bool:
        """Whether another key may be made; asked before money is taken for one."""
        row = await self._ledger.store.get(KEY_COUNT, _COUNT_KEY)
        return row is None or row.value.keys < self._keys_max

    async def create(
        self, account: str, terms: KeyTerms, *, origin: str = ""
    ) -> NewKey | KeysExhausted:
        """Make a key to an account, in one commit. The account itself is opened by its money."""
        secret = new_secret(PREFIX)
        digest, key_id = secret_hash(secret), new_id("key")

        def decide(state: State, now: int) -> Unit | KeysExhausted:
            count = state.value(KEY_COUNT, _COUNT_KEY) or KeyCount(0)
            if count.keys >= self._keys_max:
                return KeysExhausted(self._keys_max)
            key = ApiKey(
                **{name: getattr(terms, name) for name in KeyTerms.__struct_fields__},
                id=key_id,
                account=account,
                hint=secret[:_HINT_CHARS],
                created_at=now,
                origin=origin,
            )
            version = state.version(KEY_COUNT, _COUNT_KEY)
            return Unit(
                f"{key_id}:create",
                puts=(
                    Put(API_KEY, digest, key, ABSENT),
                    Put(KEY_COUNT, _COUNT_KEY, KeyCount(count.keys + 1), version),
                ),
                events=(Event("key.created", account, {"key": key_id}),),
            )

        outcome = await self._ledger.transact([(KEY_COUNT, _COUNT_KEY)], decide)
        if isinstance(outcome, KeysExhausted):
            return outcome
        assert isinstance(outcome, Applied), outcome  # ids and secret are fresh
        key = await self._read(digest)
        assert key is not None
        return NewKey(secret, key)

    async def revoke(self, key_id: str) -> ApiKey | None:
        """End a key for good; its balance stays on the account. None: there is no such key."""
        return await self._change(
            key_id,
            lambda key, now: msgspec.structs.replace(key, state=KeyState.REVOKED, revoked_at=now),
            "key.revoked",
        )

    async def expire(self, key_id: str) -> ApiKey | None:
        """Note that a key past its expiry is dealt with."""
        return await self._change(
            key_id,
            lambda key, _: msgspec.structs.replace(key, state=KeyState.EXPIRED),
            "key.expired",
        )

    async def by_id(self, key_id: str) -> ApiKey | None:
        """One key by the id that operators see."""
        found = await self._ledger.store.find(API_KEY, {"id": key_id}, limit=1)
        return found[0][1].value if found else None

    async def of_account(self, account: str) -> list[ApiKey]:
        """The keys to an account, at most 1,000."""
        found = await self._ledger.store.find(API_KEY, {"account": account})
        return [row.value for _, row in found]

    async def page(self, after: str = "", limit: int = PAGE_MAX) -> list[tuple[str, ApiKey]]:
        """All keys in the order of their cursors, those behind `after`."""
        found = await self._ledger.store.find(API_KEY, {}, after=after, limit=limit)
        return [(cursor, row.value) for cursor, row in found]

    async def due(self, after: str = "", limit: int = 100) -> list[tuple[str, ApiKey]]:
        """Active keys past their expiry, in the order of their cursors, behind `after`."""
        found = await self._ledger.store.find(
            API_KEY,
            {"state": KeyState.ACTIVE},
            at_most=("expires_at", self._ledger.clock.now_ns()),
            after=after,
            limit=limit,
        )
        return [(cursor, row.value) for cursor, row in found]

    async def _change(
        self, key_id: str, changed: Callable[[ApiKey, int], ApiKey], event: str
    ) -> ApiKey | None:
        found = await self._ledger.store.find(API_KEY, {"id": key_id}, limit=1)
        if not found:
            return None
        digest = found[0][0]

        def decide(state: State, now: int) -> Unit | ApiKey:
            row = state.row(API_KEY, digest)
            assert row is not None  # key rows are never removed
            if row.value.state is not KeyState.ACTIVE:
                return row.value
            return Unit(
                f"{key_id}:{row.version}",
                puts=(Put(API_KEY, digest, changed(row.value, now), row.version),),
                events=(Event(event, row.value.account, {"key": key_id}),),
            )

        try:
            outcome = await self._ledger.transact([(API_KEY, digest)], decide)
        finally:
            self._forget(digest)
        return outcome if isinstance(outcome, ApiKey) else await self._read(digest)

    async def _read(self, digest: str) -> ApiKey | None:
        writes, now = self._writes, self._ledger.clock.now_ns()
        row = await self._ledger.store.get(API_KEY, digest)
        if row is None:
            return None
        # A write that came between read and here has forgotten nothing yet: don't keep the old row.
        if writes == self._writes:
            self._cache[digest] = row.value, now
            self._cache.move_to_end(digest)
            if len(self._cache) > _CACHED_MAX:
                self._cache.popitem(last=False)
        return row.value

    def _forget(self, digest: str) -> None:
        self._writes += 1
        self._cache.pop(digest, None)


def _is_over(key: ApiKey, now: int) -> bool:
    return key.expires_at is not None and key.expires_at <= now
