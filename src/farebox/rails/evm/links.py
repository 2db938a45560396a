"""Addresses as people and wallets write them: bare, CAIP-10, and EIP-681 links, which may ask for
an amount, and of a token."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from eth_utils.address import is_checksum_address, to_checksum_address

from farebox.errors import InvalidCredential

_ADDRESS = re.compile("0x[0-9a-fA-F]{40}")
_LINK = re.compile(
    r"ethereum:(?:pay-)?(?P<target>[^@/?]+)(?:@(?P<chain>[^/?]*))?(?:/(?P<call>[^?]*))?(?:\?(?P<query>.*))?"
)
#: 20, 2.014e18: a whole number in the end (EIP-681).
_NUMBER = re.compile(r"([0-9]{1,78})(?:\.([0-9]{1,78}))?(?:[eE]([0-9]{1,2}))?")
_FIELDS_MAX = 16


@dataclass(frozen=True, slots=True)
class Link:
    """Whom it asks to pay. `token` is the contract that it names, `amount` in smallest units."""

    to: str
    token: str = ""
    amount: int | None = None


def read_link(text: str, chain_id: int) -> Link:
    """An address out of itself, EIP-681 (`ethereum:0x…@1?value=5`) or CAIP-10 (`eip155:1:0x…`).

    One that is mixed in case must have the right checksum (EIP-55), a chain that is named must be
    ours. Raises InvalidCredential.
    """
    bare = text.strip()
    if bare.startswith("eip155:"):
        _, named, rest = (*bare.split(":", 2), "", "")[:3]
        _check_chain(named, chain_id)
        return Link(_address(rest))
    if not bare.startswith("ethereum:"):
        return Link(_address(bare))
    found = _LINK.fullmatch(bare)
    if found is None:
        raise InvalidCredential("the link cannot be read: ethereum:0x…")
    if found["chain"] is not None:
        _check_chain(found["chain"], chain_id)
    try:
        asked = dict(parse_qsl(found["query"] or "", max_num_fields=_FIELDS_MAX))
    except ValueError:
        raise InvalidCredential("the link asks for too much") from None
    target = _address(found["target"])
    if found["call"] is None:
        return Link(target, amount=_number(asked.get("value")))
    if found["call"] != "transfer" or "address" not in asked:
        raise InvalidCredential(
            "the link calls a contract; only a token's `transfer` is understood"
        )
    return Link(_address(asked["address"]), target, _number(asked.get("uint256")))


def read_address(text: str, chain_id: int) -> str:
    """Whom a text asks to pay, as `read_link`. Raises InvalidCredential."""
    return read_link(text, chain_id).to


def payment_link(link: Link, chain_id: int) -> str:
    """What a wallet opens (EIP-681); amounts in the smallest unit."""
    if link.token:
        asked = "" if link.amount is None else f"&uint256={link.amount}"
        return f"ethereum:{link.token}@{chain_id}/transfer?address={link.to}{asked}"
    asked = "" if link.amount is None else f"?value={link.amount}"
    return f"ethereum:{link.to}@{chain_id}{asked}"


def _check_chain(named: str, chain_id: int) -> None:
    if named != str(chain_id):
        raise InvalidCredential(f"the address is for chain {named[:20]}, this is {chain_id}")


def _address(text: str) -> str:
    if not _ADDRESS.fullmatch(text):
        raise InvalidCredential("an address is 0x and 40 hexadecimal digits")
    digits = text[2:]
    if digits not in (digits.lower(), digits.upper()) and not is_checksum_address(text):
        raise InvalidCredential("the address has a wrong checksum (EIP-55): mistyped?")
    return to_checksum_address(text)


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    found = _NUMBER.fullmatch(text)
    whole, part = (found[1], found[2] or "") if found else ("", "")
    scale = int(found[3] or 0) if found else 0
    if not whole or len(part) > scale:
        raise InvalidCredential("the link asks for an amount that is none")
    return int(whole + part) * int(10 ** (scale - len(part)))
