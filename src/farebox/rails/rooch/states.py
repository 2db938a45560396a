"""What the contract keeps, as the chain stores it: objects and rows of tables, in BCS.

    PaymentChannel  sender address | receiver address | coin_type string | sub_channels object id
                    | status u8 | epoch u64 | cancellation option
    SubChannel      pk_multibase string | method_type string | last_claimed u256 | nonce u64
    PaymentHub      multi_coin_store object id | active_channels object id
    CoinStore       coin_type string | balance u256 | frozen bool

A row of a table is its name, then its value; it is found by SHA3-256 of the name in BCS and the
type of names, `0x1::string::String`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from farebox.errors import InvalidCredential
from farebox.wire.subrav.bcs import string

_STRING_TYPE = f"0x{1:064x}::string::String".encode()
_TEXT_MAX_BYTES = 1_024


@dataclass(frozen=True, slots=True)
class ChannelState:
    """A channel. `status`: 0 active, 1 closing, 2 closed."""

    sender: bytes
    receiver: bytes
    coin_type: str
    sub_channels: str
    status: int
    epoch: int


@dataclass(frozen=True, slots=True)
class SubChannelState:
    """A sub-channel, with the key that was frozen when it was authorised."""

    key_multibase: str
    method_type: str
    last_claimed_amount: int
    last_confirmed_nonce: int


def field_key(name: str) -> str:
    """The key of a table's row."""
    return "0x" + hashlib.sha3_256(string(name.encode()) + _STRING_TYPE).hexdigest()


def read_channel(raw: bytes) -> ChannelState:
    """A `PaymentChannel`. Raises InvalidCredential."""
    at = _Reader(raw)
    return ChannelState(
        sender=at.take(32),
        receiver=at.take(32),
        coin_type=at.text(),
        sub_channels=at.object_id(),
        status=at.number(1),
        epoch=at.number(8),
    )


def read_sub_channel(raw: bytes, fragment: str) -> SubChannelState:
    """The row of a fragment in `sub_channels`. Raises InvalidCredential."""
    at = _Reader(raw)
    at.expect(fragment)
    return SubChannelState(
        key_multibase=at.text(),
        method_type=at.text(),
        last_claimed_amount=at.number(32),
        last_confirmed_nonce=at.number(8),
    )


def read_hub_store(raw: bytes) -> str:
    """The id of a `PaymentHub`'s store of coins. Raises InvalidCredential."""
    return _Reader(raw).object_id()


def read_coins(raw: bytes, coin_type: str) -> int:
    """The balance in a store's row of one coin; nothing of what is frozen. InvalidCredential."""
    at = _Reader(raw)
    at.expect(coin_type)
    at.expect(coin_type)
    balance = at.number(32)
    return 0 if at.number(1) else balance


class _Reader:
    """Reads BCS from the front."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._raw):
            raise InvalidCredential("an object of Rooch is cut off")
        part, self._at = self._raw[self._at : end], end
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        size = self._length()
        if size > _TEXT_MAX_BYTES:
            raise InvalidCredential("a text of Rooch is too long")
        try:
            return self.take(size).decode()
        except UnicodeDecodeError:
            raise InvalidCredential("a text of Rooch is no UTF-8") from None

    def object_id(self) -> str:
        """One of at most a few addresses: the row of a table has the table's before its own."""
        count = self._length()
        if not 1 <= count <= 4:
            raise InvalidCredential("an object id of Rooch has too many parts")
        return "0x" + self.take(32 * count).hex()

    def expect(self, text: str) -> None:
        if self.text() != text:
            raise InvalidCredential("a row of Rooch is not the one that was asked for")

    def _length(self) -> int:
        first = self.number(1)
        if first < 128:
            return first
        second = self.number(1)
        if not 0 < second < 128:
            raise InvalidCredential("a length in an object of Rooch makes no sense")
        return first & 127 | second << 7
