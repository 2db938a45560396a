"""Bitcoin blocks and transactions, as far as finding one's own outputs and inputs needs them; URIs.

Layouts: the protocol documentation (https://developer.bitcoin.org/reference/transactions.html)
and BIP-141 for witnesses. Hashes are shown as everybody shows them: hexadecimal, last byte first.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from farebox.errors import InvalidInput

_HEADER_BYTES = 80
_LISTED_MAX = 1_000_000
_WITNESS_MARK = 0
_SAT_PER_BTC = 100_000_000
_SCHEME = re.compile(r"(bitcoin|btc):", re.IGNORECASE)
_AMOUNT = re.compile(r"[0-9]{1,8}(\.[0-9]{1,8})?", re.ASCII)
_FIELDS_MAX = 20


@dataclass(frozen=True, slots=True)
class TxOutput:
    """Value in satoshi, locked by a script."""

    amount_sat: int
    script: bytes


@dataclass(frozen=True, slots=True)
class BitcoinTx:
    """A transaction. `spends` are outpoints, as `txid:index`."""

    txid: str
    raw: bytes = field(repr=False)
    spends: tuple[str, ...]
    outputs: tuple[TxOutput, ...]


@dataclass(frozen=True, slots=True)
class BitcoinBlock:
    """A block. `time_s` is what its miner says, Unix seconds."""

    hash: str
    parent: str
    time_s: int
    txs: tuple[BitcoinTx, ...]


def read_uri(text: str) -> tuple[str, int | None]:
    """The address of a BIP-21 URI or of bare text, and the satoshi that it asks for, if any.

    Raises InvalidInput for an amount that is none, and for what one has to understand and we don't.
    """
    address, _, query = _SCHEME.sub("", text.strip()).partition("?")
    amount_sat = None
    try:
        fields = parse_qsl(query, max_num_fields=_FIELDS_MAX)
    except ValueError:
        raise InvalidInput("the address asks for too much") from None
    for name, value in fields:
        if name.startswith("req-"):
            raise InvalidInput("the address asks for something that is not known here")
        if name == "amount":
            if not _AMOUNT.fullmatch(value):
                raise InvalidInput("the address asks for an amount that is none")
            whole, _, rest = value.partition(".")
            amount_sat = int(whole) * _SAT_PER_BTC + int(rest.ljust(8, "0"))
    return address, amount_sat


def uri_of(address: str, amount_sat: int | None) -> str:
    """What a wallet opens (BIP-21); its amount is in bitcoin."""
    if amount_sat is None:
        return f"bitcoin:{address}"
    whole, rest = divmod(amount_sat, _SAT_PER_BTC)
    return f"bitcoin:{address}?amount={whole}.{rest:08d}"


def read_block(raw: bytes) -> BitcoinBlock:
    """Read a whole block. Raises InvalidInput."""
    at = _Cursor(raw)
    header = at.take(_HEADER_BYTES)
    txs = tuple(_read_tx(at) for _ in range(at.count()))
    at.end()
    return BitcoinBlock(
        hash=block_hash(header),
        parent=_shown(header[4:36]),
        time_s=int.from_bytes(header[68:72], "little"),
        txs=txs,
    )


def block_hash(header: bytes) -> str:
    """What a block is called, by its 80 bytes of header."""
    return _shown(_twice(header))


def read_tx(raw: bytes) -> BitcoinTx:
    """Read one transaction. Raises InvalidInput."""
    at = _Cursor(raw)
    found = _read_tx(at)
    at.end()
    return found


def _read_tx(at: _Cursor) -> BitcoinTx:
    start = at.position
    version = at.take(4)
    has_witness = at.peek() == _WITNESS_MARK
    if has_witness:
        at.take(2)
    body_from = at.position
    spends = []
    count = at.count()
    for _ in range(count):
        txid, index = _shown(at.take(32)), at.number(4)
        at.take(at.count())
        at.take(4)
        spends.append(f"{txid}:{index}")
    outputs = tuple(TxOutput(at.number(8), at.take(at.count())) for _ in range(at.count()))
    body = at.between(body_from, at.position)
    if has_witness:
        for _ in range(count):
            for _ in range(at.count()):
                at.take(at.count())
    locktime = at.take(4)
    return BitcoinTx(
        txid=_shown(_twice(version + body + locktime)),
        raw=at.between(start, at.position),
        spends=tuple(spends),
        outputs=outputs,
    )


class _Cursor:
    """A place in bytes that never runs past their end."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.position = 0

    def take(self, length: int) -> bytes:
        end = self.position + length
        if end > len(self._raw):
            raise InvalidInput("the transaction or block ends too early")
        found = self._raw[self.position : end]
        self.position = end
        return found

    def peek(self) -> int:
        found = self.take(1)[0]
        self.position -= 1
        return found

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "little")

    def count(self) -> int:
        """A length as the protocol writes it ("compact size")."""
        first = self.number(1)
        found = first if first < 0xFD else self.number({0xFD: 2, 0xFE: 4, 0xFF: 8}[first])
        if found > max(_LISTED_MAX, len(self._raw)):
            raise InvalidInput("the transaction or block names a length it cannot have")
        return found

    def between(self, start: int, end: int) -> bytes:
        return self._raw[start:end]

    def end(self) -> None:
        if self.position != len(self._raw):
            raise InvalidInput("something stands behind the transaction or block")


def _twice(raw: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(raw).digest()).digest()


def _shown(digest: bytes) -> str:
    return digest[::-1].hex()
