"""Our contracts: Solidity sources, and what they compile to, as the node and the chain take it.

`artifacts.json` is made from the sources by the compiler that the tests pin; a test proves it. So
is `abis.json`, for those who call a contract of ours with tools of theirs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from eth_abi.abi import decode, encode
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

ARTIFACTS = Path(__file__).with_name("artifacts.json")
ABIS = ARTIFACTS.with_name("abis.json")
#: Puts a contract at an address that follows from its code alone; there on most chains.
#: https://github.com/Arachnid/deterministic-deployment-proxy
DEPLOYER = "0x4e59b44847b379578588920cA78FbF26c0B4956C"
_SALT = bytes(32)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A compiled contract: what creates it, and what then lies on the chain, as 0x… text."""

    creation: str
    runtime: str

    @property
    def address(self) -> str:
        """Where DEPLOYER puts it, on every chain (EIP-1014)."""
        code_hash = keccak(bytes.fromhex(self.creation[2:]))
        packed = b"\xff" + bytes.fromhex(DEPLOYER[2:]) + _SALT + code_hash
        return to_checksum_address(keccak(packed)[12:])

    @property
    def deployment(self) -> str:
        """What DEPLOYER must be sent."""
        return f"0x{_SALT.hex()}{self.creation[2:]}"


@cache
def artifact(name: str) -> Artifact:
    """One of our contracts by its name."""
    return Artifact(**json.loads(ARTIFACTS.read_text())[name])


def calldata(signature: str, *arguments: object) -> str:
    """The input of a call such as `transfer(address,uint256)`, as 0x… text."""
    selector = keccak(text=signature)[:4]
    return f"0x{(selector + encode(_types(signature), arguments)).hex()}"


def answered(types: Sequence[str], raw: bytes) -> tuple[int, ...]:
    """The numbers that a call answered with. Raises ValueError for an answer that is too short."""
    if len(raw) < 32 * len(types):
        raise ValueError("the contract has answered with less than was asked for")
    return tuple(decode(types, raw))


def topic(signature: str) -> str:
    """The first topic of an event, as 0x… text."""
    return f"0x{keccak(text=signature).hex()}"


def _types(signature: str) -> list[str]:
    inner = signature[signature.index("(") + 1 : -1]
    return inner.split(",") if inner else []
