"""The channel contract as bytes: calls of `FareboxChannels.sol`, and its answers.

Amounts are base units of the token, addresses 0x… text of lower case.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_utils.crypto import keccak

from farebox.errors import RailUnavailable
from farebox.wire.subrav.model import SignedSubRAV

#: The token of a channel that is backed by ether.
ETHER = "0x" + "0" * 40
#: How long a payee may claim after its payer has asked to close, in seconds.
CHALLENGE_S = 86_400

_VOUCHER = "(bytes32,uint64,string,uint256,uint64,bytes32,bytes32)"
_OPEN = ("address", "address", "uint256", "string", "address")
_CHANNEL = ("address", "uint64", "uint8", "address", "uint64", "address", "uint128")
_SUB_CHANNEL = ("address", "uint128", "uint64", "uint64")


def _selector(signature: str) -> bytes:
    return keccak(text=signature)[:4]


class ChainStatus(enum.IntEnum):
    """A channel's status as the contract has it."""

    NONE = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3


@dataclass(frozen=True, slots=True)
class ChainChannel:
    """A channel as the contract has it. `closes_at`: UTC seconds, while it closes."""

    payer: str
    epoch: int
    status: ChainStatus
    payee: str
    closes_at: int
    token: str
    collateral: int


@dataclass(frozen=True, slots=True)
class ChainSubChannel:
    """A key, and what was claimed with it in the channel's present epoch."""

    key: str
    claimed: int
    nonce: int
    epoch: int


def channel_id(chain_id: int, contract: str, payer: str, payee: str, token: str) -> str:
    """The one channel between these, on this contract of this chain."""
    types = ("uint256", "address", "address", "address", "address")
    return "0x" + keccak(encode(types, [chain_id, contract, payer, payee, token])).hex()


# ── calls ────────────────────────────────────────────────────────────────────────────────────────


def open_call(payee: str, token: str, amount: int, fragment: str, key: str) -> str:
    """Open a channel or top it up, and let a key sign."""
    return _call(f"open({','.join(_OPEN)})", _OPEN, payee, token, amount, fragment, key)


def authorize_call(channel: str, fragment: str, key: str) -> str:
    """Let one more key sign."""
    types = ("bytes32", "string", "address")
    return _call(f"authorize({','.join(types)})", types, _bytes(channel), fragment, key)


def request_close_call(channel: str) -> str:
    """Begin the challenge period."""
    return _call("requestClose(bytes32)", ("bytes32",), _bytes(channel))


def close_call(channel: str, last: Sequence[SignedSubRAV]) -> str:
    """Claim the last vouchers and give back the rest."""
    types = ("bytes32", f"{_VOUCHER}[]")
    arguments = (_bytes(channel), [_voucher(one) for one in last])
    return _call(f"close({','.join(types)})", types, *arguments)


def claim_call(vouchers: Sequence[SignedSubRAV]) -> str:
    """Claim vouchers, of whatever channels."""
    types = (f"{_VOUCHER}[]",)
    return _call(f"claim({types[0]})", types, [_voucher(one) for one in vouchers])


def channels_call(channel: str) -> str:
    """Ask for a channel."""
    return _call("channels(bytes32)", ("bytes32",), _bytes(channel))


def sub_channel_call(channel: str, fragment: str) -> str:
    """Ask for a sub-channel."""
    types = ("bytes32", "string")
    return _call("subChannel(bytes32,string)", types, _bytes(channel), fragment)


def approve_call(spender: str, amount: int) -> str:
    """Let a contract take so much of a token (ERC-20)."""
    return _call("approve(address,uint256)", ("address", "uint256"), spender, amount)


def allowance_call(owner: str, spender: str) -> str:
    """Ask what a contract may take of a token (ERC-20)."""
    return _call("allowance(address,address)", ("address", "address"), owner, spender)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def read_channel(raw: bytes) -> ChainChannel | None:
    """A channel; None: it was never opened. Raises RailUnavailable for what is no answer."""
    payer, epoch, status, payee, closes_at, token, collateral = _answer(_CHANNEL, raw)
    if status not in iter(ChainStatus):
        raise RailUnavailable("the contract tells of a status that is not known")
    if status == ChainStatus.NONE:
        return None
    return ChainChannel(payer, epoch, ChainStatus(status), payee, closes_at, token, collateral)


def read_sub_channel(raw: bytes) -> ChainSubChannel | None:
    """A sub-channel; None: its key may not sign. Raises RailUnavailable."""
    key, claimed, nonce, epoch = _answer(_SUB_CHANNEL, raw)
    return None if key == ETHER else ChainSubChannel(key, claimed, nonce, epoch)


def read_number(raw: bytes) -> int:
    """One number. Raises RailUnavailable."""
    number: int = _answer(("uint256",), raw)[0]
    return number


def _answer(types: Sequence[str], raw: bytes) -> tuple[Any, ...]:
    try:
        told: tuple[Any, ...] = decode(types, raw)
    except DecodingError:
        raise RailUnavailable("there is no channel contract at this address") from None
    return told


def _call(signature: str, types: Sequence[str], *arguments: object) -> str:
    return "0x" + (_selector(signature) + encode(types, arguments)).hex()


def _voucher(signed: SignedSubRAV) -> tuple[object, ...]:
    sub_rav = signed.sub_rav
    return (
        _bytes(sub_rav.channel_id),
        sub_rav.channel_epoch,
        sub_rav.vm_id_fragment,
        sub_rav.accumulated_amount,
        sub_rav.nonce,
        signed.signature[:32],
        signed.signature[32:],
    )


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])
