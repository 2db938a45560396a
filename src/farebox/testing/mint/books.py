"""A play mint's memory: what it signed, what was spent, which quotes it gave.

Promises: a change is whole or not there, and with a file it is in the file before it counts.
Never: fsync. It survives the death of the process, not of the machine: the money is play money.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from farebox.ecash.mint import MeltQuoteState, MintQuoteState
from farebox.errors import StoreCorrupt
from farebox.testing.mint.keys import KeysetRow
from farebox.wire.cashu.model import BlindedMessage, BlindSignature


class SpentRow(msgspec.Struct, frozen=True):
    """A proof that was spent: its Y, and what it was worth."""

    y: bytes
    amount: int
    unit: str


class SignedRow(msgspec.Struct, frozen=True):
    """An output that was signed, with the signature to restore."""

    blinded: bytes
    unit: str
    signature: BlindSignature


class MintQuoteRow(msgspec.Struct, frozen=True):
    """A mint quote; `preimage` is what paying its invoice reveals."""

    quote: str
    request: str
    amount: int
    unit: str
    state: MintQuoteState
    expiry_s: int
    preimage: bytes
    public_key: bytes | None = None


class MeltQuoteRow(msgspec.Struct, frozen=True):
    """A melt quote, with what it holds while it is pending."""

    quote: str
    request: str
    amount: int
    fee_reserve: int
    unit: str
    state: MeltQuoteState
    expiry_s: int
    preimage: bytes | None = None
    inputs: tuple[SpentRow, ...] = ()
    input_fee: int = 0
    outputs: tuple[BlindedMessage, ...] = ()
    change: tuple[BlindSignature, ...] = ()


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that one call changes."""

    seed: str | None = None
    keysets: tuple[KeysetRow, ...] = ()
    spent: tuple[SpentRow, ...] = ()
    signed: tuple[SignedRow, ...] = ()
    mint_quotes: tuple[MintQuoteRow, ...] = ()
    melt_quotes: tuple[MeltQuoteRow, ...] = ()


class Books:
    """The state, as the sum of the changes so far. Read the fields; change by `commit`."""

    def __init__(self, file: Path | None = None) -> None:
        self.seed: str | None = None
        self.keysets: list[KeysetRow] = []
        self.spent: dict[bytes, SpentRow] = {}
        self.signed: dict[bytes, SignedRow] = {}
        self.mint_quotes: dict[str, MintQuoteRow] = {}
        self.melt_quotes: dict[str, MeltQuoteRow] = {}
        self.pending: set[bytes] = set()
        self._file = file
        if file is not None and file.exists():
            self._read(file)

    def commit(self, change: Change) -> None:
        """Make a change: one line of the file, then the fields."""
        if self._file is not None:
            with self._file.open("ab") as file:
                file.write(msgspec.json.encode(change) + b"\n")
        self._apply(change)

    def _read(self, file: Path) -> None:
        raw = file.read_bytes()
        # A line without its end was being written when the process died: it never counted.
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            file.write_bytes(whole)
        try:
            for line in whole.splitlines():
                self._apply(msgspec.json.decode(line, type=Change))
        except msgspec.DecodeError:
            raise StoreCorrupt(f"the play mint's state in {file} cannot be read") from None

    def _apply(self, change: Change) -> None:
        self.seed = change.seed or self.seed
        self.keysets.extend(change.keysets)
        self.spent.update((row.y, row) for row in change.spent)
        self.signed.update((row.blinded, row) for row in change.signed)
        self.mint_quotes.update((row.quote, row) for row in change.mint_quotes)
        for quote in change.melt_quotes:
            before = self.melt_quotes.get(quote.quote)
            if before is not None and before.state is MeltQuoteState.PENDING:
                self.pending.difference_update(row.y for row in before.inputs)
            if quote.state is MeltQuoteState.PENDING:
                self.pending.update(row.y for row in quote.inputs)
            self.melt_quotes[quote.quote] = quote
