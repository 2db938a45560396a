"""Accounts on EVM chains as DIDs: `did:pkh:eip155:<chain>:0x…` (CAIP-10), in lower case."""

from __future__ import annotations

import re

from farebox.errors import InvalidCredential

_DID = re.compile(r"did:pkh:eip155:([0-9]{1,20}):(0x[0-9a-fA-F]{40})")


def account_did(chain_id: int, address: str) -> str:
    """The DID of an address."""
    return f"did:pkh:eip155:{chain_id}:{address.lower()}"


def did_address(did: str, chain_id: int) -> str:
    """The address in a DID of this chain, in lower case. Raises InvalidCredential."""
    match = _DID.fullmatch(did)
    if match is None or int(match[1]) != chain_id:
        raise InvalidCredential(f"the DID names no account of chain {chain_id}: did:pkh:eip155:…")
    return match[2].lower()
