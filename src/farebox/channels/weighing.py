"""Weighs vouchers against a sub-channel. Decides only: no clock, store or network.

The signature is checked before, against the key that the chain authorised; here a voucher is
compared with what was proposed, in full. Where payment-kit 0.7.0 takes less (another amount, epoch
or chain, a nonce that jumps), this refuses: who signs another story than the one proposed has
tampered with it or stands on another state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from farebox.channels.chain import ChannelInfo, ChannelStatus
from farebox.channels.model import SubChannel, is_voucher_of
from farebox.wire.subrav.model import VERSION, ErrorCode, SubRAV


@dataclass(frozen=True, slots=True)
class Accepted:
    """The outstanding proposal is paid."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """The voucher was accepted before, and a later proposal is outstanding."""


@dataclass(frozen=True, slots=True)
class Clear:
    """Nothing is owed, and nothing new was paid."""


@dataclass(frozen=True, slots=True)
class Owing:
    """A proposal is outstanding, and nothing was paid."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The voucher is no good."""

    code: ErrorCode
    message: str
    details: Mapping[str, str] | None = None


Verdict = Accepted | Replayed | Clear | Owing | Rejected


def is_handshake(sub_rav: SubRAV) -> bool:
    """Whether a voucher promises nothing: it only shows who holds the key."""
    return sub_rav.nonce == 0 and sub_rav.accumulated_amount == 0


def check_channel(channel: ChannelInfo | None, payee_did: str) -> Rejected | None:
    """Why a channel may not be paid on; None: it may."""
    if channel is None or channel.payee_did != payee_did:
        return Rejected(ErrorCode.CHANNEL_NOT_FOUND, "There is no such channel that pays us.")
    if channel.status is not ChannelStatus.ACTIVE:
        return Rejected(
            ErrorCode.CHANNEL_CLOSED, f"The channel is {channel.status}; open it again to pay."
        )
    return None


def check_terms(sub_rav: SubRAV, channel: ChannelInfo, chain_id: int) -> Rejected | None:
    """Why a SubRAV is of another channel, chain or epoch than it should be; None: it is not."""
    if sub_rav.version != VERSION or sub_rav.chain_id != chain_id:
        return Rejected(
            ErrorCode.TAMPERED_SUBRAV,
            f"The voucher must be of version {VERSION} and of chain {chain_id}.",
        )
    if sub_rav.channel_id != channel.channel_id:
        return Rejected(ErrorCode.TAMPERED_SUBRAV, "The voucher is of another channel.")
    if sub_rav.channel_epoch != channel.epoch:
        return Rejected(
            ErrorCode.EPOCH_MISMATCH,
            f"The voucher is of epoch {sub_rav.channel_epoch}, the channel in {channel.epoch}.",
        )
    return None


def weigh(row: SubChannel | None, voucher: SubRAV | None, chain_id: int) -> Verdict:
    """What a voucher whose signature and terms are good does to a sub-channel, or its absence."""
    pending = None if row is None else row.pending
    if voucher is None or is_handshake(voucher):
        return Clear() if pending is None else Owing()
    if row is not None and is_voucher_of(voucher, row, pending, chain_id):
        return Accepted()
    last = None if row is None else row.accepted
    if row is not None and is_voucher_of(voucher, row, last, chain_id):
        return Clear() if pending is None else Replayed()
    known = {each.nonce for each in (pending, last) if each}
    if voucher.nonce in known:
        return Rejected(
            ErrorCode.TAMPERED_SUBRAV, "The voucher differs from what was proposed; sign that."
        )
    if pending is not None:
        return Rejected(
            ErrorCode.RAV_CONFLICT,
            f"The voucher has nonce {voucher.nonce}, nonce {pending.nonce} was proposed.",
        )
    return Rejected(ErrorCode.UNKNOWN_SUBRAV, "No such voucher was proposed.")
