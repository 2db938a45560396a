"""The nouns of Cashu (NUT-00, NUT-02, NUT-12), frozen, in the specifications' own letters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from farebox.errors import InvalidCredential

#: Amounts in tokens stay below this, so that a token and its sum fit a signed 64-bit integer.
AMOUNT_END = 2**63

#: Keyset ids in hex: 8 bytes (version 00, or the short form of a longer one) or 33 bytes.
SHORT_ID_CHARS = 16

_MINT_URL_MAX_CHARS = 1024
_KEYSET_ID = re.compile(r"[0-9a-f]{16}|[0-9a-f]{66}")
_UNIT = re.compile(r"[a-z0-9_.-]{1,32}")


@dataclass(frozen=True, slots=True, repr=False)
class Dleq:
    """NUT-12: proof that one private key made both the mint's public key and a signature.

    `r` is the blinding factor, known only inside a proof handed from user to user; a mint's own
    answer has none.
    """

    e: bytes
    s: bytes
    r: bytes | None = None

    def __repr__(self) -> str:
        return "Dleq(…)"


@dataclass(frozen=True, slots=True, repr=False)
class Proof:
    """An unblinded signature `C` on `secret`: whoever knows both can spend it. Never log one."""

    amount: int
    keyset_id: str
    secret: str
    C: bytes
    dleq: Dleq | None = None
    witness: str | None = None

    def __repr__(self) -> str:
        return f"Proof(amount={self.amount}, keyset_id={self.keyset_id!r}, secret=…, C=…)"


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """Proofs of one mint and one unit, as handed from one user to another."""

    mint: str
    unit: str
    proofs: tuple[Proof, ...]
    memo: str | None = None

    @property
    def amount(self) -> int:
        """The face value in `unit`, before any fee."""
        return sum(proof.amount for proof in self.proofs)

    def __repr__(self) -> str:
        return (
            f"Token(mint={self.mint!r}, unit={self.unit!r}, amount={self.amount},"
            f" proofs={len(self.proofs)})"
        )


@dataclass(frozen=True, slots=True)
class BlindedMessage:
    """An output: the blinded point `B_` that the mint is asked to sign for `amount`."""

    amount: int
    keyset_id: str
    B_: bytes


@dataclass(frozen=True, slots=True, repr=False)
class BlindSignature:
    """A promise: the mint's blind signature `C_`, and its proof of which key signed."""

    amount: int
    keyset_id: str
    C_: bytes
    dleq: Dleq | None = None

    def __repr__(self) -> str:
        return f"BlindSignature(amount={self.amount}, keyset_id={self.keyset_id!r}, C_=…)"


@dataclass(frozen=True, slots=True)
class Keyset:
    """A mint's public keys, one per amount. Fee in thousandths of a unit per input (NUT-02).

    `final_expiry` is in Unix seconds; after it the mint may forget what was spent and signed.
    """

    id: str
    unit: str
    active: bool
    input_fee_ppk: int
    final_expiry: int | None
    keys: Mapping[int, bytes]

    def __repr__(self) -> str:
        return (
            f"Keyset(id={self.id!r}, unit={self.unit!r}, active={self.active},"
            f" input_fee_ppk={self.input_fee_ppk}, final_expiry={self.final_expiry})"
        )


def parse_keyset_id(text: str) -> str:
    """A keyset id in lower-case hex, long or short. Raises InvalidCredential."""
    lowered = text.lower()
    if not _KEYSET_ID.fullmatch(lowered):
        raise InvalidCredential("a keyset id is 8 or 33 bytes in hex")
    return lowered


def parse_unit(text: str) -> str:
    """A currency unit in lower case, such as `sat`. Raises InvalidCredential."""
    lowered = text.lower()
    if not _UNIT.fullmatch(lowered):
        raise InvalidCredential("a unit is 1 to 32 letters, digits, dots, dashes or underscores")
    return lowered


def normalize_mint_url(text: str) -> str:
    """A mint's URL without trailing slashes, scheme and host in lower case.

    Two spellings of one mint must compare equal, or its proofs would be refused as foreign. Raises
    InvalidCredential for anything but a plain http or https URL without credentials or query.
    """
    if len(text) > _MINT_URL_MAX_CHARS or not text.isascii() or not text.isprintable():
        raise InvalidCredential("the mint URL is too long or has characters that a URL cannot have")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InvalidCredential("the mint URL cannot be read") from None
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host or " " in text:
        raise InvalidCredential("the mint URL must be an http or https URL with a host")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise InvalidCredential("the mint URL must not carry a login, a query or a fragment")
    address = f"[{host}]" if ":" in host else host
    address += f":{port}" if port is not None else ""
    return f"{parts.scheme}://{address}{parts.path.rstrip('/')}"
